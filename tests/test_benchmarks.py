"""The benchmarks compare equals, measure what they say, and run."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from benchmarks import any_reliance, coverage, inference, part_leakage, part_sums, rough_masks, scaling, step
from benchmarks.measure import (
    Contender,
    Measurement,
    allocated,
    comparison,
    matmul_rate,
    measure,
    profile_table,
    storage_bytes,
    table,
)
from benchmarks.plain import Forced, PlainIFAM, visible_masks
from benchmarks.step import Setting, Workload, train_step
from PIL import Image

from ifam.auditing.any_classifier import AnyClassifier
from ifam.checkpoints import hub
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark, TransformedDataset, collate, load_benchmark
from ifam.errors import IfamError
from ifam.models.ifam import IFAM
from ifam.training.module import Training, prepare
from ifam.types import Batch

pytestmark = pytest.mark.slow

TINY = Workload(
    backbone="vit_tiny_patch16_224",
    size=64,
    parts=3,
    classes=5,
    backbone_kwargs={"depth": 2, "embed_dim": 48, "num_heads": 3},
)
ARGS = [
    *("--backbone", TINY.backbone, "--backbone-kwargs", '{"depth": 2, "embed_dim": 48, "num_heads": 3}'),
    *("--size", "64", "--parts", "3", "--classes", "5", "--threads", "1", "--repeats", "1"),
]
QUIET = {"gumbel_noise": False, "part_dropout": 0.0, "mask_part_dropout": 0.0}
LAYOUTS = [("vit_tiny_patch16_224", 64), ("vit_small_patch14_reg4_dinov2", 56)]


@pytest.fixture(params=LAYOUTS, ids=["class token in the table", "registers"])
def pair(request, make_model):
    """An `IFAM` without noise, and the plain model with its weights."""
    name, size = request.param
    model = make_model(name, size, mask_gradient="none", **QUIET)
    plain = PlainIFAM(model.config).eval()
    plain.load_state_dict(model.state_dict())
    return model, plain


def batch_for(model):
    size = model.image_size[0]
    return Batch(torch.randn(4, 3, size, size), torch.tensor([0, 3, 4, 1]))


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# What is compared is the same thing.


def test_the_plain_model_answers_the_same(pair):
    model, plain = pair
    images = batch_for(model).images
    with torch.no_grad():
        ours, theirs = model(images), plain(images)
    counts = ours.mask.flatten(1).sum(dim=1)
    assert counts.unique().numel() > 1, "the comparison needs masks of different sizes"
    for name in ("logits", "mask", "part_maps", "selector_logits", "part_scores", "part_features", "similarity"):
        close(getattr(ours, name), getattr(theirs, name))


def test_the_plain_predictor_answers_the_same_pruned_and_dense(pair, mask):
    model, plain = pair
    images = batch_for(model).images
    with torch.no_grad():
        expected = model.predictor(images, mask)
        close(plain.predictor(images, mask), expected)
        close(plain.train().predictor(images, mask), expected)


@pytest.mark.parametrize("tuning", ["tokens", "all"])
def test_a_plain_step_has_the_same_losses_and_gradients(pair, tuning):
    model, plain = pair
    batch, config = batch_for(model), TrainConfig(selector_tuning=tuning)
    prepare(model, config)
    training = Training(model, config, LossConfig(), Benchmark("random", {}, (), ("all",)), 100).train()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)

    torch.manual_seed(5)
    ours = training.terms(batch)
    torch.manual_seed(5)
    theirs = plain.train().terms(batch)

    assert ours.keys() == theirs.keys()
    for name in ours:
        close(ours[name], theirs[name])
    for terms in (ours, theirs):
        sum(terms.values()).backward()
    for name, parameter in plain.named_parameters():
        gradient = model.get_parameter(name).grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            close(gradient, parameter.grad)


def test_the_plain_step_has_the_costs_that_it_is_there_for():
    made, seen = train_step(Setting(plain=True), TINY), []
    for stage in (made.model.selector, made.model.predictor):
        stage.backbone.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    made()
    # Two stages, two passes, every token: 16 patches and the class token of 4 images.
    assert seen == [(4, 17, 48)] * 4


def test_forced_masks_show_what_they_should_and_keep_their_gradient():
    model = Forced(TINY.config(), pretrained=False).train()
    model.visible = TINY.masks((4, 4))
    mask = model.mask(model.selector(TINY.data().images))
    assert mask.visible.equal(model.visible)
    assert mask.gate.equal(model.visible.float())
    mask.gate.sum().backward()
    assert model.selector.prototypes.grad.abs().sum() > 0


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 1 / 3, 0.5, 0.8, 0.99, 1])
@pytest.mark.parametrize("batch", [1, 2, 4, 7, 32])
def test_masks_show_exactly_their_share(batch, share):
    masks = visible_masks(batch, (16, 16), share)
    assert masks.shape == (batch, 16, 16)
    assert int(masks.sum()) == round(share * batch * 256)
    counts = masks.flatten(1).sum(dim=1)
    if batch > 1 and share == 0.25:
        assert (int(counts[0]), int(counts[-1])) == pytest.approx((32, 96), abs=1)


# The measurement.


def test_figures_of_a_measurement():
    one = Measurement("a", (3.0, 1.0, 2.0, 5.0, 4.0))
    assert one.median == 3
    assert one.quartiles == (2, 4)
    assert Measurement("b", (2.0,)).quartiles == (2, 2)
    # Rounds are compared one by one: twice as fast in each, though the machine was slow in one of them.
    assert one.faster_than(Measurement("c", (6.0, 2.0, 4.0, 10.0, 8.0))) == 2


def test_peak_memory_is_what_is_alive_at_once():
    def call():
        first = torch.empty(3000, dtype=torch.uint8)
        del first
        second = torch.empty(1000, dtype=torch.float32)
        third = torch.empty(500, dtype=torch.float64)
        del second, third
        return torch.empty(10, dtype=torch.uint8)

    assert allocated(call) == 8000
    assert allocated(call) == 8000
    assert allocated(lambda: None) == 0


def test_what_tensors_share_counts_once():
    whole = torch.empty(100)
    assert storage_bytes([whole, whole[:10], whole.view(10, 10), torch.empty(5)]) == 420


def test_contenders_take_turns_and_absent_ones_say_why():
    calls = []

    def fail():
        raise IfamError("no such\nkernel")

    contenders = [
        Contender("a", lambda: calls.append("a"), lambda: 100),
        Contender("b", fail),
        Contender("c", lambda: calls.append("c") or torch.empty(24, dtype=torch.uint8), lambda: 7),
        Contender("d", fail, missing="not today"),
    ]
    a, b, c, d = measure(contenders, repeats=3)
    # Once to warm up, once for the memory, then three rounds of which each starts with another one.
    assert "".join(calls) == "ac" + "ac" + "ac" + "ca" + "ac"
    assert (len(a.seconds), a.peak, len(c.seconds), c.peak) == (3, 100, 3, 31)
    assert (b.seconds, b.missing, d.missing) == ((), "no such kernel", "not today")


def test_tables():
    measurements = [
        Measurement("a", (0.2, 0.4), 2**21),
        Measurement("b", missing="no"),
        Measurement("c", (0.1, 0.1), 2**20),
    ]
    assert comparison(measurements).splitlines()[2:] == [
        "| a | 300.0 | 250.0 to 350.0 | 1.00 | 2 | 1.00 |",
        "| b | not run: no |  |  |  |  |",
        "| c | 100.0 | 100.0 to 100.0 | 3.00 | 1 | 0.50 |",
    ]
    assert table(["x", "y"], []) == "| x | y |\n| --- | ---: |"
    profiled = profile_table("p", {"one": (0.5, 1e9), "two": (1.5, 3e9)}, 4e9).splitlines()
    assert profiled[2] == "| one | 500.0 | 25.0% | 1.00 | 2.0 | 50% |"
    assert profiled[4] == "| all | 2000.0 | 100.0% | 4.00 | 2.0 | 50% |"


def test_the_machine_multiplies_matrices():
    assert matmul_rate(torch.float32, size=64) > 0


# A step, and its parts.


@pytest.mark.parametrize("setting", [Setting(plain=True), Setting(), Setting(tuning="none")], ids=lambda one: one.name)
def test_what_a_step_keeps_is_weights_and_optimizer_state(setting):
    made = train_step(setting, TINY)
    made()
    count = sum(weight.numel() for weight in made.model.parameters())
    moving = sum(weight.numel() for weight in made.trained)
    batch = 4 * 3 * 64 * 64 * 4 + 4 * 8 + 4 * 16
    # Two moments of each weight, and one number at most that counts the steps of each tensor.
    steps = made.resident() - (4 * count + 2 * 4 * moving + batch)
    assert 0 <= steps <= 8 * len(made.trained)
    assert all(weight.grad is None for weight in made.model.parameters())


def test_settings_train_what_they_say():
    def trained(setting):
        return {name for name, weight in train_step(setting, TINY).model.named_parameters() if weight.requires_grad}

    tokens = {f"selector.backbone.vit.{name}" for name in ("cls_token", "pos_embed")}
    ours = trained(Setting())
    assert {name for name in ours if name.startswith("selector.backbone")} == tokens
    assert trained(Setting(plain=True)) == ours
    assert trained(Setting(tuning="none")) == ours - tokens


def test_without_bf16_instructions_the_table_says_so(capsys, monkeypatch):
    for command in (step, inference):
        monkeypatch.setattr(command, "bf16_missing", lambda device: "no bf16 here")
    step.main([*ARGS, "--only", "plain,plain bf16"])
    assert "| plain bf16 | not run: no bf16 here |" in capsys.readouterr().out
    inference.main([*ARGS, "--batch", "1", "--visible", "0.25"])
    assert capsys.readouterr().out.count("| not run: no bf16 here |") == 4


def test_flops_are_those_of_the_layers():
    parts = step.profile(train_step(Setting(plain=True), TINY), repeats=1)
    batch, patches, tokens, width, hidden = 4, 16, 17, 48, 4 * 48
    embedding = 2 * batch * patches * 3 * 16 * 16 * width
    linear = 2 * batch * tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * 2 * batch * tokens * tokens * width
    assert parts["selector's backbone"][1] == 2 * (embedding + 2 * (linear + attention))
    assert parts["predictor"][1] == parts["selector's backbone"][1] + 2 * 2 * batch * width * TINY.classes
    assert parts["backward"][1] > parts["predictor"][1]
    assert parts["clip, optimizer"][1] == 0


# The commands.


def test_step_prints_a_row_for_each_contender(capsys, tmp_path):
    file = tmp_path / "new" / "step.md"
    step.main([*ARGS, "--executions", "--markdown", str(file)])
    printed = capsys.readouterr().out
    assert printed == file.read_text()
    names = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")][2:]
    assert names == [
        *("plain", "tokens/none", "tokens/visible", "tokens/full", "none/none", "none/visible"),
        *("none/none bf16", "none/visible bf16", "plain bf16"),
        *("tokens/none dense", "tokens/none padded", "tokens/none packed"),
    ]
    assert "batch 4, K=3, 5 classes, 25% visible" in printed


@pytest.mark.skipif("checkpointing" not in TrainConfig.__dataclass_fields__, reason="TrainConfig has no checkpointing")
def test_a_step_recomputes_activations(capsys):
    step.main([*ARGS, "--checkpointing", "--only", "plain, tokens/none checkpointed"])
    assert "| tokens/none checkpointed |" in capsys.readouterr().out


def test_step_profiles(capsys, monkeypatch):
    monkeypatch.setattr(step, "matmul_rate", lambda dtype, device: 1e9)
    step.main([*ARGS, "--profile", "--only", "plain, none/visible"])
    printed = capsys.readouterr().out
    assert "| plain | ms |" in printed
    assert "| none/visible | ms |" in printed
    assert printed.count("| backward |") == 2


def test_step_knows_its_contenders():
    with pytest.raises(SystemExit, match=r"names elephant, but there are: plain, tokens/none"):
        step.main([*ARGS, "--only", "plain,elephant"])


def test_in_bf16_every_contender_is_there_once():
    args = step.parser(None).parse_args([*ARGS, "--precision", "bf16"])
    for name in ("compile", "executions", "checkpointing"):
        setattr(args, name, True)
    args.only = ""
    names = [setting.name for setting in step.settings(args)]
    assert len(names) == len(set(names))
    assert all("bf16" in name for name in names)
    assert all(way.precision == "bf16" for way in inference.ways("bf16"))


def test_inference_prints_its_tables(capsys):
    inference.main([*ARGS, "--batch", "2", "--visible", "1.0", "0.25"])
    printed = capsys.readouterr().out
    assert printed.count("| plain, pruned |") == 3
    assert printed.count("| ifam packed |") == 2
    assert "| predictor alone | ms at 25% | ms at 100% | 25% / 100% |" in printed


def test_inference_compares_equals():
    work = dataclasses.replace(TINY, visible=0.4)
    models = inference.Models(work)
    images = work.data().images
    models.ifam.visible = models.plain.visible = work.masks((4, 4))
    with torch.inference_mode():
        close(models.ifam(images).logits, models.plain(images).logits)


@pytest.mark.parametrize("mode", ["step", "inference"])
def test_scaling_prints_and_draws(capsys, tmp_path, mode):
    lists = ["--fractions", "0.25", "--sizes", "32", "--batches"]
    scaling.main([*ARGS, "--mode", mode, *lists, "--plot", str(tmp_path / "plot.png")])
    printed = capsys.readouterr().out
    assert "| visible patches in % | plain" in printed
    assert "| image size in pixels | plain" in printed
    assert "images in a batch" not in printed
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_scaling_measures_the_common_point_once(monkeypatch, capsys):
    measured = []

    def measure(contenders, **_):
        measured.append([one.name for one in contenders])
        return [Measurement(one.name, (1.0,)) for one in contenders]

    monkeypatch.setattr(scaling, "measure", measure)
    scaling.main([*ARGS, "--batch", "2", "--fractions", "0.25", "0.5", "--sizes", "32", "64", "--batches", "1", "2"])
    assert len(measured) == 4
    assert capsys.readouterr().out.count("\n| 25 |") == 1


# --- rough masks -----------------------------------------------------------------------------------------


def square(left, top):
    """A mask of 60 x 40 pixels with a square of 16."""
    pixels = np.zeros((40, 60), np.uint8)
    pixels[top : top + 16, left : left + 16] = 255
    return Image.fromarray(pixels)


def test_a_rough_mask_is_the_true_one_elsewhere_and_with_round_corners():
    same = np.asarray(rough_masks.rough_mask(square(20, 12), 0, 0, 0))
    assert np.array_equal(same, np.asarray(square(20, 12)))
    moved = np.asarray(rough_masks.rough_mask(square(20, 12), 5, 0, 0))
    assert np.array_equal(moved, np.asarray(square(25, 12)))
    round_corners = np.asarray(rough_masks.rough_mask(square(20, 12), 0, 3, 0))
    assert round_corners[12, 20] == 0
    assert round_corners[20, 28] == 255


def test_what_leaves_the_image_does_not_come_in_again():
    moved = np.asarray(rough_masks.rough_mask(square(44, 12), 8, 0, 0))
    assert np.array_equal(moved, np.asarray(square(44, 12)) * (np.arange(60) >= 52))


def test_every_image_gets_a_rough_mask_of_its_own(tmp_path):
    (tmp_path / "masks" / "test").mkdir(parents=True)
    rows = [{"path": f"{i}.jpg", "label": "a", "mask": f"masks/test/{i}.png"} for i in range(3)]
    for row in rows:
        square(20, 12).save(tmp_path / row["mask"])
    with (tmp_path / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    rough_masks.main([str(tmp_path), "--shift", "4", "--blur", "0"])
    with (tmp_path / "rough.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["rough"] for row in listed] == [f"rough/test/{i}.png" for i in range(3)]
    assert [row["path"] for row in listed] == [row["path"] for row in rows]
    assert [row["mask"] for row in listed] == [row["mask"] for row in rows]
    masks = [np.asarray(Image.open(tmp_path / row["rough"])) for row in listed]
    assert all(mask.sum() == 16 * 16 * 255 for mask in masks)
    assert not np.array_equal(masks[0], masks[1])


# ----------------------------------------------------------------------------------------------------- parts


@pytest.fixture
def bird_model(tmp_path):
    """A model of pondbirds that was never trained, in a folder."""
    torch.manual_seed(0)
    model = IFAM(ModelConfig("ifam_tiny", image_size=80, num_parts=2))
    with torch.no_grad():
        model.selector.prototypes.normal_(std=0.3)
    model.save_pretrained(tmp_path / "model", {"data": {"num_train": 2, "num_val": 2, "num_test": 12}})
    return tmp_path / "model"


def test_a_linear_probe_reads_what_is_there_and_nothing_else():
    random = np.random.default_rng(0)
    cue, features = random.integers(2, size=400), random.normal(size=(400, 8))
    assert 0.4 < (part_leakage.read(features, cue, seed=0) == cue).mean() < 0.6
    features[:, 3] += 4 * cue
    assert (part_leakage.read(features, cue, seed=0) == cue).mean() > 0.95


def test_isolated_features_do_not_depend_on_other_parts(bird_model):
    """Those of the predictor that sees all parts do, and the selector's too."""
    model = hub.load(bird_model)
    birds = load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 12}).split("test")
    select, (before, shown) = model.select, next(part_leakage.part_features(model, birds))
    side = model.config.image_size // 10
    own = shown[:, 0].view(-1, 1, 10, 10).repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    prepared = TransformedDataset(birds, model.image_size, model.normalization)
    held = select(collate([prepared[i] for i in range(12)]).images)
    birds.images = torch.where(own, birds.images, 1 - birds.images)
    model.select = lambda images: held
    after, _ = next(part_leakage.part_features(model, birds))
    several = shown.any(dim=2).all(dim=1)
    assert several.any()
    assert torch.equal(after["isolated"][:, 0], before["isolated"][:, 0])
    for source in ("joint", "selector"):
        assert not torch.equal(after[source][several, 0], before[source][several, 0])


