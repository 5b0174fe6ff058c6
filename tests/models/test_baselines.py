"""What the method is compared with: each is trained, kept and judged like it, and does what its docstring says."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from conftest import wake
from ifam.backbones.backbone import Backbone
from ifam.checkpoints import hub
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark, TransformedDataset, collate, load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate
from ifam.models import registry
from ifam.models.baselines import AttentivePool, LateMask, SelectorAlone
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, UseMask
from ifam.models.masking import patch_mask
from ifam.models.registry import METHODS
from ifam.models.soft_mask import SoftMaskIFAM
from ifam.training import presets
from ifam.training.fit import check, fit, seed_everything
from ifam.training.module import Training, prepare
from ifam.training.optimization import parameter_groups
from ifam.types import Batch

# 4 x 4 patches of 8 pixels.
MODEL = ModelConfig("ifam_tiny", image_size=32, num_parts=2, backbone_kwargs={"depth": 2, "embed_dim": 32})
TRAIN = TrainConfig(
    epochs=1,
    batch_size=8,
    base_lr=1e-3,
    prototype_lr_factor=40.0,
    modulation_lr_factor=20.0,
    head_lr_factor=2.0,
    accelerator="cpu",
)
WITH_PARTS = ("ifam", "frozen_predictor", "selector", "late_mask", "soft_mask")
WHOLE_IMAGE = ("plain_vit", "plain_vit_mean", "plain_vit_attentive", "attentive_probe")


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 8})


@pytest.fixture(scope="module")
def batch(birds):
    model = make("plain_vit")
    examples = birds.split("test")
    prepared = TransformedDataset(examples, model.image_size, model.normalization)
    batch = model.prepare_batch(examples)
    assert batch.images.equal(collate([prepared[i] for i in range(8)]).images)
    assert model.prepare_batch(examples, 3).labels.equal(batch.labels[:3])
    return batch


def make(name, seed=8, **fields):
    """A tiny model of a method, with random weights, in evaluation mode."""
    model = registry.build(name, replace(MODEL, **fields), pretrained=False)
    # Whatever was drawn to build it: selectors of all methods get the same weights.
    seed_everything(seed)
    return wake(model).eval()


def logits(model, batch):
    with torch.no_grad():
        out = model.predict_batch(batch)
    return out.logits


def with_images(batch, images):
    return Batch(images, batch.labels, batch.groups, batch.masks)


# --- all of them -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_training_moves_what_is_tuned_and_nothing_else(name, birds):
    # From weights as they are made, not from those of `wake`: some of them are far from anything sensible.
    seed_everything(0)
    model = registry.build(name, MODEL, pretrained=False)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    train = presets.apply_method_defaults(name, replace(TRAIN, selector_tuning="none"))
    result = fit(model, birds, train)
    moved = {key for key, value in model.named_parameters() if not torch.equal(before[key], value)}
    frozen = {key for key in before if key.startswith("selector.backbone.")}
    if train.predictor_tuning == "none":
        frozen |= {key for key in before if key.startswith("predictor.backbone.")}
    assert moved.isdisjoint(frozen)
    assert {key.split(".")[0] for key in moved} == {key.split(".")[0] for key in before.keys() - frozen}
    assert any(key.startswith("predictor.backbone.vit.blocks.") for key in moved) == (
        name not in ("selector", "attentive_probe", "frozen_predictor", "frozen_crops")
    )
    assert 0 < result.history[0]["train/total"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_repeated_steps_lower_the_loss(name, birds, batch):
    seed_everything(0)
    model = registry.build(name, replace(MODEL, gumbel_noise=False, part_dropout=0.0, mask_part_dropout=0.0), False)
    config = presets.apply_method_defaults(name, TRAIN)
    prepare(model, config)
    training = Training(model, config, LossConfig(equivariance=0.0), birds, 16)
    weights = {"classification": 1.0, "selector_classification": 1.0}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    seen = []
    for _ in range(8):
        loss = sum(value for term, value in training.terms(batch).items() if term in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert min(seen[-3:]) < 0.95 * seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_saved_model_is_of_the_same_method_and_gives_bit_equal_answers(name, batch, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path, extra={"seed": 3})
    again = hub.load(tmp_path)
    assert type(again) is type(model)
    assert again.method == hub.read(tmp_path).method == name
    assert (hub.read(tmp_path).config, hub.read(tmp_path).extra) == (model.config, {"seed": 3})
    assert not again.training
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("name", METHODS)
def test_the_same_image_gets_the_same_answer(name, batch):
    model = make(name)
    torch.manual_seed(1)
    first = logits(model, batch)
    torch.manual_seed(2)
    assert torch.equal(logits(model, batch), first)
    assert first.shape == (8, 2)
    assert first.std(dim=0).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_last_layer_gives_the_answer(name, batch):
    """Rows of its weight are the classes: a row that is zero makes the logit zero, whatever the image."""
    model = make(name)
    layer = model.last_layer
    with torch.no_grad():
        before = logits(model, batch)
        layer.weight[1].zero_()
    after = logits(model, batch)
    assert layer.weight.shape[0] == 2
    assert torch.equal(after[:, 1], torch.zeros(8))
    assert torch.equal(after[:, 0], before[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_backbone_never_learns_at_the_rate_of_a_head(name):
    model = make(name)
    rates = {"selector_lr_factor": 3.0, "predictor_lr_factor": 5.0}
    config = replace(TRAIN, head_lr_factor=13.0, prototype_lr_factor=13.0, modulation_lr_factor=13.0, **rates)
    backbones = [key for key, module in model.named_modules() if isinstance(module, Backbone)]
    assert backbones
    for group in parameter_groups(model, config):
        for key in group.parameters:
            inside = [name for name in backbones if key.startswith(f"{name}.")]
            assert group.lr_scale == ({"selector": 3.0, "predictor": 5.0}[key.split(".")[0]] if inside else 13.0), key


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_is_judged_by_the_common_evaluation(name, birds, batch):
    model = make(name)
    evaluation = evaluate(model, birds, num_resamples=0)
    assert evaluation.predictor.average == pytest.approx(
        float((logits(model, batch).argmax(1) == batch.labels).double().mean())
    )
    assert (evaluation.mask_iou is not None) == (name in WITH_PARTS)
    assert (evaluation.selector is not None) == (name in WITH_PARTS and name != "selector")
    # Of a mask that hides nothing, nothing is said to be visible.
    assert (evaluation.visible_fraction is not None) == (name in ("ifam", "frozen_predictor"))


def test_an_unknown_method_is_an_error_that_lists_the_methods():
    with pytest.raises(IfamError, match=r"no method 'plane_vit'; choose one of ifam, plain_vit, .*trained_crops"):
        registry.method("plane_vit")


def test_a_former_name_is_an_error_that_gives_the_new_one():
    for use in (registry.method, lambda name: registry.build(name, MODEL, pretrained=False)):
        with pytest.raises(IfamError, match=r"'attention_crops' is called 'trained_crops' now; use that name\.$"):
            use("attention_crops")


def test_settings_that_contradict_the_method_are_refused():
    with pytest.raises(IfamError, match=r"frozen_predictor has train.predictor_tuning = 'none', not 'tokens'"):
        presets.apply_method_defaults("frozen_predictor", replace(TRAIN, predictor_tuning="tokens"))
    assert presets.apply_method_defaults("frozen_predictor", TRAIN) == replace(TRAIN, predictor_tuning="none")
    assert presets.apply_method_defaults("ifam", replace(TRAIN, predictor_tuning="tokens")).predictor_tuning == "tokens"


# --- whole images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE_IMAGE)
def test_plain_models_see_every_patch(name, batch):
    model = make(name)
    before = logits(model, batch)
    for row, column in ((0, 0), (8, 16), (24, 24)):
        images = batch.images.clone()
        images[:, :, row : row + 8, column : column + 8] += 1
        assert (logits(model, with_images(batch, images)) != before).any(dim=1).all()


def test_what_plain_models_read(batch):
    """The class token, the mean of the patches, and one query's mixture of all tokens."""
    models = {name: make(name) for name in WHOLE_IMAGE[:3]}
    for model in models.values():
        model.predictor.load_state_dict(models["plain_vit"].predictor.state_dict())
    predictor = models["plain_vit"].predictor
    with torch.no_grad():
        tokens = predictor.backbone(batch.images)
        pool = models["plain_vit_attentive"].pool
        heads = (8, 4, 8)
        query, key, value = (
            part @ weight.mT + bias
            for part, weight, bias in zip(
                (pool.query.expand(8, 1, -1), tokens, tokens),
                pool.attention.in_proj_weight.chunk(3),
                pool.attention.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        query, key, value = (x.unflatten(2, heads[1:]).transpose(1, 2) for x in (query, key, value))
        mixed = ((query @ key.mT * 8**-0.5).softmax(dim=-1) @ value).transpose(1, 2).flatten(2)[:, 0]
        read = {
            "plain_vit": tokens[:, 0],
            "plain_vit_mean": tokens[:, 3:].mean(dim=1),
            "plain_vit_attentive": pool.attention.out_proj(mixed),
        }
        for name, vector in read.items():
            torch.testing.assert_close(logits(models[name], batch), predictor.classify(vector), msg=name)


def test_without_a_class_token_a_plain_vit_reads_the_mean_of_its_patches(batch):
    fields = {"backbone_kwargs": {**MODEL.backbone_kwargs, "class_token": False, "global_pool": "avg"}}
    one, other = make("plain_vit", **fields), make("plain_vit_mean", **fields)
    torch.testing.assert_close(logits(one, batch), logits(other, batch))


@pytest.mark.parametrize("name", ["vit_base_patch16_xp_224", "vit_small_patch16_18x2_224"])
def test_attentive_pooling_has_the_heads_of_any_transformer(name):
    config = ModelConfig(name, image_size=32, backbone_kwargs={"depth": 1, "embed_dim": 48, "num_heads": 3})
    model = registry.build("plain_vit_attentive", config, pretrained=False)
    assert model.pool.attention.num_heads == 3
    assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 2)


def test_attentive_pooling_does_not_care_for_the_order_of_tokens():
    pool = wake(AttentivePool(32, 4)).eval()
    tokens = torch.randn(3, 7, 32)
    with torch.no_grad():
        pooled = pool(tokens)
        torch.testing.assert_close(pool(tokens[:, torch.randperm(7)]), pooled)
        tokens[0, 5] += 1
        assert (pool(tokens) != pooled).any(dim=1).tolist() == [True, False, False]


# --- masks -----------------------------------------------------------------------------------------------


def hidden_changed(batch, mask, value):
    """The batch with other pixels wherever the mask [B, H, W] hides them."""
    hidden = ~mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    return with_images(batch, torch.where(hidden, value, batch.images))


@pytest.mark.parametrize("value", [0.5, 1e30, torch.inf, torch.nan])
def test_the_oracle_never_sees_what_the_true_mask_hides(value, batch):
    model = make("given_mask")
    mask = patch_mask(batch.masks, (4, 4))
    assert not mask.all()
    before = logits(model, batch)
    assert torch.equal(logits(model, hidden_changed(batch, mask, value)), before)
    shown = with_images(batch, batch.images + mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None])
    changed = (logits(model, shown) != before).any(dim=1)
    assert torch.equal(changed, mask.flatten(1).any(dim=1))
    assert changed.any()


