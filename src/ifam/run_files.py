"""What the folder of a run holds while it runs, for those who look at it. Imports no torch."""

import csv
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from ifam.distributed import first_process
from ifam.errors import IfamError
from ifam.io import remove_temporaries, write_json
from ifam.pulse import progress
from ifam.serialization import from_json, to_json

# The logged values of a training, and its last checkpoint, in the folder of its run.
METRICS, LAST_CHECKPOINT = Path("logs") / "metrics.csv", Path("checkpoints") / "last.ckpt"
# How a run is doing, while it runs and where it was stopped.
STATUS = Path("status.json")


# ------------------------------------------------------------------------------------------- logged values


def read_metrics(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a training's logged values, by name; the last line may be in the middle of being written.

    Args:
        path: The file; without it, there are no rows.
    """
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(line for line in file if line.endswith("\n"))


def history(path: Path) -> list[dict[str, float]]:
    """For each epoch, every logged value by name.

    Args:
        path: The file of the logged values.
    """
    epochs: dict[str, dict[str, float]] = {}
    for row in read_metrics(path):
        values = {name: float(value) for name, value in row.items() if value and name not in ("epoch", "step")}
        epochs.setdefault(row["epoch"], {}).update(values)
    return list(epochs.values())


# -------------------------------------------------------------------------------------------------- status


@dataclass(frozen=True)
class RunStatus:
    """How a run is doing.

    Attributes:
        state: "running", or "stopped" by an error or a signal. A run that is finished has results in its place.
        started: When it began, in seconds since the epoch.
        updated: When this was written; every ten seconds while it runs.
        process: Number of its process.
        host: Name of its machine.
        progress: What it is doing, how far it is, and how much time is left.
        reason: Why it was stopped.
        runs: Name and seed of each run of a comparison.
    """

    # Seconds between two updates, and those after which one is missed.
    interval: ClassVar[float] = 10.0
    patience: ClassVar[float] = 120.0

    state: Literal["running", "stopped"]
    started: float
    updated: float
    process: int
    host: str
    progress: str = ""
    reason: str = ""
    runs: tuple[tuple[str, int], ...] = ()

    @property
    def running(self) -> bool:
        """Whether the run still runs, as far as can be told: one that was killed could not say so."""
        if self.state != "running" or time.time() - self.updated > self.patience:
            return False
        return self.host != socket.gethostname() or _exists(self.process)


def _exists(process: int) -> bool:
    """Whether there is a process with this number on this machine."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_status(folder: Path) -> RunStatus | None:
    """How the run in a folder is doing; None where it is finished, or was never started from the command line."""
    try:
        return from_json(RunStatus, json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


@contextmanager
def kept_status(folder: Path, runs: Sequence[tuple[str, int]] = ()) -> Iterator[None]:
    """Keep `status.json` in a folder up to date within the block; it is removed when the block is done.

    Args:
        folder: Folder of the run.
        runs: Name and seed of each run of a comparison.
    """
    if not first_process():
        yield
        return
    now, ended = time.time(), threading.Event()
    status = RunStatus("running", now, now, os.getpid(), socket.gethostname(), runs=tuple(runs))
    remove_temporaries(folder)
    sizes, earlier = _sizes(folder), None
    if (folder / STATUS).is_file():
        earlier = (folder / STATUS).read_bytes()

    def write() -> None:
        # Without it, nothing is lost but the view.
        with suppress(IfamError):
            write_json(folder / STATUS, to_json(replace(status, updated=time.time())))

    def keep() -> None:
        nonlocal status
        while not ended.wait(RunStatus.interval):
            status = replace(status, progress=progress())
            write()

    write()
    thread = threading.Thread(target=keep, name="ifam-status", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        ended.set()
        thread.join()
        status = replace(status, state="stopped", reason=str(error) or type(error).__name__)
        if isinstance(error, IfamError) and _sizes(folder) == sizes:
            # The run was refused: everything is as it was.
            with suppress(OSError):
                (folder / STATUS).unlink() if earlier is None else (folder / STATUS).write_bytes(earlier)
        else:
            write()
        raise
    ended.set()
    thread.join()
    with suppress(OSError):
        (folder / STATUS).unlink(missing_ok=True)


def _sizes(folder: Path) -> dict[Path, int]:
    """Sizes of the files of a run, without its status."""
    return {file: file.stat().st_size for file in folder.rglob("*") if file.is_file() and file != folder / STATUS}
