"""Results as one page: any number of `results.json` and `audit.json`, with pictures and training curves."""

import base64
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ifam._typing import Tensor
from ifam.errors import IfamError
from ifam.evaluation.comparisons import ComparisonResult
from ifam.io import check_replaceable, ensure_writable, local_path, replacing, run_digest, write_json, write_text
from ifam.model_files import read_json
from ifam.provenance import is_stale
from ifam.report.audit_tables import Row, Section, Table, sections, share, worst_group
from ifam.report.comparisons import comparison_section, curves, image_rows, title
from ifam.report.evaluation_tables import further_tables, one_by_one
from ifam.report.html import curve_charts, environment
from ifam.report.overlays import part_colours, part_overlay, predictor_view, thumbnail
from ifam.serialization import from_json

PICTURES = "audit_pictures"
_SMALL = 160
_KINDS = ("input", "parts", "seen")
_RESULTS = ("audit.json", "compare.json", "results.json")


@dataclass
class Page:
    """What the template lays out; see `results.html.j2`.

    Attributes:
        title: Name of the page.
        run: Which results are on it, in short.
        headline: The outcome in a line.
        verdicts: Outcome of each audit.
        summary: A row a model.
        found: Sections of each audit.
        comparisons: Comparisons of several methods.
        pictures: Images of comparisons with what each method saw and answered.
        cases: Pictures, flagged ones first.
        audits: Choices of the filter by audit, as value and text.
        labels: Choices of the filter by class.
        groups: Choices of the filter by group.
        colours: Colour of each part.
        tables: Accuracies of each evaluation.
        curves: Charts of each training.
        conditions: Under which each result was made.
    """

    title: str
    run: str
    headline: str
    summary: Table
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[Section] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    audits: list[tuple[str, str]] = field(default_factory=list)
    labels: list[tuple[str, str]] = field(default_factory=list)
    groups: list[tuple[str, str]] = field(default_factory=list)
    colours: Sequence[tuple[int, int, int]] = ()
    tables: list[Table] = field(default_factory=list)
    curves: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    conditions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def write_audit(
    audit: Row, images: Sequence[Image.Image], part_maps: Tensor, mask: Tensor, folder: str | Path
) -> tuple[Path, Path]:
    """Write `audit.json`, the pictures that it names, and the page `audit.html` that holds them all.

    Args:
        audit: What `AuditResult.to_dict` gave.
        images: The images as colours, in the order of its rows.
        part_maps: Their part maps [N, K1, H, W].
        mask: What the predictor saw [N, H, W].
        folder: Where to; made if need be.

    Returns:
        The paths of the JSON file and of the page.

    Raises:
        IfamError: The folder cannot be written.
    """
    folder = local_path(folder)
    ensure_writable(folder, folder=True)
    # While pictures are replaced, no result names them.
    (folder / "audit.json").unlink(missing_ok=True)
    rows = []
    for i, (row, image) in enumerate(zip(audit["images"], images, strict=True)):
        shown = thumbnail(image)
        drawn = (shown, part_overlay(shown, part_maps[i]), predictor_view(shown, mask[i]))
        named = {kind: f"{PICTURES}/{i:05d}-{kind}.webp" for kind in _KINDS}
        for kind, picture in zip(_KINDS, drawn, strict=True):
            # Small pictures are drawn in sharp squares, larger ones are photographs.
            with replacing(folder / named[kind]) as beside:
                picture.save(beside, lossless=max(picture.size) <= _SMALL, quality=82)
        rows.append({**row, "pictures": named, "side": list(shown.size)})
    write_json(folder / "audit.json", {**audit, "images": rows}, allow_nan=False)
    return folder / "audit.json", write_report([folder / "audit.json"], folder / "audit.html", overwrite=True)