def test_the_oracle_is_the_predictor_fed_with_the_true_masks(batch):
    """With the same weights, it answers as the two-stage model whose mask is replaced by the true one."""
    model, oracle = make("ifam"), make("given_mask")
    oracle.predictor.load_state_dict(model.predictor.state_dict())
    with torch.no_grad():
        expected = model(batch.images, [UseMask(patch_mask(batch.masks, (4, 4)))]).logits
    assert torch.equal(logits(oracle, batch), expected)


@pytest.mark.parametrize(("name", "kind"), [("late_mask", LateMask), ("soft_mask", SoftMaskIFAM)])
def test_late_and_soft_masks_hide_nothing(name, kind, batch):
    model = make(name)
    assert type(model) is kind
    with torch.no_grad():
        selection = model.selector(batch.images)
        out = model.classify(batch.images, selection)
        # The selection is held, so that nothing but the predictor can see the change.
        other = model.classify(hidden_changed(batch, out.mask, 0.5).images, selection)
    assert torch.equal(out.mask, other.mask)
    mixed = out.mask.flatten(1).any(dim=1) & ~out.mask.flatten(1).all(dim=1)
    assert mixed.any()
    assert (other.logits != out.logits).any(dim=1)[mixed].all()


def test_what_a_late_mask_averages(batch):
    model = make("late_mask")
    with torch.no_grad():
        out = model(batch.images)
        tokens = model.predictor.backbone(batch.images)[:, 3:]
        for i, mask in enumerate(out.mask.flatten(1)):
            pooled = tokens[i][mask].mean(dim=0) if mask.any() else torch.zeros(32)
            torch.testing.assert_close(out.logits[i], model.predictor.classify(pooled[None])[0])


