"""Text, tables and chart of a certification, for console and page."""

from markupsafe import Markup
from matplotlib.axes import Axes

from ifam.auditing.smoothing import Certification
from ifam.console import PlainConsole
from ifam.evaluation.accuracy import Accuracy
from ifam.evaluation.metrics import GroupAccuracy
from ifam.report.html import draw
from ifam.report.tables import Section, Table, print_section, share

_AVERAGE, _WORST = "#0b5a78", "#a8481f"


def print_certification(result: Certification) -> None:
    """Print the tables."""
    print_section(PlainConsole(), certification_section(result))


def certification_section(result: Certification) -> Section:
    """Text, chart and tables of a certification."""
    tables = [_sizes(result)]
    if result.ordinary is not None and result.vote is not None:
        tables.insert(0, _accuracies(result, result.ordinary, result.vote))
    return Section(
        "What no change of one region can alter", _lead(result), tuple(tables), _notes(result), _chart(result)
    )


def region_name(result: Certification, size: int) -> str:
    """A region of a size in patches, in words."""
    if result.window_kind == "columns":
        return f"{size} adjacent columns of patches" if size > 1 else "one column of patches"
    return f"{size} x {size} patches"


def _lead(result: Certification) -> str:
    asked, count = result.asked, len(result.images)
    lead = (
        f"Whatever the pixels of {region_name(result, result.size)} are, wherever they are, {share(asked.certain)} of "
        f"{count} answers stay the same"
    )
    if asked.accuracy is not None:
        worst = asked.accuracy.worst_group
        lead += f"; {share(asked.accuracy.average)} are right besides, {share(worst)} in the worst group"
    agree = f"They agree with the ordinary answers in {share(result.agreement)} of the images"
    return f"{lead}. {agree}, and take {result.cost:.1f} times as long."


def _accuracies(result: Certification, ordinary: Accuracy, vote: Accuracy) -> Table:
    """Ordinary answers, votes, and certain votes, by group."""
    certain = result.asked.accuracy
    assert certain is not None, "the labels are known"
    columns = (ordinary, vote, certain)
    rows = [
        ("average", str(len(result.images)), *(_cell(one.average, one.intervals.get("average")) for one in columns)),
        ("worst group", "", *(_cell(one.worst_group, one.intervals.get("worst_group")) for one in columns)),
    ]
    names = sorted(ordinary.groups, key=lambda name: certain.groups[name].accuracy)
    for name in names:
        rows.append((name, str(ordinary.groups[name].count), *(_group(one.groups[name]) for one in columns)))
    heads = ("", "images", "ordinary answer right", "vote right", "vote right and certain")
    return Table(
        f"Accuracy; certain against any change of {region_name(result, result.size)}", heads, tuple(rows), (1,)
    )


def _sizes(result: Certification) -> Table:
    """What is certain, by the size of the region."""
    square = "" if result.window_kind == "columns" else " x "
    rows = []
    for one in result.regions:
        patches, pixels = (f"{n}{square}{n if square else ''}" for n in (one.size, one.pixels))
        accuracy = one.accuracy
        rows.append(
            (
                patches,
                pixels,
                share(one.certain),
                "–" if accuracy is None else _cell(accuracy.average, accuracy.intervals.get("average")),
                "–" if accuracy is None else _cell(accuracy.worst_group, accuracy.intervals.get("worst_group")),
            )
        )
    heads = ("patches", "pixels, beginning anywhere", "certain", "certain and right", "worst group")
    of = "columns" if result.window_kind == "columns" else "squares"
    return Table(f"By the size of the region ({of})", heads, tuple(rows), (result.size - 1,))


def _notes(result: Certification) -> tuple[str, ...]:
    bands = "bands of columns" if result.window_kind == "columns" else "blocks"
    notes = [
        f"{result.window_count} {bands}, {result.window_width} of {result.grid[1]} patches wide, vote one by one; "
        f"{share(result.abstained)} abstain, since nothing in them is visible. It is a statement about the model's "
        f"input, after resizing and cropping.",
    ]
    attacks = result.attacks
    if attacks is not None:
        others = attacks.images - attacks.certain
        notes.append(
            f"{attacks.random} random fills and {attacks.steps} steps of gradient ascent inside of the weakest region "
            f"of {attacks.images} images changed {attacks.changed_certain} of {attacks.certain} answers that are "
            f"certain, and {attacks.changed_others} of the {others} others."
        )
    return tuple(notes)


def _chart(result: Certification) -> Markup:
    """Certain answers by the size of the region."""

    def heights(of: str) -> list[float]:
        return [100 * (one.certain if one.accuracy is None else getattr(one.accuracy, of)) for one in result.regions]

    def paint(axes: Axes) -> None:
        sizes = [str(one.size) for one in result.regions]
        known = result.regions[0].accuracy is not None
        axes.plot(
            sizes, heights("average"), color=_AVERAGE, marker="o", label="right and certain" if known else "certain"
        )
        if known:
            axes.plot(sizes, heights("worst_group"), color=_WORST, marker="o", label="worst group")
        axes.set_ylim(0, 102)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}\u202f%")
        axes.set_xlabel("size of the region in patches", color="#4b5157")
        axes.legend(frameon=False, fontsize=8)

    return draw((4.6, 2.7), "Certain answers by the size of the region", paint)


def _group(group: GroupAccuracy) -> str:
    return _cell(group.accuracy, None if group.low is None or group.high is None else (group.low, group.high))


def _cell(value: float, ends: tuple[float, float] | None) -> str:
    """A share and its interval."""
    return share(value) if ends is None else f"{share(value)} ({share(ends[0])} to {share(ends[1])})"
