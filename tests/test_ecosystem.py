"""The page on other libraries: its code runs as it stands, from top to bottom."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
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
