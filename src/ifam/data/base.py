"""Data sets as named splits of examples, and their conversion to batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data.hugging_face import Columns, read_hugging_face
from ifam.errors import IfamError
from ifam.types import Batch


@runtime_checkable
class ImageDataset(Protocol):
    """A sequence of examples, each a dict.

    It holds `image` (PIL, or floats [3, S, S] in 0..1), `label`, and where known `group`, `mask` (True on the
    pixels of the object) and the annotations that the quality of parts is measured with: `keypoints` ([N, 3]: x, y in
    pixels, and 1 where visible), `box` ([4]: x, y, width, height of the object) and `part_labels` ([H, W]: 0 where no
    part is, 1 + its index in `Benchmark.part_names` elsewhere).
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
        name: Its name on the command line.
        splits: Examples of "train", "val" and, where there are some, "test".
        class_names: Name of each class.
        group_names: Name of each group; the classes themselves where the data have no groups.
        note: Where the validation images come from, for the record.
        part_names: Names of the regions in `part_labels`.
        keypoint_names: Names of the rows of `keypoints`.
        logit_classes: The classes that predictions are restricted to, if not all (200 of 1,000 for ImageNet-A).
        class_of_logit: For models of another, finer set of classes: the class here of each of their logits, -1 for
            logits of none (the 1,000 logits of an ImageNet model for the nine classes of ImageNet-9).
        treatments: Splits that show the same objects in different ways, evaluated together where no split is named;
            some may be missing.
        gap: Two treatments, the first with the helpful background, the second without.
        mirrored: Whether mirror images keep their meaning, so that training may use them.
    """

    name: str
    splits: Mapping[str, ImageDataset]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    note: str = ""
    part_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    logit_classes: tuple[int, ...] | None = None
    class_of_logit: tuple[int, ...] | None = None
    treatments: tuple[str, ...] = ()
    gap: tuple[str, str] | None = None
    mirrored: bool = True

    @classmethod
    def from_hf(
        cls,
        dataset: Any,
        *,
        image: str = "image",
        label: str = "label",
        group: str | None = None,
        mask: str | None = None,
        splits: Mapping[str, str] | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        name: str = "hugging_face",
    ) -> "Benchmark":
        """A data set of Hugging Face's `datasets`, which `pip install 'ifam[hf]'` installs.

        Args:
            dataset: A `datasets.DatasetDict`; or a `Dataset`, which is training images, or "all" without validation.
            image: Column of the images: pictures, their bytes or paths.
            label: Column of the classes: ClassLabel, text or whole numbers.
            group: Column of the groups, likewise; the classes where it is None.
            mask: Column of masks of the object.
            splits: Its name of each of our splits, such as {"train": "train", "test": "validation"}; by default
                training, valid, validation and testing are known, too, and others left out.
            val_fraction: Share of the training images to validate with where there is no such split; 0 for none.
            seed: Seed of that choice.
            name: Name of the data set.

        Raises:
            IfamError: A split or column is missing, or a label or group cannot be used.
        """
        columns = Columns(image, label, group, mask)
        parts = read_hugging_face(dataset, columns, splits, val_fraction, seed)
        return cls(name, *parts)

    @property
    def is_whole(self) -> bool:
        """Whether the only split is "all"."""
        return list(self.splits) == ["all"]

    @property
    def default_eval_split(self) -> str:
        """The split that models are evaluated on by default: "test", else "val", else the only one."""
        return next((name for name in ("test", "val") if name in self.splits), next(iter(self.splits), "val"))

    def describe(self, split: str) -> str:
        """Describe a split in one line: "50 images of 2 classes, no split named"."""
        examples = self.split(split)
        classes = len({int(label) for label in getattr(examples, "labels", ())}) or len(self.class_names)
        which = "no split named" if split == "all" else f"split {split}"
        note = f" ({self.note})" if split in ("val", "all") and self.note else ""
        images = f"{len(examples)} image{'s' * (len(examples) != 1)}"
        return f"{images} of {classes} class{'es' * (classes != 1)}, {which}{note}"

    def split(self, name: str) -> ImageDataset:
        """The examples of a split.

        Raises:
            IfamError: There is no such split.
        """
        if name not in self.splits and self.is_whole:
            raise IfamError(f"{self.name} has no splits here; leave --split out (or give 'all') to take all images.")
        if name not in self.splits:
            raise IfamError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}.")
        return self.splits[name]

    def groups(self, split: str) -> Int[Tensor, " N"]:
        """Group of each image of a split; its class where the data have no groups.

        If the split does not list its `groups`, every example is read.

        Raises:
            IfamError: There is no such split, or some of its images have no group although the data have groups.
        """
        examples = self.split(split)
        listed = getattr(examples, "groups", None)
        if listed is not None:
            return torch.as_tensor(listed, dtype=torch.long)
        groups = []
        for index in range(len(examples)):
            example = examples[index]
            if "group" not in example and self.group_names != self.class_names:
                raise IfamError(
                    f"{self.name} has groups, but image {index} of its split {split!r} has none; give the group of "
                    f"each image."
                )
            groups.append(int(example.get("group", example["label"])))
        return torch.tensor(groups)

    def require_masks(self, split: str, who: str) -> None:
        """Refuse a split with an image that has no true mask, as far as this is known without reading all images.

        For lists of files, the first image without a mask file is read; for other splits, only the first image.

        Args:
            split: Name of the split.
            who: What needs masks, for the message.

        Raises:
            IfamError: There is no such split, or it has such an image.
        """
        examples = self.split(split)
        listed = [bool(record.masks) for record in getattr(examples, "records", ())]
        # Some data sets compute masks without mask files, so the image is read.
        index = listed.index(False) if False in listed else 0
        if len(examples) and all(examples[index].get(name) is None for name in ("given_mask", "mask")):
            raise IfamError(
                f"{who} needs true masks, and {self.name} has none for image {index} of its split {split!r}; choose "
                f"data with masks, such as pondbirds, or a folder whose CSV file names one for each image."
            )

    def restrict(self, logits: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """The logits, with minus infinity for classes outside `logit_classes`."""
        if self.logit_classes is None:
            return logits
        allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        allowed[list(self.logit_classes)] = True
        return logits.masked_fill(~allowed, -math.inf)

    def answers(self, logits: Float[Tensor, "B L"]) -> Int[Tensor, " B"]:
        """The predicted class of each image; -1 where it is none of the classes.

        Raises:
            IfamError: The number of logits is neither that of `class_names` nor that of `class_of_logit`.
        """
        count = logits.shape[1]
        if count == len(self.class_names):
            return self.restrict(logits).argmax(dim=1)
        if self.class_of_logit is None or count != len(self.class_of_logit):
            known = f" or {len(self.class_of_logit)}" if self.class_of_logit else ""
            raise IfamError(
                f"{self.name} needs a model of {len(self.class_names)}{known} classes, but this one has {count}; give "
                f"a model that was trained for it."
            )
        return torch.tensor(self.class_of_logit, device=logits.device)[logits.argmax(dim=1)]


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images.

    Attributes:
        flip: Mirror half of the images, left and right.
        crop: Minimal share of the area in random crops; 1 for no crops.
    """

    flip: bool = False
    crop: float = 1.0

    def __str__(self) -> str:
        flips = ["half of the images mirrored"] * self.flip
        crops = [f"crops of at least {self.crop:.0%} of the area"] * (self.crop < 1)
        return ", ".join(flips + crops) or "none"


