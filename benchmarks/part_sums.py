"""One set of weights as a joint model and as a sum of isolated parts, on the test images of its seed.

    python -m benchmarks.part_sums MODEL [MODEL ...] [--out runs/part_sums.json]

Accuracy and worst group of the model as it is and with the other `aggregation`, and the share of the variance of the
joint model's margin (logit of the true class minus the largest other) that the sum of its parts, each alone, explains:
R squared of a line.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ifam._typing import Float, Int, Tensor
from ifam.checkpoints import hub
from ifam.data import TransformedDataset, collate, load_benchmark
from ifam.io import write_json
from ifam.models.ifam import IFAM
from ifam.progress import ProgressBar


def with_aggregation(model: IFAM, aggregation: Any) -> IFAM:
    """The same weights, with parts seen together or each alone."""
    other = IFAM(replace(model.config, aggregation=aggregation), pretrained=False)
    other.load_state_dict(model.state_dict())
    return other.eval()


def explained(joint: Float[Tensor, " N"], added: Float[Tensor, " N"]) -> float:
    """Share of the variance of a value that another one explains, with slope and offset fitted (R squared)."""
    return float(torch.corrcoef(torch.stack([joint, added]))[0, 1] ** 2)


def margins(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The logit of the true class minus the largest other."""
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


@torch.inference_mode()
def measure(folder: Path) -> dict[str, Any]:
    """The figures of one model."""
    saved = hub.read(folder)
    model = hub.load(saved)
    assert isinstance(model, IFAM), f"{folder} is not a model of the method ifam"
    images = load_benchmark("pondbirds", options=(saved.extra or {}).get("data"))
    prepared = TransformedDataset(images.split("test"), model.image_size, model.normalization)
    models = {name: with_aggregation(model, name) for name in ("joint", "sum")}
    logits: dict[str, list[Tensor]] = {name: [] for name in models}
    with ProgressBar() as bar:
        task = bar.add_task("images", total=len(prepared))
        for start in range(0, len(prepared), 32):
            batch = collate([prepared[i] for i in range(start, min(start + 32, len(prepared)))])
            for name, one in models.items():
                logits[name].append(one(batch.images).logits)
            bar.advance(task, len(batch.images))
    examples = images.split("test")
    labels = torch.tensor([examples[i]["label"] for i in range(len(examples))])
    groups = images.groups("test")
    found: dict[str, Any] = {"aggregation": model.config.aggregation, "images": len(labels)}
    for name, batches in logits.items():
        right = torch.cat(batches).argmax(dim=1) == labels
        of_groups = [float(right[groups == group].float().mean()) for group in groups.unique()]
        found[name] = {"average": float(right.float().mean()), "worst_group": min(of_groups)}
    joint, added = (margins(torch.cat(logits[name]), labels) for name in ("joint", "sum"))
    return {**found, "explained": explained(joint, added)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for each model, and write all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", type=Path)
    options.add_argument("--out", type=Path, default=Path("runs/part_sums.json"))
    given = options.parse_args(argv)
    results = {}
    for folder in given.models:
        results[str(folder)] = found = measure(folder)
        cells = [
            f"{name}: worst group {100 * one['worst_group']:.1f} %, average {100 * one['average']:.1f} %"
            for name, one in found.items()
            if isinstance(one, dict)
        ]
        trained, share = found["aggregation"], 100 * found["explained"]
        print(f"{folder} (trained as {trained}): {'; '.join(cells)}; additivity explains {share:.0f} %")
        write_json(given.out, results)


if __name__ == "__main__":
    main()
