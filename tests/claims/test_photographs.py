"""Photographs, small: on backgrounds that mislead, what sees only the object is no worse than what sees everything.

The full comparison is in docs/results/photographs.md; here, one seed with few images has bounds that it must keep.
"""

from pathlib import Path

import pytest

from ifam.cli.main import main
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.evaluation.accuracy import hidden_influence, summarize_rows
from ifam.evaluation.collect import collect
from ifam.evaluation.flips import flip_rate
from ifam.models.registry import build
from ifam.training.fit import fit, seed_everything
from ifam.training.presets import apply_preset, with_classes

SHARED = Path(__file__).parents[3] / "shared"
PHOTOGRAPHS, BACKBONE = SHARED / "photographs", SHARED / "dinov2_small"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PHOTOGRAPHS.is_dir() and BACKBONE.is_dir()),
        reason="needs cut-out photographs and a pretrained ViT-S/14, which lie beside the repository and not in it",
    ),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Animals mostly on water and plants mostly on land."""
    out = tmp_path_factory.mktemp("photographs") / "drawn"
    words = ["--objects", PHOTOGRAPHS / "objects", "--backgrounds", PHOTOGRAPHS / "backgrounds", "--out", out]
    words += ["--classes", "animal=bird,mammal", "plant=fruit,flower,vegetable"]
    words += ["--places", "animal=water", "plant=land"]
    words += ["--correlation", 0.95, "--count", "300,32,60", "--size", 168, "--seed", 0]
    main(["prepare", "cutouts", *map(str, words)])
    return load_benchmark("folder", out)


def trained(method, images):
    """A model of a method with the laptop's preset, at 84 pixels, without mirror images, which double the tokens.

    Its classifier is trained for three epochs; a selector for ten before them.
    """
    alone = 10 if method == "ifam" else 0
    model = ModelConfig(
        backbone=str(BACKBONE), image_size=84, selector_image_size=224, mask_resolution=2, min_visible=0.05
    )
    train = TrainConfig(epochs=3 + alone, selector_epochs=alone, flip=False, accelerator="cpu")
    given = {"model.image_size", "train.epochs", "train.selector_epochs", "train.flip"}
    model, train, losses = apply_preset("laptop", model, train, LossConfig(), images, given)
    seed_everything(0)
    net = build(method, with_classes(model, images))
    fit(net, images, train, losses)
    return net, train.precision


def judged(model, images, precision):
    """The evaluation on the test images, and the share of answers that change with the background."""
    (rows,) = collect(model, images, "test", [()], precision=precision)
    flips = flip_rate(model, images, "test", answers=rows["predictor.answer"], precision=precision)
    return summarize_rows(model, rows, images, "test", num_resamples=0), flips


def test_what_sees_the_object_alone_is_not_misled(photographs):
    plain, precision = trained("plain_vit", photographs)
    model, _ = trained("ifam", photographs)
    before, after = (judged(one, photographs, precision) for one in (plain, model))
    assert after[0].predictor.worst_group >= before[0].predictor.worst_group
    assert after[1] <= before[1]
    # 0.49 to 0.70 in trials with other draws, 0.60 with this one; with twice the images and their mirror images 0.75.
    assert after[0].pixel_iou >= 0.5
    assert hidden_influence(model, photographs.split("test"), count=16) == 0
