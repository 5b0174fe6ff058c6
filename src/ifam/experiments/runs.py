"""A log of finished runs, so that an interrupted comparison continues where it stopped."""

import logging
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ifam.distributed import rank_and_world_size
from ifam.errors import IfamError
from ifam.evaluation.comparisons import Run
from ifam.pulse import duration
from ifam.run_log import RunLog
from ifam.serialization import flat, from_json, to_json

logger = logging.getLogger(__name__)

# Name of a row and seed.
Key = tuple[str, int]


class Runs:
    """Runs by name and seed, one line of JSON each.

    Args:
        path: The file; created if needed.
        wanted: Settings of each requested run. Other runs in the file are left as they are.
        overwrite: Whether to repeat runs with other settings; the last line of a run counts.

    Attributes:
        done: Finished runs.

    Raises:
        IfamError: The file cannot be written or is damaged, or a requested run has other settings in it.
    """

    def __init__(self, path: Path, wanted: Mapping[Key, Mapping[str, Any]], *, overwrite: bool = False) -> None:
        self.path, self.wanted = path, wanted
        self.log = RunLog(path)
        self.done: dict[Key, Run] = {(run.row, run.seed): run for run in self._read()}
        for key in wanted:
            if key in self.done and (differs := self._difference(key)):
                if not overwrite:
                    raise IfamError(differs)
                del self.done[key]

    def _read(self) -> Iterator[Run]:
        """All runs of the file."""
        for number, entry in self.log.entries():
            try:
                yield from_json(Run, entry)
            except ValueError as error:
                raise IfamError(
                    f"{self.path}, line {number} is not a run ({error}); remove the file to start over, or choose "
                    f"another --out."
                ) from error

    def _difference(self, key: Key) -> str | None:
        """The first setting in which a run differs from the requested one, as an error message."""
        before, now = (
            {name: value for name, value in flat(settings) if value != {}}
            for settings in (self.done[key].settings, self.wanted[key])
        )
        for name in sorted({**before, **now}):
            if before.get(name) != now.get(name):
                if name == "images":
                    return (
                        f"{self.path} has a run of {key[0]!r}, seed {key[1]}, on images that have changed since; "
                        f"choose another --out, or train it again with --overwrite."
                    )
                return (
                    f"{self.path} has a run of {key[0]!r}, seed {key[1]}, with {name} {before.get(name)!r}, but now it "
                    f"is {now.get(name)!r}; choose another --out, give the row another name, or train it again with "
                    f"--overwrite."
                )
        return None

    def add(self, run: Run) -> None:
        """Add a run to the log; with several processes, the first writes."""
        if rank_and_world_size()[0] == 0:
            self.log.add(to_json(run))
        self.done[run.row, run.seed] = run

    def announce(self, name: str, seed: int) -> None:
        """Log which run begins, and the estimated time left; with several processes, only the first logs."""
        if rank_and_world_size()[0] > 0:
            return
        left = [key for key in self.wanted if key not in self.done]
        durations: dict[str, list[float]] = {}
        for (row, _), run in self.done.items():
            durations.setdefault(row, []).append(run.elapsed)
        # A row without a finished run is assumed to take as long as the others.
        typical = [seconds for of_row in durations.values() for seconds in of_row]
        seconds = sum(statistics.fmean(durations.get(row, typical)) for row, _ in left) if typical else None
        estimate = "" if seconds is None else f", about {duration(seconds)} left in all"
        number = len(self.wanted) - len(left) + 1
        logger.info("Run %d of %d: %s, seed %d%s", number, len(self.wanted), name, seed, estimate)
