"""`ifam audit --any` on a folder of one's own: its figures, its exit status, what it writes, and what it refuses."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ifam.auditing.any_classifier import AnyClassifier
from ifam.auditing.audit_any import audit_any, select_objects
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM
from ifam.report.results import write_report

GUIDE = Path(__file__).parents[2] / "docs" / "audit.md"
# Class of the object, gray of the object and of the background.
CLASSES = {"bee": (100, 20), "cat": (160, 240)}
CODE = """
import torch

calls = []

def corner(images):
    value = images[:, 0, 0, 0] - 130 / 255
    return torch.stack([-value, value], dim=1)

def center(images):
    value = images[:, 0, images.shape[2] // 2, images.shape[3] // 2] - 130 / 255
    return torch.stack([-value, value], dim=1)

def probabilities(images):
    return (100 * corner(images)).softmax(dim=1)

def nan(images):
    return corner(images) * float("nan")

def ends(images):
    raise SystemExit(0)
"""
OPTIONS = "--root photos --image_size 40 --mean [0,0,0] --std [1,1,1]"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six pictures of each of two classes with masks, a module with classifiers, and a selector without training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs_of_test.py").write_text(CODE)
    rows = ["path,label,mask"]
    for name, (gray, behind) in CLASSES.items():
        for i in range(6):
            pixels = np.full((40, 40, 3), behind, dtype=np.uint8)
            mask = np.zeros((40, 40), dtype=np.uint8)
            mask[12:28, 10 + i : 26 + i] = 255
            pixels[mask > 0] = gray
            for kind, array in (("images", pixels), ("masks", mask)):
                path = tmp_path / "photos" / kind / f"{name}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            rows.append(f"images/{name}{i}.png,{name},masks/{name}{i}.png")
    (tmp_path / "photos" / "images.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(*words, status=0):
    """The command, which ends with a status."""
    words = ["audit", *(part for word in words for part in shlex.split(word))]
    if not status:
        return main(words)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == status
    return None


def refused(capsys, *words):
    """The sentence of a command that is refused."""
    run(*words, status=2)
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("ifam: ")
    assert said.endswith(".")
    return said


def test_one_that_reads_the_corner_fails_and_is_shown(folder, capsys):
    run("--any theirs_of_test:corner", OPTIONS, "--max-flips 0.5 --out out", status=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "runs the code of this module" in said
    assert "FAILED: 100.0% (100.0% to 100.0%) of the answers flip" in said
    content = json.loads((folder / "out" / "reliance.json").read_text())
    assert content["passed"] is False
    assert content["flips"]["overall"] == {"images": 12, "swaps": 48, "flips": 1, "low": 1, "high": 1}
    assert content["flips"]["control"]["flips"] == 0
    assert content["flips"]["accuracy"] == [1, 0]
    assert content["area"] == pytest.approx(0.16)
    assert len(content["examples"]) == 12
    for example in content["examples"]:
        assert {example["label"], example["background"]} == set(CLASSES)
        assert (example["answer"], example["after"]) == (example["label"], example["background"])
        # The object of the one, before the gray of the other; nothing of the other's object.
        with Image.open(folder / "out" / example["pictures"]["swapped"]) as picture:
            grays = {value[0] for _, value in picture.convert("RGB").getcolors(2000)}
        assert grays == {CLASSES[example["label"]][0], CLASSES[example["background"]][1]}


def test_one_that_reads_the_object_passes(folder, capsys):
    run("--any theirs_of_test:center", OPTIONS, "--max-flips 0 --out out")
    content = json.loads((folder / "out" / "reliance.json").read_text())
    assert content["passed"] is True
    assert content["flips"]["overall"]["flips"] == content["flips"]["drop"] == 0
    assert content["examples"] == []
    assert "PASSED: 0.0% (0.0% to 0.0%) of the answers flip" in " ".join(capsys.readouterr().out.split())


def test_the_page_shows_figures_and_pictures_and_needs_no_other_file(folder, capsys):
    run("--any theirs_of_test:probabilities", OPTIONS, "--out out")
    source = (folder / "out" / "reliance.html").read_text()
    assert source.count("<img ") == 48
    assert not re.search(r'(src|href)="(?!data:|#)', source)
    text = " ".join(re.sub(r"<[^>]*>", " ", source).split())
    assert "100% of the answers flip with the background." in text
    assert "returns probabilities, which are taken as they are" in text
    assert "bee before cat" in text
    # Again under the same conditions; and on a page with others.
    run("--any theirs_of_test:probabilities", OPTIONS, "--out out")
    assert "is not of this run" not in capsys.readouterr().err
    assert write_report([folder / "out", folder / "out" / "reliance.json"], folder / "both.html").exists()


def test_a_model_of_timm_through_the_command_that_the_guide_names(folder, capsys):
    """The guide's commands, with the names of this folder."""
    commands = re.findall(r"^ifam audit (--any timm.*?)(?:\s+#.*)?$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 2
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=2).state_dict(), folder / "weights.pth")
    config = ModelConfig("ifam_tiny", image_size=80, num_parts=2, class_names=tuple(CLASSES))
    hub.save(IFAM(config), folder / "selector", {"benchmark": "folder", "root": "photos", "data": {}})
    named = {
        "resnet50": "test_vit",
        "runs/ifam": "selector",
        "my_weights.safetensors": "weights.pth",
        "flips 0.1": "flips 1",
    }
    for number, command in enumerate(commands):
        for word, ours in named.items():
            command = command.replace(word, ours)
        if "--checkpoint" not in command:
            command += " --checkpoint weights.pth"
        run(command, f"--limit 12 --out out{number}")
        content = json.loads((folder / f"out{number}" / "reliance.json").read_text())
        assert content["classifier"] == "timm:test_vit"
        assert content["flips"]["num_classes"] == 2
        assert content["conditions"]["preprocessing"]["image_size"] == [160, 160]


