"""Damages valid files at random and reads them: `python -m tools.fuzz --minutes 10 --seed 0`.

Whatever a reader raises other than its documented error is saved with the file that caused it, and the command ends
with status 2. The same seed damages the same files in the same way, so `--seed S --only NAME` repeats a finding.
"""

import argparse
import csv
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ifam.checkpoints import hub
from ifam.checkpoints.authors import to_official
from ifam.cli.parser import parse
from ifam.config import ModelConfig
from ifam.data import load_benchmark
from ifam.data.images import load_image
from ifam.data.masks import load_mask
from ifam.errors import IfamError
from ifam.models.ifam import IFAM
from ifam.report.results import write_report

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


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        make: Writes valid files to a folder and returns those to damage.
        read: Reads the damaged one, at its place in the folder.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


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


# ------------------------------------------------------------------------------------------------ readers


def _model(folder: Path) -> IFAM:
    torch.manual_seed(0)
    kwargs = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    config = ModelConfig("vit_tiny_patch16_224", image_size=32, num_parts=2, backbone_kwargs=kwargs)
    model = IFAM(config, pretrained=False)
    trained = {"benchmark": "folder", "root": None, "data": {"white": 0}, "precision": "32-true"}
    hub.save(model, folder / "model", trained)
    return model


def _weights(folder: Path) -> list[Path]:
    _model(folder)
    return [folder / "model" / "model.safetensors"]


def _config(folder: Path) -> list[Path]:
    _model(folder)
    return [folder / "model" / "config.json"]


def _answer(path: Path) -> object:
    model = hub.load(path.parent)
    height, width = model.image_size
    # Larger ones are what the settings ask for, and only slow.
    return model(torch.zeros(1, 3, height, width)) if height * width < 1 << 16 else None


def _authors(folder: Path) -> list[Path]:
    path = folder / "a.pt"
    torch.save({"model_state": to_official(_model(folder)), "epoch": 3, "score": 0.5}, path)
    return [path]


def _settings(folder: Path) -> list[Path]:
    path = folder / "mine.yaml"
    path.write_text(
        "benchmark: folder\nroot: photos\nmethod: ifam\npreset: laptop\nout: runs/x\noverwrite: false\n"
        "model: {backbone: ifam_tiny, image_size: [80, 80], mean: [0.5, 0.5, 0.5], backbone_kwargs: {depth: 2}}\n"
        "train:\n  epochs: 3\n  base_lr: 1e-4\n  clip_norm: null\n  group_dro: 0.01\n  flip: true\n"
        "loss: {entropy: 1.0}\ndata:\n  val_fraction: 0.2\n  csv: images.csv\n  classes: [a, b]\n  seed: 0\n",
        encoding="utf-8",
    )
    return [path]


def _photos(folder: Path) -> None:
    for name in "ab":
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 6), (i * 40, 90, 60)).save(folder / "photos" / name / f"{i}.png")
    Image.new("L", (8, 6), 255).save(folder / "photos" / "mask.png")


def _list(folder: Path) -> list[Path]:
    _photos(folder)
    text = io.StringIO()
    rows = [(f"{name}/{i}.png", name, f"{name} {i % 2}", "train", "mask.png") for name in "ab" for i in range(4)]
    csv.writer(text).writerows([("path", "label", "group", "split", "mask"), *rows])
    paths = [folder / "photos" / name for name in ("images.csv", "semicolons.csv", "utf16.csv")]
    paths[0].write_bytes(text.getvalue().encode())
    paths[1].write_bytes(text.getvalue().replace(",", ";").encode("utf-8-sig"))
    paths[2].write_bytes(text.getvalue().encode("utf-16"))
    return paths


def _images(folder: Path) -> list[Path]:
    chance = np.random.default_rng(0)
    color, gray = chance.integers(0, 256, (20, 30, 3), np.uint8), chance.integers(0, 65536, (20, 30), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.bmp", "c.tif", "d.webp", "e.ppm", "f.gif"):
        Image.fromarray(color).save(folder / name)
    Image.fromarray(color).save(folder / "g.jpg", exif=exif)
    Image.fromarray(gray).save(folder / "h.png")
    Image.fromarray(gray.astype(np.float32) / 65535).save(folder / "i.tif")
    Image.fromarray(color).convert("CMYK").save(folder / "j.jpg")
    Image.fromarray(color).convert("P").save(folder / "k.png", transparency=3)
    return sorted(folder.iterdir())


def _masks(folder: Path) -> list[Path]:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:20] = 255
    Image.fromarray(mask).save(folder / "a.png")
    Image.fromarray(mask // 255).convert("P").save(folder / "b.gif")
    np.save(folder / "c.npy", mask)
    np.save(folder / "d.npy", (mask / 255).astype(np.float32)[..., None])
    return sorted(folder.iterdir())


def _result(folder: Path) -> list[Path]:
    from ifam.evaluation.accuracy import evaluate
    from ifam.report.console import write_results

    images = load_benchmark("pondbirds", options={"num_train": 4, "num_val": 4, "num_test": 4, "image_size": 32})
    write_results(evaluate(_model(folder), images, "test", num_resamples=2), folder / "results.json", {"run": "x"})
    return [folder / "results.json"]


def _show(path: Path) -> object:
    return write_report([path], path.with_name("page.html"), overwrite=True)


READERS: dict[str, Reader] = {
    "weights": Reader(_weights, _answer),
    "config": Reader(_config, _answer),
    "authors": Reader(_authors, hub.load_official),
    "settings": Reader(_settings, lambda path: parse(["train", "--config", str(path)])),
    "list": Reader(_list, lambda path: load_benchmark("folder", path.parent, {"csv": path.name})),
    "image": Reader(_images, load_image),
    "mask": Reader(_masks, load_mask),
    "result": Reader(_result, _show),
}


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
