"""Evaluations as tables on the console and as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ifam.console import PlainConsole
from ifam.evaluation.accuracy import Accuracy, Evaluation
from ifam.evaluation.background_gap import VariantResults
from ifam.evaluation.bootstrap import Interval
from ifam.evaluation.challenge import Challenge, ClassRobustness
from ifam.evaluation.metrics import GroupAccuracy
from ifam.evaluation.part_quality import PartQuality
from ifam.io import write_json
from ifam.provenance import record
from ifam.serialization import to_json

# Longer lists of classes are cut to those with the lowest accuracy; the file has all of them.
_LONGEST, _LOWEST = 40, 10


def print_evaluation(evaluation: Evaluation, title: str) -> None:
    """Print accuracies by group and class with their intervals, worst group first."""
    columns: dict[str, Accuracy] = {"predictor": evaluation.predictor}
    if evaluation.selector is not None:
        columns["selector alone"] = evaluation.selector
    notes = _on_intervals(evaluation)
    if _weighted(evaluation):
        notes.append(f"weighted average: by {evaluation.weighted_by}")
    table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    table.add_column("images", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for field, name in _FIGURES.items():
        values = [getattr(a, field) for a in columns.values()]
        if values[0] is None or (field == "weighted_average" and not _weighted(evaluation)):
            continue
        cells = [_cell(value, a.intervals.get(field)) for value, a in zip(values, columns.values(), strict=True)]
        images = str(evaluation.count) if field == "average" else ""
        table.add_row(name, images, *cells, style="bold" if field == "worst_group" else None)
    table.add_section()
    answers = evaluation.predictor
    for kind in ("groups",) if set(answers.classes) == set(answers.groups) else ("groups", "classes"):
        rows: dict[str, GroupAccuracy] = getattr(answers, kind)
        for name in _shown(rows):
            cells = [_row_cell(getattr(a, kind)[name]) for a in columns.values()]
            table.add_row(name, str(rows[name].count), *cells)
        if len(rows) > _LONGEST:
            table.add_row(f"({len(rows) - _LOWEST} more)", "")
        table.add_section()
    ends = evaluation.intervals
    if evaluation.mask_iou is not None:
        table.add_row(f"mask IoU ({evaluation.mask_of})", "", _cell(evaluation.mask_iou, ends.get("mask_iou"), ".3f"))
    if evaluation.visible_fraction is not None:
        table.add_row("visible", "", _cell(evaluation.visible_fraction, ends.get("visible_fraction")))
    if evaluation.empty:
        table.add_row("nothing visible", str(evaluation.empty), "")
    PlainConsole().print(table)
    if evaluation.parts is not None:
        _print_parts(evaluation.parts)


def _on_intervals(evaluation: Evaluation) -> list[str]:
    """How the intervals were computed, if there are any."""
    return [f"intervals: {evaluation.extra['intervals']}"] if "intervals" in evaluation.extra else []


def _print_parts(parts: PartQuality) -> None:
    """Print the agreement of parts with annotations."""
    texts = {"crop": "images: {}", "keypoints_fitted_to": "keypoint regression: fitted to {}"}
    notes = [text.format(parts.conditions[key]) for key, text in texts.items() if key in parts.conditions]
    table = Table(title="Parts of the selector", title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    for name in ("images", "points", "figure"):
        table.add_column(name, justify="right")
    for kind, one in parts.agreement.items():
        for name in ("nmi", "ari"):
            cell = _cell(getattr(one, name), one.intervals.get(name), ".3f")
            table.add_row(f"{name.upper()}, {kind}", str(one.images), str(one.count), cell)
    table.add_section()
    for name, text in (("foreground_iou", "foreground IoU (pixels)"), ("background_iou", "background IoU (pixels)")):
        if (value := getattr(parts, name)) is not None:
            table.add_row(text, str(parts.foreground_images), "", _cell(value, parts.intervals.get(name), ".3f"))
    if parts.keypoint_error is not None:
        cell = _cell(parts.keypoint_error, parts.intervals.get("keypoint_error"))
        table.add_row("keypoint error, of the box", "", str(parts.keypoint_count), cell)
    PlainConsole().print(table)


def print_treatments(results: VariantResults, title: str) -> None:
    """Print the accuracy on each treatment, and the background gap."""
    first = next(iter(results.treatments.values()))
    classifiers = ["predictor"] + (["selector"] if first.selector is not None else [])
    notes = _on_intervals(first)
    if results.missing:
        notes.append(f"missing: {', '.join(results.missing)}")
    notes.append("no gap: one of its treatments is missing" if results.gap is None else f"gap: {results.gap.pairing}")
    table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    for name in ("images", "predictor", "selector alone")[: 1 + len(classifiers)]:
        table.add_column(name, justify="right")
    for name, one in results.treatments.items():
        accuracies = [getattr(one, classifier) for classifier in classifiers]
        table.add_row(name, str(one.count), *(_cell(a.average, a.intervals.get("average")) for a in accuracies))
    if (gap := results.gap) is not None:
        table.add_section()
        cells = (_cell(getattr(gap, name), gap.intervals.get(name), "+.1%") for name in classifiers)
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


def _weighted(evaluation: Evaluation) -> bool:
    """Whether the weighted average differs from the average."""
    return "'train'" in evaluation.weighted_by


def _cell(value: float, ends: Interval | None, form: str = ".1%") -> str:
    """A figure with its interval, in the same unit."""
    if ends is None:
        return f"{value:{form}}"
    low, high = (f"{end:{form}}".rstrip("%") for end in ends)
    return f"{value:{form}} [{low}, {high}]"


def _row_cell(group: GroupAccuracy | ClassRobustness) -> str:
    ends = None if group.low is None or group.high is None else (group.low, group.high)
    return _cell(group.accuracy, ends)


def _shown(rows: Mapping[str, GroupAccuracy]) -> list[str]:
    """The rows to print."""
    if len(rows) <= _LONGEST:
        return list(rows)
    return sorted(rows, key=lambda name: rows[name].accuracy)[:_LOWEST]


def print_challenge(challenge: Challenge, title: str) -> None:
    """Print the number of robust objects, and which backgrounds fooled the model."""
    pairs, all_pairs = challenge.pairs, challenge.all_pairs
    notes = f"intervals: Wilson, 95%; {pairs:,} of {all_pairs:,} composites were evaluated ({pairs / all_pairs:.1%})"
    table = Table(title=title, title_justify="left", caption=notes, caption_justify="left")
    table.add_column("")
    for name in ("objects", "robust", "share", "fooled by its background", "fooled into it"):
        table.add_column(name, justify="right")
    share, fooled = _cell(challenge.accuracy, challenge.interval), str(len(challenge.fooled))
    total = (str(challenge.count), str(len(challenge.robust)), share, fooled, fooled)
    table.add_row("all", *total, style="bold")
    table.add_section()
    for name in dict.fromkeys([*challenge.classes, *challenge.backgrounds, *challenge.answers]):
        row = challenge.classes.get(name)
        cells = ("", "", "") if row is None else (str(row.count), str(row.robust), _row_cell(row))
        table.add_row(name, *cells, str(challenge.backgrounds.get(name, "")), str(challenge.answers.get(name, "")))
    PlainConsole().print(table)


def print_leave_one_out(all_parts: Evaluation, without_part: Mapping[str, Evaluation]) -> None:
    """Print the predictor's accuracy without each part."""
    table = Table("", "average", "change", "worst group", "visible", title="One part left out", title_justify="left")
    for name, evaluation in {"all parts": all_parts, **without_part}.items():
        accuracy, visible = evaluation.predictor, evaluation.visible_fraction
        change = accuracy.average - all_parts.predictor.average
        table.add_row(
            name,
            _cell(accuracy.average, accuracy.intervals.get("average")),
            "" if evaluation is all_parts else f"{change:+.1%}",
            _cell(accuracy.worst_group, accuracy.intervals.get("worst_group")),
            "" if visible is None else f"{visible:.1%}",
        )
    PlainConsole().print(table)


def write_results(
    evaluation: Evaluation,
    path: Path,
    conditions: Mapping[str, Any],
    without_part: Mapping[str, Evaluation] | None = None,
) -> None:
    """Write an evaluation with its conditions.

    Args:
        evaluation: The evaluation.
        path: The file.
        conditions: Settings that it depends on.
        without_part: Evaluations without one part each, by name.
    """
    more = {"leave_one_out": to_json(without_part)} if without_part else {}
    _write({**to_json(evaluation), **more}, path, conditions)


def write_treatments(results: VariantResults, path: Path, conditions: Mapping[str, Any]) -> None:
    """Write the evaluations of all treatments with their conditions."""
    _write(to_json(results), path, conditions)


def write_challenge(challenge: Challenge, path: Path, conditions: Mapping[str, Any]) -> None:
    """Write the result of a challenge with its conditions."""
    _write({"kind": "challenge", **to_json(challenge)}, path, conditions)


def _write(content: Mapping[str, Any], path: Path, conditions: Mapping[str, Any]) -> None:
    write_json(path, {**content, "conditions": to_json({**conditions, **record()})}, default=str)
