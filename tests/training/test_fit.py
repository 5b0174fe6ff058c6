"""Training with the real trainer: what is trained, how fast, what is kept, and that it can be repeated."""

import csv
import itertools
import math
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ifam.backbones.vit import TINY
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Augmentation, Benchmark, TransformedDataset, collate, load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate
from ifam.models.baselines import LateMask, PlainViT, SelectorAlone
from ifam.models.crops import TrainedCrops
from ifam.models.ifam import IFAM
from ifam.models.registry import METHODS, build
from ifam.models.soft_mask import SoftMaskIFAM
from ifam.ranges import check_ranges
from ifam.training import losses
from ifam.training.affine import sample_affine, transform
from ifam.training.batches import augmentation
from ifam.training.fit import fit, seed_everything
from ifam.training.losses import weighted_sum
from ifam.training.module import Training, prepare
from ifam.training.optimization import learning_rate_factor, normalized_weight_decay, parameter_groups
from ifam.training.trainer import check_devices
from ifam.types import Output

MODEL = ModelConfig(backbone=TINY, image_size=80, num_parts=3)
# Two steps of 16 images, with rates that move every weight by more than rounding.
TRAIN = TrainConfig(
    epochs=1,
    batch_size=16,
    base_lr=1e-3,
    prototype_lr_factor=40.0,
    modulation_lr_factor=20.0,
    head_lr_factor=2.0,
    monitor="accuracy",
    accelerator="cpu",
)


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 32, "num_val": 8, "num_test": 8})


