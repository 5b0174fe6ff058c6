"""One page for any results: what it says, and how it behaves in a real Chromium on a desk and on a phone."""

import csv
import json
import math
import re
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from chromium import chromium, complaints, needs_chromium
from ifam.auditing.run import AuditResult, Pictures
from ifam.cli.main import main
from ifam.errors import IfamError
from ifam.report.audit_tables import sections
from ifam.report.results import write_audit, write_report
from ifam.report.tables import share, size
from ifam.serialization import from_json, to_json

GROUPS = ("swimmer on water", "swimmer on forest", "percher on water", "percher on forest")
# Text that is smaller than 18 pt needs this contrast (WCAG 2.1, AA).
CONTRAST = 4.5


def change(answers=0.0):
    return {"answers": answers, "probability": answers / 2, "largest_logit": answers, "any_bit": answers}


def attack(name, failing=0.0):
    shares = dict.fromkeys(("failing", "changed_answers", "not_finite"), failing)
    return {"attack": name, "tried": 4, **shares, "logit_change": failing, "probability_change": failing}


def certificate(name, failing=()):
    return {
        "name": name,
        "images": 4,
        "certified": 4,
        "hides_nothing": 0,
        "hides_everything": 1,
        "hidden_pixels": 1234,
        "settings": ["packed, evaluation"],
        "skipped": [],
        "attacks": [attack(a, len(failing) / 4) for a in ("noise", "another image", "NaN", "adversarial", "gradient")],
        "failing_images": list(failing),
        "violations": [
            {"image": i, "attack": "noise", "setting": "packed, evaluation", "change": 0.5} for i in failing
        ],
    }


def a_row(i):
    group = GROUPS[i % 4]
    answer = "percher" if i % 8 == 0 else group.split()[0]
    return {
        "index": 10 * i,
        "answer": answer,
        "confidence": 0.9,
        "label": group.split()[0],
        "group": group,
        "right": answer == group.split()[0],
        "visible": 0.16,
        "influence": (i * 37 % 100) / 100,
        "answer_after": "swimmer",
        "leave_one_out": [-1.5, 0.25, 0.0],
        "unstable": i % 5 == 0,
        "flags": ["another background changes the answer"] if i % 7 == 3 else [],
    }


def an_audit(count=4, failing=()):
    """An audit with figures that say what they are."""
    step = {"agreement": 0.75, "probability": 0.5, "accuracy": None, "visible": 0.25}
    reading = {"target": "background", "source": "mask", "images": count, "accuracy": 0.81, "low": 0.7, "high": 0.9}
    explanation = {"kept": 0.1, "agreement_removed": 0.6, "drop_removed": 0.1, "agreement_grey": 0.5, "drop_grey": 0.2}
    explanation |= {"pointing": None, "energy": 0.4, "energy_kept": 0.3, "accuracy": 0.9, "seconds": 0.01}
    kinds = ("hidden", "without_mixed", "fixed", "through_mask", "recomputed")
    groups = [
        {"name": g, "count": 1, "before": 0.9 - k / 10, "fixed": 0.8, "recomputed": 0.7} for k, g in enumerate(GROUPS)
    ]
    content = {
        "certificate": certificate("iFAM", failing),
        "baselines": [certificate("plain ViT", range(4))],
        "backgrounds": {
            **{kind: change(k / 10) for k, kind in enumerate(kinds)},
            **{"source": "ground truth", "images": count, "visible": 0.2, "mixed": 0.5, "stray": 0.1, "mask_iou": 0.66},
            **{"groups": groups, "influence": [0.1] * count, "changed": [False] * count, "answers_after": [0] * count},
        },
        "leakage": {"readings": [{**reading, "chance": 0.5, "shuffled": 0.5, "shuffled_high": 0.6}], "notes": []},
        "parts": {
            **{"insertion": [step] * 4, "deletion": [step] * 4, "insertion_area": 0.5, "deletion_area": 0.4},
            **{"eroded": step, "dilated": step, "leave_one_out": [[-1.5, 0.25, 0.0]] * count},
            "unstable": [False] * count,
            "parts": [
                {"part": k, "images": k, "patches": 2.0, "changed_answers": None, "logit_change": -0.5}
                for k in range(3)
            ],
        },
        "posthoc": {
            "plain": "<script>alert(1)</script>",
            "rows": [{"name": n, "model": m, **explanation} for n, m in (("mask", "iFAM"), ("Grad-CAM", "plain ViT"))],
            "notes": [],
        },
        "mask_iou": 0.7,
        "images": [a_row(i) for i in range(count)],
        "conditions": {"model": "runs/ifam", "benchmark": "pondbirds", "data": {"seed": 0}},
    }
    return from_json(AuditResult, content)