def test_the_gradient_through_a_late_mask_is_that_of_a_weighted_mean(batch):
    """For hidden patches too; against finite differences, in double precision."""
    predictor = make("late_mask").predictor.double()
    images, mask = batch.images[:2].double(), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, [1, 6, 7]] = True
    gate = mask.double().requires_grad_()
    predictor(images, mask, gate)[:, 0].sum().backward()
    with torch.no_grad():
        for patch in (1, 7, 8):
            up, down = (predictor(images, mask, gate + step * torch.eye(16)[patch])[:, 0] for step in (1e-6, -1e-6))
            torch.testing.assert_close(gate.grad[:, patch], (up - down) / 2e-6, rtol=1e-4, atol=1e-8)
    assert (gate.grad != 0).all()


@pytest.mark.parametrize("name", ["late_mask", "soft_mask"])
def test_the_loss_of_the_answer_reaches_the_selector(name, birds, batch):
    model = registry.build(name, replace(MODEL, mask_gradient="none"), pretrained=False)
    prepare(model, TRAIN)
    Training(model, TRAIN, LossConfig(), birds, 16).terms(batch)["classification"].backward()
    assert model.selector.prototypes.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["late_mask", "soft_mask"])
def test_parts_that_are_dropped_change_answer_and_mask(name, batch):
    model = make(name)
    with torch.no_grad():
        whole, less, nothing = (model(batch.images, changes) for changes in ([], [DropParts([0])], [DropParts([0, 1])]))
    lost = whole.mask & ~less.mask
    assert lost.any()
    changed = lost.flatten(1).any(dim=1)
    assert (whole.logits != less.logits).any(dim=1)[changed].all()
    assert not nothing.mask.any()
    if name == "late_mask":
        # Nothing is left to average, so all images get the same answer.
        torch.testing.assert_close(nothing.logits, nothing.logits[:1].expand(8, -1))


