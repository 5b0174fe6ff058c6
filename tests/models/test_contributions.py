"""What each part contributes: Shapley's axioms, on games and models whose answer is known."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ifam
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.contributions import explain_parts, settle, shapley_values, subsets
from ifam.models.interventions import KeepParts
from ifam.models.part_sum import add_up
from ifam.models.predictor import Predictor
from ifam.models.registry import build


class Counting(Predictor):
    """A predictor that answers with a function of how many patches of each kind of pixel it sees.

    Args:
        predictor: One to take backbone and weights from.
        answer: From the number of visible patches whose first pixel is 1, 2 and 3, [R, 3], to logits [R, 5].
    """

    def __init__(self, predictor, answer):
        super().__init__(predictor.backbone, 5)
        self.load_state_dict(predictor.state_dict())
        self.answer = answer

    def logits_of(self, images, visible, gate=None, sources=None):
        kinds = images[:, 0, ::16, ::16].flatten(1).round()
        kinds = kinds if sources is None else kinds[sources]
        counts = torch.stack([((kinds == kind) & visible).sum(dim=1) for kind in (1, 2, 3)], dim=1).float()
        return self.answer(counts)


# Parts 0, 1 and 2 in three columns, and a column of background; an image without part 1; one without any.
PARTS = torch.tensor([[0, 1, 2, 3], [0, 3, 2, 2], [3, 3, 3, 3]])[:, None].expand(3, 4, 4)


@pytest.fixture
def make_game(make_model):
    """A model whose parts are given by the pixels, and whose predictor is a function of what it counts of each."""

    def make(answer):
        model = make_model()
        model.predictor = Counting(model.predictor, answer)
        select = model.selector.forward
        model.select = lambda images: ifam.UseParts(PARTS[: len(images)])(select(images))
        images = (1.0 + PARTS)[:, None].repeat_interleave(16, dim=2).repeat_interleave(16, dim=3).expand(-1, 3, -1, -1)
        return model, images

    return make


def by_orders(answer, counts):
    """Shapley values by their definition: the mean over all orders of what a part changes when it is added."""
    found = torch.zeros(3, 5)
    for order in permutations(range(3)):
        shown = torch.zeros(1, 3)
        for part in order:
            before = answer(shown)
            shown = shown.clone()
            shown[0, part] = counts[part]
            found[part] += (answer(shown) - before)[0] / 6
    return found


GAMES = {
    "additive": lambda counts: counts @ torch.arange(15.0).view(3, 5),
    "any two": lambda counts: ((counts > 0).sum(dim=1, keepdim=True) >= 2) * torch.arange(5.0),
    "product": lambda counts: (counts[:, :1] + 1) * (counts[:, 1:2] + 2) * (counts[:, 2:] + 3) * torch.arange(5.0) / 7,
}


@pytest.mark.parametrize("game", GAMES)
def test_the_values_are_those_of_the_definition(make_game, game):
    answer = GAMES[game]
    model, images = make_game(answer)
    found = explain_parts(model, images)
    for counts, values in zip(torch.tensor([[4.0, 4, 4], [4, 0, 8], [0, 0, 0]]), found.contributions, strict=True):
        torch.testing.assert_close(values.float(), by_orders(answer, counts), atol=1e-4, rtol=1e-6)
    assert torch.equal(found.prior, answer(torch.zeros(1, 3))[0])
    assert found.present.tolist() == [[True] * 3, [True, False, True], [False] * 3]


def test_efficiency_to_the_last_bit(make_model):
    """On networks: prior and parts, added up in order and rounded to float32, are the model's own logits."""
    for fields in ({}, {"num_parts": 5}, {"mask_resolution": 4}, {"selector_image_size": 80}, {"aggregation": "sum"}):
        model = make_model(**fields)
        images = torch.randn(9, 3, 64, 64)
        found = explain_parts(model, images, batch_size=3)
        assert torch.equal(found.total(), found.logits)
        with torch.no_grad():
            answers = torch.cat([model(batch).logits for batch in images.split(3)])
        shown = found.present.any(dim=1)
        assert torch.equal(found.logits[shown], answers[shown])
        assert found.present.sum(dim=1).max() > 1


