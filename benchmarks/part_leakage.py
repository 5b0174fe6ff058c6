"""What one part's feature tells about another part: the leakage of arXiv 2605.06095, on pondbirds.

    python -m benchmarks.part_leakage MODEL [MODEL ...] [--images 2000] [--seed 1000] [--out runs/part_leakage.json]

Birds are drawn whose plumage, bill, tail and legs are decided by a coin each. For every part of the model and
every cue, of the images in whose patches of this part no pixel of the cue is to be seen, a linear probe (logistic
regression, five folds) reads the cue from the part's feature: the mean of its patch tokens,

- of the selector, which has seen the whole image,
- of the predictor when it sees all visible patches together (joint),
- of the predictor when it sees this part alone (isolated), with the same weights;
- and from which patches the part is made of, without any pixel.

Balanced accuracy, 50 % at chance, over all parts; intervals are those of a bootstrap of the images.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ifam._typing import Bool, Float, Tensor
from ifam.checkpoints import hub
from ifam.data import TransformedDataset, collate
from ifam.data.benchmarks.pondbirds import Pondbirds
from ifam.data_config import PondbirdsConfig
from ifam.io import write_json
from ifam.models.contributions import shown_parts
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mean
from ifam.progress import ProgressBar

SOURCES = ("selector", "joint", "isolated", "patches alone")
# Parts of the drawn bird that show each cue.
PLACES = {"plumage": ("body", "wing", "tail"), "bill": ("head",), "tail": ("tail",), "legs": ("legs",)}
# Fewer images of a part without the cue are not probed.
_LEAST = 100
_FOLDS, _RESAMPLES = 5, 1000


@torch.inference_mode()
def part_features(model: IFAM, birds: Pondbirds) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """For batches of images, the feature of each part by source, and the patches [B, K, P] that it is made of."""
    prepared = TransformedDataset(birds, model.image_size, model.normalization)
    rows = range(len(birds))
    for start in rows[::32]:
        images = collate([prepared[i] for i in rows[start : start + 32]]).images
        shown = shown_parts(model, model(images)).flatten(2)
        predictor, (batch, parts, _) = model.predictor.backbone, shown.shape
        together = predictor(images, shown.any(dim=1), execution="dense")[:, predictor.num_prefix_tokens :]
        sources = torch.arange(batch).repeat_interleave(parts)
        alone = predictor(images, shown.flatten(0, 1), sources=sources, execution="dense")
        alone = alone[:, predictor.num_prefix_tokens :].unflatten(0, (batch, parts))
        yield (
            {
                "selector": _mean(model.selector.patches(images)[:, None], shown),
                "joint": _mean(together[:, None], shown),
                "isolated": _mean(alone, shown),
                "patches alone": shown.float(),
            },
            shown,
        )


def _mean(tokens: Float[Tensor, "B K1 P D"], shown: Bool[Tensor, "B K P"]) -> Float[Tensor, "B K D"]:
    """The mean of the tokens of each part; 0 for absent parts."""
    weights = shown[:, :, :, None]
    return (tokens * weights).sum(dim=2) / weights.sum(dim=2).clamp_min(1)


def read(features: NDArray[Any], cue: NDArray[Any], seed: int) -> NDArray[Any]:
    """What a linear probe that was trained on the other folds says of each image."""
    # A rotation does not affect a quadratic penalty, and leaves at most as many features as images.
    classifier = make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=0.01, class_weight="balanced"))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    said: NDArray[Any] = cross_val_predict(classifier, features, cue, cv=folds)
    return said


def measure(model: IFAM, birds: Pondbirds, seed: int) -> dict[str, dict[str, Any]]:
    """Balanced accuracy with its interval for each cue and source, and the number of readings."""
    features, shown = zip(*part_features(model, birds), strict=True)
    of = {name: torch.cat([one[name] for one in features]).numpy() for name in SOURCES}
    patches = torch.cat(shown)
    grid = model.predictor.backbone.grid
    found: dict[str, dict[str, Any]] = {}
    with ProgressBar() as bar:
        task = bar.add_task("probes", total=len(PLACES) * patches.shape[1] * len(SOURCES))
        for number, (cue, places) in enumerate(PLACES.items()):
            drawn = torch.stack([birds.parts[:, birds.part_names.index(place)] for place in places]).any(dim=0)
            holds = (patch_mean(drawn, grid) > 0).flatten(1)[:, None]
            usable = (patches.any(dim=2) & ~(patches & holds).any(dim=2)).numpy()
            truth = birds.cues[:, number].numpy().astype(int)
            said: dict[str, list[NDArray[Any]]] = {name: [] for name in SOURCES}
            images, wanted = [], []
            for part in range(patches.shape[1]):
                chosen = usable[:, part].nonzero()[0]
                enough = len(chosen) >= _LEAST and min(np.bincount(truth[chosen], minlength=2)) >= _FOLDS
                for name in SOURCES:
                    if enough:
                        said[name].append(read(of[name][chosen, part], truth[chosen], seed))
                    bar.advance(task)
                if enough:
                    images.append(chosen)
                    wanted.append(truth[chosen])
            if images:
                found[cue] = _summary(np.concatenate(images), np.concatenate(wanted), said, seed)
    return found


def _summary(images: NDArray[Any], truth: NDArray[Any], said: dict[str, list[NDArray[Any]]], seed: int) -> Any:
    """Balanced accuracy over all parts; the bootstrap takes an image with all of its parts."""
    random = np.random.default_rng(seed)
    unique, place = np.unique(images, return_inverse=True)
    draws = random.integers(len(unique), size=(_RESAMPLES, len(unique)))
    weights = [np.bincount(drawn, minlength=len(unique)) for drawn in draws]
    summary: dict[str, Any] = {"readings": len(images), "images": len(unique)}
    for name, parts in said.items():
        right = np.concatenate(parts) == truth
        resampled = [_balanced(right, truth, weight[place]) for weight in weights]
        low, high = np.quantile(resampled, [0.025, 0.975])
        accuracy = balanced_accuracy_score(truth, np.concatenate(parts))
        summary[name] = {"accuracy": float(accuracy), "low": float(low), "high": float(high)}
    return summary


def _balanced(right: NDArray[Any], truth: NDArray[Any], weight: NDArray[Any]) -> float:
    """Balanced accuracy of weighted readings."""
    return float(np.mean([np.average(right[truth == c], weights=weight[truth == c]) for c in (0, 1)]))


def _percent(reading: dict[str, float]) -> str:
    """An accuracy with its interval in percent."""
    accuracy, low, high = (f"{100 * reading[name]:.1f}" for name in ("accuracy", "low", "high"))
    return f"{accuracy} ({low} to {high})"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table for each model, and write all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", type=Path)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--seed", type=int, default=1000, help="of the birds, which no training has seen, and folds")
    options.add_argument("--out", type=Path, default=Path("runs/part_leakage.json"))
    given = options.parse_args(argv)
    birds = Pondbirds("test", PondbirdsConfig(num_test=given.images, seed=given.seed, cue_noise=0.5))
    results = {}
    for folder in given.models:
        model = hub.load(folder)
        assert isinstance(model, IFAM), f"{folder} is not a model of the method ifam"
        results[str(folder)] = found = measure(model, birds, given.seed)
        print(f"{folder} ({model.config.aggregation})")
        for cue, row in found.items():
            cells = [f"{name} {_percent(row[name])}" for name in SOURCES]
            print(f"  {cue:8} {'  '.join(cells)}  [{row['readings']} readings of {row['images']} images]")
        write_json(given.out, {"images": given.images, "seed": given.seed, "models": results})


if __name__ == "__main__":
    main()
