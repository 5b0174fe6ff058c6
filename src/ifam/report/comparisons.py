"""What a comparison found, in tables and a chart: one source for screen and page. Reads `compare.json`."""

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from ifam.console import PlainConsole
from ifam.report.audit_tables import Row, Section, Table, print_table
from ifam.report.html import draw

# Figure -> its head, what its values are multiplied by, and their digits; the unit stands in the head, once.
_FIGURES = {
    "worst_group": ("worst group %", 100, 1),
    "average": ("average %", 100, 1),
    "macro": ("mean over classes %", 100, 1),
    "mask_iou": ("mask IoU", 1, 2),
    "visible_fraction": ("visible %", 100, 1),
    "seconds": ("seconds", 1, 1),
}
_COMPARED = ("worst_group", "average", "macro", "mask_iou")
_WORST, _AVERAGE = "#0b5a78", "#a8481f"


def print_comparison(found: Row) -> None:
    """Print the tables of a comparison; what the methods are is left to the page."""
    console, section = PlainConsole(), comparison_section(found)
    console.print(f"\n{section.title}", style="bold")
    console.print(section.lead)
    for table in section.tables:
        print_table(console, table)
    for note in section.notes[: -len(found["methods"])]:
        console.print(note, style="dim")


def comparison_section(found: Row) -> Section:
    """A comparison in words, a chart and tables."""
    rows, conditions = found["rows"], found["conditions"]
    seeds = conditions["seeds"]
    uses = {method["name"]: " and ".join(method["uses"]) for method in found["methods"]}
    tables = [_main(rows, uses, len(seeds))]
    if len(rows) > 1:
        tables.append(_differences(rows))
    tables.append(_groups(rows))
    return Section(
        title(found),
        _lead(rows, seeds),
        tuple(tables),
        _notes(found, any(uses.values())),
        chart(rows, uses),
    )


def title(found: Row) -> str:
    """What is compared, where and how often."""
    rows, seeds = len(found["rows"]), len(found["conditions"]["seeds"])
    return (
        f"{rows} {'methods' if rows > 1 else 'method'} on {found['conditions']['benchmark']}, "
        f"{seeds} {'seeds' if seeds > 1 else 'seed'}"
    )


