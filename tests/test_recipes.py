"""Every recipe parses, says what it is, and trains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ifam import recipes
from ifam.cli import build_parser, main
from ifam.config import LossConfig
from ifam.data import BENCHMARKS, load_benchmark
from ifam.model import IFAM
from ifam.training import fit

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SMALL = {"num_train": 32, "num_val": 8, "num_test": 8}
# Stands for a large backbone, whose weights are not needed to see that a recipe trains.
TINY_VIT = {"depth": 1, "embed_dim": 48, "num_heads": 3}


def parse(path):
    """The settings of `ifam train --config path`."""
    words = ["train", "--config", str(path)]
    parser = build_parser(words)
    return parser.instantiate(parser.parse_args(words)).train


def test_there_are_recipes():
    assert FOLDER / "pondbirds.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_header_says_command_and_hardware(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    said = {line[1:].split(":", 1)[0].strip(): line.split(":", 1)[1].strip() for line in header if ":" in line}
    assert said["Command"] == f"ifam train --config recipes/{path.name}"
    assert said["Hardware"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_parses(path, capsys):
    settings = parse(path)
    assert settings.benchmark in BENCHMARKS
    assert settings.out == Path("runs") / path.stem
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(path), "--print_config"])
    assert caught.value.code == 0
    assert f"benchmark: {settings.benchmark}" in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_can_be_overridden_field_by_field(path):
    words = ["train", "--config", str(path), "--train.epochs", "77", "--model.num_parts", "9", "--loss.entropy", "0.5"]
    parser = build_parser(words)
    found = parser.instantiate(parser.parse_args(words)).train
    expected = parse(path)
    assert found.train == replace(expected.train, epochs=77)
    assert found.model == replace(expected.model, num_parts=9)
    assert found.loss == replace(expected.loss, entropy=0.5)


def test_pondbirds_is_what_the_demo_does():
    settings = parse(FOLDER / "pondbirds.yaml")
    assert settings.benchmark == "pondbirds"
    assert settings.model == recipes.TINY_MODEL
    assert settings.train == recipes.TINY_TRAIN
    assert settings.loss == getattr(recipes, "TINY_LOSS", LossConfig())
    assert not settings.data


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_trains_for_two_steps(path):
    settings = parse(path)
    benchmark = load_benchmark("pondbirds", options=SMALL)
    model = settings.model
    if model.backbone != "ifam_tiny":
        model = replace(model, backbone="vit_tiny_patch16_224", image_size=80, backbone_kwargs=TINY_VIT)
    net = IFAM(replace(model, num_classes=2), pretrained=model.backbone == "ifam_tiny")
    before = net.predictor.head.weight.detach().clone()
    train = replace(settings.train, epochs=1, batch_size=16, accelerator="cpu", precision="32-true")
    result = fit(net, benchmark, train, settings.loss)
    assert len(result.history) == 1
    assert result.history[0]["train/total"] > 0
    assert not torch.equal(before, net.predictor.head.weight)


def test_a_recipe_that_is_saved_is_the_same_when_it_is_read(tmp_path):
    """Tuples and dictionaries survive YAML."""
    from dataclasses import asdict

    model = replace(
        recipes.TINY_MODEL,
        class_names=("a b", "ü: [x]"),
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
        backbone_kwargs={"drop_path_rate": 0.1},
    )
    train = replace(recipes.TINY_TRAIN, ema_decay=0.99, devices=1)
    loss = LossConfig(entropy=0.25)
    settings = {"benchmark": "pondbirds", "root": None, "data": {"num_train": 8}}
    parts = {"model": asdict(model), "train": asdict(train), "loss": asdict(loss)}
    recipes.save_settings({**settings, **parts}, tmp_path)
    found = parse(tmp_path / "train.yaml")
    assert (found.model, found.train, found.loss) == (model, train, loss)
    assert found.data == {"num_train": 8}
