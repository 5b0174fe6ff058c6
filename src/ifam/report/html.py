"""Self-contained HTML pages, which need neither a network nor other files."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colors of the most common methods; others take the rest of the palette in turn.
_LINES = {"plain_vit": "#a8481f", "selector": "#6b7280", "ifam": "#0b5a78"}
_OTHER_LINES = ("#3f3f46", "#7a5195", "#2a7f62", "#b8860b", "#c2528b", "#4f6d7a")
_NO_BREAK = "\u202f"


@cache
def environment(folder: str = "report/templates") -> Environment:
    """The environment of the templates in a folder of the package: values are escaped, and missing ones are errors."""
    env = Environment(
        loader=PackageLoader("ifam", folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.filters |= {"percent": percent, "with_code": with_code}
    return env


def percent(share: float, digits: int = 1) -> str:
    """A share between 0 and 1 in percent, without a line break before the sign."""
    return f"{100 * share:.{digits}f}{_NO_BREAK}%"


def with_code(text: str) -> Markup:
    """Text, escaped, in which what is between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def curve_charts(curves: Mapping[str, Mapping[str, Sequence[tuple[int | float, float]]]]) -> list[dict[str, Any]]:
    """A chart for each curve name, with a line for each model."""
    names = list(dict.fromkeys(name for of_model in curves.values() for name in of_model))
    charts = []
    for number, name in enumerate(names):
        lines = {model: of_model[name] for model, of_model in curves.items() if of_model.get(name)}
        if lines:
            charts.append({"name": name, "models": list(lines), "svg": _chart(name, lines, number)})
    return charts


def _chart(name: str, lines: Mapping[str, Sequence[tuple[int | float, float]]], number: int) -> Markup:
    """A small line chart."""
    values = [value for points in lines.values() for _, value in points]
    shares = "loss" not in name.lower() and all(0 <= value <= 1 for value in values)

    def paint(axes: Axes) -> None:
        others = [name for name in lines if name not in _LINES]
        for model, points in lines.items():
            color = _LINES.get(model) or _OTHER_LINES[others.index(model) % len(_OTHER_LINES)]
            epochs, heights = zip(*points, strict=True)
            scaled = [100 * height for height in heights] if shares else heights
            axes.plot(epochs, scaled, color=color, lw=1.8, marker="o", ms=3, label=model)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch", color="#4b5157")
        if shares:
            axes.set_ylim(0, 102)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}{_NO_BREAK}%")
        elif min(values) >= 0:
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)

    return draw((4.6, 2.7), f"{name} by epoch: {', '.join(lines)}", paint, number)


def draw(
    size: tuple[float, float],
    label: str,
    paint: Callable[[Axes], None],
    number: int = 0,
    lines: Literal["x", "y"] = "y",
) -> Markup:
    """A chart as inline SVG, with text in the fonts of the page.

    Args:
        size: Width and height in inches.
        label: Description for screen readers.
        paint: Draws into the axes.
        number: A different number for each chart of a page, so ids do not clash.
        lines: Axis with grid lines.
    """
    style: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": f"{number}",
        "font.size": 10,
        "font.family": "sans-serif",
        "text.parse_math": False,  # dollar signs in names are not formulas
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#9aa0a6")
        axes.grid(axis=lines, color="#e4e4e0", lw=0.8)
        axes.tick_params(length=0, colors="#4b5157")
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    aria_label = html.escape(label, quote=True)
    return Markup(svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{aria_label}"', 1))