class TransformedDataset(Dataset[dict[str, Any]]):
    """Examples resized, cropped, augmented and normalized for a model; all annotations follow their images.

    Args:
        examples: The examples.
        size: Height and width of the model's input in pixels.
        normalization: Channel means and standard deviations.
        augmentation: Augmentation of training images; None for evaluation.
    """

    def __init__(
        self,
        examples: ImageDataset,
        size: tuple[int, int],
        normalization: tuple[Sequence[float], Sequence[float]],
        augmentation: Augmentation | None = None,
    ) -> None:
        self.examples = examples
        self.flip = augmentation is not None and augmentation.flip
        steps: list[Any] = [v2.ToImage()]
        if augmentation is not None and augmentation.crop < 1:
            steps += [v2.RandomResizedCrop(size, scale=(augmentation.crop, 1.0), antialias=True)]
        else:
            # Resize the shorter side, then crop the center.
            steps += [FitAndCrop(size)]
        mean, std = normalization
        steps += [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
        steps += [v2.Normalize(list(mean), list(std))]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example as the model sees it.

        Returns:
            `image` [3, H, W], `label`, `group` (the label where there are no groups), and, None where the data do not
            have it: `mask` and `given_mask` [H, W], `keypoints` [N, 3], `box` [4] and `part_labels` [H, W], as in
            `ImageDataset` but in pixels of this image. A keypoint outside the image is not visible; a box may extend
            beyond it. And `mirrored`, whether augmentation has mirrored them.
        """
        example = self.examples[index]
        image = example["image"]
        inputs: dict[str, Any] = {"image": tv_tensors.Image(image) if isinstance(image, Tensor) else image}
        for name in ("mask", "given_mask", "part_labels"):
            if example.get(name) is not None:
                inputs[name] = tv_tensors.Mask(example[name])
        keypoints, box = example.get("keypoints"), example.get("box")
        if keypoints is not None or box is not None:
            inputs["points"] = _as_points(keypoints, box, v2.functional.get_size(image))
        transformed = self.transform(inputs)
        mirrored = self.flip and bool(torch.rand(1) < 0.5)
        if mirrored:
            transformed = {name: v2.functional.horizontal_flip(value) for name, value in transformed.items()}
        plain = {name: torch.as_tensor(value).as_subclass(Tensor) for name, value in transformed.items()}
        height, width = plain["image"].shape[1:]
        return {
            "image": plain["image"],
            "label": int(example["label"]),
            "group": int(example.get("group", example["label"])),
            "mask": plain.get("mask"),
            "given_mask": plain.get("given_mask"),
            "keypoints": None if keypoints is None else _as_keypoints(plain["points"], keypoints, height, width),
            "box": None if box is None else _as_box(plain["points"]),
            "part_labels": plain.get("part_labels"),
            "mirrored": mirrored,
        }


def _as_points(
    keypoints: Float[Tensor, "N 3"] | None, box: Float[Tensor, " 4"] | None, size: Sequence[int]
) -> tv_tensors.KeyPoints:
    """Keypoints, and after them two corners of the box: torchvision transforms one set of points with an image."""
    points = torch.zeros(0, 2) if keypoints is None else keypoints[:, :2]
    if box is not None:
        points = torch.cat([points, torch.stack([box[:2], box[:2] + box[2:]])])
    return tv_tensors.KeyPoints(points.float(), canvas_size=(size[0], size[1]))


def _as_keypoints(
    points: Float[Tensor, "M 2"], before: Float[Tensor, "N 3"], height: int, width: int
) -> Float[Tensor, "N 3"]:
    x, y = points[: len(before)].unbind(dim=1)
    inside = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)
    return torch.stack([x, y, before[:, 2] * inside], dim=1)


def _as_box(points: Float[Tensor, "M 2"]) -> Float[Tensor, " 4"]:
    """The box whose opposite corners are the last two points; a flip has swapped their order."""
    low = points[-2:].amin(dim=0)
    return torch.cat([low, points[-2:].amax(dim=0) - low])


def part_masks(part_labels: Int[Tensor, "*B H W"], num_parts: int) -> Bool[Tensor, "*B M H W"]:
    """One mask for each part, from `part_labels`."""
    parts = torch.arange(1, num_parts + 1, dtype=part_labels.dtype, device=part_labels.device)
    return part_labels.unsqueeze(-3) == parts[:, None, None]


class FitAndCrop(v2.Transform):
    """Resize so that the image covers the size exactly in one direction, then crop the center.

    Args:
        size: Height and width of the result in pixels.
    """

    # Strips longer than this many times the crop are cropped before they are enlarged.
    longest = 8
    # What models are saved with, and compared with when they are loaded.
    description: ClassVar[dict[str, Any]] = {
        "resize": "cover",
        "crop": "center",
        "interpolation": "bilinear",
        "antialias": True,
    }

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize and crop one image, mask or set of points."""
        height, width = v2.functional.get_size(inpt)
        if (height, width) == self.size:
            return inpt
        scale = max(self.size[0] / height, self.size[1] / width)
        # These pixels would be cropped later anyway; enlarged first, they could exhaust the memory.
        spare = [
            max(0, math.floor((length - self.longest * target / scale) / 2))
            for length, target in zip((height, width), self.size, strict=True)
        ]
        if any(spare):
            height, width = height - 2 * spare[0], width - 2 * spare[1]
            inpt = v2.functional.crop(inpt, spare[0], spare[1], height, width)
        # Rounding must not make the image smaller than the crop.
        fitted = [max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))]
        interpolation = InterpolationMode(self.description["interpolation"])
        antialias = self.description["antialias"]
        resized = v2.functional.resize(inpt, fitted, interpolation=interpolation, antialias=antialias)
        return v2.functional.center_crop(resized, list(self.size))


def collate(examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Examples of the same size as a batch."""

    def stacked(name: str) -> Tensor | None:
        masks = [mask for example in examples if (mask := example.get(name)) is not None]
        return torch.stack(masks).bool() if len(masks) == len(examples) else None

    return Batch(
        images=torch.stack([example["image"] for example in examples]),
        labels=torch.tensor([example["label"] for example in examples]),
        groups=torch.tensor([example["group"] for example in examples]),
        masks=stacked("mask"),
        mirrored=torch.tensor([example.get("mirrored", False) for example in examples]),
        given_masks=stacked("given_mask"),
    )


def denormalize(
    images: Float[Tensor, "*B 3 S1 S2"], normalization: tuple[Sequence[float], Sequence[float]]
) -> Float[Tensor, "*B 3 S1 S2"]:
    """Normalized images as colors in 0..1."""
    mean, std = (images.new_tensor(list(values))[:, None, None] for values in normalization)
    return (images * std + mean).clamp(0, 1)


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spread."""
    number = min(count, limit)
    return [i * count // number for i in range(number)]
