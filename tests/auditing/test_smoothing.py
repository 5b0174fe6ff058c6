"""`ifam.certify`: what it says of models whose votes are known, and that no attack beats it."""

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ifam.auditing.region_attack import attack_votes, weakest_regions
from ifam.auditing.smoothing import Certification, certify, region_size
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.smoothing import answers_of, touched_windows, window_votes
from ifam.models import registry
from ifam.models.base import Classifier
from ifam.models.windows import all_windows
from ifam.report.certification import certification_section, print_certification
from ifam.report.result_files import read_results
from ifam.serialization import from_json
from ifam.types import Batch, Output

DATA = {"num_train": 4, "num_val": 4, "num_test": 12}


class BrightWindows(Classifier):
    """A model of two classes whose windows vote for the second where they are bright: 4 x 6 patches of 2 x 2 pixels.

    A window that is exactly gray sees nothing.
    """

    image_size, normalization = (8, 12), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    window_grid = (4, 6)
    input_backbone = SimpleNamespace(patch_size=(2, 2))

    def __init__(self):
        super().__init__(ModelConfig(num_classes=2))
        self.weight = nn.Parameter(torch.ones(1))
        self.predictor = nn.Identity()
        self.predictor.mask_gradient = "visible"

    def forward(self, images, interventions=(), masks=None):
        return Output(self._logits(images))

    def classify_windows(self, images, windows):
        cut = windows.cut(images)
        mask = (cut != 0).any(dim=(1, 2, 3))[:, None, None].expand(-1, *self.window_grid)
        return Output(self._logits(cut), mask=mask)

    def _logits(self, pixels):
        mean = self.weight * pixels.mean(dim=(1, 2, 3))
        return torch.stack([-mean, mean], dim=1)


def columns(*values):
    """Images of which each column of patches has one value."""
    return torch.tensor(values).float().repeat_interleave(2, dim=1)[:, None, None].expand(-1, 3, 8, -1).contiguous()


@pytest.fixture
def bright():
    return BrightWindows().eval()


def test_models_whose_votes_are_known(bright):
    """Constant votes are certain up to half of the windows, ties nowhere, and a lead that is just lost is no proof."""
    constant, tied = [1.0] * 6, [1.0, -1.0] * 3
    lost, kept = [1.0, 1, 1, 1, -1, -1], [-1.0, -1, -1, -1, 1, 1]
    result = certify(bright, columns(constant, tied, lost, kept, [0.0] * 6), width=1, attack=0)
    assert [row.size for row in result.images] == [2, 0, 0, 1, 0]
    assert [row.pixels for row in result.images] == [3, 0, 0, 1, 0]
    assert [row.answer for row in result.images] == ["class 1", "class 0", "class 1", "class 0", "class 0"]
    assert result.images[1].votes == (1, 0, 1, 0, 1, 0)
    assert result.images[4].votes == (-1,) * 6
    assert result.abstained == pytest.approx(1 / 5)
    assert [(one.size, one.pixels, one.certain) for one in result.regions] == [(1, 1, 0.4), (2, 3, 0.2), (3, 5, 0.0)]
    assert (result.ordinary, result.vote, result.asked.accuracy) == (None, None, None)
    assert result.seconds > 0 < result.cost


def test_accuracies_are_by_group_with_intervals(bright):
    batch = Batch(
        columns([1.0] * 6, [1.0, -1] * 3, [-1.0] * 6, [-1.0] * 6), torch.tensor([1, 0, 0, 1]), torch.arange(4)
    )
    result = certify(bright, batch, width=1, attack=0)
    assert (result.vote.average, result.vote.worst_group) == (0.75, 0.0)
    certain = result.asked.accuracy
    assert (certain.average, certain.worst_group) == (0.5, 0.0)
    assert {name: group.accuracy for name, group in certain.groups.items()} == {
        "group 0": 1.0,
        "group 1": 0.0,
        "group 2": 1.0,
        "group 3": 0.0,
    }
    assert certain.intervals["average"][0] <= 0.5 <= certain.intervals["average"][1]
    # The same as a vote that only the certain ones win.
    assert result.asked.certain == 0.75


def attacked(model, images, kind="columns", width=1, size=1, **settings):
    """Which answers are certain, and which an attack changed."""
    windows, regions = (all_windows(kind, n, model.window_grid) for n in (width, size))
    votes = window_votes(model, images, windows)
    touched = touched_windows(windows, regions)
    attack = weakest_regions(images, votes, windows, regions, touched, model.config.num_classes)
    result = certify(model, images, kind=kind, width=width, region=size, attack=0)
    return torch.tensor([row.size >= size for row in result.images]), attack_votes(model, attack, **settings)


