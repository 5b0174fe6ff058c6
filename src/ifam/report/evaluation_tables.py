"""What an evaluation found beyond accuracy, in tables: parts, and treated backgrounds. Reads `results.json`."""

from collections.abc import Sequence
from typing import Any

from ifam.report.audit_tables import Row, Table, share

_RATIOS = {"foreground_iou": "foreground IoU, pixels", "background_iou": "background IoU, pixels"}


def one_by_one(found: Row) -> list[dict[str, Any]]:
    """A result as it is, or one result for each treatment of the images, the first of which keeps the gap."""
    if "treatments" not in found:
        return [dict(found)]
    results = [
        {**one, "conditions": {**found["conditions"], "split": name}} for name, one in found["treatments"].items()
    ]
    results[0]["gap"] = found["gap"]
    return results


def further_tables(found: Row, name: str) -> list[Table]:
    """How well parts agree with annotations, and what the background is worth, where an evaluation says so."""
    tables = []
    if parts := found.get("parts"):
        tables.append(_parts(parts, name))
    if gap := found.get("gap"):
        tables.append(_gap(gap, name))
    return tables


def _parts(parts: Row, name: str) -> Table:
    rows = []
    for kind, one in parts["agreement"].items():
        images = f"{one['images']} images, {one['count']} points"
        rows += [(f"{key.upper()}, {kind}", _with_ends(one, key, 3), images) for key in ("nmi", "ari")]
    images = f"{parts['foreground_images']} images"
    rows += [(text, _with_ends(parts, key, 3), images) for key, text in _RATIOS.items() if parts[key] is not None]
    if parts["keypoint_error"] is not None:
        rows.append(("keypoint error, of the box", _with_ends(parts, "keypoint_error"), f"{parts['keypoint_count']}"))
    return Table(f"{name}: parts of the selector beside annotations", ("", "figure and interval", "of"), tuple(rows))


def _gap(gap: Row, name: str) -> Table:
    rows = [(who, _with_ends(gap, who), gap["pairing"]) for who in ("predictor", "selector") if gap[who] is not None]
    caption = f"{name}: gap due to the background, {' minus '.join(gap['treatments'])}"
    return Table(caption, ("", "gap and interval", "drawn"), tuple(rows))


def _with_ends(found: Row, key: str, digits: int | None = None) -> str:
    """A figure and its interval; a share where no digits are given."""

    def text(value: float) -> str:
        return share(value) if digits is None else f"{value:.{digits}f}"

    ends: Sequence[float] | None = found["intervals"].get(key)
    return text(found[key]) + (f" ({text(ends[0])} to {text(ends[1])})" if ends else "")
