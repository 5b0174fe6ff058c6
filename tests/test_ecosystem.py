"""The page on other libraries: its code runs as it stands, from top to bottom."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

PAGE = (Path(__file__).parents[1] / "docs" / "ecosystem.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))


def run_section(name):
    """Run the code of a section; weights that would be fetched are random."""
    blocks = re.findall(r"^```python\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block.replace("pretrained=True", "pretrained=False"), f"docs/ecosystem.md: {name}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """A folder with the photos that the page names."""
    monkeypatch.chdir(tmp_path)
    for name, color in (("bird.jpg", "teal"), ("dog.jpg", "brown")):
        Image.new("RGB", (300, 240), color).save(name)


@pytest.mark.skipif(find_spec("torchcam") is None, reason="the extra `explain` is not installed")
def test_heat_maps():
    names = run_section("Heat maps")
    assert names["heat"].maps.shape == (2, 14, 14)
    assert names["heat"].pixels().shape == (2, 224, 224)
    assert Path("heat.png").is_file()


def test_masks_in_torchvision():
    """Where the mask shows a patch, and nowhere else, its pixels are tinted."""
    names = run_section("Masks in torchvision")
    images, out = names["images"], names["out"]
    changed = (names["drawn"] != images[0]).any(dim=0)
    tinted = torch.nn.functional.avg_pool2d(changed[None].float(), 8)[0] > 0.5
    assert torch.equal(tinted, out.mask[0])
    with Image.open("mask.png") as saved:
        assert saved.size == (80, 80)


def test_the_selector_as_a_part_discovery_model():
    names = run_section("The selector as a part-discovery model")
    selection, model = names["selection"], names["model"]
    assert selection.part_maps.shape == (2, 5, 10, 10)
    assert selection.winners.shape == (2, 10, 10)
    assert selection.part_features.shape == (2, 5, 128)
    assert selection.selector_logits.shape == (2, 2)
    images = torch.rand(2, 3, 80, 80)
    alone, within = names["selector"](images), model(images).selection
    for name in ("assignment_logits", "part_maps", "similarity", "part_features", "part_scores", "selector_logits"):
        assert torch.equal(getattr(alone, name), getattr(within, name)), name
    # The predictor is not needed.
    del model.predictor
    assert torch.equal(names["selector"](images).part_maps, alone.part_maps)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("fiftyone") is None, reason="the extra `fiftyone` is not installed")
@pytest.mark.filterwarnings("ignore")
def test_an_audit_in_fiftyone():
    names = run_section("An audit in FiftyOne")
    assert [Path(sample.filepath).name for sample in names["samples"]] == sorted(
        path.name for path in Path("audited").iterdir()
    )
    assert len(names["samples"]) == 8