def make(kind=IFAM, seed=0, config=MODEL):
    seed_everything(seed)
    return kind(config)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def differing(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def tokens(names):
    return {name for name in names if name.endswith(("cls_token", "reg_token", "pos_embed"))}


# --- parameter groups ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["none", "tokens", "all"])
@pytest.mark.parametrize("other", ["none", "tokens", "all"])
def test_every_parameter_is_in_exactly_one_group_with_its_settings(make_model, layout, tuning, other):
    model = make_model(*layout)
    config = TrainConfig(
        selector_lr_factor=3.0,
        predictor_lr_factor=5.0,
        prototype_lr_factor=7.0,
        modulation_lr_factor=11.0,
        head_lr_factor=13.0,
        selector_tuning=tuning,
        predictor_tuning=other,
    )
    groups = parameter_groups(model, config)
    named = dict(model.named_parameters())
    listed = [name for group in groups for name in group.parameters]
    assert sorted(listed) == sorted(named)
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        for name, parameter in group.parameters.items():
            assert parameter is named[name]
            token = bool(tokens([name]))
            trained = True
            if ".backbone." in name:
                factor = 3.0 if name.startswith("selector.") else 5.0
                chosen = tuning if name.startswith("selector.") else other
                trained = {"none": False, "tokens": token, "all": True}[chosen]
                decays = parameter.ndim > 1 and not token
            elif name == "selector.prototypes":
                factor, decays = 7.0, False
            elif name.startswith("selector.modulation."):
                factor, decays = 11.0, False
            else:
                assert name.split(".")[1] in ("classifier", "norm", "head")
                factor, decays = 13.0, parameter.ndim == 2
            assert (group.lr_scale, group.weight_decay) == (factor, decays), name
            # Frozen weights share a group with trained tokens at most where both are trained alike.
            assert group.trainable == trained, name


@pytest.mark.slow
def test_frozen_parameters_want_no_gradient_and_the_optimizer_lacks_them(birds, tmp_path):
    model = make()
    config = replace(TRAIN, selector_tuning="tokens", predictor_tuning="none", accumulate=2, weight_decay=0.1)
    fit(model, birds, config, folder=tmp_path)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    names = {name for name, _ in model.named_parameters()}
    assert wanted == {n for n in names if ".backbone." not in n} | tokens(n for n in names if "selector." in n)
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["optimizer_states"][0]
    rate, decay = 1e-3 * math.sqrt(32 / 16), 0.1 * math.sqrt(32 / 32)
    settings = {g["name"]: (g["initial_lr"] / rate, g["weight_decay"] / decay) for g in state["param_groups"]}
    assert settings == {
        "selector backbone tokens": pytest.approx((1, 0)),
        "prototypes without decay": pytest.approx((40, 0)),
        "modulation without decay": pytest.approx((20, 0)),
        "selector head": pytest.approx((2, 1)),
        "predictor head": pytest.approx((2, 1)),
        "predictor head without decay": pytest.approx((2, 0)),
    }
    assert sum(len(group["params"]) for group in state["param_groups"]) == len(wanted)


def test_weight_decay_is_normalized_by_whole_steps():
    assert normalized_weight_decay(0.05, 6400, 64, 4) == pytest.approx(0.05 * math.sqrt(1 / (100 * 4)))
    assert normalized_weight_decay(0.05, 100, 32, 1) == pytest.approx(0.05 * math.sqrt(1 / 3))
    assert normalized_weight_decay(0.05, 10, 32, 4) == pytest.approx(0.05 * math.sqrt(1 / 4))


def test_schedules():
    def factors(config, epochs):
        return [learning_rate_factor(10 * epoch + 3, 10, config) for epoch in epochs]

    cosine = TrainConfig(epochs=4, min_factor=0.2)
    assert factors(cosine, (0, 2, 4)) == pytest.approx([1, 0.6, 0.2])
    step = TrainConfig(epochs=7, schedule="step")
    assert factors(step, range(7)) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    other = TrainConfig(epochs=4, schedule="step", step_epochs=2, step_factor=0.5)
    assert factors(other, range(4)) == pytest.approx([1, 1, 0.5, 0.5])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
@pytest.mark.parametrize("warmup_factor", [0.0, 0.1])
def test_the_warm_up_rises_step_by_step_to_the_full_rate_and_then_it_falls(schedule, warmup_factor):
    config = TrainConfig(epochs=6, schedule=schedule, warmup_epochs=2, warmup_factor=warmup_factor)
    rates = [learning_rate_factor(step, 5, config) for step in range(30)]
    rises = [b - a for a, b in itertools.pairwise(rates[:10])]
    assert rises == pytest.approx([(1 - warmup_factor) / 10] * 9)
    assert rates[0] == pytest.approx(warmup_factor + (1 - warmup_factor) / 10)  # not even the first step is lost
    assert rates[9] == rates[10] == rates[14] == 1
    assert rates[15] < 1 or schedule == "step"
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rates[-1] < 0.5


def test_a_warm_up_that_never_ends_is_refused():
    for epochs in (3, 4):
        with pytest.raises(IfamError, match=rf"train\.warmup_epochs is {epochs}, but fewer than the 3 epochs"):
            TrainConfig(epochs=3, warmup_epochs=epochs)


@pytest.mark.slow
def test_the_learning_rate_falls_epoch_by_epoch(birds):
    """The rates that every step of the optimizer found, two steps in each epoch."""
    used = []

    def note(optimizer, *_):
        used.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    hook = register_optimizer_step_pre_hook(note)
    config = replace(TRAIN, epochs=2, warmup_epochs=1, warmup_factor=0.25, predictor_lr_factor=3.0)
    try:
        fit(make(PlainViT), birds, config)
    finally:
        hook.remove()
    # Half of the way from a quarter to the full rate, and all of it.
    factors = [0.625, 1.0, 1.0, 1.0]
    assert [rates["predictor backbone"] for rates in used] == pytest.approx([0.003 * factor for factor in factors])
    assert [rates["predictor head"] for rates in used] == pytest.approx([0.002 * factor for factor in factors])


# --- one step --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["none", "tokens", "all"])
def test_a_step_changes_what_it_must_and_nothing_else(birds, tuning):
    model = make()
    before = weights(model)
    fit(model, birds, replace(TRAIN, batch_size=32, selector_tuning=tuning))
    changed = differing(before, weights(model))
    selector = {name for name in before if name.startswith("selector.backbone.")}
    # Every weight of everything else moves.
    assert changed - selector == set(before) - selector
    expected = {"none": set(), "tokens": tokens(selector), "all": selector}[tuning]
    assert changed & selector == expected


@pytest.mark.slow
def test_with_a_rate_of_zero_nothing_changes(birds):
    model = make()
    before = weights(model)
    fit(model, birds, replace(TRAIN, base_lr=0.0))
    assert not differing(before, weights(model))


@pytest.mark.slow
def test_accumulated_steps_are_one_step_of_the_larger_batch(birds):
    """Two batches of 16 whose gradients are added up move a plain ViT as one batch of 32 does."""
    weights_of_runs = []
    for batch_size, accumulate in ((32, 1), (16, 2), (16, 1)):
        model = make(PlainViT)
        settings = {"batch_size": batch_size, "accumulate": accumulate, "augment": "none"}
        fit(model, birds, replace(TRAIN, weight_decay=0.0, base_lr=1e-4, **settings))
        weights_of_runs.append(model.predictor.head.weight.detach())
    torch.testing.assert_close(weights_of_runs[1], weights_of_runs[0], rtol=0, atol=2e-5)
    assert (weights_of_runs[2] - weights_of_runs[0]).abs().max() > 1e-4


@pytest.mark.slow
def test_the_gradient_is_clipped(birds):
    """AdamW hides the scale of the gradient, so a tiny bound shows only against its epsilon."""
    before = weights(make(PlainViT))
    moved = {}
    for norm in (2.0, 1e-9):
        model = make(PlainViT)
        fit(model, birds, replace(TRAIN, batch_size=32, clip_norm=norm, weight_decay=0.0))
        moved[norm] = (model.predictor.head.weight - before["predictor.head.weight"]).abs().max()
    assert moved[1e-9] < 0.1 * moved[2.0]


# --- losses ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_term_is_logged_by_name_and_they_add_up(birds):
    losses = LossConfig(entropy=0.5, concentration=2.0)
    history = fit(make(), birds, replace(TRAIN, batch_size=32), losses).history
    assert len(history) == 1
    row = history[0]
    terms = {name: row[f"train/{name}"] for name in asdict(losses)}
    assert all(math.isfinite(value) for value in terms.values())
    assert row["train/total"] == pytest.approx(sum(asdict(losses)[n] * v for n, v in terms.items()), rel=1e-5)
    assert {"val/loss", "val/accuracy", "val/worst_group", "val/mask_iou", "val/visible_fraction"} <= set(row)


def test_nothing_runs_twice(birds):
    """One pass of the selector's backbone over images and transformed images, one of the predictor over images."""
    model = make()
    prepare(model, TRAIN)
    module = Training(model, TRAIN, LossConfig(equivariance=0.0), birds, 32)
    batch = collate(
        [TransformedDataset(birds.split("train"), model.image_size, model.normalization)[i] for i in range(4)]
    )
    passes = []
    first = model.selector.backbone.vit.blocks[0]
    first.register_forward_hook(lambda _, args, __: passes.append(("selector", len(args[0]))))
    model.predictor.register_forward_hook(lambda _, args, __: passes.append(("predictor", len(args[0]))))
    terms = module.terms(batch)
    assert passes == [("selector", 4), ("predictor", 4)]
    assert "equivariance" not in terms
    passes.clear()
    module.losses = LossConfig()
    assert "equivariance" in module.terms(batch)
    # The transformed images meet the selector, and never the predictor.
    assert passes == [("selector", 8), ("predictor", 4)]


def test_the_equivariance_term_compares_with_the_maps_of_the_transformed_images(birds):
    model = make().eval()  # without noise
    prepare(model, TRAIN)
    module = Training(model, TRAIN, LossConfig(), birds, 32).eval()
    batch = collate(
        [TransformedDataset(birds.split("train"), model.image_size, model.normalization)[i] for i in range(4)]
    )
    torch.manual_seed(5)
    terms = module.terms(batch)
    torch.manual_seed(5)
    affine = sample_affine(model.image_size)
    maps = [model.selector(images).part_maps for images in (batch.images, transform(batch.images, affine))]
    torch.testing.assert_close(terms["equivariance"], losses.equivariance(*maps, affine, model.image_size))
    assert terms["equivariance"] > 1e-3


@pytest.mark.slow
def test_the_loss_falls_when_few_images_are_learnt_by_heart(birds):
    """Eight images, fifteen steps, no noise."""
    model = make(config=replace(MODEL, gumbel_noise=False, part_dropout=0.0, mask_part_dropout=0.0))
    few = torch.utils.data.Subset(birds.split("train"), range(8))
    small = replace(birds, splits={"train": few, "val": few})
    config = replace(TRAIN, epochs=15, batch_size=8, base_lr=2e-3, selector_tuning="none")
    history = fit(model, small, config).history
    first, last = history[0], history[-1]
    assert last["train/classification"] < 0.1 * first["train/classification"]
    assert last["train/selector_classification"] < 0.8 * first["train/selector_classification"]
    assert last["train/total"] < 0.6 * first["train/total"]
    assert evaluate(model, small, "val").predictor.average == 1.0


def test_a_baseline_trains_with_the_same_trainer(birds):
    model = make(PlainViT)
    before = weights(model)
    result = fit(model, birds, TRAIN)
    assert differing(before, weights(model)) == set(before)
    terms = {name for name in result.history[0] if name.startswith("train/")}
    assert terms == {"train/classification", "train/total"}
    assert result.history[0]["train/total"] == pytest.approx(result.history[0]["train/classification"])


# --- what is kept ----------------------------------------------------------------------------------------


class Scripted(PlainViT):
    """A plain ViT that answers the validation images by a script, one line for each epoch of one step."""

    # Right answers by epoch for two images of each of four groups.
    SCRIPT = (
        (1, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 1, 1, 1, 1, 0, 0),  # best accuracy, 6 of 8; worst group 0
        (1, 0, 1, 0, 1, 0, 1, 0),  # best worst group, 1 of 2
        (0, 1, 0, 1, 0, 1, 0, 1),  # as good: the later of two epochs is taken
        (1, 1, 1, 1, 0, 0, 0, 0),
    )

    def __init__(self, config):
        super().__init__(config, pretrained=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, images, interventions=(), masks=None):
        if self.training:
            self.steps += 1
            return super().forward(images)
        right = torch.tensor(self.SCRIPT[int(self.steps) - 1]).bool()
        labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        answers = torch.where(right, labels, 1 - labels)
        return Output(torch.nn.functional.one_hot(answers, 2).float())


class Listed:
    """Grey images with the given labels and groups."""

    def __init__(self, labels, groups):
        self.labels, self.groups = labels, groups

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.full((3, 80, 80), 0.1 * (index + 1))
        return {"image": image, "label": self.labels[index], "group": self.groups[index]}


class Unread(Listed):
    """Images that nobody may look at."""

    def __getitem__(self, index):
        raise AssertionError("an image of the test split was read")


@pytest.mark.parametrize(
    ("first", "second", "better"),
    [
        ((0.0, 0.117, -1.0), (0.0, 0.067, -0.5), 0),  # the average decides
        ((0.0, 0.1, -1.0), (0.0, 0.1, -0.5), 1),  # then the loss
        ((0.0, 0.1, -0.5), (0.0, 0.1, -0.5), 1),  # then the later epoch
        ((1e-7, 0.0, -9.0), (0.0, 1.0, -0.1), 0),  # but no tie is made of a difference, however small
    ],
)
def test_ties_are_decided_by_the_average_the_loss_and_the_later_epoch(birds, first, second, better):
    module = Training(make(PlainViT), replace(TRAIN, monitor="worst_group"), LossConfig(), birds, 32)
    assert [module.is_best(rank) for rank in (first, second)] == [True, better == 1]


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "transformer-engine", "half"])
def test_precisions_that_change_the_weights_are_refused_by_name(precision):
    with pytest.raises(
        IfamError, match=rf"train\.precision is '{precision}', but '32-true', 'bf16-mixed' or '16-mixed'"
    ):
        TrainConfig(precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"augment": "none"}, {"flip": False}])
