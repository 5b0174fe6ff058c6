"""Text, tables, chart and pictures of a comparison, for console and page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup
from matplotlib.axes import Axes

from ifam.console import PlainConsole
from ifam.evaluation.comparisons import ComparisonResult, MethodInfo, Picture, RowSummary
from ifam.evaluation.seeds import MeanCI
from ifam.report.html import draw
from ifam.report.tables import Section, Table, print_section

# Figure -> its column header with unit, the scale of its values, and their digits.
_FIGURES = {
    "worst_group": ("worst group %", 100, 1),
    "average": ("average %", 100, 1),
    "macro": ("mean over classes %", 100, 1),
    "group_gap": ("gap within class", 100, 1),
    "flips": ("flips %", 100, 1),
    "mask_iou": ("mask IoU", 1, 2),
    "pixel_iou": ("pixel IoU", 1, 2),
    "stray": ("stray %", 100, 1),
    "visible_fraction": ("visible %", 100, 1),
    "seconds": ("seconds", 1, 1),
}
_SELECTOR = {"selector_worst_group": "worst_group", "selector_average": "average"}
_COMPARED = ("worst_group", "average", "macro", "group_gap", "flips", "mask_iou")
_WORST, _AVERAGE = "#0b5a78", "#a8481f"


def print_comparison(result: ComparisonResult) -> None:
    """Print the tables of a comparison, without the descriptions of the methods."""
    section = comparison_section(result)
    print_section(PlainConsole(), replace(section, notes=section.notes[: -len(result.methods)]))


def comparison_section(result: ComparisonResult) -> Section:
    """Text, chart and tables of a comparison."""
    rows, seeds = result.rows, result.conditions["seeds"]
    uses = {method.name: " and ".join(method.uses) for method in result.methods}
    tables = [_main(rows, uses, len(seeds))]
    if len(rows) > 1:
        tables.append(_differences(rows))
    if any("selector_average" in row.figures for row in rows):
        tables.append(_selectors(rows))
    tables.append(_groups(rows))
    about = f"{result.about} " if result.about else ""
    return Section(
        title(result), about + _lead(rows, seeds), tuple(tables), _notes(result, any(uses.values())), chart(rows, uses)
    )


def title(result: ComparisonResult) -> str:
    """Number of methods, benchmark and number of seeds."""
    rows, seeds = len(result.rows), len(result.conditions["seeds"])
    return (
        f"{rows} {'methods' if rows > 1 else 'method'} on {result.conditions['benchmark']}, "
        f"{seeds} {'seeds' if seeds > 1 else 'seed'}"
    )


def _lead(rows: Sequence[RowSummary], seeds: Sequence[int]) -> str:
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return (
            f"Each figure is that of a single run, seed {listed}, so there are no confidence intervals; give several "
            f"seeds to get them."
        )
    return (
        f"Each figure is the mean over the seeds {listed}, ± half of its 95 % t-interval. All rows were trained and "
        f"evaluated on the same images, seed by seed, so differences are more certain than the figures themselves."
    )


def _notes(result: ComparisonResult, uses: bool) -> tuple[str, ...]:
    notes = []
    if uses:
        notes.append(
            "“Uses” is supervision beyond class labels: the groups of training or validation images, or the true mask "
            "of every image, in training and at test time. Rows without it have a harder task."
        )
    if result.conditions["train"]["monitor"] == "worst_group":
        notes.append("Each row keeps the epoch with the best worst group of the validation images, so all use groups.")
    notes += [_influence(row) for row in result.rows if "hidden_influence" in row.values]
    notes.append(
        "Seconds are those of training and, if applicable, of retraining the last layer. A t-interval may extend "
        "beyond 0 or 100 %, since it assumes normally distributed seeds."
    )
    return (*notes, *map(_about, result.methods))


def _about(method: MethodInfo) -> str:
    """Description of a row, with the settings that differ from the first."""
    differs = "".join(f"; {name} = {value}" for name, value in method.differs.items())
    return f"{method.name}: {method.about}{differs}."


def _main(rows: Sequence[RowSummary], uses: Mapping[str, str], seeds: int) -> Table:
    present = _present(rows, "figures", _FIGURES)
    heads = ("", "uses", *(_FIGURES[key][0] for key in present), "trained", "weights")
    cells = [
        (
            row.name,
            uses[row.name] or "–",
            *(_cell(row.figures.get(key), key) for key in present),
            *(_short(row.parameters[key]) for key in ("trained", "total")),
        )
        for row in rows
    ]
    return Table(f"Mean over {seeds} seeds" if seeds > 1 else "One seed", heads, tuple(cells))


def _influence(row: RowSummary) -> str:
    """The largest influence of hidden pixels in any run; NaN counts as the largest."""
    largest = max(row.values["hidden_influence"].values(), key=lambda value: (math.isnan(value), value))
    change = (
        "changes no logit: the largest change is exactly 0"
        if largest == 0
        else f"FAILS: a logit changes by {largest:.2g}"
    )
    return (
        f"Replacing all hidden pixels of 64 images by noise, another image, 1e30, infinity and NaN, with a fixed "
        f"mask, {change} ({row.name})."
    )


def _differences(rows: Sequence[RowSummary]) -> Table:
    first, others = rows[0], rows[1:]
    present = _present(others, "differences", _COMPARED)
    cells = [(row.name, *(_cell(row.differences.get(key), key, signed=True) for key in present)) for row in others]
    heads = ("", *(_FIGURES[key][0].removesuffix(" %") for key in present))
    return Table(f"Difference to {first.name} on the same seeds; of shares in points", heads, tuple(cells))


def _selectors(rows: Sequence[RowSummary]) -> Table:
    """Accuracy of the selectors' own classification, which sees the whole image."""
    cells = [
        (row.name, *(_cell(row.figures[key], figure) for key, figure in _SELECTOR.items()))
        for row in rows
        if "selector_average" in row.figures
    ]
    heads = ("", *(_FIGURES[figure][0] for figure in _SELECTOR.values()))
    return Table("The selector’s own classification, which sees the whole image", heads, tuple(cells))


