"""Tables of an evaluation: groups, parts, and background gap."""

from collections.abc import Mapping

from ifam.evaluation.accuracy import Evaluation
from ifam.evaluation.background_gap import Gap
from ifam.evaluation.bootstrap import Interval
from ifam.evaluation.metrics import GroupAccuracy
from ifam.evaluation.part_quality import PartQuality
from ifam.report.tables import Table, share


def evaluation_tables(evaluation: Evaluation, gap: Gap | None, name: str) -> list[Table]:
    """Accuracy by group, agreement of parts with annotations, and background gap, if known."""
    models = {"predictor": evaluation.predictor.groups}
    if evaluation.selector is not None:
        models["selector alone"] = evaluation.selector.groups
    tables = [_groups(f"{name}: accuracy by group", models)]
    if evaluation.parts is not None:
        tables.append(_parts(evaluation.parts, name))
    if gap is not None:
        tables.append(_gap(gap, name))
    return tables


def _groups(caption: str, models: Mapping[str, Mapping[str, GroupAccuracy]]) -> Table:
    """Accuracy of each group for each model, the worst first."""
    counts = {group: row.count for group, row in next(iter(models.values())).items()}
    accuracies = {group: [groups[group].accuracy for groups in models.values()] for group in counts}
    order = sorted(counts, key=lambda group: min(accuracies[group]))
    rows = tuple((group, str(counts[group]), *map(share, accuracies[group])) for group in order)
    return Table(caption, ("group", "images", *models), rows)


def _parts(parts: PartQuality, name: str) -> Table:
    rows = []
    for kind, one in parts.agreement.items():
        images = f"{one.images} images, {one.count} points"
        for key, value in (("nmi", one.nmi), ("ari", one.ari)):
            rows.append((f"{key.upper()}, {kind}", _with_ends(value, one.intervals.get(key), 3), images))
    for region, iou in (("foreground", parts.foreground_iou), ("background", parts.background_iou)):
        if iou is not None:
            figure = _with_ends(iou, parts.intervals.get(f"{region}_iou"), 3)
            rows.append((f"{region} IoU, pixels", figure, f"{parts.foreground_images} images"))
    if parts.keypoint_error is not None:
        figure = _with_ends(parts.keypoint_error, parts.intervals.get("keypoint_error"))
        rows.append(("keypoint error, of the box", figure, f"{parts.keypoint_count}"))
    return Table(
        f"{name}: agreement of the selector's parts with annotations", ("", "figure and interval", "of"), tuple(rows)
    )


def _gap(gap: Gap, name: str) -> Table:
    differences = {"predictor": gap.predictor, "selector": gap.selector}
    rows = tuple(
        (classifier, _with_ends(value, gap.intervals.get(classifier)), gap.pairing)
        for classifier, value in differences.items()
        if value is not None
    )
    caption = f"{name}: gap due to the background, {' minus '.join(gap.treatments)}"
    return Table(caption, ("", "gap and interval", "drawn"), rows)


def _with_ends(value: float, ends: Interval | None, digits: int | None = None) -> str:
    """A figure and its interval; formatted as a share if no digits are given."""
    first, *others = (share(v) if digits is None else f"{v:.{digits}f}" for v in (value, *(ends or ())))
    return f"{first} ({' to '.join(others)})" if others else first
