"""The backgrounds challenge (Xiao et al., arXiv 2006.09994): each object pasted on every background.

An object is robust if no background fools the model. As in the public script, object and background are composited with
the object's mask at the resolution of the data set; the model sees the composite resized, cropped and normalized like
any image. With 4,050 objects and as many backgrounds there are up to 16 million composites, so a run writes a log with
a line per batch, and continues from it after an interruption.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torchvision import tv_tensors
from torchvision.transforms import v2

from ifam._typing import Bool, Tensor, UInt8
from ifam.data import Benchmark, TransformedDataset
from ifam.data.records import ImageFiles
from ifam.errors import IfamError
from ifam.evaluation.bootstrap import LEVEL, Interval
from ifam.evaluation.pairings import Fooled, Pair, PairScheduler
from ifam.model_files import weights_digest
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.progress import ProgressBar
from ifam.run_log import RunLog
from ifam.types import Batch

NONE = "none of the classes"


@dataclass(frozen=True)
class FooledObject:
    """An object with a background that fooled the model.

    Attributes:
        object: Name of the object.
        object_class: Its class.
        background: Name of the first background that fooled the model, which depends on the order of evaluation.
        background_class: Its class.
        answer: The model's answer.
    """

    object: str
    object_class: str
    background: str
    background_class: str
    answer: str


@dataclass(frozen=True)
class ClassRobustness:
    """Robustness of one class.

    Attributes:
        robust: Number of robust objects.
        count: Number of objects.
        accuracy: Share of robust objects.
        low: Lower end of its Wilson interval.
        high: Upper end.
    """

    robust: int
    count: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Challenge:
    """The result of a challenge.

    Attributes:
        accuracy: Share of robust objects.
        interval: Its Wilson interval.
        count: Number of objects.
        robust: Names of the robust objects.
        fooled: All other objects.
        classes: Robustness of each class.
        backgrounds: Number of objects fooled first by a background of each class.
        answers: Number of objects fooled into each class, or into "none of the classes".
        pairs: Number of composites evaluated.
        all_pairs: Number of possible composites.
    """

    accuracy: float
    interval: Interval
    count: int
    robust: list[str]
    fooled: list[FooledObject]
    classes: dict[str, ClassRobustness]
    backgrounds: dict[str, int]
    answers: dict[str, int]
    pairs: int
    all_pairs: int


def run_challenge(
    model: Classifier,
    benchmark: Benchmark,
    objects: ImageFiles,
    backgrounds: ImageFiles,
    path: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> Challenge:
    """Search for a background that fools the model, for each object.

    Args:
        model: An `IFAM` or a baseline. Its mode is restored afterwards.
        benchmark: Maps logits to classes.
        objects: Images with masks of their objects.
        backgrounds: Images of the same size.
        path: File of the log; if it exists, the run continues from its end.
        settings: Other settings that the run depends on; those in the log must be equal.
        batch_size: Composites at a time.
        seed: Seed of the order of backgrounds.

    Raises:
        IfamError: The log belongs to another run, is damaged or cannot be written, an image is damaged, or object
            and background differ in size.
    """
    if batch_size < 1:
        raise IfamError(f"batch_size is {batch_size}, but at least 1 is needed.")
    scheduler = PairScheduler(objects.labels, len(backgrounds), batch_size, seed)
    header = {
        "weights": weights_digest(model.state_dict()),
        "config": _hash(json.dumps(asdict(model.config), sort_keys=True, default=str)),
        **(settings or {}),
        "batch_size": batch_size,
        "seed": seed,
        "objects": len(objects),
        "backgrounds": len(backgrounds),
        "files": _hash("\n".join(map(name_of, [*objects.paths, *backgrounds.paths]))),
    }
    log = _resume(RunLog(path), header, scheduler)
    with evaluating(model), ProgressBar() as bar:
        task = bar.add_task("challenge", total=len(objects) * len(backgrounds), completed=scheduler.decided)
        for fooled, robust in _outcomes(model, benchmark, objects, backgrounds, scheduler):
            log.add({"fooled": fooled, "robust": robust})
            counts = f"{len(scheduler.robust)} robust, {len(scheduler.fooled)} fooled"
            bar.update(task, completed=scheduler.decided, description=counts)
    return _summary(benchmark, objects, backgrounds, scheduler)


@torch.inference_mode()
def _outcomes(
    model: Classifier, benchmark: Benchmark, objects: ImageFiles, backgrounds: ImageFiles, scheduler: PairScheduler
) -> Iterator[tuple[list[Fooled], list[int]]]:
    """For each batch, the fooled objects, and the robust ones: those evaluated on every background."""
    object_cache, background_cache = _ObjectCache(objects), _BackgroundCache(backgrounds)
    device = device_of(model)
    prepare = TransformedDataset([], model.image_size, model.normalization).transform
    while pairs := scheduler.batch():
        pasted, masks = _paste(pairs, object_cache, background_cache)
        prepared = prepare({"image": tv_tensors.Image(pasted.to(device)), "mask": tv_tensors.Mask(masks.to(device))})
        labels = torch.tensor([objects.records[index].label for index, _ in pairs], device=device)
        batch = Batch(prepared["image"].as_subclass(Tensor), labels, masks=prepared["mask"].as_subclass(Tensor))
        answers = benchmark.answers(finite_logits(model.predict_batch(batch).logits))
        wrong = [
            (index, background, answer)
            for (index, background), answer, label in zip(pairs, answers.tolist(), labels.tolist(), strict=True)
            if answer != label
        ]
        fooled, robust = scheduler.record(pairs, wrong)
        object_cache.forget([index for index, *_ in fooled] + robust)
        yield fooled, robust


# ------------------------------------------------------------------------------------------------- pasting


class _ObjectCache:
    """Objects and their masks, in memory while undecided."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.cache: dict[int, tuple[UInt8[Tensor, "3 H W"], Bool[Tensor, "H W"]]] = {}

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Bool[Tensor, "H W"]]:
        if index not in self.cache:
            example = self.files[index]
            self.cache[index] = as_bytes(example["image"]), example["mask"]
        return self.cache[index]

    def forget(self, indices: Sequence[int]) -> None:
        for index in indices:
            self.cache.pop(index, None)