def test_without_augmentation_training_sees_the_images_as_they_are(birds, settings):
    seen = []

    class Watching(PlainViT):
        def forward(self, images, interventions=(), masks=None):
            seen.append(images.detach().clone())
            return super().forward(images)

    model = make(Watching)
    fit(model, birds, replace(TRAIN, epochs=1, batch_size=32, **settings))
    plain = collate(list(TransformedDataset(birds.split("train"), model.image_size, model.normalization)))
    assert {image.numpy().tobytes() for image in seen[0]} == {image.numpy().tobytes() for image in plain.images}


def test_data_that_a_mirror_changes_are_not_mirrored_unless_asked():
    digits = load_benchmark("digits", options={"num_train": 20, "num_val": 10, "num_test": 10})
    assert augmentation(TrainConfig(), digits) == Augmentation(flip=False)
    assert augmentation(TrainConfig(flip=True), digits) == Augmentation(flip=True)
    assert augmentation(TrainConfig(flip=True, augment="none"), digits) == Augmentation()


@pytest.mark.parametrize("config", [ModelConfig, TrainConfig])
def test_every_number_has_a_range(config):
    numbers = [f.name for f in fields(config) if re.search(r"\b(int|float)\b", str(f.type))]
    assert set(numbers) == set(config.ranges)
    for name, expected in config.ranges.items():
        for value in (float("nan"), float("inf"), -5):
            if name != "mean" or value != -5:
                with pytest.raises(IfamError, match=rf"{name} is {value}, but .* is expected"):
                    check_ranges({name: value}, {name: expected})


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [f.name for f in fields(LossConfig)])
def test_every_weight_of_a_loss_has_a_range(name, value):
    with pytest.raises(IfamError, match=rf"loss\.{name} is {value}, but 0 \(off\) or a positive number is expected"):
        LossConfig(**{name: value})


