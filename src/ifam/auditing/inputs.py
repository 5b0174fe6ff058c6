"""Inputs of an audit: images with their annotations, and what the model returned for them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data import Benchmark, ImageDataset, TransformedDataset, evenly_spaced
from ifam.errors import IfamError
from ifam.models.base import device_of, finite_logits
from ifam.models.ifam import IFAM
from ifam.models.masking import resize_mask
from ifam.models.pixel_mask import visible_patches

# Called with the number of finished images.
Advance = Callable[[int], None]


def no_progress(count: int) -> None:
    """No-op progress callback."""


@dataclass(frozen=True)
class AuditInputs:
    """Images as the model receives them, with their annotations.

    Attributes:
        images: Normalized images.
        labels: Classes; None if unknown.
        groups: Groups, for example class x background; None if unknown.
        truth: Pixels of the object; None if unknown.
        swapped: The same objects on other backgrounds, if the data set provides them.
        indices: Index of each image in its split.
        class_names: Name of each class.
        group_names: Name of each group.
    """

    images: Float[Tensor, "N 3 S1 S2"]
    labels: Int[Tensor, " N"] | None = None
    groups: Int[Tensor, " N"] | None = None
    truth: Bool[Tensor, "N S1 S2"] | None = None
    swapped: Float[Tensor, "N 3 S1 S2"] | None = None
    indices: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ModelOutputs:
    """What the model returned for each image.

    Attributes:
        logits: Class logits.
        mask: Patches that the predictor saw, on its grid (H2 W2), or cells of them; all other maps are on the
            selector's grid.
        gate: The mask as numbers; the weights of a soft mask.
        part_maps: Probability of each part at each patch, background last.
        winners: Most probable part of each patch, K for background; ties with the background go to the part.
        margin: Logit of the best part minus that of the background at each patch; visible where it is not negative.
        seconds: Time for one image, from pixels to logits and mask.
        patches: Rows and columns of the predictor's patches, where the mask is finer; else None.
        patch_parts: Part of each of the predictor's patches (H3 W3), where it sees each part alone; else None.
    """

    logits: Float[Tensor, "N C"]
    mask: Bool[Tensor, "N H2 W2"]
    gate: Float[Tensor, "N H2 W2"]
    part_maps: Float[Tensor, "N K1 H W"]
    winners: Int[Tensor, "N H W"]
    margin: Float[Tensor, "N H W"]
    seconds: float = 0.0
    patches: tuple[int, int] | None = None
    patch_parts: Int[Tensor, "N H3 W3"] | None = None

    def held(self, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """What the predictor needs of some images besides pixels, mask and gate."""
        return () if self.patch_parts is None else (self.patch_parts[rows],)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the predictor's patches."""
        return self.patches or (self.mask.shape[1], self.mask.shape[2])

    @property
    def patch_mask(self) -> Bool[Tensor, "N H3 W3"]:
        """Patches of which the predictor saw anything."""
        return self.mask if self.patches is None else visible_patches(self.mask, self.patches)

    def mask_of_parts(self, keep: Bool[Tensor, "N K"]) -> Bool[Tensor, "N H2 W2"]:
        """The mask if only some parts of each image are kept."""
        if self.patches is None:
            kept = F.pad(keep, (0, 1)).gather(1, self.winners.flatten(1)).view_as(self.winners)
            return resize_mask(kept, self.grid)
        # The outline of a mask of pixels may leave the patches of its part.
        size = (self.mask.shape[1], self.mask.shape[2])
        nearest = F.interpolate(self.part_maps[:, :-1], size, mode="bilinear").argmax(dim=1)
        return self.mask & keep.gather(1, nearest.flatten(1)).view_as(nearest)

    @property
    def selected(self) -> Bool[Tensor, "N H W"]:
        """Patches assigned to a part: the mask on the selector's grid."""
        return self.winners < self.part_maps.shape[1] - 1

    @property
    def answers(self) -> Int[Tensor, " N"]:
        """The predicted class."""
        return self.logits.argmax(dim=1)

    @property
    def confidence(self) -> Float[Tensor, " N"]:
        """Its probability."""
        return self.logits.softmax(dim=1).amax(dim=1)


