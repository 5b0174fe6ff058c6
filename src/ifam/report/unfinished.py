"""Runs that are not finished, for the page: how far they are, whether they still run, and their figures so far."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ifam.evaluation.comparisons import Run
from ifam.report.comparisons import history_curves
from ifam.report.tables import Section, Table, share
from ifam.run_files import LAST_CHECKPOINT, METRICS, RunStatus, history, read_status
from ifam.run_log import read_log
from ifam.serialization import from_json

# Epochs in the table of a training.
_LATEST = 5


@dataclass(frozen=True)
class UnfinishedRun:
    """A training or a comparison of which there is no result yet.

    Attributes:
        name: Its folder.
        running: Whether it still runs.
        section: How far it is, and its figures so far.
        curves: Curves so far, by method.
        settings: Its settings.
    """

    name: str
    running: bool
    section: Section
    curves: Mapping[str, Mapping[str, Sequence[tuple[int | float, float]]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def find_unfinished(folder: Path) -> UnfinishedRun | None:
    """The run in a folder that is not finished, if there is one.

    Args:
        folder: Folder of a training or a comparison, at any moment.

    Raises:
        IfamError: One of its files is damaged.
        ValueError: One of its files has other contents.
    """
    status = read_status(folder)
    log = folder / "runs.jsonl"
    if (status is not None and status.runs) or (log.is_file() and not (folder / "compare.json").exists()):
        return _comparison(folder, status, log)
    begun = (folder / "train.yaml").is_file() or (folder / METRICS).is_file()
    if status is not None or (begun and not (folder / "results.json").exists()):
        return _training(folder, status)
    return None


# ------------------------------------------------------------------------------------------------ trainings


def _training(folder: Path, status: RunStatus | None) -> UnfinishedRun:
    settings = _settings(folder / "train.yaml")
    epochs = history(folder / METRICS)
    done, total = len([epoch for epoch in epochs if "train/total" in epoch]), settings.get("train", {}).get("epochs")
    trained = (folder / "config.json").exists()
    of = "" if total is None else f" of {total}"
    if trained:
        where, left = "after its training", f"`ifam evaluate --model {folder}` measures the model."
    else:
        where = f"in epoch {done + 1}{of}" if done != total else f"after {_count(done, 'epoch')}"
        left = f"`ifam train --out {folder} --resume` goes on."
    saved = folder / LAST_CHECKPOINT
    kept = f" It was last saved at {_clock(saved.stat().st_mtime)}." if saved.exists() else ""
    section = Section(_title(status, where), _lead(status, left) + kept, (_epochs(epochs),) if epochs else ())
    curves = {str(settings.get("method", "training")): history_curves(epochs)}
    return UnfinishedRun(str(folder), status is not None and status.running, section, curves, settings)


def _settings(file: Path) -> dict[str, Any]:
    """The settings of a training; none where there is no file."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return settings if isinstance(settings, dict) else {}


_FIGURES = {
    "train/total": ("training loss", "{:.3f}".format),
    "val/accuracy": ("accuracy", share),
    "val/worst_group": ("worst group", share),
    "val/mask_iou": ("mask IoU", "{:.2f}".format),
    "val/visible_fraction": ("visible", share),
}


def _epochs(epochs: Sequence[Mapping[str, float]]) -> Table:
    """The figures of the latest epochs, the last one first."""
    shown = [key for key in _FIGURES if any(key in epoch for epoch in epochs)]
    rows = [
        (f"epoch {number}", *(_FIGURES[key][1](epoch[key]) if key in epoch else "–" for key in shown))
        for number, epoch in list(enumerate(epochs, 1))[: -_LATEST - 1 : -1]
    ]
    return Table(
        "The latest epochs: training loss, and figures of validation images",
        ("", *(_FIGURES[key][0] for key in shown)),
        tuple(rows),
    )


# ---------------------------------------------------------------------------------------------- comparisons


def _comparison(folder: Path, status: RunStatus | None, log: Path) -> UnfinishedRun:
    done = {(run.row, run.seed): run for run in _runs(log)}
    wanted = list(done) if status is None else list(status.runs)
    left = [key for key in wanted if key not in done]
    where = f"in run {len(wanted) - len(left) + 1} of {len(wanted)}" if left else f"after {_count(len(done), 'run')}"
    trainings = sorted(folder.glob(f"unfinished/*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    method = left[0][0] if left else "training"
    curves = {method: history_curves(history(trainings[-1]))} if trainings else {}
    running = status is not None and status.running
    rows = [
        (f"{name}, seed {seed}", *_cells(done.get((name, seed)), running and left[:1] == [(name, seed)]))
        for name, seed in wanted
    ]
    heads = ("", "", "worst group", "average", "mask IoU", "visible", "seconds")
    tables = (Table("Runs, each one training with one seed", heads, tuple(rows)),) if rows else ()
    advice = "The same command goes on with what is missing."
    return UnfinishedRun(str(folder), running, Section(_title(status, where), _lead(status, advice), tables), curves)


def _runs(log: Path) -> Iterable[Run]:
    return (from_json(Run, entry) for _, entry in read_log(log)) if log.is_file() else ()


def _cells(run: Run | None, running: bool) -> tuple[str, ...]:
    """The figures of a run of a comparison."""
    if run is None:
        return ("running" if running else "missing", *"–––––")
    figures = run.figures
    iou = figures.get("mask_iou")
    return (
        "done",
        share(figures.get("worst_group")),
        share(figures.get("average")),
        "–" if iou is None else f"{iou:.2f}",
        share(figures.get("visible_fraction")),
        f"{figures['seconds']:.0f}" if "seconds" in figures else "–",
    )


# --------------------------------------------------------------------------------------------------- status


def _title(status: RunStatus | None, where: str) -> str:
    """Whether a run still runs, and where it is."""
    if status is None:
        return f"Not finished: {where}"
    if status.running:
        return f"Still running, {where}"
    return f"Stopped {where}" if status.state == "stopped" else f"No sign of life, {where}"


def _lead(status: RunStatus | None, advice: str) -> str:
    """What a run does, or why it does nothing, and what can be done about it."""
    if status is None:
        return f"Nothing here tells whether it still runs. If it does not: {advice}"
    when = _clock(status.updated)
    if status.running:
        doing = f"{status.progress[:1].upper()}{status.progress[1:]}. " if status.progress else ""
        return f"{doing}It has run since {_clock(status.started)}; this is its state at {when}."
    if status.state == "stopped":
        return f"It was stopped at {when}: {status.reason.rstrip('.')}. {advice}"
    return f"It was last heard of at {when}: its process was killed, or its machine is gone. {advice}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OSError, OverflowError, ValueError):  # the file is damaged
        return "an unknown time"