# --- the selector alone ----------------------------------------------------------------------------------


class Watched(IFAM):
    """A model that keeps its weights as they are at each validation."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = []

    def train(self, mode=True):
        if not mode:
            self.seen.append(weights(self))
        return super().train(mode)


def test_in_the_first_epochs_the_selector_is_trained_alone(birds):
    model = make(Watched)
    before = weights(model)
    result = fit(model, birds, replace(TRAIN, epochs=3, batch_size=32, selector_epochs=2))
    first, second, third = model.seen[:3]
    assert not any(name.startswith("predictor") for name in differing(before, first) | differing(first, second))
    assert "selector.prototypes" in differing(before, first)
    assert {"predictor.head.weight", "selector.prototypes"} <= differing(second, third)
    # Whatever the accuracies are, the first weights of both are kept.
    assert result.best_epoch == 3
    assert ["train/classification" in row for row in result.history] == [False, False, True]
    assert all("train/selector_classification" in row for row in result.history)


@pytest.mark.parametrize("method", ["plain_vit", "given_mask", "group_dro", "selector"])
def test_methods_without_both_stages_leave_these_epochs_out(birds, method):
    trained = []
    for first in (0, 1):
        seed_everything(0)
        model = build(method, MODEL)
        config = replace(TRAIN, epochs=1 + first, batch_size=32, selector_epochs=first)
        fit(model, birds, replace(config, **METHODS[method].train))
        trained.append(weights(model))
    assert not differing(*trained)


def test_epochs_of_the_selector_alone_are_not_the_best_of_a_model_with_both_stages_only(birds):
    config = replace(TRAIN, epochs=2, selector_epochs=1)
    best = [
        Training(make(kind), config, LossConfig(), birds, 32).is_best((1.0, 1.0, 0.0))
        for kind in (IFAM, LateMask, SoftMaskIFAM, SelectorAlone, PlainViT, TrainedCrops)
    ]
    assert best == [False, False, False, True, True, True]


@pytest.mark.parametrize("first", [3, 4])
def test_a_predictor_that_would_never_be_trained_is_refused(first):
    with pytest.raises(IfamError, match=rf"train\.selector_epochs is {first}, but fewer than the 3 epochs"):
        TrainConfig(epochs=3, selector_epochs=first)


@pytest.mark.slow
@pytest.mark.parametrize(("monitor", "epoch"), [("accuracy", 2), ("worst_group", 4)])
def test_the_checkpoint_is_chosen_on_validation_data(tmp_path, monitor, epoch):
    examples = Listed([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    # There is a test set, and nobody looks at it.
    splits = {"train": examples, "val": examples, "test": Unread(examples.labels, examples.groups)}
    benchmark = Benchmark("listed", splits, ("a", "b"), tuple("wxyz"))
    model = Scripted(MODEL)
    config = replace(TRAIN, epochs=5, batch_size=8, monitor=monitor)
    result = fit(model, benchmark, config, folder=tmp_path)
    assert [row["val/accuracy"] for row in result.history] == [1 / 8, 6 / 8, 4 / 8, 4 / 8, 4 / 8]
    assert [row["val/worst_group"] for row in result.history] == [0, 0, 0.5, 0.5, 0]
    assert result.best_epoch == epoch
    assert int(model.steps) == epoch
    best, last = (
        torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        for name in ("best", "last")
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, best[f"model.{name}"]), name
    assert int(last["model.steps"]) == 5
    assert not torch.equal(last["model.predictor.head.weight"], model.predictor.head.weight)


@pytest.mark.slow
def test_the_model_is_left_with_the_weights_that_were_validated(birds):
    model = make()
    result = fit(model, birds, replace(TRAIN, epochs=3))
    evaluation = evaluate(model, birds, "val")
    row = result.history[result.best_epoch - 1]
    assert not model.training
    assert result.best_epoch == 1 + max(range(3), key=lambda e: (result.history[e]["val/accuracy"], e))
    assert evaluation.predictor.average == pytest.approx(row["val/accuracy"])
    assert evaluation.predictor.worst_group == pytest.approx(row["val/worst_group"])
    assert evaluation.mask_iou == pytest.approx(row["val/mask_iou"])
    assert evaluation.visible_fraction == pytest.approx(row["val/visible_fraction"], rel=1e-5)


@pytest.mark.slow
def test_the_folder_holds_logs_and_checkpoints(birds, tmp_path):
    result = fit(make(), birds, replace(TRAIN, epochs=2, batch_size=32), folder=tmp_path / "deep" / "run")
    folder = tmp_path / "deep" / "run"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    totals = [float(row["train/total"]) for row in rows if row["train/total"]]
    assert totals == pytest.approx([row["train/total"] for row in result.history])
    assert [float(r["val/accuracy"]) for r in rows if r["val/accuracy"]] == pytest.approx(
        [row["val/accuracy"] for row in result.history]
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/total")] == pytest.approx(totals)
    assert {f"train/{name}" for name in asdict(LossConfig())} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_a_second_run_takes_the_first_ones_place(birds, tmp_path):
    config = replace(TRAIN, batch_size=32)
    fit(make(PlainViT), birds, config, folder=tmp_path)
    model = make(PlainViT, seed=1)
    result = fit(model, birds, replace(config, seed=1), folder=tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    kept = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(kept["model.predictor.head.weight"], model.predictor.head.weight)
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        totals = [float(row["train/total"]) for row in csv.DictReader(file) if row["train/total"]]
    assert totals == pytest.approx([row["train/total"] for row in result.history])


@pytest.mark.slow
def test_without_a_folder_nothing_is_left_behind(birds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit(make(PlainViT), birds, TRAIN)
    assert not list(tmp_path.iterdir())


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_moving_average_is_what_is_validated_and_saved(birds, tmp_path):
    """After steps to w1 and w2, the average is d w1 + (1 - d) w2, and the steps are those without an average."""
    plain = make(PlainViT)
    fit(plain, birds, TRAIN)
    distance = {}
    for decay in (0.5, 0.75):
        model = make(PlainViT)
        result = fit(model, birds, replace(TRAIN, ema_decay=decay), folder=tmp_path / str(decay))
        average = model.predictor.head.weight.detach()
        checkpoint = torch.load(tmp_path / str(decay) / "checkpoints" / "best.ckpt", weights_only=True)
        assert torch.equal(checkpoint["state_dict"]["model.predictor.head.weight"], average)
        evaluation = evaluate(model, birds, "val").predictor
        assert evaluation.average == pytest.approx(result.history[0]["val/accuracy"])
        distance[decay] = average - plain.predictor.head.weight.detach()
    assert distance[0.5].abs().max() > 1e-4
    torch.testing.assert_close(distance[0.75], 1.5 * distance[0.5], rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_half_precision_trains_on_a_processor(birds, make_model):
    few = torch.utils.data.Subset(birds.split("train"), range(8))
    small = replace(birds, splits={"train": few, "val": few})
    heads = {}
    for precision in ("32-true", "bf16-mixed"):
        model = make_model(image_size=80, num_classes=2)
        result = fit(model, small, replace(TRAIN, batch_size=4, precision=precision))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert all(math.isfinite(value) for value in result.history[0].values())
        heads[precision] = model.predictor.head.weight.detach()
    assert not torch.equal(heads["32-true"], heads["bf16-mixed"])
    torch.testing.assert_close(heads["32-true"], heads["bf16-mixed"], rtol=0, atol=0.01)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_bit_for_bit(birds):
    config = replace(TRAIN, crop=0.5)
    runs = []
    for seed in (3, 3, 4):
        model = make(seed=seed)
        result = fit(model, birds, replace(config, seed=seed))
        runs.append((weights(model), result.history))
        torch.rand(7)  # whatever was drawn in between
    assert not differing(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert differing(runs[0][0], runs[2][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_changes", "train_changes"),
    [
        ({}, {}),
        ({"mask_gradient": "full", "execution": "padded"}, {"selector_tuning": "all"}),
        ({"mask_resolution": 4, "selector_image_size": 96, "min_visible": 0.05}, {"precision": "bf16-mixed"}),
    ],
    ids=["as usual", "all weights, hidden patches, padded", "squares of pixels in bf16"],
)
def test_a_training_on_several_threads_is_repeated_bit_for_bit_on_a_busy_machine(model_changes, train_changes):
    birds = load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 8})
    threads, trained = torch.get_num_threads(), []
    # Threads that are interrupted finish in another order.
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        torch.set_num_threads(3)
        for _ in range(2):
            model = make(config=replace(MODEL, **model_changes))
            fit(model, birds, replace(TRAIN, crop=0.5, base_lr=1e-2, batch_size=8, **train_changes))
            trained.append(weights(model))
    finally:
        torch.set_num_threads(threads)
        for process in busy:
            process.kill()
            process.wait()
    assert not differing(*trained)


@pytest.mark.slow
def test_the_seed_of_training_alone_decides_order_and_noise(birds):
    runs = []
    for seed in (0, 1):
        model = make()
        fit(model, birds, replace(TRAIN, seed=seed))
        runs.append(weights(model))
    assert differing(*runs)


@pytest.mark.slow
def test_a_model_in_evaluation_mode_is_trained_in_training_mode(birds):
    """Otherwise a model that was loaded would be tuned without noise and dropout."""
    runs = []
    for mode in (True, False):
        model = make().train(mode)
        fit(model, birds, replace(TRAIN, batch_size=32))
        runs.append(weights(model))
    assert not differing(*runs)


# --- bad settings ----------------------------------------------------------------------------------------


def test_fewer_images_than_a_batch_is_an_error_that_says_what_to_do(birds, tmp_path):
    with pytest.raises(IfamError, match=r"pondbirds has 32 training images, fewer than a batch of 33.*batch_size 32"):
        fit(make(PlainViT), birds, replace(TRAIN, batch_size=33), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("crop", 0.0),
        ("crop", 1.5),
        ("clip_norm", -1.0),
        ("base_lr", -1e-3),
        ("head_lr_factor", -1.0),
        ("min_factor", -1.0),
        ("step_factor", -1.0),
        ("step_factor", 0.0),
        ("weight_decay", float("nan")),
        ("base_lr", float("inf")),
        ("group_dro", -0.1),
        ("seed", -1),
        ("workers", -1),
        ("devices", 0),
        ("devices", -2),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
    ],
)
def test_impossible_settings_are_errors_that_name_them(birds, tmp_path, field, value):
    with pytest.raises(IfamError, match=rf"train\.{field} is {value}"):
        fit(make(PlainViT), birds, replace(TRAIN, **{field: value}), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_term(birds):
    model = make()
    with torch.no_grad():
        model.predictor.head.weight.fill_(torch.nan)
    with pytest.raises(IfamError, match=r"no longer finite in epoch 1 \(classification\).*base_lr"):
        fit(model, birds, TRAIN)


def test_a_term_of_weight_zero_is_not_in_the_sum(birds):
    terms = {"classification": torch.tensor(1.0), "entropy": torch.tensor(float("nan"))}
    assert weighted_sum(terms, {"classification": 2.0, "entropy": 0.0}) == 2.0


def test_a_disk_that_cannot_take_the_checkpoints_is_known_before_training(birds, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(IfamError, match=r"has 0 MB left, but about \d+ MB are needed"):
        fit(make(), birds, TRAIN, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- several devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "said"), [(30, "16 each|15 each"), (16, "16 training images, on 2 devices 8")])
def test_more_devices_than_images_are_refused(train, said):
    birds = load_benchmark("pondbirds", options={"num_train": train, "num_val": 8, "num_test": 8})
    with pytest.raises(IfamError, match=said):
        check_devices(birds, TRAIN, 2)


def test_half_set_variables_of_slurm_are_named(birds, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(IfamError, match=r"SLURM_NTASKS is set .* but SLURM_PROCID is not; start .* with `srun`"):
        fit(make(PlainViT), birds, TRAIN)


@pytest.mark.parametrize("kind", [IFAM, PlainViT])
def test_of_some_images_a_window_is_seen_and_of_the_others_all_of_it(birds, kind):
    """Only the classifications are of windows, too; without windows, no random number is drawn for them."""
    model = make(kind, config=replace(MODEL, gumbel_noise=False, part_dropout=0.0, mask_part_dropout=0.0))
    prepare(model, TRAIN)
    batch = collate(
        [TransformedDataset(birds.split("train"), model.image_size, model.normalization)[i] for i in range(4)]
    )
    losses, seen, drawn = LossConfig(equivariance=0.0), [], []
    original = model.classify_windows

    def watched(images, windows, **settings):
        seen.append((images, windows))
        return original(images, windows, **settings)

    model.classify_windows = watched

    def terms(share, images=batch):
        config = replace(TRAIN, window_share=share, window_kind="blocks", window_width=3)
        torch.manual_seed(5)
        found = Training(model, config, losses, birds, 32).terms(images)
        drawn.append(torch.rand(1))
        return found

    mixed, whole = terms(0.6), terms(0.0)
    torch.manual_seed(5)
    assert torch.equal(drawn[1], torch.rand(1))
    ((images, windows),) = seen
    assert torch.equal(images, batch.images[:2])
    assert windows.shape == (3, 3)
    # The terms of parts are those of the two images that are whole.
    others = terms(0.0, batch[2:])
    names = {"classification", "selector_classification"} & set(whole)
    assert set(mixed) == set(whole)
    for name in set(mixed) - names:
        torch.testing.assert_close(mixed[name], others[name])
    logits = torch.cat([original(images, windows).logits, model(batch.images[2:]).logits])
    torch.testing.assert_close(mixed["classification"], torch.nn.functional.cross_entropy(logits, batch.labels))


def test_while_the_selector_is_trained_alone_windows_do_the_same(birds):
    model = make()
    config = replace(TRAIN, epochs=2, selector_epochs=1, window_share=0.5, window_width=2)
    module = Training(model, config, LossConfig(), birds, 32)
    batch = collate(
        [TransformedDataset(birds.split("train"), model.image_size, model.normalization)[i] for i in range(2)]
    )
    model.predictor.register_forward_hook(lambda *_: pytest.fail("the predictor is not there yet"))
    assert "classification" not in module.terms(batch)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (IFAM, {"window_width": 99}, "windows are 99 patches wide"),
        (LateMask, {}, "late_mask cannot see windows of an image alone"),
    ],
)
def test_windows_that_a_model_cannot_see_are_refused_before_training(birds, kind, settings, said):
    with pytest.raises(IfamError, match=said):
        fit(make(kind), birds, replace(TRAIN, window_share=0.5, **settings))