def _present(rows: Sequence[RowSummary], kind: str, names: Iterable[str]) -> list[str]:
    """The figures that any row has, without the mean over classes if it equals the average (balanced classes)."""
    same = all(math.isclose(row.figures["macro"].mean, row.figures["average"].mean) for row in rows)
    return [
        name for name in names if any(name in getattr(row, kind) for row in rows) and not (same and name == "macro")
    ]


def _groups(rows: Sequence[RowSummary]) -> Table:
    """Accuracy by group; the longer dimension runs downwards."""
    groups = _worst_first(rows[0])
    counts = {name: f"{name} ({rows[0].groups[name].count})" for name in groups}
    caption = f"Accuracy by group in %, with the number of its images; the worst group of {rows[0].name} first"
    if len(groups) <= len(rows):
        lines = [(row.name, *(_cell(row.groups.get(group)) for group in groups)) for row in rows]
        return Table(caption, ("", *counts.values()), tuple(lines))
    lines = [(counts[group], *(_cell(row.groups.get(group)) for row in rows)) for group in groups]
    return Table(caption, ("", *(row.name for row in rows)), tuple(lines))


def _cell(mean: MeanCI | None, key: str = "average", signed: bool = False) -> str:
    """A mean and the half-width of its interval."""
    if mean is None:
        return "–"
    _, scale, digits = _FIGURES[key]
    text = f"{scale * mean.mean:{'+' if signed else ''}.{digits}f}"
    return text if mean.high is None else f"{text} ± {scale * (mean.high - mean.mean):.{digits}f}"


def _short(number: int) -> str:
    """A number of parameters, abbreviated."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}\u00a0{unit}"
    return str(number)


def chart(rows: Sequence[RowSummary], uses: Mapping[str, str]) -> Markup:
    """Worst group and average of each row with their intervals, as inline SVG."""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            ends = {key: row.figures[key] for key in ("worst_group", "average")}
            axes.plot([100 * mean.mean for mean in ends.values()], [place] * 2, color="#d5d8db", lw=1.2, zorder=1)
            for (key, mean), color in zip(ends.items(), (_WORST, _AVERAGE), strict=True):
                if mean.low is not None and mean.high is not None:
                    span = [100 * min(max(end, 0), 1) for end in (mean.low, mean.high)]
                    axes.plot(span, [place] * 2, color=color, lw=5, alpha=0.3, solid_capstyle="butt", zorder=2)
                filled = color if key == "worst_group" else "white"
                name = key.replace("_", " ") if place == 0 else None
                axes.plot(100 * mean.mean, place, "o", ms=7, mfc=filled, mec=color, mew=1.6, zorder=3, label=name)
        notes = [f" (uses {uses[row.name]})" if uses[row.name] else "" for row in rows]
        axes.set_yticks(range(len(rows)), [row.name + note for row, note in zip(rows, notes, strict=True)])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 101)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}\u202f%")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0)

    text = "; ".join(
        f"{row.name}: worst group {_cell(row.figures['worst_group'])} %, average {_cell(row.figures['average'])} %"
        for row in rows
    )
    return draw((7.4, 0.9 + 0.34 * len(rows)), text, paint, lines="x")


@dataclass(frozen=True)
class ComparedImage:
    """An image with the pictures and answers of every method.

    Attributes:
        label: Name of its class.
        image: File of the image.
        masked: For each method with a mask, its name, the file of its parts, and the file of what its predictor saw.
        answers: Answer of each method, by name.
    """

    label: str
    image: str
    masked: list[tuple[str, str, str]]
    answers: dict[str, Picture]


def image_rows(result: ComparisonResult) -> dict[str, list[ComparedImage]]:
    """The pictures of a comparison by group, the worst group of the first row first."""
    by_index: dict[int, dict[str, Picture]] = {}
    for row in result.rows:
        for picture in row.pictures:
            by_index.setdefault(picture.index, {})[row.name] = picture
    groups: dict[str, list[ComparedImage]] = {name: [] for name in _worst_first(result.rows[0])}
    for answers in by_index.values():
        first = next(iter(answers.values()))
        masked = [(name, p.parts, p.seen) for name, p in answers.items() if p.parts and p.seen]
        groups.setdefault(first.group, []).append(ComparedImage(first.label, first.image, masked, answers))
    return {name: rows for name, rows in groups.items() if rows}


def _worst_first(row: RowSummary) -> list[str]:
    return sorted(row.groups, key=lambda name: row.groups[name].mean)


_CURVES = {
    "train/total": "training loss",
    "val/accuracy": "validation accuracy",
    "val/worst_group": "validation worst group",
    "val/mask_iou": "validation mask IoU",
}


def curves(result: ComparisonResult) -> dict[str, dict[str, list[tuple[int | float, float]]]]:
    """Training curves of each method with the first seed, as (epoch, value), by name."""
    return {row.name: history_curves(row.history) for row in result.rows if row.history}


def history_curves(history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[int | float, float]]]:
    """Training curves as (epoch, value), by name.

    Args:
        history: For each epoch, the logged values by name.
    """
    curves: dict[str, list[tuple[int | float, float]]] = {}
    for key, name in _CURVES.items():
        if points := [(epoch, values[key]) for epoch, values in enumerate(history, 1) if key in values]:
            curves[name] = [*points]
    return curves


__all__ = ["chart", "comparison_section", "curves", "history_curves", "image_rows", "print_comparison", "title"]