class _BackgroundCache:
    """Backgrounds, each read once; all of ImageNet-9 take 610 MB."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.cache: dict[int, UInt8[Tensor, "3 H W"]] = {}

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        if index not in self.cache:
            self.cache[index] = as_bytes(self.files[index]["image"])
        return self.cache[index]


def _paste(
    pairs: Sequence[Pair], objects: _ObjectCache, backgrounds: _BackgroundCache
) -> tuple[UInt8[Tensor, "B 3 H W"], Bool[Tensor, "B H W"]]:
    """The composites and the masks of their objects."""
    pasted, masks = [], []
    for i, j in pairs:
        (image, mask), background = objects[i], backgrounds[j]
        for path, pixels in ((objects.files.paths[i], image), (backgrounds.files.paths[j], background)):
            first = objects[pairs[0][0]][0]
            if pixels.shape != first.shape:
                sizes = [f"{shape[2]} x {shape[1]}" for shape in (pixels.shape, first.shape)]
                raise IfamError(
                    f"{path} is {sizes[0]} pixels, but {objects.files.paths[pairs[0][0]]} {sizes[1]}; give images of "
                    f"one size, as in the archive."
                )
        pasted.append(torch.where(mask, image, background))
        masks.append(mask)
    return torch.stack(pasted), torch.stack(masks)


def as_bytes(image: Any) -> UInt8[Tensor, "3 H W"]:
    """Convert an image of any kind to RGB values from 0 to 255."""
    values: Tensor = v2.functional.to_dtype(v2.functional.to_image(image), torch.uint8, scale=True)
    return values.as_subclass(Tensor)


# ----------------------------------------------------------------------------------------------------- log


def _resume(log: RunLog, header: Mapping[str, Any], scheduler: PairScheduler) -> RunLog:
    """Replay the outcomes of the log into the scheduler; write the header to a new log."""
    if log.empty:
        log.add(header)
        return log
    for number, entry in log.entries():
        damaged = IfamError(f"{log.path}, line {number} does not fit those before it; remove the file to start over.")
        if not isinstance(entry, dict):
            raise damaged
        if number == 1:
            _check(log.path, entry, header)
            continue
        pairs = scheduler.batch()
        try:
            fooled = [(index, background, answer) for index, background, answer in entry["fooled"]]
            fits = entry.keys() == {"fooled", "robust"} and all(one[:2] in pairs for one in fooled)
        except (KeyError, TypeError, ValueError):
            raise damaged from None
        if not fits or scheduler.record(pairs, fooled) != (fooled, entry["robust"]):
            raise damaged
    return log


def _check(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise an error if the log belongs to a run under other conditions."""
    now = json.loads(json.dumps(now))
    for name in [*now, *(name for name in before if name not in now)]:
        if before.get(name) != now.get(name):
            raise IfamError(
                f"{path} belongs to a run with {name} {before.get(name)!r}, but now it is {now.get(name)!r}; choose "
                f"another --out, or remove the file to start over."
            )


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------- result


def _summary(benchmark: Benchmark, objects: ImageFiles, backgrounds: ImageFiles, scheduler: PairScheduler) -> Challenge:
    names, robust = benchmark.class_names, sorted(scheduler.robust)
    fooled = [
        FooledObject(
            object=name_of(objects.paths[index]),
            object_class=names[objects.records[index].label],
            background=name_of(backgrounds.paths[background]),
            background_class=names[backgrounds.records[background].label],
            answer=NONE if answer < 0 else names[answer],
        )
        for index, (background, answer) in sorted(scheduler.fooled.items())
    ]
    labels = objects.labels
    classes = {}
    for label, name in enumerate(names):
        if number := labels.count(label):
            classes[name] = _share(sum(labels[index] == label for index in robust), number)
    overall = _share(len(robust), len(objects))
    return Challenge(
        accuracy=overall.accuracy,
        interval=(overall.low, overall.high),
        count=len(objects),
        robust=[name_of(objects.paths[index]) for index in robust],
        fooled=fooled,
        classes=classes,
        backgrounds=_counts([one.background_class for one in fooled], names),
        answers=_counts([one.answer for one in fooled], [*names, NONE]),
        pairs=scheduler.evaluated,
        all_pairs=len(objects) * len(backgrounds),
    )


def _share(robust: int, count: int) -> ClassRobustness:
    """The share of robust objects with its Wilson interval."""
    low, high = binomtest(robust, count).proportion_ci(LEVEL, method="wilson")
    return ClassRobustness(robust, count, robust / count, float(low), float(high))


def _counts(listed: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    return {name: listed.count(name) for name in names if name in listed}


def name_of(path: Path) -> str:
    """Name of a file with the folder of its class."""
    return f"{path.parent.name}/{path.name}"
