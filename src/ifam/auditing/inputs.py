"""What an audit looks at: images with what is known about them, and what the model selected in each."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data import Benchmark, ImageDataset, Prepared, evenly_spaced
from ifam.errors import IfamError
from ifam.models.base import device_of
from ifam.models.ifam import IFAM

# Called with a number of images that are done.
Advance = Callable[[int], None]


def no_progress(count: int) -> None:
    """No-op progress callback."""


@dataclass(frozen=True)
class AuditInputs:
    """Images as the model is given them, with what the data set knows.

    Attributes:
        images: Normalized images.
        labels: Classes; None where they are not known.
        groups: Groups, class x background say; None where they are not known.
        truth: Pixels of the object; None where they are not known.
        swapped: The same objects on other backgrounds, where the data set has them.
        indices: Place of each image in its split.
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
    """What the model said about each image, and what it selected.

    Attributes:
        logits: Its answer.
        mask: Patches that the predictor saw, on its grid (H2 W2); all other maps are on the selector's.
        gate: The same as numbers, as the model makes it; of a soft mask the weights.
        part_maps: Probability of each part at each patch, background last.
        winners: Part that won each patch, K for background; a tie with the background is won.
        margin: By how much the best part beats the background at each patch; the mask is where it is not negative.
        seconds: Time for one image, from pixels to the answer and its mask.
    """

    logits: Float[Tensor, "N C"]
    mask: Bool[Tensor, "N H2 W2"]
    gate: Float[Tensor, "N H2 W2"]
    part_maps: Float[Tensor, "N K1 H W"]
    winners: Int[Tensor, "N H W"]
    margin: Float[Tensor, "N H W"]
    seconds: float = 0.0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the predictor's patches."""
        return self.mask.shape[1], self.mask.shape[2]

    @property
    def selected(self) -> Bool[Tensor, "N H W"]:
        """Patches of the selector that parts have won: the mask, before it is brought to the predictor's grid."""
        return self.winners < self.part_maps.shape[1] - 1

    @property
    def answers(self) -> Int[Tensor, " N"]:
        """The class that the model names."""
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
def observe(
    model: IFAM, images: Float[Tensor, "N 3 S1 S2"], batch_size: int = 32, advance: Advance = no_progress
) -> ModelOutputs:
    """Run the model in evaluation mode and keep what the audit asks about, on the CPU in float32."""
    device, found = device_of(model), []
    clock = Stopwatch(device)
    for rows in chunks(len(images), batch_size):
        batch = images[rows].to(device)
        with clock:
            out = model(batch)
        logits = out.selection.assignment_logits
        seen = ModelOutputs(
            logits=out.logits,
            mask=out.mask,
            gate=out.gate,
            part_maps=out.part_maps,
            # A tie with the background goes to the part: argmax takes the first, and the background is last.
            winners=logits.argmax(dim=1),
            margin=logits[:, :-1].amax(dim=1) - logits[:, -1],
        )
        found.append(seen)
        advance(len(batch))
    joined: dict[str, Any] = {
        name: _cpu(torch.cat([getattr(one, name) for one in found])) for name in vars(found[0]) if name != "seconds"
    }
    return ModelOutputs(**joined, seconds=clock.seconds / max(1, len(images)))


def _cpu(values: Tensor) -> Tensor:
    return values.float().cpu() if values.is_floating_point() else values.cpu()


class Stopwatch:
    """Seconds spent inside of its `with` blocks, the work of a GPU included.

    Args:
        device: Where the work is done.
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
    """At most `limit` images of a split, evenly spread over it.

    Raises:
        IfamError: There is no such split, or no image in it.
    """
    examples = benchmark.split(split)
    if not len(examples):
        raise IfamError(f"{benchmark.name} has no image in {split!r}; choose another split.")
    indices = evenly_spaced(len(examples), limit)
    rows = _prepared(examples, indices, model)
    masks = [row["mask"] for row in rows]
    # Data that knows no groups gives the classes for them.
    grouped = benchmark.group_names != benchmark.class_names
    # Drawn benchmarks can paint the same object on another background, which beats any montage.
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
    prepared = Prepared(examples, model.image_size, model.normalization)
    return [prepared[i] for i in indices]


def _stack(rows: Sequence[dict[str, Any]], name: str) -> Tensor:
    return torch.stack([row[name] for row in rows])
