"""Photographs on a laptop: what training and answers cost, and what comes out.

    python -m benchmarks.photographs --objects DIR --backgrounds DIR --backbone DIR [--seeds 0 1 2] [--markdown FILE]

From cut-out objects and backgrounds, a benchmark is drawn for each seed (`ifam prepare cutouts`: animals mostly on
water, plants mostly on land; 1,000 training, 200 validation and 800 test images). Then, in this order:

1. training: epochs with tokens that are computed in each of them, against tokens that are kept, in turns;
2. answers: `ifam` for several sizes of the selector's images against the plain pruned model of `benchmarks.plain`,
   in turns;
3. `ifam train` with the laptop preset, as a user runs it: the whole command with start, tokens, validation and test;
4. methods that share a selector: how often its tokens are computed.

Each part can be left out with `--parts`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.inference import Models, Way, contender
from benchmarks.measure import comparison, describe, measure, publish, table
from benchmarks.step import Workload
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark, load_benchmark
from ifam.evaluation.seeds import over_seeds
from ifam.models.registry import build
from ifam.training.fit import fit, seed_everything
from ifam.training.presets import apply_method_defaults, apply_preset, with_classes

PARTS = ("training", "answers", "preset", "sharing")
# Methods of a comparison that share a frozen selector.
SHARING = ("ifam", "frozen_predictor", "selector", "late_mask", "soft_mask", "ifam")


def prepared(args: argparse.Namespace, folder: Path, seed: int) -> Path:
    """The benchmark of a seed, drawn where it is missing."""
    out = folder / f"photographs-{seed}"
    words = ["prepare", "cutouts", "--objects", args.objects, "--backgrounds", args.backgrounds, "--out", out]
    words += ["--classes", "animal=bird,mammal", "plant=fruit,flower,vegetable"]
    words += ["--places", "animal=water", "plant=land", "--correlation", args.correlation]
    words += ["--count", args.count, "--seed", seed]
    command([*words, "--size", "224"])
    return out


def command(words: Sequence[object]) -> float:
    """Seconds that an `ifam` command takes, from the start of the process to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ifam.cli", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def settings(args: argparse.Namespace, images: Benchmark, **train: Any) -> tuple[ModelConfig, TrainConfig, LossConfig]:
    """The laptop preset for these images, with other training settings where given."""
    given = {f"train.{name}" for name in train}
    model, chosen = ModelConfig(backbone=args.backbone), TrainConfig(**train)
    model, chosen, losses = apply_preset("laptop", model, chosen, LossConfig(), images, given)
    return with_classes(model, images), chosen, losses


def training_table(args: argparse.Namespace, root: Path) -> str:
    """Seconds of a training whose tokens are computed in each epoch, kept, and found from an earlier run."""
    images = load_benchmark("folder", root)
    model, train, losses = settings(args, images, epochs=args.epochs)
    seconds: dict[str, list[float]] = {"computed in each epoch": [], "computed once": [], "found": []}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                seed_everything(0)
                config = replace(train, cache_tokens=name != "computed in each epoch")
                result = fit(build("ifam", model), images, config, losses, tokens=folder, label=name)
                seconds[name].append(result.seconds)
    first = seconds["computed in each epoch"]
    rows = [
        [
            name,
            f"{statistics.median(values):.0f}",
            f"{statistics.median(v / f for f, v in zip(first, values, strict=True)):.2f}",
        ]
        for name, values in seconds.items()
    ]
    head = f"Training: {args.epochs} epochs of {len(images.split('train')):,} images, {model.image_size} px, "
    head += f"{train.precision}, {args.repeats} round{'s' * (args.repeats != 1)}."
    return f"{head}\n\n{table(['tokens of the frozen selector', 'seconds', 'of the first'], rows)}"


def answers_table(args: argparse.Namespace) -> str:
    """Time of answers for several sizes of the selector's images, against the plain pruned model."""
    work = Workload(size=args.answer_size, batch=16, parts=4, classes=2, visible=args.visible)
    contenders = []
    for precision in ("float32", "bf16"):
        for size in (None, *args.selector_sizes):
            kinds = (True, False) if size is None and precision == "float32" else (False,)
            models = Models(work, size)
            for plain in kinds:
                way = Way(plain=plain, precision=precision)
                name = f"{way.name}, selector at {size or work.size} px"
                contenders.append(replace(contender(way, models, work), name=name))
    measurements = measure(contenders, repeats=args.rounds, device=work.device)
    return f"Answers: {work}, {args.rounds} rounds.\n\n{comparison(measurements)}"


