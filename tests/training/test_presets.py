"""Presets fit the data; every recipe parses, says what it is, and trains on a miniature of its data set."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ifam.cli import parser
from ifam.cli.main import main
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import BENCHMARKS, Benchmark, load_benchmark
from ifam.experiments.comparison import read_rows
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


# --- presets ---------------------------------------------------------------------------------------------

DINOV2_SMALL = Path(__file__).parents[3] / "shared" / "dinov2_small"
# Small enough to be built in no time, with patches of any size.
SMALL_VIT = "vit_tiny_patch16_224"


def counted(number):
    """A data set of that many training images, which nobody reads."""
    return Benchmark("counted", {"train": range(number)}, ("a", "b"), ("a", "b"))


def laptop(number, model=None, train=None, loss=None, given=()):
    """Settings of the preset laptop."""
    configs = (model or ModelConfig(SMALL_VIT), train or TrainConfig(), loss or LossConfig())
    return presets.apply_preset("laptop", *configs, counted(number), given)


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize("number", [4, 4999, 5000, 100_000])
def test_the_preset_is_chosen_by_gpu_and_number_of_images(gpu, number):
    chosen, reason = presets.choose("auto", number)
    assert chosen == ("paper" if gpu and number >= 5000 else "laptop")
    if chosen == "laptop":
        assert ("fewer than 5,000" if gpu else "no GPU") in reason
    assert presets.choose("auto", number, accelerator="cpu") == ("laptop", "since no GPU is used")
    assert [presets.choose(name, number)[0] for name in ("laptop", "paper")] == ["laptop", "paper"]


@pytest.mark.parametrize("number", [4, 50, 1000, 5000, 100_000])
@pytest.mark.parametrize("backbone", [SMALL_VIT, "ifam_tiny"])
def test_laptop_has_batches_that_the_data_fill_and_steps_enough(backbone, number):
    train = laptop(number, ModelConfig(backbone))[1]
    largest = presets.TINY_TRAIN.batch_size if backbone == "ifam_tiny" else presets.LAPTOP_TRAIN.batch_size
    assert train.batch_size == max(1, min(largest, number // 4))
    assert train.selector_epochs < train.epochs
    both = train.epochs - train.selector_epochs
    steps = number / train.batch_size
    assert both * steps >= presets.STEPS
    # No more than that, up to an epoch, but four epochs of a few thousand images.
    assert both == 4 or (both - 1) * steps < (presets.STEPS if number < 5000 else presets.MOST_STEPS)
    assert both >= (4 if number <= 5000 else 1)
    if backbone == "ifam_tiny":
        assert train.selector_epochs == 0
    else:
        assert presets.SELECTOR_STEPS <= train.selector_epochs * steps < presets.SELECTOR_STEPS + steps


def test_settings_that_were_given_are_kept():
    model = ModelConfig(SMALL_VIT, image_size=64, part_dropout=0.1)
    train = TrainConfig(base_lr=3e-4, precision="16-mixed", selector_tuning="all", seed=3)
    ours = laptop(50, model, train, LossConfig(total_variation=0.7))
    assert ours[0] == model
    assert (ours[1].base_lr, ours[1].precision, ours[1].selector_tuning, ours[1].seed) == (3e-4, "16-mixed", "all", 3)
    assert ours[1].head_lr_factor == presets.LAPTOP_TRAIN.head_lr_factor
    assert ours[2] == LossConfig(total_variation=0.7)


@pytest.mark.parametrize("backbone", [SMALL_VIT, "ifam_tiny"])
def test_settings_that_were_given_are_kept_where_they_are_the_defaults(backbone):
    model, train, loss = ModelConfig(backbone), TrainConfig(), LossConfig()
    named = {"model": model, "train": train, "loss": loss}
    every = [f"{place}.{name}" for place, config in named.items() for name in vars(config)]
    assert laptop(50, model, train, loss, every) == (model, train, loss)
    for name in ("base_lr", "batch_size", "epochs", "monitor", "selector_epochs"):
        assert getattr(laptop(50, model, given=[f"train.{name}"])[1], name) == getattr(train, name)
    assert laptop(50, model, given=["loss.total_variation"])[2] == loss


@pytest.mark.parametrize(
    ("given", "epochs", "alone"),
    [
        ({"epochs": 1}, 1, 0),
        ({"epochs": 2}, 2, 1),
        ({"epochs": 30}, 30, 15),
        ({"selector_epochs": 0}, 60, 0),
        ({"selector_epochs": 3}, 63, 3),
        ({"batch_size": 25}, 125 + 125, 125),
        # More than the preset has for many images.
        ({"warmup_epochs": 20}, 120, 60),
        ({"selector_epochs": 20}, 80, 20),
    ],
)
def test_epochs_fit_the_settings_that_were_given(given, epochs, alone):
    train = laptop(50, train=TrainConfig(**given), given=[f"train.{name}" for name in given])[1]
    assert (train.epochs, train.selector_epochs) == (epochs, alone)


@pytest.mark.parametrize(("patch", "side"), [(8, 10), (8, 37), (16, 14)])
def test_total_variation_falls_with_the_side_of_a_coarse_grid(patch, side):
    kwargs = {**TINY_VIT, "patch_size": patch}
    loss = laptop(50, ModelConfig(SMALL_VIT, image_size=side * patch, backbone_kwargs=kwargs))[2]
    assert loss == LossConfig(total_variation=min(1.0, side / 12))


def test_total_variation_is_scaled_by_the_grid_of_the_selector():
    model = ModelConfig(SMALL_VIT, image_size=256, selector_image_size=128, backbone_kwargs=TINY_VIT)
    assert laptop(50, model)[2].total_variation == 8 / 12


@pytest.mark.parametrize(("patch", "pixels"), [(14, 224), (16, 224), (8, 224), (24, 216), (400, 400)])
def test_the_image_size_is_a_multiple_of_the_patches(patch, pixels):
    kwargs = {**TINY_VIT, "patch_size": patch}
    assert laptop(50, ModelConfig(SMALL_VIT, backbone_kwargs=kwargs))[0].image_size == pixels


def test_the_image_size_is_a_multiple_of_the_patches_of_both_backbones():
    two = {"backbone_kwargs": {**TINY_VIT, "patch_size": 14}, "predictor_kwargs": TINY_VIT}
    model = laptop(50, ModelConfig(SMALL_VIT, predictor_backbone=SMALL_VIT, **two))[0]
    assert model.image_size == 224
    assert method("ifam").build(model, pretrained=False).selector.backbone.grid == (16, 16)


def test_the_backbone_of_the_laptop_is_small_and_that_of_the_paper_is_not():
    assert laptop(50, ModelConfig())[0].backbone == presets.LAPTOP_BACKBONE
    base = ModelConfig().backbone
    assert laptop(50, ModelConfig(), given=["model.backbone"])[0].backbone == base


@pytest.mark.skipif(not DINOV2_SMALL.is_dir(), reason="these weights are not here")
def test_a_folder_is_a_backbone_too():
    model, train, loss = laptop(1000, ModelConfig(str(DINOV2_SMALL)))
    assert (model.backbone, model.image_size) == (str(DINOV2_SMALL), 224)
    assert (train.epochs, train.batch_size, loss.total_variation) == (8, 16, 1.0)


@pytest.mark.parametrize("backbone", [ModelConfig().backbone, "ifam_tiny"])
@pytest.mark.parametrize("number", [4, 100_000])
def test_the_preset_of_the_paper_is_the_defaults(number, backbone):
    configs = ModelConfig(backbone), TrainConfig(), LossConfig()
    assert presets.apply_preset("paper", *configs, counted(number)) == configs


def test_every_row_of_a_comparison_has_the_preset():
    """And its own settings."""

    def complete(*configs, given):
        return presets.apply_preset("laptop", *configs, counted(50), given)

    methods = {
        "plain_vit": {},
        "ifam": {},
        "frozen_crops": {},
        "short": {"method": "ifam", "train": {"epochs": 2, "base_lr": 1e-6}, "model": {"image_size": 32}},
    }
    model = ModelConfig(SMALL_VIT, backbone_kwargs=TINY_VIT)
    plain, ours, crops, short = read_rows(methods, model, TrainConfig(), LossConfig(), (), complete)
    expected = laptop(50, model)
    for row in (plain, ours):
        assert (row.model, row.train, row.loss) == expected
    assert crops.train == replace(expected[1], predictor_tuning="none")
    assert short.train == replace(expected[1], epochs=2, selector_epochs=1, base_lr=1e-6)
    assert (short.model.image_size, short.loss.total_variation) == (32, 2 / 12)


@pytest.fixture
def squares(tmp_path):
    """Ten small pictures of each of two classes."""
    for name, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 40 + i), color).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_settings_of_a_run_name_its_preset_and_repeat_it(squares, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    first, second = tmp_path / "first", tmp_path / "second"
    kwargs = ["--model.backbone", "ifam_tiny", "--train.epochs", "2"]
    main(["train", str(squares), "--out", str(first), *kwargs])
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("Preset laptop, since no GPU is used: ifam_tiny at 80 pixels, 2 epochs in batches of 4, 32")
    settings = yaml.safe_load((first / "train.yaml").read_text())
    assert settings["preset"] == "laptop"
    main(["train", "--config", str(first / "train.yaml"), "--out", str(second)])
    assert capsys.readouterr().out.startswith("Preset laptop, as given: ")
    assert yaml.safe_load((second / "train.yaml").read_text()) == settings
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_a_wrong_preset_is_one_sentence(verb, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--preset", "desktop", "--out", str(tmp_path / "new")])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "preset" in said
    assert all(name in said for name in ("desktop", "auto", "laptop", "paper"))
    assert not (tmp_path / "new").exists()
