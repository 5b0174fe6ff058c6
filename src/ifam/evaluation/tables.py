"""What an evaluation found, as a table on the screen and as JSON."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ifam
from ifam.evaluation.groups import Accuracy, Evaluation
from ifam.prediction import Prediction


def print_evaluation(found: Evaluation, title: str) -> None:
    """Print accuracies by group and class, worst group first."""
    columns: dict[str, Accuracy] = {"predictor": found.predictor}
    if found.selector is not None:
        columns["selector alone"] = found.selector
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("images", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row("worst group", "", *(f"{a.worst_group:.1%}" for a in columns.values()), style="bold")
    table.add_row("average", str(found.count), *(f"{a.average:.1%}" for a in columns.values()), end_section=True)
    sections = [found.predictor.groups]
    if set(found.predictor.classes) != set(found.predictor.groups):
        sections.append(found.predictor.classes)
    for section in sections:
        for name, row in section.items():
            values = [{**a.groups, **a.classes}[name]["accuracy"] for a in columns.values()]
            table.add_row(name, str(row["count"]), *(f"{v:.1%}" for v in values))
        table.add_section()
    if found.mask_iou is not None:
        table.add_row("mask IoU (patches)", "", f"{found.mask_iou:.3f}")
    if found.visible_fraction is not None:
        table.add_row("visible", "", f"{found.visible_fraction:.1%}")
    if found.empty:
        table.add_row("nothing visible", str(found.empty), "")
    Console().print(table)


def print_predictions(rows: Sequence[Prediction]) -> None:
    """Print one line an image."""
    table = Table("image", "class", "probability", "visible")
    for row in rows:
        visible = "nothing" if row.empty else f"{row.visible_fraction:.0%}"
        table.add_row(str(row.path), row.class_name, f"{row.probability:.1%}", visible)
    Console().print(table)


def write_results(found: Evaluation, path: Path, conditions: Mapping[str, Any]) -> None:
    """Write an evaluation with the conditions under which it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**asdict(found), "conditions": {**conditions, **provenance()}}
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def provenance() -> dict[str, str | None]:
    """Version, revision of the source where it is a checkout, and time."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        revision: str | None = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {
        "ifam_version": ifam.__version__,
        "git_revision": revision,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
