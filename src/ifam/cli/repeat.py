"""`ifam repeat`."""

import io
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifam.errors import IfamError

_log = logging.getLogger(__name__)

# Files that hold a result.
RESULTS = ("results.json", "compare.json", "audit.json", "reliance.json", "certify.json", "challenge.json")
# Verbs that write them; no other is run, whatever a file says.
_VERBS = ("audit", "certify", "challenge", "compare", "demo", "evaluate", "retrain", "train")
# Verbs that write a result to a file, not to a folder.
_TO_FILE = ("evaluate",)
_TO_RESUME = ("train", "compare")
# What differs between two runs without being a figure: durations, and where the result is and was made.
_NO_FIGURES = {"seconds", "vote_seconds", "elapsed", "provenance", "settings", "pictures"}
# Differing figures that are shown.
_SHOWN = 10


@dataclass(frozen=True)
class Conditions:
    """What a result says of its conditions, beside the command.

    Attributes:
        environment: As `ifam.provenance.environment` returned it.
        images: Digest of the images, or that of each seed; the results of some verbs have none.
        benchmark: Name of the data set.
        split: Split that was evaluated.
        root: Folder of the images.
        data: Settings of the data set.
        seeds: Seeds of a comparison.
    """

    environment: Mapping[str, Any] | None = None
    images: str | Mapping[str, str] | None = None
    benchmark: str | None = None
    split: str | None = None
    root: str | None = None
    data: Mapping[str, Any] | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True)
class Repetition:
    """A command that runs again, and the results before and after.

    Attributes:
        before: File of the result.
        after: File that the command will write.
        verb: Name of the command.
        settings: Its settings.
        options: Options beside these.
    """

    before: Path
    after: Path
    verb: str
    settings: Mapping[str, Any]
    options: list[str]

    @contextmanager
    def words(self) -> Iterator[list[str]]:
        """The command as words; within the block, its settings are in a file, for which errors name the result."""
        from ifam import yaml_text

        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "settings.yaml"
            file.write_text(yaml_text.dump(self.settings), encoding="utf-8")

            def named(message: str) -> str:
                return re.sub(
                    rf"{re.escape(str(file))}(, line \d+)?(, column \d+)?", lambda _: str(self.before), message
                )

            try:
                with redirect_stderr(said):
                    yield [self.verb, f"--config={file}", *self.options]
            except IfamError as error:
                raise IfamError(named(str(error))) from error
            finally:
                # The parser prints its errors itself.
                print(named(said.getvalue()), end="", file=sys.stderr)

    def is_equal(self) -> bool:
        """Whether all figures came out the same; prints those that did not."""
        old, new = (dict(figures(_read(file))) for file in (self.before, self.after))
        differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if not differing:
            print(f"All {len(old):,} figures of {self.before} came out the same, to the last bit.")
            return True
        print(f"{len(differing):,} of {len({**old, **new}):,} figures differ between {self.before} and {self.after}:")
        for name in differing[:_SHOWN]:
            print(f"  {name}: {old.get(name)} before, {new.get(name)} now")
        if len(differing) > _SHOWN:
            print(f"  and {len(differing) - _SHOWN:,} more")
        return False


