"""What a data set is here: named splits of examples, and how examples become batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ifam._typing import Float, Tensor
from ifam.errors import IfamError
from ifam.types import Batch


@runtime_checkable
class Examples(Protocol):
    """A sequence of examples, each a dict.

    It holds `image` (PIL, or floats [3, S, S] in 0..1), `label`, and where known `group` and `mask` (True on the
    pixels of the object).
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One example."""
        ...


@dataclass(frozen=True)
class Benchmark:
    """A data set with its splits.

    Attributes:
        name: What it is called on the command line.
        splits: Examples of "train", "val" and, where there are some, "test".
        class_names: Name of each class.
        group_names: Name of each group; the classes themselves where the data knows no groups.
        note: How validation data came about, for the record.
    """

    name: str
    splits: Mapping[str, Examples]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    note: str = ""

    def split(self, name: str) -> Examples:
        """The examples of a split.

        Raises:
            IfamError: There is no such split.
        """
        if name not in self.splits:
            raise IfamError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}.")
        return self.splits[name]


class Prepared(Dataset[dict[str, Any]]):
    """Examples resized, cropped, augmented and normalised for a model; masks follow their images.

    Args:
        examples: The examples.
        size: Height and width of the model's input in pixels.
        normalisation: Channel means and standard deviations.
        augment: None for evaluation (resize the shorter side, centre crop); otherwise random horizontal flips, and
            random crops of at least this share of the area.
    """

    def __init__(
        self,
        examples: Examples,
        size: tuple[int, int],
        normalisation: tuple[Sequence[float], Sequence[float]],
        augment: float | None = None,
    ) -> None:
        self.examples = examples
        steps: list[Any] = [v2.ToImage()]
        if augment is not None and augment < 1:
            steps += [v2.RandomResizedCrop(size, scale=(augment, 1.0), antialias=True)]
        else:
            steps += [FitAndCrop(size)]
        if augment is not None:
            steps += [v2.RandomHorizontalFlip()]
        mean, std = normalisation
        steps += [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
        steps += [v2.Normalize(list(mean), list(std))]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        image = example["image"]
        if isinstance(image, Tensor):
            image = tv_tensors.Image(image)
        mask = example.get("mask")
        if mask is None:
            image = self.transform(image)
        else:
            image, mask = self.transform(image, tv_tensors.Mask(mask))
        return {
            "image": torch.as_tensor(image),
            "label": int(example["label"]),
            "group": int(example.get("group", example["label"])),
            "mask": None if mask is None else torch.as_tensor(mask),
        }


class FitAndCrop(v2.Transform):
    """Resize so that the image covers the size exactly in one direction, then crop the centre.

    Args:
        size: Height and width wanted, in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize and crop one image or mask."""
        height, width = v2.functional.get_size(inpt)
        if (height, width) == self.size:
            return inpt
        scale = max(self.size[0] / height, self.size[1] / width)
        # Rounding must never leave the image a pixel short of the crop.
        fitted = [max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))]
        return v2.functional.center_crop(v2.functional.resize(inpt, fitted, antialias=True), list(self.size))


def collate(examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Examples of the same size as a batch."""
    masks = [example["mask"] for example in examples]
    return Batch(
        images=torch.stack([example["image"] for example in examples]),
        labels=torch.tensor([example["label"] for example in examples]),
        groups=torch.tensor([example["group"] for example in examples]),
        masks=None if any(mask is None for mask in masks) else torch.stack(masks).bool(),
    )


def denormalise(
    images: Float[Tensor, "*B 3 S1 S2"], normalisation: tuple[Sequence[float], Sequence[float]]
) -> Float[Tensor, "*B 3 S1 S2"]:
    """Normalised images as colours in 0..1."""
    mean, std = (images.new_tensor(list(values))[:, None, None] for values in normalisation)
    return (images * std + mean).clamp(0, 1)