@pytest.mark.parametrize(
    ("kind", "width", "size"), [("columns", 1, 1), ("columns", 2, 1), ("columns", 1, 2), ("blocks", 2, 1)]
)
def test_an_attack_changes_exactly_what_is_not_certain(bright, kind, width, size):
    """Where windows can be made to vote for anything, the bound is reached: no certain answer, and every other one."""
    images = torch.randn(40, 3, 8, 12, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    images[::2] += 0.15
    certain, changed = attacked(bright, images, kind, width, size, steps=20)
    assert torch.equal(certain, ~changed)
    assert certain.any()
    assert changed.any()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"mask_resolution": 4}], ids=["patches", "pixels"])
def test_no_attack_beats_the_certificate_of_a_real_model(make_model, settings):
    """Nothing is held: masks change, pixels may be NaN, and windows that are not touched keep their vote."""
    model = make_model(num_classes=2, image_size=96, **settings)
    noise, colors = (torch.Generator().manual_seed(seed) for seed in (4, 5))
    images = torch.randn(12, 3, 1, 6, generator=colors).repeat_interleave(16, 3)
    images = images + torch.randn(12, 3, 96, 96, generator=noise)
    certain, changed = attacked(model, images, steps=10)
    assert certain.any()
    assert changed.any()
    assert not (certain & changed).any()
    # All windows again, with anything in any column.
    windows = all_windows("columns", 1, (6, 6))
    before = window_votes(model, images, windows)
    for column, value in product(range(6), (torch.nan, torch.inf, -50.0)):
        other = images.clone()
        other[..., column * 16 : (column + 1) * 16] = value
        votes = window_votes(model, other, windows)
        elsewhere = torch.arange(6) != column
        assert torch.equal(votes[:, elsewhere], before[:, elsewhere])
        assert torch.equal(answers_of(votes, 2)[certain], answers_of(before, 2)[certain])


def test_a_fault_is_found(bright, monkeypatch):
    """A model whose windows see more than they say fails: the attack is no formality."""

    class Peeking(BrightWindows):
        def classify_windows(self, images, windows):
            return Output(self._logits(images[..., :2]))

    model = Peeking().eval()
    result = certify(model, columns([1.0] * 6, [-1.0] * 6), width=2, steps=20)
    # Only windows that are touched vote again, so that of six bands no more than two are lost.
    assert result.passed
    # With the attacker's pixels in every band, answers that seem certain change.
    everywhere = torch.ones(1, 5, dtype=torch.bool)
    monkeypatch.setattr("ifam.auditing.smoothing.touched_windows", lambda *_: everywhere)
    monkeypatch.setattr("ifam.auditing.smoothing.worst_leads", lambda votes, *_: torch.zeros(len(votes), 1))
    result = certify(model, columns([1.0] * 6, [-1.0] * 6), width=2, steps=20)
    assert (result.passed, result.attacks.changed_certain) == (False, 2)


def test_pixels_of_a_region_are_counted_from_anywhere(bright):
    sizes = {pixels: region_size(bright, "columns", None, pixels) for pixels in (1, 2, 3, 4, 5, 12)}
    assert sizes == {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 12: 6}
    images = torch.randn(4, 3, 8, 12)
    result = certify(bright, images, width=1, region_pixels=2, attack=2, steps=2)
    assert (result.size, result.attacks.size, result.attacks.images) == (2, 2, 2)


def test_the_mode_and_the_mask_gradient_are_restored(make_model, images):
    model = make_model(mask_gradient="none").train()
    result = certify(model, images, kind="blocks", width=2, steps=2)
    assert model.training
    assert model.predictor.mask_gradient == "none"
    assert result.window_count == 9
    assert [len(row.votes) for row in result.images] == [9] * 4


