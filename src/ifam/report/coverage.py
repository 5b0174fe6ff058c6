"""Text, table and chart of a calibration, for console and page."""

from collections.abc import Mapping

from markupsafe import Markup
from matplotlib.axes import Axes

from ifam.evaluation.coverage import Coverage, CoverageResult
from ifam.report.html import draw
from ifam.report.tables import Section, Table, share

_COLORS = ("#0b5a78", "#a8481f", "#2a7f62", "#7a5195", "#b8860b", "#c2528b", "#4f6d7a", "#3f3f46")
# A chart of more lines cannot be read.
_MOST_LINES = 8


def coverage_section(result: CoverageResult, name: str = "") -> Section:
    """What a calibration promises, and what it keeps on test images.

    Args:
        result: The calibration, with its coverage.
        name: Name of the model, where there are several.
    """
    title = f"Sets of classes that miss at most {share(result.error, 0)}" + (f": {name}" if name else "")
    images, least = sum(result.held_out.values()), min(result.held_out.values())
    lead = f"Calibrated on {images} held-out images, at least {least} of each class."
    if result.overall is None or result.worst is None:
        return Section(title, f"{lead} There are no test images to measure its coverage on.", (), _notes(result))
    group, worst = result.worst
    lead += (
        f" Of {result.overall.count} test images, {share(result.overall.coverage)} have their class in their set, in "
        f"the group with the fewest ({group}) {share(worst.coverage)}; {share(result.overall.answered)} get an answer, "
        f"that is a set of one class, and {share(result.overall.error)} of these answers are wrong."
    )
    columns = ("", "images", "coverage", "answered", "wrong answers", "several classes", "no class")
    ordered = sorted(result.groups.items(), key=lambda one: one[1].coverage)
    rows = tuple(_row(name, one) for name, one in [*ordered, ("all", result.overall)])
    table = Table("Coverage by group, the lowest first", columns, rows, strong=(len(rows) - 1,))
    return Section(title, lead, (table,), _notes(result), _chart(dict(ordered[:_MOST_LINES])))


def _row(name: str, one: Coverage) -> tuple[str, ...]:
    low, high = one.interval
    shares = map(share, (one.answered, one.error, one.several, one.none))
    return (name, str(one.count), f"{share(one.coverage)} ({share(low)} to {share(high)})", *shares)


def _notes(result: CoverageResult) -> tuple[str, ...]:
    which = "images of each class" if result.class_conditional else "images, on average over classes,"
    notes = [
        f"The sets of new {which} hold their class with a probability of at least {share(1 - result.error, 0)} if "
        f"these images come from where the held-out ones do. That this lasts when backgrounds change is no theorem: it "
        f"holds as far as the answer rests on the object alone, which the audit tests.",
        "In brackets: exact binomial interval (95 %). “Wrong answers” is their share among the answers that are given.",
    ]
    if not result.tells_unfamiliar:
        notes.append(
            "Images that are unlike all classes are not told apart: there are too few held-out images, or no training "
            "images, to know what is usual."
        )
    return tuple(notes)


def _chart(groups: Mapping[str, Coverage]) -> Markup:
    """Share of wrong answers against the share of images that are answered, for each group."""

    def paint(axes: Axes) -> None:
        for (name, one), color in zip(groups.items(), _COLORS, strict=False):
            answered, wrong = zip(*((100 * a, 100 * w) for a, w in one.risk_coverage), strict=True)
            axes.plot(answered, wrong, color=color, lw=1.8, marker="o", ms=3, label=name)
        axes.set_xlim(0, 102)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("images answered, surest first, %", color="#4b5157")
        axes.set_ylabel("wrong among these, %", color="#4b5157")
        axes.legend(frameon=False, fontsize=8)

    return draw((5.6, 3.2), f"Wrong answers by share of images answered: {', '.join(groups)}", paint, 1000)