def test_leakage_and_sums_of_parts_are_written(bird_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(part_leakage, "_LEAST", 10)
    part_leakage.main([str(bird_model), "--images", "60", "--out", str(tmp_path / "leakage.json")])
    found = json.loads((tmp_path / "leakage.json").read_text())["models"][str(bird_model)]
    assert found
    for cue, row in found.items():
        assert cue in part_leakage.PLACES
        for source in part_leakage.SOURCES:
            assert 0 <= row[source]["low"] <= row[source]["accuracy"] <= row[source]["high"] <= 1
    part_sums.main([str(bird_model), "--out", str(tmp_path / "sums.json")])
    sums = json.loads((tmp_path / "sums.json").read_text())[str(bird_model)]
    assert sums["images"] == 12
    assert sums["joint"]["worst_group"] <= sums["joint"]["average"]
    assert "additivity explains" in capsys.readouterr().out


def test_variance_explained_by_a_sum():
    values = torch.randn(500)
    assert part_sums.explained(values, 3 * values - 1) == pytest.approx(1, abs=1e-5)
    assert part_sums.explained(values, torch.randn(500)) < 0.05
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    assert part_sums.margins(logits, torch.tensor([0, 2])).tolist() == [1.0, -4.0]


def test_coverage_is_measured_for_each_saved_model(tmp_path, capsys, monkeypatch):
    """Of two seeds, with intervals, and the curves of each group."""
    options = {"num_train": 40, "num_val": 60, "num_test": 60}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = IFAM(ModelConfig(backbone="ifam_tiny", image_size=40, num_parts=3, num_classes=2))
        model.save_pretrained(tmp_path / "models" / f"ifam-{seed}", {"data": {**options, "seed": seed}})
    monkeypatch.setattr(coverage, "COUNT", 20)
    words = ["--error", "0.1", "--out", tmp_path / "all.json", "--plot", tmp_path / "curves.png"]
    coverage.main([str(word) for word in (tmp_path / "models", *words)])
    header, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert header.startswith("| row | seeds | worst-group coverage | coverage |")
    assert row.startswith("| ifam | 2 |")
    assert row.count("\u00b1") == header.count("|") - 3
    figures = json.loads((tmp_path / "all.json").read_text())["ifam"]
    assert set(figures) == {"ifam-0", "ifam-1"}
    for one in figures.values():
        assert 0 <= one["worst-group coverage"] <= one["coverage"] <= 1
        assert 0 <= one["digits: AUROC"] <= 1
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 300


def test_agreement_is_rank_correlation_and_mean_difference():
    """Masks keep the order of the pairs with 10 points more, the selector turns it round."""
    figures = torch.tensor([[0.1, 0.2, 0.3], [0.2, 0.3, 0.2], [0.3, 0.4, 0.1]])
    assert any_reliance.agreement(figures) == [
        "masks against benchmark's pairs: rank correlation 1.00, bias +10.0 points (+10.0 to +10.0)",
        "selector against benchmark's pairs: rank correlation -1.00, bias +0.0 points (-20.0 to +20.0)",
        "selector against masks: rank correlation -1.00, bias -10.0 points (-30.0 to +10.0)",
    ]


@pytest.mark.slow
def test_reliance_of_a_model_that_reads_one_corner(capsys):
    """It flips with every pair of pictures that changes the corner's side of gray, whoever cuts out."""
    images = load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 12})
    data = any_reliance.read(images.split("test"), (80, 80), 12)

    def corner(pixels):
        value = pixels[:, 2, 0, 0] - pixels[:, 1, 0, 0]
        return torch.stack([-value, value], dim=1)

    model = AnyClassifier("corner", corner, (80, 80), (0.0,) * 3, (1.0,) * 3)
    pairs, masks, selected = any_reliance.reliance(model, {**data, "selected": data["mask"]}, images, 0)
    changed = corner(data["image"]).argmax(dim=1) != corner(data["swapped"]).argmax(dim=1)
    assert pairs == pytest.approx(float(changed.float().mean()))
    assert 0 < masks == selected < 1