def test_symmetry(make_game):
    """Parts that may stand for one another contribute the same, but for the last bits."""
    model, images = make_game(GAMES["any two"])
    values = explain_parts(model, images[:1]).contributions[0]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[1], values[2])


def test_a_dummy_contributes_exactly_nothing(make_game):
    model, images = make_game(lambda counts: counts[:, [0]] * counts[:, [2]] * torch.arange(5.0) / 3)
    values = explain_parts(model, images).contributions
    # Part 1 is seen in the first image and changes nothing; in the others it is not there.
    assert not values[:, 1].any()
    assert values[:2, 0, 1:].all()


@torch.no_grad()
def test_of_a_sum_the_values_are_the_terms(make_model, images):
    model = make_model(aggregation="sum")
    found = explain_parts(model, images)
    out = model(images)
    assert found.exact
    assert torch.equal(found.contributions, out.part_contributions)
    assert torch.equal(found.prior, out.prior)
    # Shapley values of the same function, from its answers to subsets.
    values = torch.stack(
        [model(images, [KeepParts([k for k in range(3) if s >> k & 1])]).logits.double() for s in range(8)], dim=1
    )
    torch.testing.assert_close(shapley_values(values).float(), out.part_contributions, atol=1e-5, rtol=0)


def test_mode_and_weights_stay_as_they_were(tiny_model, images):
    tiny_model.train()
    torch.manual_seed(0)
    first = explain_parts(tiny_model, images)
    assert tiny_model.training
    assert torch.equal(explain_parts(tiny_model, images).contributions, first.contributions)


def test_no_images(tiny_model, images):
    found = explain_parts(tiny_model, images[:0])
    assert found.contributions.shape == (0, 3, 5)
    assert torch.equal(found.total(), found.logits)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_the_rest_of_rounding_is_settled(num_parts, seed, scale):
    """Whatever the terms, their sum in order is the logit to the last bit of float32, and absent parts stay 0."""
    generator = torch.Generator().manual_seed(seed)
    logits, prior = (10**scale * torch.randn(n, 3, generator=generator) for n in (4, 1))
    present = torch.rand(4, num_parts, generator=generator) < 0.6
    present[:, 0] = True
    rough = torch.randn(4, num_parts, 3, generator=generator, dtype=torch.float64) * 10**scale * present[:, :, None]
    rough[:, 0] += logits.double() - prior.double() - rough.sum(dim=1)
    settled = settle(rough, prior[0], logits, present)
    assert torch.equal(add_up(prior[0], settled).float(), logits)
    assert not settled[~present].any()
    torch.testing.assert_close(settled, rough, rtol=0, atol=1e-12 * 10**scale)


def test_all_subsets_once():
    assert len({tuple(row) for row in subsets(4).tolist()}) == 16
    assert subsets(3)[5].tolist() == [True, False, True]


def test_text(make_game):
    model, images = make_game(GAMES["additive"])
    assert repr(explain_parts(model, images)) == (
        "Explanation of 3 images by Shapley values; logit of the answer = prior + parts:\n"
        "  image 0, class 4: 108.000 = 0.000 +16.000 (part 0) +36.000 (part 1) +56.000 (part 2)\n"
        "  image 1, class 4: 128.000 = 0.000 +16.000 (part 0) +112.000 (part 2)\n"
        "  image 2, class 0: 0.000 = 0.000 (nothing is visible)"
    )


@pytest.mark.parametrize("method", ["plain_vit", "selector", "late_mask", "soft_mask", "given_mask"])
def test_methods_whose_answer_does_not_rest_on_parts_refuse(method):
    model = build(method, ModelConfig("ifam_tiny", image_size=80), pretrained=False)
    with pytest.raises(IfamError, match="does not answer from its visible parts alone"):
        explain_parts(model, torch.zeros(1, 3, 80, 80))


def test_too_many_parts(make_model, images):
    with pytest.raises(IfamError, match=r"Exact Shapley values of 11 parts need 2\^11 answers"):
        explain_parts(make_model(num_parts=11), images)
    assert explain_parts(make_model(num_parts=11, aggregation="sum"), images).contributions.shape == (4, 11, 5)