def write_report(results: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Path:
    """Write one self-contained page on any number of results.

    Args:
        results: Files that `ifam audit`, `compare`, `evaluate`, `train` or `demo` wrote, or folders that hold one.
        out: The page.
        overwrite: Replace whatever is there; without that, only a page on the same files.

    Returns:
        Its path.

    Raises:
        IfamError: There is no result, a file is none, the page cannot be written or would take the place of one of
            them, or something else is there.
    """
    out = local_path(out)
    ensure_writable(out)
    files = [file for path in results for file in _files(local_path(path))]
    if not files:
        raise IfamError("There is no result to report; give files such as audit.json or results.json.")
    if out.resolve() in {file.resolve() for file in files}:
        raise IfamError(f"{out} is one of the results that the page is about; choose another --out.")
    run = run_digest({"results": [str(file.absolute()) for file in files]})
    check_replaceable(out, run, overwrite)
    read = [(file, _read(file)) for file in files]
    try:
        page = _page(run, [(file, one) for file, found in read for one in one_by_one(found)])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise IfamError(
            f"{', '.join(map(str, files))} cannot be read as results ({type(error).__name__}: {error}); write them "
            f"again with this version of ifam."
        ) from error
    text = environment().get_template("results.html.j2").render(page=page)
    write_text(out, text)
    return out


def _files(path: Path) -> list[Path]:
    """A file; or the results in a folder, and those of the evaluations of the model in it."""
    if not path.is_dir():
        return [path]
    found = [file for name in _RESULTS if (file := path / name).is_file()]
    found += sorted(path.glob("evaluations/*/results.json"))
    if not found:
        raise IfamError(f"{path} holds neither audit.json, results.json nor compare.json; give a folder that does.")
    return found


def _read(file: Path) -> dict[str, Any]:
    """One result."""
    found = read_json(file)
    if found is None:
        raise IfamError(f"There is no file {file}; give an audit.json or results.json.")
    if found.get("kind") not in ("audit", "comparison") and not {"predictor", "treatments"} & set(found):
        raise IfamError(
            f"{file} is no result for a page; give a file that `ifam audit`, `compare`, `demo`, `evaluate` or "
            f"`train` wrote."
        )
    return found


def _page(run: str, results: Sequence[tuple[Path, dict[str, Any]]]) -> Page:
    """Everything on the page."""
    names = _names(results)
    audits = [(file, name, found) for (file, found), name in zip(results, names, strict=True) if _is_audit(found)]
    columns = ("", "worst group", "accuracy", "images", "mask IoU", "visible", "hidden pixels", "other background")
    single = [pair for pair in zip(results, names, strict=True) if not _is_comparison(pair[0][1])]
    rows = [row for (_, found), name in single for row in _summary(found, name)]
    kinds = {"audit": "Audit", "comparison": "Comparison"}
    page = Page(
        run=run,
        title="Results" if len(results) > 1 else kinds.get(str(results[0][1].get("kind")), "Results"),
        headline=title(_comparison(results[0][1]))
        if not single and len(results) == 1
        else _headline(audits, len(results)),
        summary=Table("Worst group first; each figure is of the images that were looked at", columns, tuple(rows)),
    )
    for number, (file, name, found) in enumerate(audits):
        page.verdicts.append({"name": name, "passed": found["passed"], "text": found["verdict"]})
        page.found.append({"name": name, "key": f"audit{number}", "sections": sections(found)})
        page.cases += _cases(file, found, str(number))
        page.audits.append((str(number), name))
    page.cases.sort(key=lambda case: -len(case["flags"]))
    for key, choices in (("label", page.labels), ("group", page.groups)):
        choices += [(str(v), str(v)) for v in sorted({case[key] for case in page.cases if case[key]})]
    page.colours = part_colours(max((len(case["bars"]) for case in page.cases), default=0))
    for (file, found), name in zip(results, names, strict=True):
        if _is_comparison(found):
            result = _comparison(found)
            page.comparisons.append(comparison_section(result))
            page.pictures += _pictures(file.parent, result)
            if charts := curve_charts(curves(result)):
                page.curves.append((f"seed {result.conditions['seeds'][0]}", charts))
        elif not _is_audit(found):
            page.tables += [*_groups(found, name), *further_tables(found, name)]
        if history := _history(file.parent / "logs" / "metrics.csv"):
            method = str(found.get("conditions", {}).get("method", "ifam"))
            page.curves.append((name, curve_charts({method: history})))
        page.conditions.append((name, _flat(found.get("conditions", {}))))
    return page


def _is_audit(found: Row) -> bool:
    return found.get("kind") == "audit"


def _is_comparison(found: Row) -> bool:
    return found.get("kind") == "comparison"


def _names(results: Sequence[tuple[Path, Row]]) -> list[str]:
    """What each result is called: model and benchmark, and its file where these say too little."""
    names = []
    for file, found in results:
        conditions = found.get("conditions", {})
        parts = [str(conditions[key]) for key in ("model", "benchmark", "split") if _is_text(conditions.get(key))]
        names.append(", ".join(parts) or str(file))
    named = []
    for (file, _), name in zip(results, names, strict=True):
        full = f"{name} ({file})" if names.count(name) > 1 else name
        named.append(f"{full} [of other weights than the model beside it has now]" if is_stale(file) else full)
    return named


def _comparison(data: Row) -> ComparisonResult:
    return from_json(ComparisonResult, data)


def _pictures(folder: Path, result: ComparisonResult) -> list[dict[str, Any]]:
    """The pictures of a comparison, ready for the page: files as text that it can hold."""
    return [
        {
            "group": group,
            "images": [
                {
                    "label": row.label,
                    "image": _uri(folder / row.image),
                    "masked": [(name, _uri(folder / parts), _uri(folder / seen)) for name, parts, seen in row.masked],
                    "answers": row.answers,
                }
                for row in rows
            ],
            "colors": part_colours(result.num_parts),
        }
        for group, rows in image_rows(result).items()
    ]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _headline(audits: Sequence[tuple[Path, str, Row]], count: int) -> str:
    """The outcome in a line."""
    failed = sum(not found["passed"] for _, _, found in audits)
    if not audits:
        return f"{count} result{'s' if count > 1 else ''}"
    if len(audits) == 1:
        return "This model fails the audit." if failed else "No hidden pixel changes the answer."
    return f"{failed} of {len(audits)} models fail the audit." if failed else "No hidden pixel changes any answer."


def _summary(found: Row, name: str) -> Iterator[tuple[str, ...]]:
    """A row for each model in a result."""
    if _is_audit(found):
        worst, images = worst_group(found), found["images"]
        right = [row["right"] for row in images if row["right"] is not None]
        yield (
            name,
            f"{share(worst[1])} ({worst[0]})" if worst else "–",
            share(sum(right) / len(right)) if right else "–",
            str(len(images)),
            _ratio(found["mask_iou"]),
            share(found["backgrounds"]["visible"]),
            "no influence" if found["passed"] else "FAILED",
            f"{share(found['backgrounds']['recomputed']['answers'])} change",
        )
    else:
        yield _figures(name, {**found, **found["predictor"]}, found["count"])
        if found.get("selector"):
            yield _figures(f"{name}: selector alone", found["selector"], found["count"])


def _figures(name: str, found: Row, count: int) -> tuple[str, ...]:
    iou, visible = found.get("mask_iou"), found.get("visible_fraction")
    return (
        name,
        share(found["worst_group"]),
        share(found["average"]),
        str(count),
        _ratio(iou),
        share(visible),
        "not audited",
        "–",
    )


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _groups(found: Row, name: str) -> list[Table]:
    """Accuracy of each group, the worst first."""
    models = {"predictor": found["predictor"]}
    models |= {"selector alone": found["selector"]} if found.get("selector") else {}
    caption = f"{name}: accuracy by group"
    first = next(iter(models.values()))["groups"]
    order = sorted(first, key=lambda group: min(model["groups"][group]["accuracy"] for model in models.values()))
    rows = [(g, str(first[g]["count"]), *(share(m["groups"][g]["accuracy"]) for m in models.values())) for g in order]
    return [Table(caption, ("group", "images", *models), tuple(rows))]


def _cases(file: Path, found: Row, audit: str) -> Iterator[dict[str, Any]]:
    """Pictures of an audit, those that it flags first; images without pictures are left out."""
    largest = max((abs(value) for row in found["images"] for value in row["leave_one_out"]), default=0.0) or 1.0
    for row in found["images"]:
        if "pictures" not in row:
            continue
        colours = part_colours(len(row["leave_one_out"]))
        right = {True: "right", False: "wrong", None: ""}[row["right"]]
        yield {
            **row,
            "audit": audit,
            "right": right,
            "confidence": share(row["confidence"], 0),
            "visible": share(row["visible"], 0),
            "uris": [_uri(file.parent / row["pictures"][kind]) for kind in _KINDS],
            "bars": [_bar(value, largest, colour) for value, colour in zip(row["leave_one_out"], colours, strict=True)],
        }


def _bar(value: float, largest: float, colour: tuple[int, int, int]) -> dict[str, Any]:
    """A bar from the middle: to the left where the logit falls without the part."""
    width = 50 * min(1.0, abs(value) / largest)
    left = 50 - width if value < 0 else 50
    return {"left": f"{left:.1f}", "width": f"{width:.1f}", "text": f"{value:+.2f}" if value else "–", "colour": colour}


def _uri(path: Path) -> str:
    """A picture as text that a page can hold."""
    try:
        return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise IfamError(
            f"The picture {path} cannot be read ({error.strerror}); keep {path.parent.name}/ beside the results."
        ) from error


def _history(path: Path) -> dict[str, list[tuple[int | float, float]]]:
    """Training curves from Lightning's log, where there is one: means over the steps of each epoch."""
    if not path.is_file():
        return {}
    wanted = {
        "train/total": "training loss",
        "val/accuracy": "validation accuracy",
        "val/worst_group": "validation worst group",
        "val/mask_iou": "validation mask IoU",
    }
    values: dict[str, dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for key, title in wanted.items():
                if row.get(key):
                    values.setdefault(title, {}).setdefault(int(float(row["epoch"])) + 1, []).append(float(row[key]))
    return {title: [(e, sum(v) / len(v)) for e, v in sorted(epochs.items())] for title, epochs in values.items()}


def _flat(conditions: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings on one level."""
    found: dict[str, Any] = {}
    for key, value in conditions.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            found[f"{prefix}{key}"] = value
    return found