@pytest.mark.shapes_unchecked
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 0}, "windows are 0 patches wide, but 1 to 6"),
        ({"width": 7}, "windows are 7 patches wide, but 1 to 6"),
        ({"kind": "blocks", "width": 5}, "windows are 5 patches wide, but 1 to 4"),
        ({"region": 0}, "region is 0 patches wide, but 1 to 6"),
        ({"region": 7}, "region is 7 patches wide, but 1 to 6"),
        ({"kind": "blocks", "region": 5}, "region is 5 patches wide, but 1 to 4"),
        ({"region_pixels": 13}, "region is 13 pixels wide, but 1 to 12"),
        ({"region_pixels": 0}, "region is 0 pixels wide, but 1 to 12"),
        ({"region": 1, "region_pixels": 1}, "give region or region_pixels, not both"),
        ({"limit": 0}, "limit is 0"),
        ({"kind": "column"}, "kind is 'column', but 'columns' or 'blocks' is expected"),
        ({"width": 1.5}, "windows are 1.5 patches wide"),
        ({"region": 1.5}, "region is 1.5 patches wide"),
        ({"attack": -1}, "attack is -1, but a whole number of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(bright, settings, said):
    with pytest.raises(IfamError, match=said):
        certify(bright, torch.zeros(1, 3, 8, 12), **settings)


@pytest.mark.shapes_unchecked
def test_what_is_no_model_and_no_image_is_refused(bright):
    with pytest.raises(IfamError, match="The model is a Linear, but an IFAM or a PlainViT"):
        certify(torch.nn.Linear(2, 2), torch.zeros(1, 3, 8, 12))
    with pytest.raises(IfamError, match="The images are a str, but a tensor, a Batch or a Benchmark"):
        certify(bright, "photos")


def test_no_image_and_other_classes_are_refused(bright):
    with pytest.raises(IfamError, match="no image to certify"):
        certify(bright, torch.zeros(0, 3, 8, 12))
    benchmark = replace(load_benchmark("pondbirds", options=DATA), class_names=("a", "b", "c"))
    with pytest.raises(IfamError, match="has 3 classes, but the model has 2"):
        certify(bright, benchmark)


@pytest.fixture
def saved(tmp_path, make_model):
    """A tiny model that remembers pondbirds."""
    model = make_model(num_classes=2, class_names=("swimmer", "percher"), image_size=80)
    model.save_pretrained(tmp_path / "model", {"benchmark": "pondbirds", "data": DATA, "root": None})
    return tmp_path / "model"


@pytest.mark.slow
def test_the_verb_writes_a_result_and_a_page_that_can_be_read_again(saved, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["certify", str(saved), "--out", str(out), "--width", "1", "--attack", "2", "--steps", "3"]
    main(words)
    printed = capsys.readouterr().out
    assert "What no change of one region can alter" in printed
    assert "3 steps of gradient ascent" in " ".join(printed.split())
    content = json.loads((out / "certify.json").read_text())
    assert (content["kind"], content["passed"]) == ("certification", True)
    (result,) = read_results(out / "certify.json")
    assert from_json(Certification, content) == result.content
    assert len(result.content.images) == 12
    page = (out / "certify.html").read_text()
    assert certification_section(result.content).lead in page.replace("&#39;", "'")
    # The same command again replaces its own result, one with other settings does not.
    main(words)
    with pytest.raises(SystemExit) as caught:
        main([*words, "--kind", "blocks"])
    assert caught.value.code == 2
    assert "is a result under other conditions" in capsys.readouterr().err
    main(["report", str(out), "--out", str(tmp_path / "report.html")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "6"], "windows are 6 patches wide"),
        (["--width", "0"], "width is 0"),
        (["--region", "6"], "region is 6 patches wide"),
        (["--region_pixels", "81"], "region is 81 pixels wide"),
        (["--region", "1", "--region_pixels", "9"], "give region or region_pixels, not both"),
    ],
)
def test_the_verb_refuses_what_does_not_fit(saved, tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        main(["certify", str(saved), "--out", str(tmp_path / "out"), *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.slow
def test_the_commands_and_the_code_of_the_guide_run(saved, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "certify.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^ifam (certify .*?)(?=\s*#)", text, re.MULTILINE)
    assert len(commands) == 4
    for number, command in enumerate(commands):
        words = command.replace("runs/ifam", str(saved)).split()
        main([*words, "--out", f"out-{number}", "--attack", "0", "--limit", "2"])
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {"model": hub.load(saved), "images": torch.randn(2, 3, 80, 80)})


def test_models_that_cannot_see_windows_are_refused(tmp_path, capsys):
    config = ModelConfig(backbone="ifam_tiny", image_size=80, class_names=("swimmer", "percher"))
    model = registry.build("late_mask", config, pretrained=False)
    hub.save(model, tmp_path / "late", {"benchmark": "pondbirds", "data": DATA})
    with pytest.raises(SystemExit) as caught:
        main(["certify", str(tmp_path / "late"), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "late_mask cannot see windows of an image alone" in capsys.readouterr().err


def test_tables_without_labels_have_no_accuracies(bright, capsys):
    print_certification(certify(bright, torch.randn(3, 3, 8, 12), width=1, attack=0))
    printed = capsys.readouterr().out
    assert "By the size of the region" in printed
    assert "worst group)" not in printed