def write(folder, count=4, side=80, **kwargs):
    maps = torch.rand(count, 4, 10, 10).softmax(dim=1)
    pictures = Pictures(torch.rand(count, 3, side, side), maps, torch.rand(count, 10, 10) > 0.8)
    return write_audit(replace(an_audit(count, **kwargs), pictures=pictures), folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of an audit of 200 images."""
    return write(tmp_path_factory.mktemp("audit"), 200)[1]


def text_of(path):
    """What a reader sees, with plain spaces."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).replace("\u00a0", " ").replace("\u202f", " ").split())


def test_json_names_pictures_that_exist_and_the_page_holds_them(tmp_path):
    json_file, html_file = write(tmp_path, 4, side=500)
    content = json.loads(json_file.read_text())
    for row in content["images"]:
        for name in row["pictures"].values():
            with Image.open(tmp_path / name) as picture:
                assert list(picture.size) == row["side"] == [224, 224]
    source = html_file.read_text()
    assert source.count("<img ") == 12
    assert source.count('src="data:image/webp;base64,') == 12
    # No other file and no address is needed; the report can be moved.
    assert not re.search(r'(src|href)="(?!data:|#)', source)
    assert "<script>alert" not in source


@pytest.mark.slow
def test_flagged_images_come_first(page):
    order = [int(i) for i in re.findall(r">Image (\d+) ·", page.read_text())]
    flagged = [10 * i for i in range(200) if i % 7 == 3]
    assert order[: len(flagged)] == flagged
    assert sorted(order) == [10 * i for i in range(200)]


def test_an_audit_is_read_as_it_was_written(tmp_path):
    audit = an_audit(failing=(1,))
    assert from_json(AuditResult, json.loads(json.dumps(to_json(audit), allow_nan=False))) == audit
    json_file, _ = write(tmp_path, failing=(1,))
    content = json.loads(json_file.read_text())
    read = from_json(AuditResult, content)
    assert replace(read, images=tuple(replace(row, pictures=None, side=None) for row in read.images)) == audit
    assert (content["kind"], content["passed"], content["verdict"]) == ("audit", False, audit.verdict)
    assert (content["certificate"]["passed"], content["backgrounds"]["passed"]) == (False, True)
    with pytest.raises(IfamError, match="has no images to draw"):
        write_audit(read, tmp_path / "again")
    content["parts"]["eroded"].pop("visible")
    json_file.write_text(json.dumps(content))
    with pytest.raises(IfamError, match=r"audit\.json cannot be read as results \(.*parts\.eroded has no 'visible'\)"):
        write_report([json_file], tmp_path / "page.html")


def test_changes_that_are_not_finite_are_told():
    """As infinity in memory, and as null in a file."""
    audit = an_audit(failing=(1,))
    (violation,) = audit.certificate.violations
    certificate = replace(audit.certificate, violations=(replace(violation, change=math.inf),))
    audit = replace(audit, certificate=certificate)
    read = from_json(AuditResult, json.loads(json.dumps(to_json(audit), allow_nan=False)))
    for one in (audit, read):
        assert "changes a logit to a non-finite value" in one.verdict
        assert any("change not finite" in note for note in sections(one)[0].notes)


def test_tables_say_what_was_found():
    written = sections(an_audit(failing=(1,)))
    assert len(written) == 5
    assert "3. What does the mask alone reveal?" in written[2].title
    assert "the background from the mask" in written[2].lead
    rows = {row[0]: row[1:] for row in written[0].tables[0].rows}
    assert rows["iFAM"][0] == "1 of 4"
    assert rows["plain ViT"][:2] == ("4 of 4", "100.0\u00a0%")
    assert any("Image 10: noise, packed, evaluation" in note for note in written[0].notes)
    assert [row[1] for row in written[1].tables[0].rows] == [f"{10 * k}.0\u00a0%" for k in range(5)]
    groups = [row[0] for row in written[1].tables[1].rows]
    assert groups == list(GROUPS)


def test_nothing_is_not_the_same_as_little():
    assert (size(0.0), size(1e-12), size(math.nan)) == ("exactly 0", "1e-12", "not finite")
    assert (share(None), share(0.123)) == ("–", "12.3\u00a0%")


def evaluation(**more):
    groups = {"a": {"accuracy": 0.95, "count": 10}, "b": {"accuracy": 0.4, "count": 5}}
    accuracy = {"average": 0.77, "worst_group": 0.4, "groups": groups, "classes": groups, "macro": 0.675}
    accuracy |= {"weighted_average": 0.77, "top5": None, "auroc": None, "intervals": {}}
    known = {"mask_iou": 0.71, "visible_fraction": 0.2, "empty": 0, "count": 15, "extra": {}}
    conditions = {"model": "runs/other", "benchmark": "folder", "split": "test"}
    return {
        "predictor": accuracy,
        "selector": {**accuracy, "worst_group": 0.31},
        **known,
        "conditions": conditions,
        **more,
    }


def test_results_of_several_kinds_share_a_page(tmp_path):
    """Worst groups first, training curves where a log lies beside, and a filter by audit."""
    for name, failing in (("one", ()), ("two", (1,))):
        write(tmp_path / name, failing=failing)
    (tmp_path / "run" / "logs").mkdir(parents=True)
    content = evaluation()
    content["conditions"]["method"] = "late_mask"
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    with (tmp_path / "run" / "logs" / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["epoch", "train/total", "val/accuracy"], [0, 2.0, ""], [0, 1.0, 0.5], [1, 0.5, 0.75]])
    out = tmp_path / "new" / "report.html"
    main(["report", *(str(tmp_path / name) for name in ("one", "two", "run")), "--out", str(out)])
    text, source = text_of(out), out.read_text()
    assert "1 of 2 models fail the audit." in text
    assert "runs/other, folder, test 40.0 %" in text
    assert "selector alone 31.0 %" in text
    assert "60.0 % (percher on forest)" in text
    assert text.index(" b 5 40.0 %") < text.index(" a 10 95.0 %")
    assert "training loss" in text
    assert source.count("<svg ") == 2
    # The curve is named after the method that was trained.
    assert "by epoch: late_mask" in source
    assert '<option value="1">' in source
    assert source.count('<article class="case"') == 8


