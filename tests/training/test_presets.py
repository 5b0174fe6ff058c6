"""Every recipe parses, says what it is, and trains on a miniature of its data set."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ifam.cli import parser
from ifam.cli.main import main
from ifam.config import LossConfig
from ifam.data import BENCHMARKS, load_benchmark
from ifam.models.registry import method
from ifam.training import presets
from ifam.training.fit import fit, seed_everything
from miniatures import MINIATURES

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
# Embedded benchmarks are drawn in any number; the others are miniatures of their files.
SMALL = {"pondbirds": {"num_train": 32, "num_val": 8, "num_test": 8}}
# What issue and paper ask for; a recipe that is lost must not go unnoticed.
EXPECTED = {
    "pondbirds": {4},
    "cub": {4, 8, 16},
    "waterbirds": {4, 8},
    "metashift": {1, 2, 8},
    "siim_acr": {8},
    "imagenet": {1},
}
ABLATIONS = {
    "ablation_soft_mask": ("method", "soft_mask"),
    "ablation_no_mask_part_dropout": ("model.mask_part_dropout", 0.0),
    "ablation_frozen_predictor": ("train.predictor_tuning", "none"),
    "ablation_mask_gradient_none": ("model.mask_gradient", "none"),
    "ablation_mask_gradient_full": ("model.mask_gradient", "full"),
}
# Stands for a large backbone, whose weights are not needed to see that a recipe trains.
TINY_VIT = {"depth": 1, "embed_dim": 48, "num_heads": 3}


def parse(path):
    """The settings of `ifam train --config path`."""
    return SimpleNamespace(**parser.parse(["train", "--config", str(path)])[1])


def header(path):
    """What the comment before the settings says, by its key; a value may go on in the next lines."""
    sections, key = {}, "about"
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        named = re.match(r"# ([A-Z][a-z]+):\s+(.*)", line)
        key, text = named.groups() if named else (key, line[1:].strip())
        sections[key] = "\n".join([sections[key], text] if key in sections else [text])
    return sections


@pytest.mark.slow
def test_every_experiment_of_the_paper_has_a_recipe():
    num_parts: dict = {}
    for path in RECIPES:
        if not path.stem.startswith("ablation_"):
            settings = parse(path)
            num_parts.setdefault(settings.benchmark, set()).add(settings.model.num_parts)
    assert num_parts == EXPECTED
    assert {path.stem for path in RECIPES if path.stem.startswith("ablation_")} == set(ABLATIONS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_in_one_thing_from_the_recipe_it_belongs_to(name):
    changed, whole = parse(FOLDER / f"{name}.yaml"), parse(FOLDER / "waterbirds_k4.yaml")
    key, value = ABLATIONS[name]
    place, _, field = key.rpartition(".")
    assert (getattr(getattr(changed, place), field) if place else getattr(changed, key)) == value
    differences = [
        f"{part}.{field}"
        for part in ("model", "train", "loss")
        for field in vars(getattr(whole, part))
        if getattr(getattr(changed, part), field) != getattr(getattr(whole, part), field)
    ]
    differences += [
        field for field in ("benchmark", "method", "data") if getattr(changed, field) != getattr(whole, field)
    ]
    assert differences == [key]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_header_says_command_cost_and_figures(path):
    said = header(path)
    command, root = said["Command"], parse(path).benchmark not in SMALL
    assert re.fullmatch(rf"ifam train --config recipes/{path.name}" + (r" --root \S+" if root else ""), command)
    assert said["Hardware"]
    assert said["Time"]
    # Figures are our own, or reported by others and then marked as not verified.
    figures = said.get("Expected") or said["Reported"]
    assert "Expected" in said or not re.search(r"\d %", figures) or figures.endswith("unverified here")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_each_header_parse(path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    said = header(path)
    for line in [said["Command"], *said.get("Then", "").splitlines()]:
        if line.startswith("ifam "):
            words = shlex.split(line)[1:]
            assert parser.build_parser(words).parse_args(words).verb == words[0]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_parses(path, capsys):
    settings = parse(path)
    assert settings.benchmark in BENCHMARKS
    assert settings.out == Path("runs") / path.stem
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(path), "--print_config"])
    assert caught.value.code == 0
    assert f"benchmark: {settings.benchmark}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_can_be_overridden_field_by_field(path):
    words = ["train", "--config", str(path), "--train.epochs", "77", "--model.num_parts", "9", "--loss.entropy", "0.5"]
    parsed = SimpleNamespace(**parser.parse(words)[1])
    expected = parse(path)
    assert parsed.train == replace(expected.train, epochs=77)
    assert parsed.model == replace(expected.model, num_parts=9)
    assert parsed.loss == replace(expected.loss, entropy=0.5)


def test_pondbirds_is_what_the_demo_does():
    settings = parse(FOLDER / "pondbirds.yaml")
    assert settings.benchmark == "pondbirds"
    assert settings.model == presets.TINY_MODEL
    assert settings.train == presets.TINY_TRAIN
    assert settings.loss == getattr(presets, "TINY_LOSS", LossConfig())
    assert not settings.data


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_trains_for_two_steps(path, tmp_path):
    settings = parse(path)
    name = settings.benchmark
    options = SMALL.get(name) or MINIATURES[name](tmp_path)
    benchmark = load_benchmark(name, None if name in SMALL else tmp_path, {**options, **(settings.data or {})})
    small = settings.model
    if small.backbone != "ifam_tiny":
        small = replace(small, backbone="vit_tiny_patch16_224", image_size=80, backbone_kwargs=TINY_VIT)
    seed_everything(0)
    chosen = method(settings.method)
    net = chosen.build(replace(small, num_classes=len(benchmark.class_names)), small.backbone == "ifam_tiny")
    assert isinstance(net, torch.nn.Module)
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    batch = len(benchmark.split("train")) // 2
    train = replace(settings.train, **chosen.train)
    train = replace(train, epochs=1, batch_size=batch, accelerator="cpu", precision="32-true", workers=0)
    result = fit(net, benchmark, train, settings.loss)
    assert len(result.history) == 1
    assert result.history[0]["train/total"] > 0
    moved = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
    assert {"predictor.head.weight", "selector.prototypes", "selector.classifier.weight"} <= moved
    backbone_moved = any(key.startswith("predictor.backbone.vit.blocks") for key in moved)
    assert backbone_moved == (train.predictor_tuning == "all")
    assert not any(key.startswith("selector.backbone.vit.blocks") for key in moved)


def test_a_recipe_that_is_saved_is_the_same_when_it_is_read(tmp_path):
    """Tuples and dictionaries survive YAML."""
    from dataclasses import asdict

    model = replace(
        presets.TINY_MODEL,
        class_names=("a b", "ü: [x]"),
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
        backbone_kwargs={"drop_path_rate": 0.1},
    )
    train = replace(presets.TINY_TRAIN, ema_decay=0.99, devices=1)
    loss = LossConfig(entropy=0.25)
    settings = {"benchmark": "pondbirds", "root": None, "data": {"num_train": 8}}
    parts = {"model": asdict(model), "train": asdict(train), "loss": asdict(loss)}
    presets.begin_run({**settings, **parts}, tmp_path, overwrite=False)
    parsed = parse(tmp_path / "train.yaml")
    assert (parsed.model, parsed.train, parsed.loss) == (model, train, loss)
    assert parsed.data == {"num_train": 8}
