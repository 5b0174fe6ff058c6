"""Memory and files of long work: many images, many trainings in one process, many steps, and processes left behind.

    python -m benchmarks.endless predict   [--count 10000]   # `ifam predict` over so many images
    python -m benchmarks.endless app       [--count 10000]   # so many images given to `ifam app`
    python -m benchmarks.endless trainings [--count 20]      # so many trainings in one process
    python -m benchmarks.endless steps     [--count 100000]  # one training of so many steps
    python -m benchmarks.endless orphans                     # a training that is killed, and its processes

Memory is what the system counts as resident (VmRSS of /proc, so Linux only), sampled twice a second from outside, or
after each training. Drift compares the mean of the last fifth of the samples with that of the first fifth, from the
first result to the last.
"""

import argparse
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import table
from ifam.app.session import MOST_VISITORS
from ifam.config import ModelConfig, TrainConfig
from ifam.data import Benchmark, load_benchmark
from ifam.models.registry import build
from ifam.training.fit import fit

TINY = "ifam_tiny"
# The smallest transformer that has everything, and images of four patches.
SMALLEST = ModelConfig(
    "vit_tiny_patch16_224",
    image_size=32,
    num_parts=2,
    num_classes=2,
    backbone_kwargs={"depth": 1, "embed_dim": 16, "num_heads": 1},
)


@dataclass(frozen=True)
class Sample:
    """A moment of a command: seconds since its start, its memory in MB, and bytes in the folder of its results."""

    seconds: float
    memory: float
    size: int


def memory(process: int | str = "self") -> float:
    """Resident memory of a process in MB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; those that vanish meanwhile do not count."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return sum(sizes)


def watched(words: Sequence[str], folder: Path, log: Path, first: str) -> list[Sample]:
    """Run a command, and sample it from the moment at which the file `first` is in its folder."""
    samples: list[Sample] = []
    with log.open("w", encoding="utf-8") as output:
        began = time.monotonic()
        with subprocess.Popen(words, stdout=output, stderr=output) as process:
            while process.poll() is None:
                if (folder / first).exists() and (now := memory(process.pid)):
                    samples.append(Sample(time.monotonic() - began, now, size_of(folder)))
                time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    # Without those in which it ends.
    return [one for one in samples if one.seconds <= max(s.seconds for s in samples if s.size != samples[-1].size)]


def drift_table(samples: Sequence[Sample]) -> str:
    """Memory and size of the results over time, and the drift."""
    fifth = max(1, len(samples) // 5)
    first, last = (statistics.fmean(one.memory for one in part) for part in (samples[:fifth], samples[-fifth:]))
    shown = samples[:: max(1, len(samples) // 10)]
    rows = [[f"{one.seconds:.0f}", f"{one.memory:.1f}", f"{one.size:,}"] for one in shown]
    return (
        f"{table(['seconds', 'MB', 'bytes of results'], rows)}\n\n"
        f"First fifth {first:.1f} MB, last fifth {last:.1f} MB: drift {last / first - 1:+.2%}; "
        f"at most {max(one.memory for one in samples):.1f} MB."
    )


def ifam(*words: str | Path) -> list[str]:
    """The words of a command line."""
    return [sys.executable, "-W", "ignore", "-m", "ifam.cli", *map(str, words)]


def inputs(count: int, folder: Path) -> tuple[Path, Path]:
    """The folders of small photographs (fifty contents, each under many names) and of a model."""
    rng = np.random.default_rng(0)
    images, model = folder / "images", folder / "model"
    images.mkdir()
    for number in range(count):
        path = images / f"{number:07}.jpg"
        if number < 50:
            noise = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            noise.resize((96, 96), Image.Resampling.BICUBIC).save(path)
        else:
            os.link(images / f"{number % 50:07}.jpg", path)
    build("ifam", ModelConfig(TINY, num_parts=4, num_classes=2)).save_pretrained(model)
    return images, model


def predict_table(count: int, folder: Path, pictures: bool, ending: str) -> str:
    """`ifam predict` over many images."""
    images, model = inputs(count, folder)
    words = ifam("predict", images, "--model", model, "--out", folder / "out" / f"rows.{ending}")
    words += ["--overlays", str(folder / "drawn")] if pictures else []
    log = folder / "log.txt"
    first = "rows.parquet.jsonl" if ending == "parquet" else f"rows.{ending}"
    samples = watched(words, folder / "out", log, first)
    lines = log.read_text(encoding="utf-8").count(".jpg")
    rate = count / (samples[-1].seconds - samples[0].seconds)
    return f"{count:,} images, {rate:.0f} a second, {lines:,} rows printed.\n\n{drift_table(samples)}"


def visit(url: str, images: Sequence[Path], opened: Callable[[], None]) -> int:
    """One visitor, who opens images and paints on every fifth; the number of answers."""
    from gradio_client import Client, handle_file

    client, answers = Client(url, verbose=False, analytics_enabled=False), 0
    for number, image in enumerate(images):
        shown = client.predict(handle_file(str(image)), 70, api_name="/open")
        if number % 5 == 0:
            shown = client.predict(json.dumps([[number % 5, number // 5 % 5]]), "this", "small", 70, api_name="/paint")
        answers += "ifam-class" in shown[3]
        opened()
    client.close()
    return answers


def app_table(count: int, folder: Path, visitors: int = 4, each: int = 5) -> str:
    """`ifam app`, whose visitors open so many images, and leave after five each; memory once it keeps all it may."""
    images, model = inputs(count, folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words, url = ifam("app", model, "--port", str(port), "--learn", "false"), f"http://127.0.0.1:{port}"
    samples: list[Sample] = []
    uploads, log = folder / "uploads", folder / "log.txt"
    uploads.mkdir()
    with log.open("w", encoding="utf-8") as output:
        environment = os.environ | {"TMPDIR": str(uploads)}
        with subprocess.Popen(words, stdout=output, stderr=output, env=environment) as server:
            try:
                while True:
                    try:
                        urllib.request.urlopen(url).close()
                        break
                    except OSError:
                        if server.poll() is not None:
                            sys.exit(f"{' '.join(words)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
                        time.sleep(0.5)
                began = time.monotonic()

                shown = itertools.count(1)

                def opened() -> None:
                    # From when on the app keeps no more visitors, but others.
                    if next(shown) < each * MOST_VISITORS:
                        return
                    if not samples or time.monotonic() - began > samples[-1].seconds + 0.5:
                        samples.append(Sample(time.monotonic() - began, memory(server.pid), size_of(uploads)))

                listed = sorted(images.iterdir())
                parts = [listed[first : first + each] for first in range(0, count, each)]
                with ThreadPoolExecutor(visitors) as pool:
                    answers = sum(pool.map(lambda part: visit(url, part, opened), parts))
            finally:
                server.terminate()
    rate = count / samples[-1].seconds
    return f"{count:,} images, {answers:,} answers, {rate:.0f} a second.\n\n{drift_table(samples)}"


def pondbirds(train: int, val: int = 8) -> Benchmark:
    """A few drawn birds."""
    return load_benchmark("pondbirds", options={"num_train": train, "num_val": val, "num_test": 8})


def trainings_table(count: int) -> str:
    """Memory after each of several trainings in this process."""
    after, rows = [], []
    for number in range(1, count + 1):
        model = build("ifam", ModelConfig(TINY, image_size=40, num_parts=2, num_classes=2))
        fit(model, pondbirds(32), TrainConfig(epochs=1, batch_size=8, accelerator="cpu"))
        after.append(memory())
        rows.append([str(number), f"{after[-1]:.1f}"])
    growth = after[-1] - after[min(2, len(after) - 1)]
    return f"{table(['training', 'MB after it'], rows)}\n\nFrom the third to the last: {growth:+.1f} MB."


def many_steps(count: int, epochs: int, folder: Path) -> None:
    """A training of the smallest model; in a process of its own."""
    from ifam.logs import shown

    model = build("ifam", SMALLEST, pretrained=False)
    with shown():
        config = TrainConfig(epochs=epochs, batch_size=2, accelerator="cpu")
        fit(model, pondbirds(2 * count // epochs), config, folder=folder)


def steps_table(count: int, epochs: int, folder: Path) -> str:
    """Memory, files and log of a training of many steps."""
    run, log = folder / "run", folder / "log.txt"
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.endless", "many-steps", "--count", str(count)]
    samples = watched([*words, "--epochs", str(epochs), "--folder", str(run)], run, log, "logs/metrics.csv")
    files = [[path.relative_to(run).as_posix(), f"{path.stat().st_size:,}"] for path in sorted(run.rglob("*.*"))]
    lines = log.read_text(encoding="utf-8").count("\n")
    files.append(["log on standard error", f"{log.stat().st_size:,} ({lines} lines)"])
    return (
        f"{count:,} steps in {epochs:,} epochs, {samples[-1].seconds / 60:.0f} minutes.\n\n{drift_table(samples)}\n\n"
        f"{table(['file', 'bytes'], files)}"
    )


def processes() -> dict[int, int]:
    """The parent of each process that runs."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    return {int(pid): int(parent) for pid, parent, state in map(str.split, listed.splitlines()) if state[0] != "Z"}