def _lead(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return (
            f"Each figure is that of a single training, seed {listed}: how much chance there is in it cannot be told, "
            f"so there are no intervals. Give several seeds."
        )
    return (
        f"Each figure is the mean over the seeds {listed}, ± half of its 95 % t-interval. All rows were trained and "
        f"judged on the same images, seed by seed, so differences are surer than the figures are: look at these."
    )


def _notes(found: Row, told: bool) -> tuple[str, ...]:
    notes = []
    if told:
        notes.append(
            "“Uses” is what a row is told beside images and classes: the groups of training or validation images, or "
            "the true mask of every image, in training and in the test. Rows that are told nothing have it harder."
        )
    if found["conditions"]["train"]["monitor"] == "worst_group":
        notes.append(
            "Each row keeps the epoch with the best worst group of the validation images, so in this all know groups."
        )
    notes.append(
        "Seconds are those of training, and of fitting the last layer again where that was done. A t-interval may "
        "reach beyond 0 or 100 %: it takes the seeds for draws from a normal distribution."
    )
    return (*notes, *map(_about, found["methods"]))


def _about(method: Row) -> str:
    """What a row is, and in which settings it differs from the first."""
    differs = "".join(f"; {name} = {value}" for name, value in method["differs"].items())
    return f"{method['name']}: {method['about']}{differs}."


def _main(rows: Sequence[Row], uses: Mapping[str, str], seeds: int) -> Table:
    present = _present(rows, "figures", _FIGURES)
    heads = ("", "uses", *(_FIGURES[key][0] for key in present), "trained", "weights")
    cells = [
        (
            row["name"],
            uses[row["name"]] or "–",
            *(_cell(row["figures"].get(key), key) for key in present),
            *(_short(row["parameters"][key]) for key in ("trained", "total")),
        )
        for row in rows
    ]
    return Table(f"Mean over {seeds} seeds" if seeds > 1 else "One seed", heads, tuple(cells))


def _differences(rows: Sequence[Row]) -> Table:
    first, others = rows[0], rows[1:]
    present = _present(others, "differences", _COMPARED)
    cells = [
        (row["name"], *(_cell(row["differences"].get(key), key, signed=True) for key in present)) for row in others
    ]
    heads = ("", *(_FIGURES[key][0].removesuffix(" %") for key in present))
    return Table(f"Difference to {first['name']} on the same seeds; of shares in points", heads, tuple(cells))


def _present(rows: Sequence[Row], kind: str, names: Iterable[str]) -> list[str]:
    """The figures that a row has, without a mean over classes that is the average: classes may be of the same size."""
    same = all(math.isclose(row["figures"]["macro"]["mean"], row["figures"]["average"]["mean"]) for row in rows)
    return [name for name in names if any(name in row[kind] for row in rows) and not (same and name == "macro")]


def _groups(rows: Sequence[Row]) -> Table:
    """Accuracy by group; the longer of rows and groups runs downwards."""
    groups = sorted(rows[0]["groups"], key=lambda name: rows[0]["groups"][name]["mean"])
    counts = {name: f"{name} ({rows[0]['groups'][name]['count']})" for name in groups}
    caption = f"Accuracy by group in %, with the number of its images; the worst group of {rows[0]['name']} first"
    if len(groups) <= len(rows):
        lines = [(row["name"], *(_cell(row["groups"].get(group)) for group in groups)) for row in rows]
        return Table(caption, ("", *counts.values()), tuple(lines))
    lines = [(counts[group], *(_cell(row["groups"].get(group)) for row in rows)) for group in groups]
    return Table(caption, ("", *(row["name"] for row in rows)), tuple(lines))


def _cell(found: Row | None, key: str = "average", signed: bool = False) -> str:
    """A mean and the reach of its interval."""
    if found is None:
        return "–"
    _, scale, digits = _FIGURES[key]
    text = f"{scale * found['mean']:{'+' if signed else ''}.{digits}f}"
    return text if found["low"] is None else f"{text} ± {scale * (found['high'] - found['mean']):.{digits}f}"


def _short(number: int) -> str:
    """A number of parameters."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}\u00a0{unit}"
    return str(number)


def chart(rows: Sequence[Row], uses: Mapping[str, str]) -> Markup:
    """Worst group and average of each row with their intervals, as inline SVG."""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            ends = {key: row["figures"][key] for key in ("worst_group", "average")}
            axes.plot([100 * found["mean"] for found in ends.values()], [place] * 2, color="#d5d8db", lw=1.2, zorder=1)
            for (key, found), colour in zip(ends.items(), (_WORST, _AVERAGE), strict=True):
                if found["low"] is not None:
                    reach = [100 * min(max(found[end], 0), 1) for end in ("low", "high")]
                    axes.plot(reach, [place] * 2, color=colour, lw=5, alpha=0.3, solid_capstyle="butt", zorder=2)
                filled = colour if key == "worst_group" else "white"
                name = key.replace("_", " ") if place == 0 else None
                axes.plot(100 * found["mean"], place, "o", ms=7, mfc=filled, mec=colour, mew=1.6, zorder=3, label=name)
        told = [f" (uses {uses[row['name']]})" if uses[row["name"]] else "" for row in rows]
        axes.set_yticks(range(len(rows)), [row["name"] + more for row, more in zip(rows, told, strict=True)])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 101)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}\u202f%")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0)

    text = "; ".join(
        f"{row['name']}: worst group {_cell(row['figures']['worst_group'])} %, "
        f"average {_cell(row['figures']['average'])} %"
        for row in rows
    )
    return draw((7.4, 0.9 + 0.34 * len(rows)), text, paint, lines="x")


__all__ = ["chart", "comparison_section", "print_comparison", "title"]
