"""A comparison on screen and page: cells by hand, honest notes, and a chart that fits on a phone."""

import json
import math
import re

import pytest
from PIL import Image

from chromium import chromium, complaints, needs_chromium
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Accuracy, Evaluation
from ifam.evaluation.comparisons import ComparisonResult, MethodInfo, Picture, Run, summarize
from ifam.evaluation.metrics import GroupAccuracy
from ifam.report.comparisons import comparison_section, curves, image_rows, print_comparison
from ifam.report.console import write_results
from ifam.report.results import write_report
from ifam.serialization import to_json

GROUPS = ("bird on water", "bird on land", "fish on water")
NAMES = {"plain": [], "told": ["groups"], "oracle": ["groups", "masks"], "ours": []}


def ours(name):
    return name == "ours"


def pictures(name):
    """Two images, with a mask for our own method."""
    masked = {"parts": "pictures/parts.webp", "seen": "pictures/seen.webp"} if ours(name) else {}
    answers = (("bird", 0.9), ("fish", 0.75))
    return [
        Picture(index, group, "fish", "pictures/input.webp", *answers[ours(name)], **masked)
        for index, group in enumerate(GROUPS[:2])
    ]


def comparison(seeds=(0, 1), names=NAMES, monitor="accuracy", groups=GROUPS, influence=0.0):
    runs = [
        Run(
            name,
            seed,
            {
                "worst_group": 0.4 + 0.1 * place + 0.02 * seed,
                "average": 0.8 - 1e-15,
                "macro": 0.8 + 1e-16 - 0.1 * (name == "told"),
                "seconds": 60.0 + seed,
                **({"mask_iou": 0.751, "visible_fraction": 0.182, "hidden_influence": influence} if ours(name) else {}),
                **({"selector_worst_group": 0.3, "selector_average": 0.6} if ours(name) else {}),
            },
            {group: GroupAccuracy(0.9 - 0.1 * i, 20 + i) for i, group in enumerate(groups)},
            {"trained": 832_768, "total": 22_000_000},
            history=[{"train/total": 1.0 / epoch, "val/accuracy": 0.4 * epoch} for epoch in (1, 2)],
            pictures=pictures(name) if seed == seeds[0] else [],
        )
        for place, name in enumerate(names)
        for seed in seeds
    ]
    methods = [
        MethodInfo(name, "plain_vit", f"<what {name} is>", uses, {"model.num_parts": 1} if ours(name) else {})
        for name, uses in names.items()
    ]
    conditions = {"benchmark": "ponds", "seeds": list(seeds), "train": {"monitor": monitor}}
    return ComparisonResult(methods, summarize(runs), conditions, "<Birds> and fish.", 4)


def test_cells_by_hand():
    main, differences, selectors, groups = comparison_section(comparison()).tables
    rows = {row[0]: dict(zip(main.columns, row, strict=True)) for row in main.rows}
    # t = 12.706 for two seeds; half of a distance of two points is one.
    assert rows["plain"]["worst group %"] == "41.0 ± 12.7"
    assert rows["ours"]["mask IoU"] == "0.75 ± 0.00"
    assert rows["plain"]["mask IoU"] == "–"
    assert rows["plain"]["seconds"] == "60.5 ± 6.4"
    assert rows["ours"]["visible %"] == "18.2 ± 0.0"
    assert (rows["plain"]["trained"], rows["plain"]["weights"]) == ("833\u00a0k", "22\u00a0M")
    assert [row["uses"] for row in rows.values()] == ["–", "groups", "groups and masks", "–"]
    assert rows["told"]["mean over classes %"] == "70.0 ± 0.0"
    cells = {row[0]: dict(zip(differences.columns, row, strict=True)) for row in differences.rows}
    assert list(cells) == ["told", "oracle", "ours"]
    assert cells["ours"]["worst group"] == "+30.0 ± 0.0"
    assert cells["told"]["mean over classes"] == "-10.0 ± 0.0"
    assert selectors.rows == (("ours", "30.0 ± 0.0", "60.0 ± 0.0"),)
    assert groups.columns == ("", "fish on water (22)", "bird on land (21)", "bird on water (20)")
    assert groups.rows[0] == ("plain", "70.0 ± 0.0", "80.0 ± 0.0", "90.0 ± 0.0")


def test_many_groups_run_downwards():
    groups = comparison_section(comparison(groups=[f"group {i}" for i in range(8)])).tables[-1]
    assert groups.columns == ("", *NAMES)
    assert len(groups.rows) == 8
    assert groups.rows[0][0] == "group 7 (27)"


def test_a_mean_over_classes_that_is_the_average_is_not_shown():
    main = comparison_section(comparison(names={"plain": [], "ours": []})).tables[0]
    assert "mean over classes %" not in main.columns


def test_one_seed_has_no_interval_and_says_so():
    section = comparison_section(comparison(seeds=(3,)))
    assert "a single run, seed 3" in section.lead
    assert not [cell for table in section.tables for row in table.rows for cell in row if "±" in cell]


def test_one_row_has_no_differences():
    assert len(comparison_section(comparison(names={"plain": []})).tables) == 2


