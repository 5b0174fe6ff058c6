"""The page: true whatever the figures are, self-contained, and safe with any name."""

import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ifam.errors import IfamError
from ifam.report.html import DemoReport, PictureRow, data_uri, write_demo_report

EVIL = '<script>alert("x")</script>'
CURVES = {"iFAM": {"training loss": [(1, 1.2), (2, 0.8)], "worst group": [(1, 0.2), (2, 0.9)]}}


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.replace("\u202f", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] != "style":
            self.text += data


def a_run(plain: float = 0.34, ours: float = 0.91, *, seed: int = 0, influence: float = 0.0, **groups: float):
    def model(worst: float, **more: float) -> dict[str, Any]:
        accuracy = {"swimmer on water": 0.97, "swimmer on forest": worst, **groups}
        table = {name: {"accuracy": value, "count": 500} for name, value in accuracy.items()}
        return {"average": (worst + 0.97) / 2, "worst_group": worst, "groups": table, **more}

    return {
        "seed": seed,
        "plain_vit": model(plain),
        "selector": model(0.1),
        "ifam": model(ours, mask_iou=0.79, visible_fraction=0.18),
        "hidden_influence": influence,
        "seconds": {"plain_vit": 60, "ifam": 100},
    }


def a_row(truth: str = "swimmer", size: int = 80) -> PictureRow:
    image = Image.new("RGB", (size, size), "teal")
    return PictureRow(image, image, image, truth, "percher", 0.93, truth, 0.99)


def write(tmp_path: Path, **changes: Any) -> Page:
    settings: dict[str, Any] = {
        "title": "ifam demo",
        "conditions": {"Seed": 0, "Epochs": 4},
        "runs": [a_run()],
        "pictures": [("swimmer on water", [a_row()]), ("swimmer on forest", [a_row()])],
        "curves": None,
        "about": "Drawn birds.",
        "num_parts": 4,
    }
    return Page(write_demo_report(tmp_path / "new" / "report.html", DemoReport(**{**settings, **changes})))


def test_page_is_one_file_without_network_or_script(tmp_path):
    page = write(tmp_path, curves=CURVES)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed"}
        for name, value in attributes.items():
            if name in {"src", "href", "srcset", "xlink:href", "poster"}:
                local = (value or "").startswith(("data:", "#"))
                assert local or (tag == "a" and value == "https://arxiv.org/abs/2506.08915")
            assert not name.startswith("on")
    assert "@import" not in page.source
    assert not re.search(r"url\((?!['\"]?(#|data:))", page.source)


def test_every_picture_is_embedded_and_described(tmp_path):
    images = [attributes for tag, attributes in write(tmp_path).tags if tag == "img"]
    assert len(images) == 6
    for image in images:
        assert re.match(r"data:image/(png|jpeg);base64,", image["src"] or "")
        assert image["alt"]
        assert image["width"]
        assert image["height"]


def test_names_are_escaped(tmp_path):
    groups = {EVIL: 0.5}
    page = write(
        tmp_path,
        title=EVIL,
        about=EVIL,
        conditions={EVIL: EVIL},
        runs=[a_run(**groups)],
        pictures=[(EVIL, [a_row(EVIL)])],
        curves={EVIL: {EVIL: [(1, 0.5)]}},
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) >= 8


def test_figures_of_the_table(tmp_path):
    text = write(tmp_path).text
    assert "Plain ViT 34.0 % 65.5 % – 100 % –" in text
    assert "iFAM 91.0 % 94.0 % 0.79 18 % exactly 0" in text
    assert "no output changes at all" in text


