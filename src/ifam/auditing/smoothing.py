"""A certificate that includes the mask: windows of an image vote, and few of them see an attacked region.

Derandomized smoothing (arXiv 2002.10733; for vision transformers, arXiv 2110.07719): selector and predictor see one
band of columns, or one block, at a time. Unlike in `ifam.auditing.certify` nothing is held: an attacker may change any
pixels of one region, and so the mask.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from ifam._typing import Tensor
from ifam.auditing.inputs import Stopwatch, chunks
from ifam.auditing.region_attack import RANDOM, Attacks, attack_votes, weakest_regions
from ifam.data import Benchmark, TransformedDataset, collate, evenly_spaced
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Accuracy, summarize
from ifam.evaluation.smoothing import (
    ABSTAINED,
    answers_of,
    certified_sizes,
    patches_touched,
    pixels_covered,
    touched_windows,
    window_votes,
    worst_leads,
)
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.models.windows import WindowKind, Windows, all_windows, widest
from ifam.progress import ProgressBar
from ifam.provenance import record
from ifam.ranges import COUNT, NATURAL, check_numbers
from ifam.serialization import to_json
from ifam.types import Batch


@dataclass(frozen=True)
class CertifiedImage:
    """One image.

    Attributes:
        index: Its index in the split.
        answer: Name of the class that the windows vote for.
        ordinary: Name of the class that the model answers for the whole image.
        label: Name of the true class; None if unknown.
        group: Name of its group; None if unknown.
        votes: Class of each window, from left to right and from top to bottom; -1 where it abstained.
        size: Largest region of patches that provably cannot change the answer, wherever it is: so many columns, or so
            many rows and columns; 0 for none.
        pixels: The same in pixels, for regions that need not begin at the edge of a patch.
    """

    index: int
    answer: str
    ordinary: str
    label: str | None
    group: str | None
    votes: tuple[int, ...]
    size: int
    pixels: int


@dataclass(frozen=True)
class RegionSize:
    """What is certain against any change of the pixels in one region of a size.

    Attributes:
        size: Columns, or rows and columns, of patches that the region may touch.
        pixels: Largest region that touches no more of them wherever it begins.
        certain: Share of images whose answer such a region cannot change.
        accuracy: Images whose answer is right, and certain; None if the labels are unknown.
    """

    size: int
    pixels: int
    certain: float
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Certification:
    """The outcome of `ifam.certify`.

    Attributes:
        window_kind: What votes: bands of "columns" of patches, or square "blocks".
        window_width: Their width in patches.
        window_count: Their number.
        size: Size of the region asked for, in patches.
        grid: Rows and columns of patches.
        patch: Pixels of a patch, down and across.
        ordinary: Accuracy of the model's answers to whole images; None if the labels are unknown.
        vote: Accuracy of the votes.
        agreement: Share of images for which both are the same.
        abstained: Share of the windows that abstained, since nothing in them was visible.
        regions: Each size of regions, from one patch to the first against which nothing is certain, and at least to
            `size`.
        seconds: Time of one ordinary answer, from pixels to logits.
        vote_seconds: Time of one vote.
        attacks: What attacks inside of regions of `size` changed; None if none were tried.
        images: A row for each image.
        conditions: What was certified, and how.
    """

    window_kind: WindowKind
    window_width: int
    window_count: int
    size: int
    grid: tuple[int, int]
    patch: tuple[int, int]
    ordinary: Accuracy | None
    vote: Accuracy | None
    agreement: float
    abstained: float
    regions: tuple[RegionSize, ...]
    seconds: float
    vote_seconds: float
    attacks: Attacks | None
    images: tuple[CertifiedImage, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> RegionSize:
        """The figures for the region asked for."""
        return self.regions[self.size - 1]

    @property
    def cost(self) -> float:
        """Time of a vote, as a multiple of that of an ordinary answer."""
        return self.vote_seconds / self.seconds

    @property
    def passed(self) -> bool:
        """Whether no attack changed an answer that is certain."""
        return self.attacks is None or self.attacks.changed_certain == 0

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"kind": "certification", "passed": self.passed, **to_json(self)}


def certify(
    model: Classifier,
    images: Tensor | Batch | Benchmark,
    *,
    kind: WindowKind = "columns",
    width: int = 1,
    region: int | None = None,
    region_pixels: int | None = None,
    split: str | None = None,
    limit: int = 1000,
    attack: int = 20,
    steps: int = 200,
    batch_size: int = 64,
    num_resamples: int = 1000,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> Certification:
    """Certify answers against any change of the pixels in one region, wherever it is. The mode is restored afterwards.

    The answers are those of a vote: each window of the image votes without seeing anything else, and the class of most
    votes wins, of several the first. Windows do not wrap around the edges of the image; one in which nothing is visible
    abstains.

    Args:
        model: An `IFAM` or a `PlainViT`; trained with `TrainConfig.window_share`, it votes better.
        images: Normalized images [B, 3, S, S], a batch of them with labels, or a benchmark.
        kind: Bands of "columns" of patches against regions of columns, or "blocks" against squares.
        width: Width of the windows in patches.
        region: Size of the region in patches, 1 without either.
        region_pixels: Its size in pixels, for one that may begin anywhere, in place of `region`.
        split: Split of a benchmark; by default "test", or "val" if there is no test split.
        limit: Largest number of images, evenly spaced in the split.
        attack: Images that are attacked inside of the region, evenly spaced among these; 0 for none.
        steps: Steps of each gradient attack.
        batch_size: Images at a time.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of everything random.
        conditions: Recorded with the result.

    Raises:
        IfamError: The model cannot see windows alone, the width or the region does not fit the image, or there is no
            image.
    """
    if not isinstance(model, Classifier):
        raise IfamError(
            f"The model is a {type(model).__name__}, but an IFAM or a PlainViT of this package is expected."
        )
    check_numbers(COUNT, limit=limit, batch_size=batch_size, steps=steps)
    check_numbers(NATURAL, attack=attack, num_resamples=num_resamples)
    grid, device = model.window_grid, device_of(model)
    windows = all_windows(kind, width, grid).to(device)
    size = region_size(model, kind, region, region_pixels)
    inputs = _inputs(model, images, split, limit, batch_size)
    count = len(inputs.indices)
    with evaluating(model):
        votes = _vote(model, inputs, windows, evenly_spaced(count, attack) if attack else ())
        attacks = _attacked(model, votes, windows, size, kind, steps, seed)
    classes, side = model.config.num_classes, _side(model, kind)
    answers, sizes = answers_of(votes.windows, classes), certified_sizes(votes.windows, kind, windows, classes)

    def accuracy(answered: Tensor, counted: Tensor) -> Accuracy | None:
        figures: Accuracy | None = _accuracy(votes, inputs, answered, counted, num_resamples, seed)
        return figures

    regions = [
        RegionSize(one, pixels_covered(one, side), _share(sizes >= one), accuracy(answers, sizes >= one))
        for one in range(1, min(widest(kind, grid), max(size, int(sizes.max()) + 1)) + 1)
    ]
    everything = torch.ones(count, dtype=torch.bool)
    settings = {
        "kind": kind,
        "width": width,
        "region": size,
        "image count": count,
        "seed": seed,
        "batch size": batch_size,
    }
    return Certification(
        window_kind=kind,
        window_width=width,
        window_count=len(windows),
        size=size,
        grid=grid,
        patch=model.input_backbone.patch_size,
        ordinary=accuracy(votes.ordinary, everything),
        vote=accuracy(answers, everything),
        agreement=_share(votes.ordinary == answers),
        abstained=_share(votes.windows == ABSTAINED),
        regions=tuple(regions),
        seconds=votes.seconds[0],
        vote_seconds=votes.seconds[1],
        attacks=attacks,
        images=tuple(_rows(votes, inputs, answers, sizes, side)),
        conditions={**(conditions or {}), **settings, **record()},
    )


def region_size(model: Classifier, kind: WindowKind, region: int | None, pixels: int | None) -> int:
    """Size of a region in patches.

    Args:
        model: The model.
        kind: Kind of the windows.
        region: The size in patches; 1 where neither is given.
        pixels: The size in pixels, for a region that begins anywhere, in place of it.

    Raises:
        IfamError: The region is empty, larger than the image, or given twice.
    """
    if region is not None and pixels is not None:
        raise IfamError("The region is given in patches and in pixels; give region or region_pixels, not both.")
    region = 1 if region is None else region
    largest, (height, width) = widest(kind, model.window_grid), model.image_size
    if pixels is not None:
        most = width if kind == "columns" else min(height, width)
        if pixels not in COUNT or pixels > most:
            raise IfamError(f"The region is {pixels} pixels wide, but 1 to {most} are expected: it is in the image.")
        return min(largest, patches_touched(pixels, _side(model, kind)))
    if region not in COUNT or region > largest:
        raise IfamError(
            f"The region is {region} patches wide, but 1 to {largest} are expected: the image has no more of them."
        )
    return region


def _side(model: Classifier, kind: WindowKind) -> int:
    """Pixels of a patch in the direction in which regions are measured."""
    height, width = model.input_backbone.patch_size
    return width if kind == "columns" else min(height, width)


@dataclass(frozen=True)
class _Inputs:
    """Images in batches, with the names of their classes and groups.

    Attributes:
        batches: The images.
        indices: Index of each in its split.
        benchmark: Names of classes and groups.
        split: The split; "images" for images of none.
        known: Whether the labels are known.
    """

    batches: Iterable[Batch]
    indices: Sequence[int]
    benchmark: Benchmark
    split: str
    known: bool = True


def _inputs(
    model: Classifier, images: Tensor | Batch | Benchmark, split: str | None, limit: int, batch_size: int
) -> _Inputs:
    """Convert any of the accepted inputs."""
    classes = model.config.class_labels
    if isinstance(images, Benchmark):
        if len(images.class_names) != len(classes):
            raise IfamError(
                f"{images.name} has {len(images.class_names)} classes, but the model has {len(classes)}; give the data "
                f"that it was trained on."
            )
        split = split or images.default_eval_split
        examples = TransformedDataset(images.split(split), model.image_size, model.normalization)
        indices = evenly_spaced(len(examples), limit) if len(examples) else []
        loader = DataLoader(Subset(examples, indices), batch_size=batch_size, collate_fn=collate)
        inputs = _Inputs(loader, indices, images, split)
    elif not isinstance(images, Tensor | Batch):
        raise IfamError(f"The images are a {type(images).__name__}, but a tensor, a Batch or a Benchmark is expected.")
    else:
        known = isinstance(images, Batch)
        batch = images if isinstance(images, Batch) else Batch(images, torch.zeros(len(images), dtype=torch.long))
        batch = batch[:limit]
        groups = () if batch.groups is None else tuple(f"group {g}" for g in range(int(batch.groups.max()) + 1))
        batches = [batch[rows] for rows in chunks(len(batch.images), batch_size)]
        inputs = _Inputs(
            batches, range(len(batch.images)), Benchmark("images", {}, classes, groups or classes), "images", known
        )
    if not len(inputs.indices):
        raise IfamError(f"There is no image to certify in {inputs.split!r}; give one or more.")
    return inputs


@dataclass(frozen=True)
class _Votes:
    """What a model answered.

    Attributes:
        windows: Vote of each window [N, V].
        ordinary: Answer to the whole image [N].
        rows: Label and group of each image.
        seconds: Time of an ordinary answer and of a vote.
        kept: The images that will be attacked, and their places among all.
    """

    windows: Tensor
    ordinary: Tensor
    rows: Mapping[str, Tensor]
    seconds: tuple[float, float]
    kept: Tensor
    places: Sequence[int]


def _vote(model: Classifier, inputs: _Inputs, windows: Windows, keep: Sequence[int]) -> _Votes:
    """Both answers to all images, with the time that they take."""
    device, count = device_of(model), len(inputs.indices)
    clocks = Stopwatch(device), Stopwatch(device)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("windows", "ordinary", "label", "group", "kept")}
    done = 0
    with ProgressBar() as bar:
        task = bar.add_task("certifying", total=count)
        for batch in inputs.batches:
            images = batch.images.to(device)
            if not done:
                # What is set up in a first call is not the cost of either.
                window_votes(model, images[:1], windows)
            with clocks[0], torch.no_grad():
                logits = model(images).logits
            with clocks[1]:
                columns["windows"].append(window_votes(model, images, windows))
            columns["ordinary"].append(finite_logits(logits).argmax(dim=1).cpu())
            columns["label"].append(batch.labels.cpu())
            columns["group"].append(batch.groups_or_classes.cpu())
            columns["kept"].append(batch.images[[i - done for i in keep if done <= i < done + len(images)]].cpu())
            done += len(images)
            bar.advance(task, len(images))
    joined = {name: torch.cat(values) for name, values in columns.items()}
    seconds = clocks[0].seconds / count, clocks[1].seconds / count
    rows = {name: joined[name] for name in ("label", "group")}
    return _Votes(joined["windows"], joined["ordinary"], rows, seconds, joined["kept"], keep)


def _attacked(
    model: Classifier, votes: _Votes, windows: Windows, size: int, kind: WindowKind, steps: int, seed: int
) -> Attacks | None:
    """What attacks on the images that were kept change; None where there are none."""
    if not votes.places:
        return None
    device, classes = device_of(model), model.config.num_classes
    regions = all_windows(kind, size, windows.grid)
    before, touched = votes.windows[list(votes.places)], touched_windows(windows, regions)
    attack = weakest_regions(votes.kept.to(device), before, windows, regions, touched, classes)
    certain = (worst_leads(before, touched, classes) >= 0).all(dim=1)
    with ProgressBar() as bar:
        task = bar.add_task("attacking", total=RANDOM + steps)
        changed = attack_votes(model, attack, steps=steps, seed=seed, advance=lambda: bar.advance(task))
    return Attacks(
        size=size,
        images=len(certain),
        certain=int(certain.sum()),
        changed_certain=int((changed & certain).sum()),
        changed_others=int((changed & ~certain).sum()),
        random=RANDOM,
        steps=steps,
    )


def _accuracy(votes: _Votes, inputs: _Inputs, answers: Tensor, counted: Tensor, resamples: int, seed: int) -> Any:
    """Accuracy of answers, of which some count as wrong whatever they are; None if the labels are unknown."""
    if not inputs.known:
        return None
    right = (answers == votes.rows["label"]) & counted
    rows = {**votes.rows, "predictor.answer": answers, "predictor.right": right}
    return summarize(rows, inputs.benchmark, inputs.split, resamples, seed).predictor


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _rows(votes: _Votes, inputs: _Inputs, answers: Tensor, sizes: Tensor, side: int) -> Iterator[CertifiedImage]:
    """A row for each image."""
    classes, groups = inputs.benchmark.class_names, inputs.benchmark.group_names
    labels, grouped = votes.rows["label"].tolist(), votes.rows["group"].tolist()
    for i, (index, answer, ordinary) in enumerate(
        zip(inputs.indices, answers.tolist(), votes.ordinary.tolist(), strict=True)
    ):
        yield CertifiedImage(
            index=index,
            answer=classes[answer],
            ordinary=classes[ordinary],
            label=classes[labels[i]] if inputs.known else None,
            group=groups[grouped[i]] if inputs.known else None,
            votes=tuple(votes.windows[i].tolist()),
            size=int(sizes[i]),
            pixels=pixels_covered(int(sizes[i]), side),
        )
