"""Weight decay, parameter groups and schedules against numbers of the authors' public code."""

import pytest

from ifam.checkpoints.authors import from_official
from ifam.config import TrainConfig
from ifam.training.optimization import learning_rate_factor, normalized_weight_decay, parameter_groups
from parity import reference

_, NUMBERS = reference.read("weight_decay_lr")

FROZEN = "freeze_backbone=True,freeze_second_stage=True,freeze_params_stage_1=True,freeze_params_stage_2=True"
# The authors' flags in our words: what is trained in the selector's and in the predictor's backbone.
TUNING = {
    "freeze_backbone=True": ("tokens", "all"),
    "freeze_backbone=False": ("all", "all"),
    FROZEN: ("none", "none"),
}
RENAMED = {
    "stage_1.fc_landmarks.weight": "selector.prototypes",
    "stage_1.modulation.weight": "selector.modulation.weight",
    "stage_1.modulation.bias": "selector.modulation.bias",
    "stage_1.fc_class_landmarks.weight": "selector.classifier.weight",
    "stage_2.fc_norm.weight": "predictor.norm.weight",
    "stage_2.fc_norm.bias": "predictor.norm.bias",
    "stage_2.head.weight": "predictor.head.weight",
}
SCHEDULES = {"cosine": "cosine", "linearlr": "linear", "steplr": "step"}
# What the authors' linear schedule ends at; it is fixed in their code and not among the settings.
END_OF_LINE = 0.01


def ours(name):
    """Our name of one of their parameters."""
    if name in RENAMED:
        return RENAMED[name]
    stage, rest = name.split(".", 1)
    return f"{ {'stage_1': 'selector', 'stage_2': 'predictor'}[stage] }.backbone.vit.{rest}"


def test_every_kind_of_number_has_a_test():
    assert set(NUMBERS) - {"set", "environment"} == {
        "weight_decay",
        "group_lr_factors_used",
        "param_groups",
        "schedules",
    }


@pytest.mark.parametrize("case", NUMBERS["weight_decay"], ids=lambda case: str(case["dataset_length"]))
def test_normalized_weight_decay(case):
    decay = normalized_weight_decay(
        case["weight_decay"], case["dataset_length"], batch_size=case["batch_size"], epochs=case["epochs"]
    )
    assert decay == pytest.approx(case["normalised_weight_decay"], rel=1e-12)


@pytest.mark.parametrize("case", NUMBERS["param_groups"])
def test_parameter_groups(case):
    name, flags = case.split("/")
    factors = NUMBERS["group_lr_factors_used"]
    selector, predictor = TUNING[flags]
    config = TrainConfig(
        selector_lr_factor=1.0,
        predictor_lr_factor=factors["stage_two_lr_factor"],
        prototype_lr_factor=factors["finer_lr_factor"],
        modulation_lr_factor=factors["modulation_lr_factor"],
        head_lr_factor=factors["scratch_lr_factor"],
        selector_tuning=selector,
        predictor_tuning=predictor,
    )
    model = from_official(reference.weights(name), num_heads=2)
    groups = parameter_groups(model, config)
    settings = {
        member: (group.lr_scale, group.weight_decay, group.trainable) for group in groups for member in group.parameters
    }
    official = NUMBERS["param_groups"][case]
    expected = {
        ours(member["name"]): (group["lr_multiplier"], group["uses_weight_decay"], member["requires_grad"])
        for group in official
        for member in group["params"]
    }
    assert settings == expected
    # Ours are finer (tokens by themselves), but none spans two of theirs.
    theirs = {ours(member["name"]): group["index"] for group in official for member in group["params"]}
    for group in groups:
        assert len({theirs[member] for member in group.parameters}) == 1, group.name


@pytest.mark.parametrize("case", NUMBERS["schedules"])
def test_schedules(case):
    kind, *rest = case.split(",")
    warmup = dict(part.split("=") for part in rest)
    given = NUMBERS["schedules"][case]
    config = TrainConfig(
        epochs=given["epochs"],
        schedule=SCHEDULES[kind],
        warmup_epochs=int(warmup["warmup_epochs"]),
        warmup_factor=float(warmup["warmup_lr"]) / given["base_lr"],
        min_factor=END_OF_LINE if kind == "linearlr" else given["min_lr"] / given["base_lr"],
        step_epochs=given["step_size"],
        step_factor=given["gamma"],
    )
    expected = given["lr_used_in_epoch_1_to_8_then_after"]
    rates = [given["base_lr"] * learning_rate_factor(epoch, 1, config) for epoch in range(len(expected))]
    # Our warm-up rises by step and reaches the full rate, from which a cosine then falls (docs/differences.md).
    compared = slice(
        config.warmup_epochs if kind == "linearlr" or not config.warmup_epochs else len(expected) - 1, None
    )
    assert rates[compared] == pytest.approx(expected[compared], rel=1e-9)