@pytest.mark.parametrize("monitor", ["accuracy", "worst_group"])
def test_notes_say_who_knows_what(monitor):
    told = " ".join(comparison_section(comparison(monitor=monitor)).notes)
    assert ("all use groups" in told) == (monitor == "worst_group")
    assert "Rows without it have a harder task" in told
    assert "ours: <what ours is>; model.num_parts = 1." in told
    assert "Rows without" not in " ".join(comparison_section(comparison(names={"ours": []})).notes)


def test_the_screen_has_the_tables_of_the_page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    print_comparison(comparison())
    said = capsys.readouterr().out
    assert "4 methods on ponds, 2 seeds" in said
    assert "41.0 ± 12.7" in said
    assert "+30.0 ± 0.0" in said
    assert "fish on water (22)" in said
    assert "<what ours is>" not in said


def page(tmp_path, content):
    (tmp_path / "pictures").mkdir()
    for name in ("input", "parts", "seen"):
        Image.new("RGB", (80, 80), "teal").save(tmp_path / "pictures" / f"{name}.webp")
    (tmp_path / "compare.json").write_text(json.dumps(content if isinstance(content, dict) else to_json(content)))
    return write_report([tmp_path], tmp_path / "page.html")


def test_the_page(tmp_path):
    text = page(tmp_path, comparison()).read_text()
    assert "<title>Comparison</title>" in text
    assert "<h1>4 methods on ponds, 2 seeds</h1>" in text
    assert re.search(r'aria-label="plain: worst group 41.0 ± 12.7 %, average 80.0', text)
    assert "told (uses groups)" in text
    assert "&lt;what ours is&gt;" in text
    assert "Summary" not in text
    assert "&lt;Birds&gt; and fish." in text
    assert "training loss by epoch: plain, told, oracle, ours" in text
    assert not re.findall(r"""<(?:script|link|iframe|object)\b[^>]*(?:src|href|data)=["'](?!data:)""", text)


def test_pictures_show_what_each_method_saw_and_answered(tmp_path):
    text = page(tmp_path, comparison()).read_text()
    # Two images, each with its input and the two views of the one method that has a mask.
    assert len(re.findall(r'src="data:image/webp', text)) == 6
    assert "ours: what the predictor saw" in text
    assert re.findall(r"<h3>(.+)</h3>", text)[:2] == ["bird on land", "bird on water"]
    plain = text[text.index('<span class="key plain">') :]
    assert re.match(r".*?<b>bird</b>.*?90.*?✗ wrong", plain, flags=re.DOTALL)
    assert re.match(r".*?<b>fish</b>.*?75.*?✓ right", text[text.index('<span class="key ours">') :], flags=re.DOTALL)


def test_a_damaged_picture_is_named(tmp_path):
    page(tmp_path, comparison())
    (tmp_path / "pictures" / "seen.webp").write_text("x")
    with pytest.raises(IfamError, match=r"seen\.webp cannot be read \(it is not a readable image\); keep pictures/"):
        write_report([tmp_path], tmp_path / "page.html", overwrite=True)


def test_images_come_by_group_with_the_worst_of_the_first_row_first():
    rows = image_rows(comparison())
    assert list(rows) == ["bird on land", "bird on water"]
    (image,) = rows["bird on land"]
    assert [name for name, *_ in image.masked] == ["ours"]
    assert list(image.answers) == list(NAMES)


def test_curves_have_names_and_epochs():
    ours = curves(comparison())["ours"]
    assert ours == {"training loss": [(1, 1.0), (2, 0.5)], "validation accuracy": [(1, 0.4), (2, 0.8)]}


@pytest.mark.parametrize(("influence", "says"), [(0.0, "exactly 0 (ours)"), (3e-7, "by 3e-07"), (math.nan, "by nan")])
def test_hidden_pixels_that_change_a_logit_are_said(influence, says):
    notes = " ".join(comparison_section(comparison(influence=influence)).notes)
    assert says in notes
    assert ("FAILS" in notes) == (influence != 0)


def test_beside_other_results_it_has_a_heading_of_its_own(tmp_path):
    groups = {"a": GroupAccuracy(0.25, 4)}
    single = Evaluation(Accuracy(0.5, 0.25, groups, groups, 0.25, 0.25, None, None, {}), None, None, None, None, 4)
    write_results(single, tmp_path / "results.json", {"model": "runs/x", "benchmark": "ponds", "split": "test"})
    text = page(tmp_path, comparison()).read_text()
    assert "<h2>4 methods on ponds, 2 seeds</h2>" in text
    assert "<h2>Summary</h2>" in text
    assert "25.0" in text


def test_a_file_that_is_not_whole_is_named(tmp_path):
    content = to_json(comparison())
    del content["rows"][0]["figures"]
    with pytest.raises(IfamError, match=r"compare\.json cannot be read as results"):
        page(tmp_path, content)


@needs_chromium
def test_it_fits_on_a_desk_and_on_a_phone(tmp_path):
    path = page(tmp_path, comparison())
    with chromium() as browser:
        shown = browser.new_page()
        said = complaints(shown)
        for width in (1280, 390):
            shown.set_viewport_size({"width": width, "height": 900})
            shown.goto(path.resolve().as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate("document.querySelector('.chart svg').getBoundingClientRect().width") >= 500
        assert not said
