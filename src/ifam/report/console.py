"""What an evaluation found, as a table on the screen and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ifam.console import PlainConsole
from ifam.evaluation.accuracy import Accuracy, Evaluation
from ifam.evaluation.background_gap import VariantResults
from ifam.evaluation.bootstrap import Interval
from ifam.evaluation.challenge import Challenge
from ifam.evaluation.part_quality import PartQuality
from ifam.io import write_json
from ifam.provenance import provenance

# Longer lists of classes are cut to the lowest; the file has them all.
_LONGEST, _LOWEST = 40, 10


def print_evaluation(found: Evaluation, title: str) -> None:
    """Print accuracies by group and class with their intervals, worst group first."""
    columns: dict[str, Accuracy] = {"predictor": found.predictor}
    if found.selector is not None:
        columns["selector alone"] = found.selector
    notes = [f"intervals: {found.extra['intervals']}"] if "intervals" in found.extra else []
    if _weighted(found):
        notes.append(f"weighted average: by {found.weighted_by}")
    table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    table.add_column("images", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for field, name in _FIGURES.items():
        values = [getattr(a, field) for a in columns.values()]
        if values[0] is None or (field == "weighted_average" and not _weighted(found)):
            continue
        cells = [_cell(value, a.intervals.get(field)) for value, a in zip(values, columns.values(), strict=True)]
        images = str(found.count) if field == "average" else ""
        table.add_row(name, images, *cells, style="bold" if field == "worst_group" else None)
    table.add_section()
    kinds = ["groups", "classes"] if set(found.predictor.classes) != set(found.predictor.groups) else ["groups"]
    for kind in kinds:
        rows = getattr(found.predictor, kind)
        for name in _shown(rows):
            cells = [_row_cell(getattr(a, kind)[name]) for a in columns.values()]
            table.add_row(name, str(rows[name]["count"]), *cells)
        if len(rows) > _LONGEST:
            table.add_row(f"({len(rows) - _LOWEST} more)", "")
        table.add_section()
    if found.mask_iou is not None:
        table.add_row("mask IoU (patches)", "", _cell(found.mask_iou, found.intervals.get("mask_iou"), ".3f"))
    if found.visible_fraction is not None:
        table.add_row("visible", "", _cell(found.visible_fraction, found.intervals.get("visible_fraction")))
    if found.empty:
        table.add_row("nothing visible", str(found.empty), "")
    PlainConsole().print(table)
    if found.parts is not None:
        _print_parts(found.parts)


def _print_parts(found: PartQuality) -> None:
    """Print how well parts agree with annotations."""
    notes = [f"images: {found.conditions['crop']}"] if "crop" in found.conditions else []
    if "keypoints_fitted_to" in found.conditions:
        notes.append(f"keypoint regression: fitted to {found.conditions['keypoints_fitted_to']}")
    table = Table(title="Parts of the selector", title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    for name in ("images", "points", "figure"):
        table.add_column(name, justify="right")
    for kind, one in found.agreement.items():
        for name in ("nmi", "ari"):
            cell = _cell(getattr(one, name), one.intervals.get(name), ".3f")
            table.add_row(f"{name.upper()}, {kind}", str(one.images), str(one.count), cell)
    table.add_section()
    for name, text in (("foreground_iou", "foreground IoU (pixels)"), ("background_iou", "background IoU (pixels)")):
        if (value := getattr(found, name)) is not None:
            table.add_row(text, str(found.foreground_images), "", _cell(value, found.intervals.get(name), ".3f"))
    if found.keypoint_error is not None:
        cell = _cell(found.keypoint_error, found.intervals.get("keypoint_error"))
        table.add_row("keypoint error, of the box", "", str(found.keypoint_count), cell)
    PlainConsole().print(table)


def print_treatments(found: VariantResults, title: str) -> None:
    """Print the accuracy on each treatment, and the gap between the two that differ in the background alone."""
    first = next(iter(found.treatments.values()))
    who = ["predictor"] + (["selector"] if first.selector is not None else [])
    notes = [f"intervals: {first.extra['intervals']}"] if "intervals" in first.extra else []
    if found.missing:
        notes.append(f"not there: {', '.join(found.missing)}")
    notes.append("no gap: one of its treatments is not there" if found.gap is None else f"gap: {found.gap.pairing}")
    table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    for name in ("images", "predictor", "selector alone")[: 1 + len(who)]:
        table.add_column(name, justify="right")
    for name, one in found.treatments.items():
        judged = [getattr(one, w) for w in who]
        table.add_row(name, str(one.count), *(_cell(a.average, a.intervals.get("average")) for a in judged))
    if (gap := found.gap) is not None:
        table.add_section()
        cells = (_cell(getattr(gap, w), gap.intervals.get(w), "+.1%") for w in who)
        table.add_row("gap: " + " - ".join(gap.treatments), "", *cells, style="bold")
    PlainConsole().print(table)


_FIGURES = {
    "worst_group": "worst group",
    "average": "average",
    "weighted_average": "weighted average",
    "macro": "mean over classes",
    "top5": "top 5",
    "auroc": "AUROC",
}


def _weighted(found: Evaluation) -> bool:
    """Whether the weighted average is another than the average."""
    return "'train'" in found.weighted_by


def _cell(value: float, ends: Interval | None, form: str = ".1%") -> str:
    """A figure with its interval, in the same unit."""
    if ends is None:
        return f"{value:{form}}"
    low, high = (f"{end:{form}}".rstrip("%") for end in ends)
    return f"{value:{form}} [{low}, {high}]"


def _row_cell(row: Mapping[str, float | int]) -> str:
    return _cell(row["accuracy"], (row["low"], row["high"]) if "low" in row else None)


def _shown(rows: Mapping[str, Mapping[str, float | int]]) -> list[str]:
    """The rows to print."""
    if len(rows) <= _LONGEST:
        return list(rows)
    return sorted(rows, key=lambda name: rows[name]["accuracy"])[:_LOWEST]


def print_challenge(found: Challenge, title: str) -> None:
    """Print how many objects no background could fool the model about, and which backgrounds fooled it."""
    shown = found.pairs / found.all_pairs
    notes = (
        f"intervals: Wilson, 95%; {found.pairs:,} of {found.all_pairs:,} composites had to be looked at ({shown:.1%})"
    )
    table = Table(title=title, title_justify="left", caption=notes, caption_justify="left")
    table.add_column("")
    for name in ("objects", "robust", "share", "fooled by its background", "fooled into it"):
        table.add_column(name, justify="right")
    ends, fooled = found.interval, len(found.fooled)
    total = (str(found.count), str(len(found.robust)), _cell(found.accuracy, ends), str(fooled), str(fooled))
    table.add_row("all", *total, style="bold")
    table.add_section()
    for name in dict.fromkeys([*found.classes, *found.backgrounds, *found.answers]):
        row = found.classes.get(name)
        own = ("", "", "") if row is None else (str(row["count"]), str(row["robust"]), _row_cell(row))
        table.add_row(name, *own, str(found.backgrounds.get(name, "")), str(found.answers.get(name, "")))
    PlainConsole().print(table)


def print_leave_one_out(whole: Evaluation, others: Mapping[str, Evaluation]) -> None:
    """Print what is left of the predictor's accuracy without each part."""
    table = Table("", "average", "change", "worst group", "visible", title="One part left out", title_justify="left")
    for name, found in {"all parts": whole, **others}.items():
        accuracy, visible = found.predictor, found.visible_fraction
        change = accuracy.average - whole.predictor.average
        table.add_row(
            name,
            _cell(accuracy.average, accuracy.intervals.get("average")),
            "" if found is whole else f"{change:+.1%}",
            _cell(accuracy.worst_group, accuracy.intervals.get("worst_group")),
            "" if visible is None else f"{visible:.1%}",
        )
    PlainConsole().print(table)


def write_results(
    found: Evaluation, path: Path, conditions: Mapping[str, Any], others: Mapping[str, Evaluation] | None = None
) -> None:
    """Write an evaluation with the conditions under which it was made.

    Args:
        found: The evaluation.
        path: The file.
        conditions: What it depends on.
        others: The same without one part each, by name.
    """
    content = asdict(found)
    if others:
        content["leave_one_out"] = {name: asdict(other) for name, other in others.items()}
    _write(content, path, conditions)


def write_treatments(found: VariantResults, path: Path, conditions: Mapping[str, Any]) -> None:
    """Write what was found on each treatment with the conditions under which it was made."""
    _write(asdict(found), path, conditions)


def write_challenge(found: Challenge, path: Path, conditions: Mapping[str, Any]) -> None:
    """Write what a challenge found with the conditions under which it was made."""
    _write({"kind": "challenge", **asdict(found)}, path, conditions)


def _write(content: Mapping[str, Any], path: Path, conditions: Mapping[str, Any]) -> None:
    write_json(path, {**content, "conditions": {**conditions, **provenance()}}, default=str)