def test_images_in_which_nothing_is_found_are_left_out_and_counted(folder):
    masks = folder / "photos" / "masks"
    Image.new("L", (40, 40), 0).save(masks / "bee0.png")
    Image.new("L", (40, 40), 255).save(masks / "cat1.png")
    run("--any theirs_of_test:corner", OPTIONS, "--out out")
    content = json.loads((folder / "out" / "reliance.json").read_text())
    assert content["left_out"] == {"no object found": 1, "the object fills the image": 1}
    assert content["flips"]["overall"]["images"] == 10


def test_what_cannot_be_measured_is_one_sentence(folder, capsys):
    corner = f"--any theirs_of_test:corner {OPTIONS} --out out"
    assert "NaN or infinity" in refused(capsys, f"--any theirs_of_test:nan {OPTIONS} --out out")
    ended = refused(capsys, f"--any theirs_of_test:ends {OPTIONS} --out out --max-flips 0.1")
    assert "The code of theirs_of_test:ends ended the program" in ended
    assert "leave --model and --plain out" in refused(capsys, corner, "--model selector")
    assert "give a folder of them with --root" in refused(capsys, "--any theirs_of_test:corner")
    assert "max_flips is 2" in refused(capsys, corner, "--max-flips 2")
    assert "max_flips is for the audit of another" in refused(capsys, "--max-flips 0.5")
    assert "each takes its background from another" in refused(capsys, corner, "--limit 1")
    listed = (folder / "photos" / "images.csv").read_text().splitlines()
    for i in range(6):
        Image.new("L", (40, 40), 0).save(folder / "photos" / "masks" / f"bee{i}.png")
    assert "of the class cat, but two or more are needed" in refused(capsys, corner)
    for i in range(6):
        Image.new("L", (40, 40), 0).save(folder / "photos" / "masks" / f"cat{i}.png")
    assert "No object could be cut out of any of the 12 images (no object found: 12)" in refused(capsys, corner)
    bare = [",".join(row.split(",")[:2]) for row in listed]
    (folder / "photos" / "images.csv").write_text("\n".join(bare) + "\n")
    assert "folder has no masks, so nothing can be cut out" in refused(capsys, corner)
    assert not (folder / "out").exists()


def test_a_selector_cuts_out_what_its_mask_shows():
    torch.manual_seed(0)
    model = IFAM(ModelConfig("ifam_tiny", image_size=80, num_parts=2, num_classes=2)).eval()
    images = load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 4}).split("test").images
    mean, std = (torch.tensor(one)[:, None, None] for one in model.normalization)
    with torch.no_grad():
        mask = model(images).mask
        model_sees = select_objects(model, images * std + mean, 3)
    assert torch.equal(model_sees, mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2))
    with pytest.raises(IfamError, match="plain_vit selects no parts"):
        select_objects(PlainViT(model.config), images)


@pytest.mark.shapes_unchecked
@pytest.mark.parametrize(
    "settings",
    [{"backgrounds": 0}, {"backgrounds": 1.5}, {"limit": 0}, {"batch_size": 0}, {"max_flips": 10}, {"max_flips": -1.0}],
)
def test_numbers_out_of_range_are_refused(folder, settings):
    images = load_benchmark("folder", folder / "photos", {"val_fraction": 0.0})
    (name,) = settings
    with pytest.raises(IfamError, match=f"{name} is .* is expected"):
        audit_any(AnyClassifier("x", lambda images: images.mean((2, 3)), (40, 40)), images, **settings)


def test_the_same_objects_are_asked_of_every_classifier(folder):
    """Of any size of input: the choice of backgrounds depends on the images and the seed alone."""
    images = load_benchmark("folder", folder / "photos", {"val_fraction": 0.0})
    pairs = []
    for side in (40, 56):
        flips = AnyClassifier("x", lambda images: torch.rand(len(images), 2), (side, side))
        result = audit_any(flips, images, backgrounds=1)
        pairs.append((result.flips.overall.swaps, result.flips.num_classes))
    assert pairs[0] == pairs[1] == (12, 2)


# --- code ------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(folder):
    """A module that leaves a file when it is imported, and a settings file that names it."""
    (folder / "stranger_of_test.py").write_text("open('sprung', 'w').close()\ndef f(images):\n    return images\n")
    settings = "any: stranger_of_test:f\nroot: photos\nimage_size: 40\nout: out\n"
    (folder / "audit.yaml").write_text(settings)
    return folder


def test_a_function_that_a_settings_file_names_is_not_run(trap, capsys):
    assert "A settings file names the function 'stranger_of_test:f'" in refused(capsys, "--config audit.yaml")
    # Nor where another one is named on the command line, before the file.
    other = refused(capsys, "--any theirs_of_test:corner --config audit.yaml")
    assert "stranger_of_test:f" in other
    assert not (trap / "sprung").exists()


def test_a_function_that_a_result_names_is_not_run_again(trap, capsys):
    run("--any theirs_of_test:corner", OPTIONS, "--out out")
    file = trap / "out" / "reliance.json"
    file.write_text(file.read_text().replace("theirs_of_test:corner", "stranger_of_test:f"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["repeat", str(file)])
    assert stopped.value.code == 2
    assert "names the function 'stranger_of_test:f'" in capsys.readouterr().err
    assert not (trap / "sprung").exists()