def below(process: int) -> set[int]:
    """Processes that a process has started, and theirs."""
    parents, found = processes(), {process}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def orphans_table(folder: Path) -> str:
    """Seconds until the processes of a training end that is killed, a second after they have all started."""
    rows = []
    common = [
        "train",
        "--model.backbone",
        TINY,
        "--data.num_train",
        "400",
        "--train.epochs",
        "500",
        "--train.accelerator",
    ]
    for name, options, expected in (
        ("two processes that load images", ["--train.workers", "2"], 4),
        ("a second device", ["--train.devices", "2"], 1),
    ):
        words = ifam(*common, "cpu", *options, "--out", folder / name)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
            while len(started := below(training.pid)) < expected or not list(folder.glob(f"{name}/checkpoints/*.ckpt")):
                if training.poll() is not None:
                    sys.exit(f"{' '.join(words)} ended by itself.")
                time.sleep(0.1)
            training.kill()
            training.wait()
            killed = time.monotonic()
            while started & processes().keys():
                time.sleep(0.1)
        rows.append([name, str(len(started)), f"{time.monotonic() - killed:.1f}"])
    return table(["killed with SIGKILL: a training with", "processes", "seconds until all have ended"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["predict", "app", "trainings", "steps", "orphans", "many-steps"])
    options.add_argument("--count", type=int, help="images, trainings or steps")
    options.add_argument("--epochs", type=int, default=200, help="epochs of the many steps")
    options.add_argument("--pictures", action="store_true", help="predict with pictures")
    options.add_argument("--ending", choices=["csv", "jsonl", "parquet"], default="csv", help="format of predictions")
    options.add_argument("--folder", type=Path, help="keep the files here")
    args = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.what == "many-steps":
            many_steps(args.count, args.epochs, folder)
            return
        makers = {
            "predict": lambda: predict_table(args.count or 10_000, folder, args.pictures, args.ending),
            "app": lambda: app_table(args.count or 10_000, folder),
            "trainings": lambda: trainings_table(args.count or 20),
            "steps": lambda: steps_table(args.count or 100_000, args.epochs, folder),
            "orphans": lambda: orphans_table(folder),
        }
        print(makers[args.what]())


if __name__ == "__main__":
    main()