def preset_table(args: argparse.Namespace, folder: Path) -> str:
    """`ifam train` with the laptop preset, for each seed and method."""
    rows: list[list[str]] = []
    for method in args.methods:
        figures: dict[str, list[float]] = {"seconds": [], "worst group": [], "average": [], "mask IoU": []}
        for seed in args.seeds:
            root, out = prepared(args, folder, seed), folder / f"{method}-{seed}"
            words = ["train", root, "--method", method, "--preset", "laptop", "--train.seed", seed, "--out", out]
            seconds = command([*words, "--model.backbone", args.backbone, "--overwrite"])
            figures["seconds"].append(seconds)
            for name, value in result_of(out).items():
                figures[name].append(value)
        means = {name: over_seeds(values) for name, values in figures.items() if values}
        rows.append([method, *(describe_mean(means.get(name), name) for name in figures)])
    head = f"`ifam train photos --preset laptop`, seeds {', '.join(map(str, args.seeds))}, correlation "
    head += f"{args.correlation}: mean and 95 % interval over seeds, test images; the whole command."
    return f"{head}\n\n{table(['method', 'seconds', 'worst group', 'average', 'mask IoU'], rows)}"


def result_of(out: Path) -> dict[str, float]:
    """The figures of a run."""
    result = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figures = {"worst group": result["predictor"]["worst_group"], "average": result["predictor"]["average"]}
    return figures | ({"mask IoU": result["mask_iou"]} if result["mask_iou"] is not None else {})


def describe_mean(mean: Any, name: str) -> str:
    """A mean over seeds with its interval."""
    if mean is None:
        return ""
    scale, digits = (1, 0) if name == "seconds" else (100, 1)
    if mean.high is None:
        return f"{scale * mean.mean:.{digits}f}"
    return f"{scale * mean.mean:.{digits}f} ± {scale * (mean.high - mean.mean):.{digits}f}"


def sharing_table(args: argparse.Namespace, root: Path) -> str:
    """Images whose tokens are computed by methods of a comparison that share a frozen selector."""
    images = load_benchmark("folder", root)
    rows: list[list[str]] = []
    processed: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in SHARING:
            model, train, losses = settings(args, images, epochs=2)
            net: Any = build(method, model)
            before = sum(processed)
            net.selector.backbone.register_forward_pre_hook(lambda _, inputs: processed.append(len(inputs[0])))
            train = apply_method_defaults(method, train)
            result = fit(net, images, train, losses, tokens=folder, label=method)
            rows.append([method, f"{sum(processed) - before:,}", f"{result.seconds:.0f}"])
    rows.append(["all", f"{sum(processed):,}", ""])
    head = f"Methods that share a selector, 2 epochs each, {images.describe('train')}"
    return f"{head}.\n\n{table(['method', 'images that the selector processed', 'seconds'], rows)}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--objects", type=Path, required=True, help="cut-outs, a folder for each kind")
    options.add_argument("--backgrounds", type=Path, required=True, help="backgrounds, a folder for each place")
    options.add_argument("--backbone", required=True, help="name or folder of the transformer")
    options.add_argument("--folder", type=Path, help="keep images and models here")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument(
        "--methods", nargs="+", default=["plain_vit", "ifam"], help="those that the preset is run with"
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--count", default="1000,200,800")
    options.add_argument("--correlation", type=float, default=0.95)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--repeats", type=int, default=1, help="rounds of trainings")
    options.add_argument("--rounds", type=int, default=7, help="rounds of answers")
    options.add_argument("--answer-size", type=int, default=224)
    options.add_argument("--selector-sizes", type=int, nargs="*", default=[168, 112])
    options.add_argument("--visible", type=float, default=0.25)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--markdown", type=Path, help="also write the output to this file")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        makers = {
            "training": lambda: training_table(args, prepared(args, folder, args.seeds[0])),
            "answers": lambda: answers_table(args),
            "preset": lambda: preset_table(args, folder),
            "sharing": lambda: sharing_table(args, prepared(args, folder, args.seeds[0])),
        }
        tables = []
        for part in args.parts:
            tables.append(makers[part]())
            publish("\n\n".join([describe("cpu"), *tables]), args.markdown)


if __name__ == "__main__":
    main()