def test_the_selector_alone_says_what_the_selector_of_two_stages_says(batch):
    model, alone = make("ifam"), make("selector")
    alone.selector.load_state_dict(model.selector.state_dict())
    with torch.no_grad():
        two, one = model(batch.images), alone(batch.images)
    assert torch.equal(one.logits, two.selector_logits)
    assert one.predictor_logits is None
    assert two.predictor_logits is not None
    for name in ("mask", "part_maps", "part_features", "similarity"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_the_selector_alone_is_trained_with_every_term_but_the_predictors(birds, batch):
    terms = {}
    for name in ("ifam", "selector"):
        seed_everything(0)
        model = registry.build(name, MODEL, pretrained=False)
        terms[name] = Training(model, TRAIN, LossConfig(), birds, 16).terms(batch)
    assert isinstance(model, SelectorAlone)
    assert terms["selector"].keys() == terms["ifam"].keys() - {"classification"}


# --- what needs masks, or parts --------------------------------------------------------------------------


def without_masks(birds):
    class Maskless:
        def __init__(self, examples):
            self.examples = examples

        def __len__(self):
            return len(self.examples)

        def __getitem__(self, index):
            return {key: value for key, value in self.examples[index].items() if key != "mask"}

    splits = {name: Maskless(examples) for name, examples in birds.splits.items()}
    return Benchmark("maskless", splits, birds.class_names, birds.group_names)


def test_the_oracle_looks_for_masks_in_every_split_that_it_needs(birds):
    maskless = without_masks(birds).splits["val"]
    data = replace(birds, splits={**birds.splits, "val": maskless})
    with pytest.raises(IfamError, match="given_mask needs true masks, and pondbirds has none for image 0 of its split"):
        check(data, TRAIN, make("given_mask"))
    # A list of files tells which image it is.
    maskless.records = [SimpleNamespace(masks=("there",))] * 3 + [SimpleNamespace(masks=())] * 5
    with pytest.raises(IfamError, match="pondbirds has none for image 3 of its split 'val'"):
        check(data, TRAIN, make("given_mask"))
    # Masks may be made of something else than files of their own.
    birds.require_masks("val", "It")


def test_the_oracle_without_true_masks_is_refused_before_training(birds, batch, tmp_path):
    model, data = make("given_mask"), without_masks(birds)
    with pytest.raises(IfamError, match="given_mask needs true masks, and maskless has none for image 0"):
        fit(model, data, TRAIN, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(IfamError, match="maskless has no mask for image 0 of its split 'test'"):
        evaluate(model, data)
    with pytest.raises(IfamError, match="given_mask needs a mask of each image"):
        model(batch.images)


@pytest.mark.parametrize("name", [*WHOLE_IMAGE, "selector", "given_mask", "trained_crops", "frozen_crops"])
def test_interventions_need_a_mask_that_the_answer_is_drawn_from(name, birds):
    with pytest.raises(IfamError, match=f"{name} does not support interventions"):
        evaluate(make(name), birds, interventions=[DropParts([0])])


@pytest.mark.parametrize("name", ["late_mask", "soft_mask"])
def test_interventions_and_true_masks_change_what_is_judged(name, birds):
    model = make(name)
    evaluation = evaluate(model, birds, true_masks=True, num_resamples=0)
    assert evaluation.mask_iou == 1.0
    assert evaluate(model, birds, interventions=[DropParts([0, 1])], num_resamples=0).mask_iou == 0.0


# --- folders ---------------------------------------------------------------------------------------------


def forget(folder):
    """Make a saved model what it would have been before folders named the method."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["method"]
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("name", ["ifam", "plain_vit"])
def test_folders_from_before_there_were_methods_are_read(name, batch, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    forget(tmp_path)
    again = hub.load(tmp_path)
    assert again.method == name
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("name", [name for name in METHODS if type(make(name)) is not IFAM])
def test_a_model_of_another_method_is_no_ifam(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    with pytest.raises(IfamError, match=f"holds a model of the method '{name}', but one of 'ifam' is expected"):
        IFAM.from_pretrained(tmp_path)
    assert type(type(model).from_pretrained(tmp_path)) is type(model)


def test_every_name_belongs_to_one_class():
    """A class reads the folders of its own names alone: a late mask has the tensors of an IFAM, and is none."""
    classes = {method.build for method in METHODS.values()}
    for name, method in METHODS.items():
        assert [kind for kind in classes if name in (kind.method, *kind.variants)] == [method.build]


def test_a_class_reads_its_variants_and_no_subclass_does(tmp_path):
    make("frozen_predictor").save_pretrained(tmp_path)
    assert IFAM.from_pretrained(tmp_path).method == "frozen_predictor"
    for kind in (LateMask, SoftMaskIFAM):
        with pytest.raises(IfamError, match="holds a model of the method 'frozen_predictor'"):
            kind.from_pretrained(tmp_path)


def test_a_method_of_a_later_version_is_named(tmp_path):
    make("plain_vit").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"plain_vit"', '"telepathy"'))
    with pytest.raises(IfamError, match=r"names the method 'telepathy', but ifam .* has ifam, plain_vit"):
        hub.load(tmp_path)
