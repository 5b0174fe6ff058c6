"""Self-contained pages: one HTML file that needs no network, no script, and no other file beside it.

`DemoReport` is what `ifam demo` has to say; `write_demo_report` lays it out. Whatever the sentences of the
page claim is computed here from the results, so that they hold for whatever the results are.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ifam.errors import IfamError
from ifam.io import write_text
from ifam.report.overlays import enlarge, part_colours

# Key in results.json, name on the page. The colours live in the style sheet and in `_LINES`.
MODELS = {"plain_vit": "Plain ViT", "selector": "Selector alone", "ifam": "iFAM"}
_LINES = {"Plain ViT": "#a8481f", "Selector alone": "#6b7280", "iFAM": "#0b5a78"}
_OTHER_LINE = "#3f3f46"
# Differences up to five points are called close: with 500 images a group, chance alone makes two or three.
_CLEAR = 0.05
# Larger pictures are photographs, which JPEG keeps well; small ones are drawn in sharp squares.
_PNG_UP_TO = 400
_NO_BREAK = "\u202f"


@dataclass(frozen=True)
class PictureRow:
    """One image of the test set with both answers.

    Attributes:
        image: The input.
        parts_overlay: `overlays.part_overlay` of it.
        predictor_view: `overlays.predictor_view` of it.
        truth: Name of the right class.
        plain_answer: Class that the plain ViT names.
        plain_confidence: Its probability.
        ifam_answer: Class that iFAM names.
        ifam_confidence: Its probability.
    """

    image: Image.Image
    parts_overlay: Image.Image
    predictor_view: Image.Image
    truth: str
    plain_answer: str
    plain_confidence: float
    ifam_answer: str
    ifam_confidence: float


@dataclass(frozen=True)
class DemoReport:
    """What the page of `ifam demo` shows.

    Attributes:
        title: Name of the page.
        conditions: What was done: seeds, sizes, epochs, seconds, versions; in the order given.
        runs: The runs of `results.json`, one a seed.
        pictures: Name of each group, with images of it.
        curves: For each model, by its name on the page, the named curves as (epoch, value). Values between 0
            and 1 are shown in per cent, unless the name has "loss" in it.
        about: A sentence or two on the data: what the groups are and why they are hard.
        num_parts: Foreground parts K, for the legend; 0 for none.
    """

    title: str
    conditions: Mapping[str, object]
    runs: Sequence[Mapping[str, Any]]
    pictures: Sequence[tuple[str, Sequence[PictureRow]]] = ()
    curves: Mapping[str, Mapping[str, Sequence[tuple[int | float, float]]]] | None = None
    about: str = ""
    num_parts: int = 0


@dataclass(frozen=True)
class Spread:
    """A figure over several runs: its mean, and how far it ranges.

    Attributes:
        mean: Mean over runs.
        low: Least value.
        high: Greatest value.
        runs: Number of runs.
    """

    mean: float
    low: float
    high: float
    runs: int


def write_demo_report(path: str | Path, report: DemoReport) -> Path:
    """Write the page of `ifam demo`.

    Args:
        path: The HTML file; folders above it are made.
        report: What it shows.

    Returns:
        The path.

    Raises:
        IfamError: There is no run to report.
    """
    if not report.runs:
        raise IfamError("The report has no run to show; give the `runs` of results.json.")
    runs = report.runs
    groups = _groups(runs)
    order = [group["name"] for group in groups]
    # The hardest group first, in the pictures as in the chart; groups without figures at the end.
    pictures = sorted(report.pictures, key=lambda p: order.index(p[0]) if p[0] in order else len(order))
    text = (
        environment()
        .get_template("demo.html.j2")
        .render(
            report=report,
            headline=_headline(runs),
            paragraphs=[p for p in (_on_accuracy(runs), _on_faithfulness(runs)) if p],
            summary=_summary(runs),
            groups=groups,
            pictures=pictures,
            figures={group["name"]: group for group in groups},
            curves=curve_charts(report.curves or {}),
            colours=part_colours(report.num_parts),
        )
    )
    write_text(Path(path), text)
    return Path(path)


@cache
def environment() -> Environment:
    """The templates, with everything from outside escaped and a missing value an error."""
    env = Environment(
        loader=PackageLoader("ifam", "report/templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.filters |= {"percent": percent, "data_uri": data_uri}
    env.globals["models"] = MODELS
    return env


def percent(share: float, digits: int = 1) -> str:
    """A share between 0 and 1 in per cent, the sign on the same line."""
    return f"{100 * share:.{digits}f}{_NO_BREAK}%"


def data_uri(image: Image.Image) -> str:
    """The image as text that a page can hold: small ones in sharp squares (PNG), photographs as JPEG."""
    buffer, image = io.BytesIO(), enlarge(image)
    kind = "png" if max(image.size) <= _PNG_UP_TO else "jpeg"
    image.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _spread(values: Sequence[float]) -> Spread:
    """Mean and range of a figure over runs."""
    # NaN compares as false: `max` alone could hide it, and an influence of NaN is not 0.
    high = max(values, key=lambda value: (math.isnan(value), value))
    return Spread(math.fsum(values) / len(values), min(values), high, len(values))


def _over_runs(runs: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any]) -> Spread | None:
    """A figure over runs; None where a run lacks it."""
    try:
        values = [value(run) for run in runs]
    except KeyError:
        return None
    return None if any(v is None for v in values) else _spread([float(v) for v in values])


def _summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of figures for each model, the worst group first."""

    def cells(model: str) -> list[tuple[str, Spread | None, str]]:
        def figure(key: str) -> Spread | None:
            return _over_runs(runs, lambda run: run[model][key])

        ours = model == "ifam"
        # The selector and the plain ViT see every pixel.
        visible = figure("visible_fraction") if ours else Spread(1.0, 1.0, 1.0, 1)
        influence = _over_runs(runs, lambda run: run["hidden_influence"]) if ours else None
        return [
            ("Worst group", figure("worst_group"), "percent"),
            ("Average", figure("average"), "percent"),
            ("Mask IoU", figure("mask_iou"), "plain"),
            ("Visible", visible, "whole"),
            ("Influence of hidden pixels", influence, "exact"),
        ]

    present = [model for model in MODELS if model in runs[0]]
    return [{"model": model, "name": MODELS[model], "cells": cells(model)} for model in present]


