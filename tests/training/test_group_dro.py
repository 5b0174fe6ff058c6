"""GroupDRO: the robust loss against hand-computed cases, one device against several, and in training."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark, TransformedDataset, collate, load_benchmark
from ifam.errors import IfamError
from ifam.models.registry import METHODS, build
from ifam.training.batches import Batches
from ifam.training.fit import check, fit, seed_everything
from ifam.training.group_dro import group_dro
from ifam.training.module import Training, prepare

LOSSES = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.double)
GROUPS = torch.tensor([0, 0, 2, 2])
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.double)


def test_a_case_by_hand():
    loss, weights = group_dro(LOSSES, GROUPS, WEIGHTS, 0.1)
    raised = [0.5 * math.exp(0.1 * 2.0), 0.2, 0.3 * math.exp(0.1 * 1.25)]
    expected = [value / sum(raised) for value in raised]
    assert weights.tolist() == pytest.approx(expected)
    assert float(loss) == pytest.approx(expected[0] * 2.0 + expected[2] * 1.25)


def test_a_batch_of_one_group_moves_the_weights_too():
    """As algorithm 1 has it: batches of one image would teach nothing otherwise."""
    _, weights = group_dro(LOSSES[:1], GROUPS[:1], WEIGHTS, 0.1)
    raised = 0.5 * math.exp(0.1)
    assert weights.tolist() == pytest.approx([raised / (raised + 0.5), 0.2 / (raised + 0.5), 0.3 / (raised + 0.5)])


def test_a_step_size_of_zero_leaves_the_weights():
    loss, weights = group_dro(LOSSES, GROUPS, WEIGHTS, 0.0)
    assert torch.allclose(weights, WEIGHTS)
    assert float(loss) == pytest.approx(0.5 * 2.0 + 0.3 * 1.25)


def test_with_one_group_it_is_the_ordinary_cross_entropy():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss, weights = group_dro(losses, torch.zeros(6, dtype=torch.long), torch.ones(1), 0.5)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    assert weights.tolist() == pytest.approx([1.0])


def test_the_weight_of_the_worst_group_grows_and_that_of_the_best_falls():
    weights = torch.full((3,), 1 / 3)
    for _ in range(50):
        _, weights = group_dro(torch.tensor([0.1, 2.0, 1.0]), torch.tensor([0, 1, 2]), weights, 0.1)
    assert weights[1] > 0.9
    assert weights[0] < weights[2] < 0.1


def test_the_gradient_is_that_of_the_weighted_mean_losses():
    """The weights are constants of the step: compare with finite differences at fixed weights."""
    losses = LOSSES.clone().requires_grad_()
    loss, updated = group_dro(losses, GROUPS, WEIGHTS, 0.3)
    loss.backward()

    def fixed(values):
        return updated[0] * values[:2].mean() + updated[2] * values[2:].mean()

    step = 1e-6
    for i in range(4):
        moved = torch.zeros(4, dtype=torch.double)
        moved[i] = step
        slope = (fixed(LOSSES + moved) - fixed(LOSSES - moved)) / (2 * step)
        assert float(losses.grad[i]) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_two_devices_with_a_share_each_are_one_with_the_whole_batch(cut):
    """The mean of the devices' gradients, and the weights on each of them, are those of the joint batch."""
    whole = LOSSES.clone().requires_grad_()
    loss, weights = group_dro(whole, GROUPS, WEIGHTS, 0.7)
    loss.backward()
    sums = torch.zeros(2, 3, dtype=torch.double)
    sums[0].index_add_(0, GROUPS, LOSSES)
    sums[1].index_add_(0, GROUPS, torch.ones(4, dtype=torch.double))
    gradients, shares = [], []
    for mine in (slice(None, cut), slice(cut, None)):
        part = LOSSES[mine].clone().requires_grad_()
        share, own = group_dro(part, GROUPS[mine], WEIGHTS, 0.7, total=lambda own: 2 * own if own.ndim == 0 else sums)
        share.backward()
        gradients.append(part.grad / 2)
        shares.append(float(share.detach()) / 2)
        assert torch.equal(own, weights)
    torch.testing.assert_close(torch.cat(gradients), whole.grad)
    assert sum(shares) == pytest.approx(float(loss.detach()))


def test_huge_losses_and_vanished_weights_stay_finite():
    loss, weights = group_dro(torch.tensor([1e6, 0.0]), torch.tensor([0, 1]), torch.tensor([0.5, 0.5]), 1.0)
    assert weights.tolist() == [1.0, 0.0]
    assert float(loss) == 1e6
    loss, weights = group_dro(torch.tensor([1.0, 1.0]), torch.tensor([1, 1]), weights, 1.0)
    assert torch.isfinite(loss)
    assert torch.isfinite(weights).all()


def test_half_precision_losses_are_summed_in_float32():
    losses = torch.full((3000,), 1.001, dtype=torch.bfloat16)
    loss, weights = group_dro(losses, torch.zeros(3000, dtype=torch.long), torch.ones(1), 0.1)
    assert loss.dtype == weights.dtype == torch.float32
    assert float(loss) == pytest.approx(float(losses[0]))


# --- several processes -----------------------------------------------------------------------------------

