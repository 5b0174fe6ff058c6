"""Damages valid files at random and reads them: `python -m tools.fuzz --minutes 10 --seed 0`.

Whatever a reader raises other than its documented error is saved with the file that caused it, and the command ends
with status 2. The same seed damages the same files in the same way, so `--seed S --only NAME` repeats a finding.
"""

import argparse
import io
import json
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifam.errors import IfamError
from tools.fuzz_readers import READERS, Reader

# Seconds after which a reader counts as hanging.
_PATIENCE = 30
_BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\n",
    b'"',
    b",",
    b"{",
    b"[",
    b":",
    b"&a ",
    b"*a",
    b"\xff\xfe",
    b"\xe2\x80\xa8",
)
_TOKENS = (
    *(b"0", b"1", b"-1", b"NaN", b".nan", b"Infinity", b"-.inf", b"1e400", b"9" * 30, b"9" * 5000, b"0.5", b"2.5"),
    *(b"null", b"~", b"true", b'""', b'"x"', b"[]", b"{}", b"[0]", b'{"a": 1}', b"[[[[]]]]"),
)
_TOKEN = re.compile(rb'-?\d[\d.eE+-]*|"[^"\n]{0,40}"|\b[\w.]+\b')


@dataclass
class Finding:
    """An error that is not documented.

    Attributes:
        reader: Name of the reader.
        seed: The seed of the damage.
        content: The damaged file.
        name: Its name.
        error: What was raised, with its traceback.
        place: Where it was raised, to tell findings apart.
    """

    reader: str
    seed: str
    content: bytes
    name: str
    error: str
    place: str


# ------------------------------------------------------------------------------------------------- damage


def damage(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The content with one to four changes: bits, bytes, cuts, copies, pieces of other files, numbers and words."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        kind = chance.choice(("bit", "bit", "byte", "cut", "end", "copy", "splice", "insert", "token", "token", "swap"))
        here, there = sorted(chance.randrange(len(changed) + 1) for _ in range(2))
        near = min(there, here + chance.choice((1, 2, 4, 8, 64)))
        if kind == "bit" and changed:
            changed[here % len(changed)] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            changed[here:near] = chance.choice(_BYTES)
        elif kind == "cut":
            del changed[here:near]
        elif kind == "end":
            del changed[here:]
        elif kind == "copy":
            changed[near:near] = changed[here:near] * chance.choice((1, 2, 100))
        elif kind == "splice":
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            changed[here:near] = other[start : start + chance.choice((1, 8, 64))]
        elif kind == "insert":
            changed[here:here] = chance.choice((*_BYTES, *_TOKENS))
        else:
            _change_token(changed, kind, chance)
    return bytes(changed)


def _change_token(content: bytearray, kind: str, chance: random.Random) -> None:
    """Replace a number or word by another one, of the file or not."""
    # Of large files, the beginning has the names and numbers.
    tokens = list(_TOKEN.finditer(bytes(content[: 1 << 14])))
    if tokens:
        token = chance.choice(tokens)
        content[slice(*token.span())] = chance.choice(tokens)[0] if kind == "swap" else chance.choice(_TOKENS)


class _Hangs(Exception):
    """A reader takes too long."""


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Hangs(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(
    name: str, seed: int, *, count: int | None = None, seconds: float = 0, out: Path | None = None
) -> tuple[int, list[Finding]]:
    """Damage and read the files of a reader.

    Args:
        name: One of `READERS`.
        seed: Seed of the damage.
        count: Number of executions; as many as fit into the seconds if None.
        seconds: Their duration, if there is no count.
        out: Folder for findings.

    Returns:
        The number of executions, and what was found, once for each place.
    """
    reader, found, executions = READERS[name], dict[str, Finding](), 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = reader.make(Path(folder))
        valid = {path: path.read_bytes() for path in paths}
        end = time.monotonic() + seconds
        while executions < count if count is not None else time.monotonic() < end:
            chance = random.Random(key := f"{name} {seed} {executions}")
            path = chance.choice(paths)
            content = damage(valid[path], list(valid.values()), chance)
            path.write_bytes(content)
            executions += 1
            if finding := _read(reader, path, Finding(name, key, content, path.name, "", "")):
                if out and finding.place not in found:
                    _save(finding, out)
                found.setdefault(finding.place, finding)
            path.write_bytes(valid[path])
    return executions, list(found.values())


def _read(reader: Reader, path: Path, finding: Finding) -> Finding | None:
    """Read a damaged file; the finding, if it raises what it must not."""
    try:
        with _limited(_PATIENCE), redirect_stderr(io.StringIO()) as said:
            reader.read(path)
    except IfamError:
        return None
    except SystemExit as stopped:
        # The parser of the command line has printed its sentence.
        if stopped.code == 2 and said.getvalue().startswith("ifam: "):
            return None
        finding.error = f"exit status {stopped.code}: {said.getvalue()}"
        finding.place = "exit"
    except (Exception, RecursionError) as error:
        finding.error = traceback.format_exc()
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ifam" in frame.filename]
        last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        finding.place = f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"
    else:
        return None
    return finding


def _save(finding: Finding, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stem = finding.seed.replace(" ", "-")
    (out / f"{stem}-{finding.name}").write_bytes(finding.content)
    report = {"seed": finding.seed, "place": finding.place, "error": finding.error}
    (out / f"{stem}.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"{finding.seed}: {finding.place}", flush=True)


def main(args: list[str] | None = None) -> None:
    """Fuzz all readers for some minutes."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Damage valid files, and read them.")
    parser.add_argument("--minutes", type=float, default=10, help="Minutes in all (10).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the damage (0).")
    parser.add_argument("--only", choices=READERS, nargs="+", default=list(READERS), help="Readers; all by default.")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="Folder for what is found (fuzz).")
    given = parser.parse_args(args)
    total, faults = 0, 0
    for name in given.only:
        seconds = given.minutes * 60 / len(given.only)
        executions, findings = run(name, given.seed, seconds=seconds, out=given.out)
        print(f"{name}: {executions:,} executions in {seconds:.0f} s, {len(findings)} faults", flush=True)
        total, faults = total + executions, faults + len(findings)
    print(f"{total:,} executions, {faults} faults{f', saved in {given.out}' if faults else ''}")
    sys.exit(2 if faults else 0)


if __name__ == "__main__":
    main()