def chunks(count: int, batch_size: int) -> Iterator[slice]:
    """Slices of at most `batch_size` that cover `count` images."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


@torch.no_grad()
def compute_outputs(
    model: IFAM, images: Float[Tensor, "N 3 S1 S2"], batch_size: int = 32, advance: Advance = no_progress
) -> ModelOutputs:
    """Run the model in evaluation mode, and return what the audit needs, on the CPU in float32."""
    device, batches = device_of(model), []
    clock = Stopwatch(device)
    for rows in chunks(len(images), batch_size):
        batch = images[rows].to(device)
        with clock:
            out = model(batch)
        logits = out.selection.assignment_logits
        batch_outputs = ModelOutputs(
            logits=finite_logits(out.logits),
            mask=out.mask,
            gate=out.gate,
            part_maps=out.part_maps,
            # A tie with the background goes to the part: argmax takes the first, and the background is last.
            winners=logits.argmax(dim=1),
            margin=logits[:, :-1].amax(dim=1) - logits[:, -1],
            # Audited models may be the user's own, with outputs of less.
            patch_parts=getattr(out, "patch_parts", None),
        )
        batches.append(batch_outputs)
        advance(len(batch))
    joined: dict[str, Any] = {
        name: _cpu(torch.cat([getattr(one, name) for one in batches]))
        for name, value in vars(batches[0]).items()
        if isinstance(value, Tensor)
    }
    patches = model.predictor.backbone.grid if getattr(model, "masks_pixels", False) else None
    return ModelOutputs(**joined, seconds=clock.seconds / max(1, len(images)), patches=patches)


def _cpu(values: Tensor) -> Tensor:
    return values.float().cpu() if values.is_floating_point() else values.cpu()


class Stopwatch:
    """Seconds spent inside its `with` blocks, including work on a GPU.

    Args:
        device: Device to synchronize with.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> "Stopwatch":
        self._synchronize()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._synchronize()
        self.seconds += time.perf_counter() - self.started

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def from_benchmark(benchmark: Benchmark, split: str, model: IFAM, limit: int) -> AuditInputs:
    """At most `limit` evenly spaced images of a split.

    Raises:
        IfamError: The split does not exist or is empty.
    """
    examples = benchmark.split(split)
    if not len(examples):
        raise IfamError(f"{benchmark.name} has no image in {split!r}; choose another split.")
    indices = evenly_spaced(len(examples), limit)
    rows = _prepared(examples, indices, model)
    masks = [row["mask"] for row in rows]
    # Without groups, the classes take their place.
    grouped = benchmark.group_names != benchmark.class_names
    # Synthetic benchmarks can render the same object on another background, which is better than a montage.
    swap = getattr(examples, "swapped", None)
    swapped = None if swap is None else _stack(_prepared(swap(), indices, model), "image")
    return AuditInputs(
        images=_stack(rows, "image"),
        labels=torch.tensor([row["label"] for row in rows]),
        groups=torch.tensor([row["group"] for row in rows]) if grouped else None,
        truth=None if any(mask is None for mask in masks) else _stack(rows, "mask").bool(),
        swapped=swapped,
        indices=tuple(indices),
        class_names=tuple(benchmark.class_names),
        group_names=tuple(benchmark.group_names) if grouped else (),
    )


def _prepared(examples: ImageDataset, indices: Sequence[int], model: IFAM) -> list[dict[str, Any]]:
    prepared = TransformedDataset(examples, model.image_size, model.normalization)
    return [prepared[i] for i in indices]


def _stack(rows: Sequence[dict[str, Any]], name: str) -> Tensor:
    return torch.stack([row[name] for row in rows])