PROCESS = """
import json, sys, torch
from torch import distributed
from ifam.training.group_dro import group_dro
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mine = slice(None, 1) if rank == 0 else slice(1, None)
losses = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.double)[mine].requires_grad_()
weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.double)
loss, weights = group_dro(losses, torch.tensor([0, 0, 2, 2])[mine], weights, 0.7)
loss.backward()
print(json.dumps([(losses.grad / 2).tolist(), weights.tolist()]))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_real_processes_agree_with_one(tmp_path):
    words = [sys.executable, "-W", "ignore", "-c", PROCESS]
    started = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    # The library that connects the processes may print lines of its own before ours.
    said = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]
    whole = LOSSES.clone().requires_grad_()
    loss, weights = group_dro(whole, GROUPS, WEIGHTS, 0.7)
    loss.backward()
    gradients = [value for own, _ in said for value in own]
    assert gradients == pytest.approx(whole.grad.tolist())
    assert [own for _, own in said] == [pytest.approx(weights.tolist())] * 2


# --- in training -----------------------------------------------------------------------------------------

MODEL = ModelConfig("ifam_tiny", image_size=40, num_parts=2, backbone_kwargs={"depth": 1, "embed_dim": 32})
RATES = {"prototype_lr_factor": 1.0, "modulation_lr_factor": 1.0, "head_lr_factor": 1.0}
TRAIN = TrainConfig(1, 16, 1e-3, **RATES, monitor="accuracy", accelerator="cpu", group_dro=0.5)


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 32, "num_val": 8, "num_test": 8, "correlation": 0.75})


def make(name):
    torch.manual_seed(0)
    return build(name, MODEL, pretrained=False)


def a_batch(benchmark, model):
    prepared = TransformedDataset(benchmark.split("train"), model.image_size, model.normalization)
    return collate([prepared[i] for i in range(16)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plain_vit", "ifam", "selector", "late_mask", "given_mask", "trained_crops", "frozen_crops"]
)
def test_only_the_answers_term_is_another(birds, name):
    model = make(name)
    batch = a_batch(birds, model)
    terms = {}
    for step in (None, 0.5):
        prepare(model, replace(TRAIN, group_dro=step))
        module = Training(model, replace(TRAIN, group_dro=step), LossConfig(), birds, 32).train()
        seed_everything(1)
        terms[step] = module.terms(batch)
    answer = "selector_classification" if name == "selector" else "classification"
    assert terms[None].keys() == terms[0.5].keys()
    for key in terms[None]:
        assert torch.equal(terms[None][key], terms[0.5][key]) == (key != answer), key


@pytest.mark.slow
def test_the_term_is_the_robust_loss_of_the_answer_and_moves_the_weights(birds):
    model = make("plain_vit")
    batch = a_batch(birds, model)
    prepare(model, TRAIN)
    module = Training(model, TRAIN, LossConfig(), birds, 32)
    losses = F.cross_entropy(model(batch.images).logits, batch.labels, reduction="none")
    expected, weights = group_dro(losses, batch.groups, torch.full((4,), 0.25), 0.5)
    torch.testing.assert_close(module.terms(batch)["classification"], expected)
    torch.testing.assert_close(module.group_weights, weights)
    assert not torch.equal(weights, torch.full((4,), 0.25))


@pytest.mark.slow
def test_the_weights_are_saved_with_the_checkpoint(birds, tmp_path):
    fit(make("ifam"), birds, TRAIN, folder=tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]["group_weights"]
    assert float(saved.sum()) == pytest.approx(1.0)
    assert len(set(saved.tolist())) == 4


def test_every_group_is_drawn_equally_often(birds):
    groups = birds.groups("train")
    assert groups.bincount().tolist() == [12, 4, 4, 12]
    settings = {step: replace(TRAIN, group_dro=step) for step in (None, 0.0)}
    loaders = {step: Batches(make("plain_vit"), birds, one).train_dataloader() for step, one in settings.items()}
    drawn = []
    for epoch in range(100):
        loaders[0.0].sampler.set_epoch(epoch)
        drawn += [index for _, index in loaders[0.0].sampler]
    assert groups[drawn].bincount().tolist() == pytest.approx([800] * 4, rel=0.12)
    assert sorted(index for _, index in loaders[None].sampler) == list(range(32))


@pytest.mark.slow
def test_it_is_a_method_and_an_option_of_every_other(birds):
    assert METHODS["group_dro"].train == {"group_dro": 0.01}
    assert make("group_dro").method == "group_dro"
    result = fit(make("frozen_predictor"), birds, replace(TRAIN, group_dro=0.0, predictor_tuning="none"))
    assert result.history[0]["train/classification"] > 0


@pytest.mark.parametrize("step", [-0.1, math.nan, math.inf])
def test_an_impossible_step_size_is_named(birds, step):
    with pytest.raises(IfamError, match=r"train\.group_dro is"):
        check(birds, replace(TRAIN, group_dro=step))


class Unknown:
    """Examples without groups."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"image": torch.zeros(3, 40, 40), "label": index % 2}


def test_where_no_groups_are_known_the_classes_are_the_groups():
    names = ("cat", "dog")
    pets = Benchmark("pets", {"train": Unknown(), "val": Unknown()}, names, names)
    assert pets.groups("train").tolist() == [0, 1] * 10
    check(pets, TRAIN)
    places = Benchmark("places", {"train": Unknown(), "val": Unknown()}, names, ("here", "there"))
    with pytest.raises(IfamError, match="places has groups, but image 0 of its split 'train' has none; give"):
        check(places, TRAIN)
