"""Charts as text and lines, and colors that can be read."""

import re
from importlib import resources

from ifam.report.html import curve_charts, with_code

CURVES = {"ifam": {"training loss": [(1, 1.2), (2, 0.8)], "worst group": [(1, 0.2), (2, 0.9)]}}


def test_curves_are_drawn_as_text_and_lines():
    charts = curve_charts(CURVES)
    assert [re.search(r'aria-label="([^"]+)"', chart["svg"])[1] for chart in charts] == [
        "training loss by epoch: ifam",
        "worst group by epoch: ifam",
    ]
    assert "\u202f%" in charts[1]["svg"]
    svgs = [chart["svg"] for chart in charts]
    ids = [name for svg in svgs for name in re.findall(r'id="([^"]+)"', svg) if f"url(#{name})" in svg]
    assert len(ids) == len(set(ids))


def test_names_are_escaped():
    (chart,) = curve_charts({"<script>": {"<b>": [(1, 0.5)]}, "other": {"<b>": [(1, 0.5)]}})
    assert "<script>" not in chart["svg"]
    assert "<b>" not in chart["svg"]


def test_text_has_enough_contrast():
    css = resources.files("ifam.report").joinpath("templates", "style.css").read_text()
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css))
    for name in ("ink", "quiet", "plain", "selector", "ifam", "right", "wrong"):
        assert 1.05 / (luminance(colors[name]) + 0.05) >= 4.5, name


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_backticks_are_code_and_everything_else_is_text():
    assert with_code("`ifam train --out <b>` & more") == "<code>ifam train --out &lt;b&gt;</code> &amp; more"
    assert with_code("one ` alone") == "one ` alone"