def _groups(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of each model in each group, the plain ViT's worst group first."""
    present = [model for model in MODELS if model in runs[0]]
    rows = []
    for name, first in runs[0][present[0]]["groups"].items():
        accuracy = {
            model: _over_runs(runs, lambda run, m=model, g=name: run[m]["groups"][g]["accuracy"])  # type: ignore[misc]
            for model in present
        }
        rows.append({"name": name, "count": first.get("count"), "accuracy": accuracy})
    return sorted(rows, key=lambda row: row["accuracy"][present[0]].mean)


def _headline(runs: Sequence[Mapping[str, Any]]) -> str:
    """The outcome in one line, whichever it is."""
    plain, ours = (_spread([run[m]["worst_group"] for run in runs]) for m in ("plain_vit", "ifam"))
    gains = [run["ifam"]["worst_group"] - run["plain_vit"]["worst_group"] for run in runs]
    a, b = percent(ours.mean, 0), percent(plain.mean, 0)
    one_sided = min(gains) > 0 or max(gains) < 0
    if max(map(abs, gains)) <= _CLEAR or (one_sided and abs(ours.mean - plain.mean) <= _CLEAR):
        return f"In their worst groups the two models come out close: iFAM {a}, plain ViT {b}."
    if min(gains) > 0:
        return f"In its worst group, iFAM is right on {a} of the images. A plain ViT: {b}."
    if max(gains) < 0:
        return f"Here the plain ViT does better: {b} in its worst group, iFAM {a}."
    return f"Which model does better in its worst group depends on the seed: on average iFAM {a}, plain ViT {b}."


def _on_accuracy(runs: Sequence[Mapping[str, Any]]) -> str:
    """How right the models are, overall and group by group."""
    groups = _groups(runs)
    average = {m: percent(_spread([run[m]["average"] for run in runs]).mean) for m in ("plain_vit", "ifam")}
    spans = {}
    for model in average:
        ranked = sorted(groups, key=lambda row: row["accuracy"][model].mean)
        worst, best = ranked[0], ranked[-1]
        spans[model] = (
            f"{percent(worst['accuracy'][model].mean)} ({worst['name']}) "
            f"to {percent(best['accuracy'][model].mean)} ({best['name']})"
        )
    over = f"Averaged over {len(runs)} seeds, the" if len(runs) > 1 else "The"
    return (
        f"{over} plain ViT is right on {average['plain_vit']} of all test images, "
        f"iFAM on {average['ifam']}. "
        f"Group by group, the plain ViT ranges from {spans['plain_vit']}, iFAM from {spans['ifam']}. "
        f"A model that answers from what surrounds the object shows a wide range."
    )


def _on_faithfulness(runs: Sequence[Mapping[str, Any]]) -> str:
    """What iFAM's answer rests on, and what its hidden pixels changed."""
    visible = _over_runs(runs, lambda run: run["ifam"]["visible_fraction"])
    iou = _over_runs(runs, lambda run: run["ifam"]["mask_iou"])
    influence = _over_runs(runs, lambda run: run["hidden_influence"])
    selector = _over_runs(runs, lambda run: run["selector"]["worst_group"])
    share = f", on average {percent(visible.mean, 0)} of each image" if visible else ""
    text = (
        f"iFAM answers in two steps. A selector looks at the whole image and assigns each patch to a part or "
        f"to the background; a predictor then sees the patches of the parts and nothing else{share}. "
    )
    if iou:
        text += f"These patches overlap those of the true object with an IoU of\u00a0{iou.mean:.2f}. "
    if influence and influence.high == 0:
        text += "When every hidden pixel is replaced, no output changes at all: "
        text += "their influence is exactly\u00a00. "
    elif influence:
        text += (
            f"When hidden pixels are replaced, an output changes by up to {influence.high:.2g}. "
            f"It must be 0: this model does not keep its promise. "
        )
    if selector:
        gains = [run["ifam"]["worst_group"] - run["selector"]["worst_group"] for run in runs]
        points = f"{100 * sum(gains) / len(gains):.0f}\u00a0points"
        gained = f"; the predictor, from which the rest is hidden, does {points} better" if min(gains) > _CLEAR else ""
        text += (
            f"The selector’s own answer, which it gives with the whole image in view, is right on "
            f"{percent(selector.mean)} of its worst group{gained}."
        )
    return text.strip()


def curve_charts(curves: Mapping[str, Mapping[str, Sequence[tuple[int | float, float]]]]) -> list[dict[str, Any]]:
    """A chart for each name of a curve, with a line for each model that has it."""
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
        for model, points in lines.items():
            epochs, heights = zip(*points, strict=True)
            scaled = [100 * height for height in heights] if shares else heights
            axes.plot(epochs, scaled, color=_LINES.get(model, _OTHER_LINE), lw=1.8, marker="o", ms=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch", color="#4b5157")
        if shares:
            axes.set_ylim(0, 102)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}{_NO_BREAK}%")
        elif min(values) >= 0:
            axes.set_ylim(bottom=0)

    return draw((4.6, 2.7), f"{name} by epoch: {', '.join(lines)}", paint, number)


def draw(
    size: tuple[float, float],
    label: str,
    paint: Callable[[Axes], None],
    number: int = 0,
    lines: Literal["x", "y"] = "y",
) -> Markup:
    """A chart as inline SVG, its text in the fonts of the page.

    Args:
        size: Width and height in inches.
        label: What it shows, for those who cannot see it.
        paint: Fills the axes.
        number: Different for each chart on a page, whose ids must differ.
        lines: Axis whose values have lines.
    """
    style: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": f"{number}",
        "font.size": 10,
        "font.family": "sans-serif",
        "text.parse_math": False,  # a name with dollars is no formula
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
    spoken = html.escape(label, quote=True)
    return Markup(svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{spoken}"', 1))