def test_a_page_does_not_take_the_place_of_what_it_is_about(tmp_path):
    results = tmp_path / "results.json"
    results.write_text('{"accuracy": 1.0}', encoding="utf-8")
    with pytest.raises(IfamError, match="is one of the results of the page"):
        write_report([tmp_path], tmp_path / "x" / ".." / "results.json", overwrite=True)
    assert results.read_text(encoding="utf-8") == '{"accuracy": 1.0}'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "There is no file"),
        ("{}", "is not a valid result"),
        ('{"kind": "challenge"}', "is not a valid result"),
        ("[", "cannot be read as JSON"),
        ("folder", "neither"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, says):
    path = tmp_path / "audit.json"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_text(content)
    with pytest.raises(IfamError, match=says):
        write_report([path], tmp_path / "report.html")


@pytest.mark.parametrize("how", ["..", "absolute", "link"])
def test_a_page_shows_no_picture_from_outside_of_the_results(tmp_path, how):
    """Results may be a stranger's, and the page is shared."""
    file, _ = write(tmp_path / "results")
    picture = next((tmp_path / "results").glob("audit_pictures/*seen*"))
    secret = picture.rename(tmp_path / "secret.webp")
    name = {"..": "../secret.webp", "absolute": str(secret)}.get(how)
    if name is None:
        picture.symlink_to(secret)
    else:
        file.write_text(file.read_text().replace(f"audit_pictures/{picture.name}", name))
    with pytest.raises(IfamError, match=rf"The picture \S+ is outside of {tmp_path / 'results'}, the folder"):
        write_report([file], tmp_path / "page.html")