@pytest.mark.parametrize(
    ("runs", "headline"),
    [
        ([a_run(0.34, 0.91)], "In its worst group, iFAM is right on 91 % of the images. A plain ViT: 34 %."),
        ([a_run(0.91, 0.34)], "Here the plain ViT does better: 91 % in its worst group, iFAM 34 %."),
        (
            [a_run(0.90, 0.92)],
            "In their worst groups the two models come out close: iFAM 92 %, plain ViT 90 %.",
        ),
        (
            [a_run(0.92, 0.90)],
            "In their worst groups the two models come out close: iFAM 90 %, plain ViT 92 %.",
        ),
        (
            [a_run(0.6, 0.62), a_run(0.3, 0.9, seed=1)],
            "In its worst group, iFAM is right on 76 % of the images.",
        ),
        ([a_run(0.8, 0.82), a_run(0.8, 0.86, seed=1)], "come out close: iFAM 84 %, plain ViT 80 %."),
        ([a_run(0.3, 0.9), a_run(0.6, 0.5, seed=1)], "Which model does better in its worst group depends"),
    ],
)
def test_headline_claims_no_win_that_is_not_there(tmp_path, runs, headline):
    assert headline in write(tmp_path, runs=runs).text


def test_broken_promise_is_said_aloud(tmp_path):
    text = write(tmp_path, runs=[a_run(influence=0.0), a_run(influence=3e-7)]).text
    assert "does not keep its promise" in text
    assert "up to 3e-07" in text
    assert "exactly 0" not in text


@pytest.mark.parametrize("order", [(0.0, float("nan")), (float("nan"), 0.0)])
def test_influence_of_nan_is_not_called_zero(tmp_path, order):
    text = write(tmp_path, runs=[a_run(influence=influence) for influence in order]).text
    assert "does not keep its promise" in text
    assert "exactly 0" not in text


def test_several_seeds_give_mean_and_range(tmp_path):
    text = write(tmp_path, runs=[a_run(ours=0.90), a_run(ours=0.94, seed=1)]).text
    assert "mean of 2 seeds" in text
    assert "92.0 % 90.0 % to 94.0 %" in text


def test_hardest_group_comes_first(tmp_path):
    text = write(tmp_path).text
    pictures = text[text.index("What the answers rest on") : text.index("Accuracy by group")]
    assert pictures.index("swimmer on forest") < pictures.index("swimmer on water")


def test_answers_are_marked_in_words(tmp_path):
    text = write(tmp_path, pictures=[("swimmer on water", [a_row()])]).text
    assert "Plain ViT percher 93 % ✗ wrong" in text
    assert "iFAM swimmer 99 % ✓ right" in text


def test_curves_are_drawn_as_text_and_lines(tmp_path):
    page = write(tmp_path, curves=CURVES)
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [chart["aria-label"] for chart in charts] == [
        "training loss by epoch: iFAM",
        "worst group by epoch: iFAM",
    ]
    ids = [
        attributes["id"]
        for _, attributes in page.tags
        if "id" in attributes and "url(#" + str(attributes["id"]) in page.source
    ]
    assert len(ids) == len(set(ids))


def test_what_is_missing_is_left_out(tmp_path):
    run = {key: value for key, value in a_run().items() if key not in {"hidden_influence", "selector"}}
    del run["ifam"]["mask_iou"]
    page = write(tmp_path, runs=[run], pictures=[], curves=None, about="", num_parts=0)
    assert "with an IoU" not in page.text
    assert "own answer" not in page.text
    assert "Training" not in page.text
    assert "img" not in {tag for tag, _ in page.tags}


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(IfamError, match="no run"):
        write(tmp_path, runs=[])


def test_text_has_enough_contrast():
    css = resources.files("ifam.report").joinpath("templates", "style.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css))
    for name in ("ink", "quiet", "plain", "selector", "ifam", "right", "wrong"):
        assert 1.05 / (luminance(colours[name]) + 0.05) >= 4.5, name


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_drawings_are_kept_exactly_and_photographs_small():
    assert data_uri(Image.new("RGB", (80, 80))).startswith("data:image/png")
    assert data_uri(Image.new("RGB", (518, 518))).startswith("data:image/jpeg")
