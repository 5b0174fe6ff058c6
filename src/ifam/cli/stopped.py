"""What an interrupted command has written, and how to continue: one clause per verb. Does not import torch."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifam.io import local_path


@dataclass(frozen=True)
class _Stopped:
    """An interrupted command.

    Attributes:
        settings: Its settings by name.
        started: Start time, in seconds since the epoch.
    """

    settings: Mapping[str, Any]
    started: float

    def written(self, path: Path) -> bool:
        """Whether this command, not an earlier one, has written a file."""
        # Some file systems store whole seconds only.
        return path.exists() and path.stat().st_mtime >= int(self.started)


def what_is_left(verb: str, settings: Mapping[str, Any], started: float) -> str:
    """Describe what an interrupted command has written, and how to continue.

    Args:
        verb: Name of the command; empty if it was not parsed yet.
        settings: Its settings by name.
        started: Start time, in seconds since the epoch.
    """
    return _LEFT.get(verb, _nothing)(_Stopped(settings, started))


def _nothing(command: _Stopped) -> str:
    return "nothing was written; the same command starts over"


def _training(command: _Stopped) -> str:
    out = command.settings["out"] or Path("runs") / command.settings["method"]
    last = out / "checkpoints" / "last.ckpt"
    if command.written(out / "config.json"):
        return _evaluated_or_not(command, out)
    if last.exists() and (command.settings.get("resume") or command.written(last)):
        return f"the training is saved in {last}, and `ifam train --out {shlex.quote(str(out))} --resume` goes on"
    if (out / "config.json").exists():
        return f"the earlier model in {out} is as it was; the same command starts over"
    return "there is no model yet, and no step was finished; the same command starts over"


def _retraining(command: _Stopped) -> str:
    out = command.settings["out"]
    return _evaluated_or_not(command, out) if command.written(out / "config.json") else _nothing(command)


def _evaluated_or_not(command: _Stopped, out: Path) -> str:
    if command.written(out / "results.json"):
        return f"the model and its results are in {out}"
    return f"the model is in {out}, but was not evaluated; `ifam evaluate --model {out}` does it"


def _comparison(command: _Stopped) -> str:
    out = command.settings["out"]
    runs, saved = out / "runs.jsonl", any(out.glob("unfinished/*/checkpoints/last.ckpt"))
    where = ", the first of them where it was stopped" if saved else ""
    if runs.exists() and runs.stat().st_size:
        return f"runs that were done are kept in {runs}, and the same command continues with the others{where}"
    if saved:
        return f"no run was finished, and the same command goes on with the first one, which is saved in {out}"
    return "no run was finished; the same command starts over"


def _challenge(command: _Stopped) -> str:
    model = local_path(command.settings["model"])
    folder = command.settings["out"] or (model if model.is_dir() else Path()) / "challenge"
    log = folder / "challenge.jsonl"
    if not log.exists():
        return _nothing(command)
    again = "the same command without --overwrite" if command.settings["overwrite"] else "the same command"
    return f"what was done is kept in {log}, and {again} continues with the rest"


def _preparation(command: _Stopped) -> str:
    if not command.settings["out"].is_dir():
        return _nothing(command)
    return f"images that were drawn are kept in {command.settings['out']}, and the same command continues with the rest"


def _prediction(command: _Stopped) -> str:
    out: Path = command.settings["out"]
    table = out / "predictions.csv" if out.is_dir() or not out.suffix else out
    # Parquet files are written at the end, from the rows in the file beside them.
    kept = next(filter(command.written, (table, table.with_name(f"{table.name}.jsonl"))), None)
    if kept is None:
        return _nothing(command)
    return f"rows of images that were done are kept in {kept}, and the same command with --resume does the others"


def _app(command: _Stopped) -> str:
    return "the page is closed, and models that were corrected on it are kept"


def _report(command: _Stopped) -> str:
    out = command.settings.get("out")
    if out is None or not command.written(out):
        return _nothing(command)
    return f"the page is in {out}, and the same command writes it again"


_LEFT: dict[str, Callable[[_Stopped], str]] = {
    "app": _app,
    "train": _training,
    "retrain": _retraining,
    "compare": _comparison,
    "challenge": _challenge,
    "predict": _prediction,
    "report": _report,
    "prepare": _preparation,
    "demo": _comparison,
}
