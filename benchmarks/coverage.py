"""Coverage of calibrated sets of classes under a shift of the background, over seeds.

    ifam compare --config recipes/compare/pondbirds.yaml --save_models --out runs/compare-pondbirds
    python -m benchmarks.coverage runs/compare-pondbirds/models [--rows ifam plain_vit] [--error 0.05]

Each saved model of pondbirds is calibrated on images that are drawn like its training images, but that nobody has seen
(their seed is 1,000 higher), and its sets are counted on its test images, where the background says nothing. Strangers
are images of other benchmarks: digits and photographs (`--photographs FOLDER`, as `ifam prepare cutouts` writes it).
Prints a table with t-intervals over seeds; `--out FILE.json` has all figures, and `--plot FILE.png` shows the share of
wrong answers against that of images with an answer, a line for each group and seed.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from ifam.checkpoints import hub
from ifam.data import Benchmark, load_benchmark
from ifam.evaluation.conformal import Calibration, calibrate
from ifam.evaluation.coverage import Coverage, coverage_by_group
from ifam.evaluation.features import LastLayer, last_layer_of
from ifam.evaluation.seeds import over_seeds
from ifam.model_files import CONFIG
from ifam.models.base import Classifier

# Strangers of each benchmark.
COUNT = 400


class Unlabeled:
    """Images of another benchmark, as if they were of the first class."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return min(COUNT, len(self.images))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One of them, evenly spread."""
        return {"image": self.images[index * len(self.images) // len(self)]["image"], "label": 0}


def strangers(photographs: Path | None) -> dict[str, Any]:
    """Test images of other benchmarks, by name."""
    digits = load_benchmark("digits", options={"num_train": 10, "num_val": 10, "num_test": COUNT})
    others = {"digits": Unlabeled(digits.split("test"))}
    if photographs is not None:
        others["photographs"] = Unlabeled(load_benchmark("folder", photographs).split("test"))
    return others


def measured_on(
    model: Classifier, options: Mapping[str, Any], error: float, others: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Coverage]]:
    """Coverage, answers and their errors of one model, and what it says to strangers; and its groups."""
    images = load_benchmark("pondbirds", options=options)
    unseen = load_benchmark("pondbirds", options={**options, "seed": options["seed"] + 1000})
    splits = {"train": images.split("train"), "val": unseen.split("val")}
    calibration = calibrate(model, replace(images, splits=splits), error=error)
    test = last_layer_of(model, images, "test", label="test images")
    overall, groups = coverage_by_group(calibration, test, images.group_names)
    result = {
        "worst-group coverage": min(one.coverage for one in groups.values()),
        "coverage": overall.coverage,
        "answered": overall.answered,
        "answered, worst group": min(one.answered for one in groups.values()),
        "wrong among answers": overall.error or 0.0,
        "wrong among answers, worst group": max(one.error or 0.0 for one in groups.values()),
    }
    for name, one in others.items():
        names = images.class_names
        found = last_layer_of(model, Benchmark(name, {"test": one}, names, names), "test", label=name)
        result |= {f"{name}: {key}": value for key, value in told_apart(calibration, test, found).items()}
    return result, groups


def told_apart(calibration: Calibration, own: LastLayer, others: LastLayer) -> dict[str, float]:
    """How well strangers are told from a model's own test images."""
    familiar = [calibration.familiarity(images.features) for images in (own, others)]
    distances = [calibration.training.distances(images.features) for images in (own, others) if calibration.training]
    sets = calibration.sets(others.logits, familiar[1])
    is_stranger = torch.cat([torch.zeros(len(own.labels)), torch.ones(len(others.labels))])
    return {
        "AUROC": float(roc_auc_score(is_stranger, torch.cat(distances))),
        "answered": float((sets.sum(dim=1) == 1).double().mean()),
    }


def runs(folder: Path, rows: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Name of its row, and folder, of each model of a comparison, in the order of rows and seeds."""
    found = [(path.name.rpartition("-"), path) for path in sorted(folder.iterdir()) if (path / CONFIG).is_file()]
    for row in rows or dict.fromkeys(name for (name, _, _), _ in found):
        of_row = [(int(seed), path) for (name, _, seed), path in found if name == row]
        yield from ((row, path) for _, path in sorted(of_row))


def plot(groups: Mapping[str, Sequence[Mapping[str, Coverage]]], path: Path) -> None:
    """Draw the risk-coverage curves of each row, a panel each.

    Args:
        groups: By row, for each seed, its groups.
        path: File of the picture.
    """
    figure = Figure(figsize=(3.4 * len(groups), 3.1), layout="constrained")
    for axes, (row, seeds) in zip(
        figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups.items(), strict=True
    ):
        for one in seeds:
            for number, (name, coverage) in enumerate(one.items()):
                answered, wrong = zip(*((100 * a, 100 * w) for a, w in coverage.risk_coverage), strict=True)
                axes.plot(answered, wrong, f"C{number}", lw=1.2, label=name if one is seeds[0] else None)
        axes.set(title=row, xlabel="images answered, surest first, %", xlim=(0, 102), ylim=(0, 102))
    figure.axes[0].set_ylabel("wrong among these, %")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", type=Path, nargs="+", help="folders with the models of comparisons")
    options.add_argument("--rows", nargs="*", default=(), help="rows of the comparison; all by default")
    options.add_argument("--error", type=float, default=0.05)
    options.add_argument("--photographs", type=Path, help="folder of composites, as strangers")
    options.add_argument("--out", type=Path, help="file for all figures")
    options.add_argument("--plot", type=Path, help="file for the curves")
    args = options.parse_args(argv)
    others = strangers(args.photographs)
    measured: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    curves: dict[str, list[dict[str, Coverage]]] = defaultdict(list)
    for folder in args.models:
        for row, path in runs(folder, args.rows):
            saved = hub.read(path)
            print(f"{row}: {path}", flush=True)
            found, groups = measured_on(hub.load(saved), saved.extra["data"], args.error, others)
            measured[row][path.name] = found
            curves[row].append(groups)
            if args.out:
                args.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(curves, args.plot)
    names = list(next(iter(next(iter(measured.values())).values())))
    print("| row | seeds | " + " | ".join(names) + " |")
    print("|---|---:|" + "---:|" * len(names))
    for row, of_row in measured.items():
        cells = []
        for name in names:
            mean = over_seeds([one[name] for one in of_row.values()])
            spread = "" if mean.high is None else f" ± {100 * (mean.high - mean.mean):.1f}"
            cells.append(f"{100 * mean.mean:.1f}{spread}")
        print(f"| {row} | {len(of_row)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