def test_lost_pictures_and_bad_folders_are_said(tmp_path):
    json_file, _ = write(tmp_path)
    next(tmp_path.glob("audit_pictures/*seen*")).unlink()
    with pytest.raises(IfamError, match="keep audit_pictures/ next to"):
        write_report([json_file], tmp_path / "again.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(IfamError, match="choose another"):
        write(tmp_path / "file")
    with pytest.raises(IfamError, match="no result to report"):
        write_report([], tmp_path / "report.html")


# --- in a browser ----------------------------------------------------------------------------------------

LOADED = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0, () => false)))"
SHOWN = "[...document.querySelectorAll('.case')].filter(c => c.checkVisibility())"
# Contrast of every visible text with the first opaque background behind it.
FAINT = """(() => {
  const light = c => { const v = c / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = c => 0.2126 * light(c[0]) + 0.7152 * light(c[1]) + 0.0722 * light(c[2]);
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const found = new Set();
  for (const e of document.querySelectorAll('main *')) {
    if (!e.checkVisibility() || e.closest('svg')) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [luminance(numbers(getComputedStyle(e).color)), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < LEAST) found.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
})()"""


def choose(browser, **filters):
    """Set filters as a reader does, and give the shown images."""
    for name, value in filters.items():
        wanted = json.dumps(value)
        browser.evaluate(f"""(() => {{ const s = document.querySelector('select[name={name}]'); s.value = {wanted};
            if (s.value !== {wanted}) throw new Error('no such choice');
            s.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()""")
    return browser.evaluate(
        f"{SHOWN}.map(c => Number(c.querySelector('.facts').textContent.match(/Image (\\d+)/)[1]) / 10)"
    )


@pytest.fixture(scope="module")
def program():
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(program):
    """An empty page, with what it complains of in `said`."""
    page = program.new_page()
    page.said = complaints(page)
    yield page
    page.close()


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_quick_complete_and_readable(browser, page, width):
    """Every picture loads, nothing complains, no text is faint, and nothing has to be pushed sideways."""
    browser.set_viewport_size({"width": width, "height": 900})
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        browser.goto(page.resolve().as_uri())
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 3  # under a second alone; machines that test are busy
    assert browser.evaluate(f"{LOADED}.then(all => [all.length, all.every(Boolean)])") == [600, True]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(FAINT.replace("LEAST", str(CONTRAST))) == []
    assert browser.evaluate(FAINT.replace("LEAST", "21")) != []  # the check sees something
    assert browser.said == []
    first = "document.querySelector('.case img').getBoundingClientRect()"
    assert browser.evaluate(f"{first}.width") > 90
    assert browser.evaluate("Math.min(...[...document.querySelectorAll('select')].map(s => s.offsetHeight))") >= 38


@needs_chromium
def test_filters_work(browser, page):
    browser.set_viewport_size({"width": 1280, "height": 900})
    browser.goto(page.resolve().as_uri())
    rows = {i: a_row(i) for i in range(200)}
    count = "document.getElementById('count').textContent"
    flagged = [i for i in rows if rows[i]["flags"]]
    assert choose(browser) == [*flagged, *(i for i in rows if not rows[i]["flags"])]
    assert browser.evaluate(count) == "200 of 200 images"
    assert set(choose(browser, label="percher")) == {i for i in rows if rows[i]["label"] == "percher"}
    assert set(choose(browser, label="", group=GROUPS[1])) == {i for i in rows if i % 4 == 1}
    wrong = {i for i in rows if not rows[i]["right"]}
    assert set(choose(browser, group="", right="wrong")) == wrong
    assert browser.evaluate(count) == f"{len(wrong)} of 200 images"
    assert set(choose(browser, influence="0.5")) == {i for i in wrong if rows[i]["influence"] >= 0.5}
    assert choose(browser, right="", influence="", flagged="yes") == flagged
    by_influence = [rows[i]["influence"] for i in choose(browser, flagged="", order="influence")]
    assert by_influence == sorted((row["influence"] for row in rows.values()), reverse=True)
    assert choose(browser, label="swimmer", group=GROUPS[2]) == []
    assert browser.evaluate("document.getElementById('none').checkVisibility()")
    assert browser.said == []


@needs_chromium
def test_the_browser_would_notice(browser, tmp_path):
    """An error, a lost picture and a foreign address are all seen: the tests above can fail."""
    bad = tmp_path / "bad.html"
    bad.write_text('<main><img src="gone.png"><img src="https://example.invalid/x.png"><script>oops()</script></main>')
    browser.goto(bad.resolve().as_uri())
    assert browser.evaluate(f"{LOADED}") == [False, False]
    said = json.dumps(browser.said)
    assert "oops is not defined" in said
    assert "example.invalid" in said
    assert "gone.png" in said
