"""What the last layer of a model gets and gives for each image of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from ifam._typing import Float, Int, Tensor
from ifam.data import Benchmark, TransformedDataset, collate
from ifam.interruption import follow_parent
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.models.timm_interface import features_of, recorded_features
from ifam.progress import ProgressBar


@dataclass(frozen=True)
class LastLayer:
    """Input and output of the last layer.

    Attributes:
        features: Its input; one vector per image where it is applied to several (`features_of`).
        logits: Its output, the final logits.
        labels: Class of each image.
        groups: Group of each image; its class where the data have no groups.
    """

    features: Float[Tensor, "N D"]
    logits: Float[Tensor, "N C"]
    labels: Int[Tensor, " N"]
    groups: Int[Tensor, " N"]


@torch.inference_mode()
def last_layer_of(
    model: Classifier,
    benchmark: Benchmark,
    split: str,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    label: str = "embedding",
) -> LastLayer:
    """Input and output of the last layer of a model for the images of a split, without augmentation.

    Args:
        model: Any model; its mode is restored afterwards.
        benchmark: The data set.
        split: Which of its splits.
        indices: Which of its images; all if None.
        batch_size: Images at a time; affects speed only.
        workers: Processes that load images.
        label: Label of the progress bar.

    Raises:
        IfamError: The split does not exist, or logits are not finite.
    """
    examples = TransformedDataset(benchmark.split(split), model.image_size, model.normalization)
    chosen = examples if indices is None else Subset(examples, indices)
    settings: dict[str, Any] = {"num_workers": workers, "collate_fn": collate, "worker_init_fn": follow_parent}
    loader = DataLoader(chosen, batch_size=batch_size, **settings)
    device, rows = device_of(model), []
    with evaluating(model), recorded_features(model) as inputs, ProgressBar() as bar:
        task = bar.add_task(label, total=len(chosen))
        for batch in loader:
            inputs.clear()
            logits = finite_logits(model.predict_batch(batch.to(device)).logits)
            features = features_of(model, inputs, len(logits))
            rows.append((features.cpu(), logits.cpu(), batch.labels, batch.groups_or_classes))
            bar.advance(task, len(logits))
    return LastLayer(*(torch.cat(column) for column in zip(*rows, strict=True)))