def repeat(
    result: Path,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    benchmark: str | None = None,
    any: str | None = None,
) -> Repetition:
    """Run the command of a result again, on the same images and number of threads, and compare all figures.

    On the same processor and with the same versions, they come out the same to the last bit; where something is
    different, it is named first. The exit status is 1 if a figure differs.

    Args:
        result: A file written by audit, certify, challenge, compare, demo, evaluate, retrain or train, or a folder with
            one.
        out: Folder for the new result; by default `FOLDER-repeat` beside that of the result.
        resume: Go on where the repetition of a training or comparison was stopped.
        overwrite: Replace the content of `out`.
        benchmark: The function that the images came from, if they came from one: a result alone runs no code.
        any: The function that is the classifier of `ifam audit --any`, likewise.
    """
    from ifam.cli.audit_any import runs_code
    from ifam.importing import names_function
    from ifam.provenance import environment, use_threads
    from ifam.serialization import from_json

    file = _file(result)
    stated = _read(file)["conditions"]
    command = stated.get("command")
    is_command = isinstance(command, Mapping) and isinstance(command.get("settings"), Mapping)
    if not is_command or command.get("verb") not in _VERBS:
        raise IfamError(
            f"{file} does not say which command wrote it, as those of Python programs and of ifam 0.1 do not; run the "
            f"command again yourself."
        )
    verb, settings = command["verb"], dict(command["settings"])
    if resume and verb not in _TO_RESUME:
        raise IfamError(f"{file} was written by `ifam {verb}`, which starts over; leave --resume out.")
    folder = out or file.absolute().parent.with_name(f"{file.absolute().parent.name}-repeat")
    if folder.absolute() == file.absolute().parent:
        raise IfamError(f"{folder} is the folder of the result itself, which would be lost; choose another --out.")
    try:
        conditions = from_json(Conditions, stated)
    except ValueError as error:
        raise IfamError(f"{file} is damaged ({error}); restore it.") from error
    _check_function(file, "benchmark", (settings.get("benchmark"), conditions.benchmark), benchmark, names_function)
    _check_function(file, "any", (settings.get("any"),), any, runs_code)
    then = conditions.environment or {}
    use_threads(then.get("threads"))
    now = environment()
    changed = [(name, value) for name, value in then.items() if value != now.get(name)]
    if changes := [f"{name} was {value} and is {now.get(name)}" for name, value in changed]:
        _log.warning("Figures may differ, since not everything is as it was: %s.", "; ".join(changes))
    _check_images(verb, conditions, file)
    target = folder / file.name if verb in _TO_FILE else folder
    flags = [f"--{name}" for name, value in (("resume", resume), ("overwrite", overwrite)) if value]
    print(f"Repeating `ifam {verb}` of {file}; the new result will be in {folder}.")
    named = [f"--{option}={name}" for option, name in (("benchmark", benchmark), ("any", any)) if name is not None]
    return Repetition(file, folder / file.name, verb, settings, [f"--out={target}", *named, *flags])


def _check_function(
    file: Path, option: str, stated: tuple[Any, ...], given: str | None, runs: Callable[[str], bool]
) -> None:
    """Refuse functions that only the result names, and a name that is not that of the result."""
    from ifam.data_config import refuse_function

    for name in stated:
        if isinstance(name, str) and name != given and runs(name):
            refuse_function(name, str(file), option)
    if given is not None and given not in stated:
        then = f"--{option} {stated[-1]}" if stated[-1] else f"no --{option}"
        raise IfamError(f"{file} was made with {then}, but --{option} {given} was given; leave it out.")


def figures(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The figures of a result with their names; and the digests of weights and images that they belong to."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key == "conditions":
                yield from ((f"conditions.{fact}", one[fact]) for fact in ("weights", "images") if fact in one)
            elif key not in _NO_FIGURES:
                yield from figures(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from figures(one, f"{name}[{place}]")
    else:
        yield name, value


def _file(result: Path) -> Path:
    """The file of a result."""
    if not result.is_dir():
        return result
    there = [result / name for name in RESULTS if (result / name).is_file()]
    if len(there) != 1:
        names = " and ".join(file.name for file in there) or "no result"
        raise IfamError(f"{result} contains {names}; name one file, such as {result / RESULTS[0]}.")
    return there[0]


def _read(file: Path) -> dict[str, Any]:
    """The content of a result."""
    from ifam.model_files import read_json

    content = read_json(file)
    if content is None:
        raise IfamError(f"There is no file {file}; give a result, such as runs/ifam/results.json.")
    if not isinstance(content.get("conditions"), Mapping):
        raise IfamError(f"{file} is not a result; give one of {', '.join(RESULTS)}.")
    return content


def _check_images(verb: str, conditions: Conditions, file: Path) -> None:
    """Refuse other images before hours of work on them."""
    from ifam.data import load_benchmark
    from ifam.data.fingerprints import fingerprint
    from ifam.experiments.comparison import Comparison

    if conditions.images is None or verb not in ("train", "evaluate", "audit", "certify", "compare"):
        return
    name, split = conditions.benchmark, conditions.split
    if name is None or (split is None and verb != "compare"):
        raise IfamError(f"{file} does not say which images its figures are of; restore it.")
    root, data = Path(conditions.root) if conditions.root else None, dict(conditions.data or {})
    now: str | dict[str, str]
    if split is None or verb == "compare":
        digests = Comparison((), tuple(conditions.seeds or ()), name, root, data).digests()
        now = {str(seed): digest for seed, digest in digests.items()}
    else:
        images = load_benchmark(name, root, data)
        names = [name for name in images.treatments if name in images.splits] if split == "treatments" else [split]
        now = fingerprint(images, dict.fromkeys(("train", "val", split)) if verb == "train" else names)
    if now != conditions.images:
        raise IfamError(f"The images of {name} have changed since {file} was written; restore them.")
