"""A comparison on screen and page: cells by hand, honest notes, and a chart that fits on a phone."""

import json
import re

import pytest

from browser import PROGRAM, Browser
from ifam.errors import IfamError
from ifam.evaluation.seeds import summarize
from ifam.report.comparisons import comparison_section, print_comparison
from ifam.report.results import write_report

GROUPS = ("bird on water", "bird on land", "fish on water")
NAMES = {"plain": [], "told": ["groups"], "oracle": ["groups", "masks"], "ours": []}


def comparison(seeds=(0, 1), names=NAMES, monitor="accuracy", groups=GROUPS):
    runs = [
        {
            "row": name,
            "seed": seed,
            "figures": {
                "worst_group": 0.4 + 0.1 * place + 0.02 * seed,
                "average": 0.8 - 1e-15,
                "macro": 0.8 + 1e-16 - 0.1 * (name == "told"),
                "seconds": 60.0 + seed,
                **({"mask_iou": 0.751, "visible_fraction": 0.182} if name == "ours" else {}),
            },
            "groups": {group: {"accuracy": 0.9 - 0.1 * i, "count": 20 + i} for i, group in enumerate(groups)},
            "parameters": {"trained": 832_768, "total": 22_000_000},
        }
        for place, name in enumerate(names)
        for seed in seeds
    ]
    methods = [
        {
            "name": name,
            "about": f"<what {name} is>",
            "uses": uses,
            "differs": {"model.num_parts": 1} if name == "ours" else {},
        }
        for name, uses in names.items()
    ]
    conditions = {"benchmark": "ponds", "seeds": list(seeds), "train": {"monitor": monitor}}
    return {"kind": "comparison", "methods": methods, **summarize(runs), "conditions": conditions}


def test_cells_by_hand():
    main, differences, groups = comparison_section(comparison()).tables
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
    found = {row[0]: dict(zip(differences.columns, row, strict=True)) for row in differences.rows}
    assert list(found) == ["told", "oracle", "ours"]
    assert found["ours"]["worst group"] == "+30.0 ± 0.0"
    assert found["told"]["mean over classes"] == "-10.0 ± 0.0"
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
    assert "single training, seed 3" in section.lead
    assert not [cell for table in section.tables for row in table.rows for cell in row if "±" in cell]


def test_one_row_has_no_differences():
    assert len(comparison_section(comparison(names={"ours": []})).tables) == 2


@pytest.mark.parametrize("monitor", ["accuracy", "worst_group"])
def test_notes_say_who_knows_what(monitor):
    told = " ".join(comparison_section(comparison(monitor=monitor)).notes)
    assert ("all know groups" in told) == (monitor == "worst_group")
    assert "Rows that are told nothing have it harder" in told
    assert "ours: <what ours is>; model.num_parts = 1." in told
    assert "told nothing" not in " ".join(comparison_section(comparison(names={"ours": []})).notes)


def test_the_screen_has_the_tables_of_the_page(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    print_comparison(comparison())
    said = capsys.readouterr().out
    assert "4 methods on ponds, 2 seeds" in said
    assert "41.0 ± 12.7" in said
    assert "+30.0 ± 0.0" in said
    assert "fish on water (22)" in said
    assert "<what ours is>" not in said


def page(tmp_path, found):
    (tmp_path / "compare.json").write_text(json.dumps(found))
    return write_report([tmp_path], tmp_path / "page.html")


def test_the_page(tmp_path):
    text = page(tmp_path, comparison()).read_text()
    assert "<title>Comparison</title>" in text
    assert "<h1>4 methods on ponds, 2 seeds</h1>" in text
    assert re.search(r'aria-label="plain: worst group 41.0 ± 12.7 %, average 80.0', text)
    assert "told (uses groups)" in text
    assert "&lt;what ours is&gt;" in text
    assert "Summary" not in text


def test_beside_other_results_it_has_a_heading_of_its_own(tmp_path):
    audit = {"average": 0.5, "worst_group": 0.25, "groups": {"a": {"accuracy": 0.25, "count": 4}}}
    single = {"predictor": audit, "count": 4, "conditions": {"model": "runs/x", "benchmark": "ponds", "split": "test"}}
    (tmp_path / "results.json").write_text(json.dumps(single))
    text = page(tmp_path, comparison()).read_text()
    assert "<h2>4 methods on ponds, 2 seeds</h2>" in text
    assert "<h2>Summary</h2>" in text
    assert "25.0" in text


def test_a_file_that_is_not_whole_is_named(tmp_path):
    found = comparison()
    del found["rows"][0]["figures"]
    with pytest.raises(IfamError, match=r"compare\.json cannot be read as results"):
        page(tmp_path, found)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")
def test_it_fits_on_a_desk_and_on_a_phone(tmp_path):
    path = page(tmp_path, comparison())
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.resize(width)
            browser.open(path)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("document.querySelector('.chart svg').getBoundingClientRect().width") >= 500
        assert not browser.complaints
