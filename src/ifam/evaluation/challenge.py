"""The backgrounds challenge (Xiao et al., arXiv 2006.09994): each object pasted on every background.

An object counts as robust only if no background fools the model. As in the public script, a pixel of the composite is
the object's where its mask says so and the background's elsewhere, at the resolution of the data set; the model then
sees the whole composite, resized, cropped and normalized like any image. With 4,050 objects and as many backgrounds
that is up to 16 million images, so a run keeps a log, a line a batch, and goes on where it was stopped.
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
from ifam.data import Benchmark, Prepared
from ifam.data.records import ImageFiles
from ifam.errors import IfamError
from ifam.evaluation.bootstrap import LEVEL, Interval
from ifam.evaluation.pairings import Fooled, Pair, PairScheduler
from ifam.model_files import weights_digest
from ifam.models.base import Classifier, device_of, evaluating
from ifam.progress import ProgressBar
from ifam.run_log import RunLog
from ifam.types import Batch

NONE = "none of the classes"


@dataclass(frozen=True)
class FooledObject:
    """An object about which a background fooled the model.

    Attributes:
        object: Name of the object.
        object_class: Its class.
        background: Name of the first background found to fool the model; which one that is depends on the order, that
            there is one does not.
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
    """How many objects of a class are robust.

    Attributes:
        robust: Robust objects.
        count: Objects.
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
    """The outcome of a challenge.

    Attributes:
        accuracy: Share of robust objects.
        interval: Its Wilson interval.
        count: Objects.
        robust: Names of the robust ones.
        fooled: All other objects.
        classes: The same by class.
        backgrounds: For each class of backgrounds, how many objects one of them fooled first.
        answers: How many objects were fooled into each class; "none of the classes" for answers that are none.
        pairs: Composites that the model saw.
        all_pairs: Composites there are.
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
    """Look for a background that fools the model, for each object.

    Args:
        model: An `IFAM` or a baseline. Left in the mode it was in.
        benchmark: It says which class an answer stands for.
        objects: Images with the mask of their object.
        backgrounds: Images of the same size.
        path: File of the log; where it is there, the run goes on from its end.
        settings: Whatever else the run depends on; what is in the log must be the same.
        batch_size: Composites at a time.
        seed: Seed of the order of backgrounds.

    Raises:
        IfamError: The log is that of another run, is damaged or cannot be written, an image is damaged, or object
            and background have not the same size.
    """
    if batch_size < 1:
        raise IfamError(f"batch_size is {batch_size}, but at least 1 is needed.")
    pairings = PairScheduler(objects.labels, len(backgrounds), batch_size, seed)
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
    log = _continued(RunLog(path), header, pairings)
    with evaluating(model), ProgressBar() as bar:
        task = bar.add_task("challenge", total=len(objects) * len(backgrounds), completed=pairings.decided)
        for fooled, robust in _outcomes(model, benchmark, objects, backgrounds, pairings):
            log.add({"fooled": fooled, "robust": robust})
            counts = f"{len(pairings.robust)} robust, {len(pairings.fooled)} fooled"
            bar.update(task, completed=pairings.decided, description=counts)
    return _summary(benchmark, objects, backgrounds, pairings)


@torch.inference_mode()
def _outcomes(
    model: Classifier, benchmark: Benchmark, objects: ImageFiles, backgrounds: ImageFiles, pairings: PairScheduler
) -> Iterator[tuple[list[Fooled], list[int]]]:
    """Batch by batch, who was fooled and who has met every background."""
    things, scenes = _ObjectCache(objects), _BackgroundCache(backgrounds)
    device = device_of(model)
    prepare = Prepared([], model.image_size, model.normalization).transform
    while pairs := pairings.batch():
        pasted, masks = _paste(pairs, things, scenes)
        prepared = prepare({"image": tv_tensors.Image(pasted.to(device)), "mask": tv_tensors.Mask(masks.to(device))})
        labels = torch.tensor([objects.records[thing].label for thing, _ in pairs], device=device)
        shown = Batch(prepared["image"].as_subclass(Tensor), labels, masks=prepared["mask"].as_subclass(Tensor))
        answers = benchmark.answers(model.predict_batch(shown).logits.float())
        wrong = [
            (thing, background, answer)
            for (thing, background), answer, label in zip(pairs, answers.tolist(), labels.tolist(), strict=True)
            if answer != label
        ]
        first, through = pairings.settle(pairs, wrong)
        things.forget([thing for thing, *_ in first] + through)
        yield first, through


# ------------------------------------------------------------------------------------------------- pasting


class _ObjectCache:
    """Objects and their masks, kept while they are in the run."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.kept: dict[int, tuple[UInt8[Tensor, "3 H W"], Bool[Tensor, "H W"]]] = {}

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Bool[Tensor, "H W"]]:
        if index not in self.kept:
            example = self.files[index]
            self.kept[index] = as_bytes(example["image"]), example["mask"]
        return self.kept[index]

    def forget(self, indices: Sequence[int]) -> None:
        for index in indices:
            self.kept.pop(index, None)


class _BackgroundCache:
    """Backgrounds, each read once: all of ImageNet-9's take 610 MB."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.kept: dict[int, UInt8[Tensor, "3 H W"]] = {}

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        if index not in self.kept:
            self.kept[index] = as_bytes(self.files[index]["image"])
        return self.kept[index]


def _paste(
    pairs: Sequence[Pair], things: _ObjectCache, scenes: _BackgroundCache
) -> tuple[UInt8[Tensor, "B 3 H W"], Bool[Tensor, "B H W"]]:
    """The composites and the masks of their objects."""
    pasted, masks = [], []
    for thing, scene in pairs:
        (image, mask), background = things[thing], scenes[scene]
        for path, other in ((things.files.paths[thing], image), (scenes.files.paths[scene], background)):
            first = things[pairs[0][0]][0]
            if other.shape != first.shape:
                sizes = [f"{shape[2]} x {shape[1]}" for shape in (other.shape, first.shape)]
                raise IfamError(
                    f"{path} is {sizes[0]} pixels, but {things.files.paths[pairs[0][0]]} {sizes[1]}; give images of "
                    f"one size, as those of the archive are."
                )
        pasted.append(torch.where(mask, image, background))
        masks.append(mask)
    return torch.stack(pasted), torch.stack(masks)


def as_bytes(image: Any) -> UInt8[Tensor, "3 H W"]:
    """An image of any kind as colours from 0 to 255."""
    values: Tensor = v2.functional.to_dtype(v2.functional.to_image(image), torch.uint8, scale=True)
    return values.as_subclass(Tensor)


# ----------------------------------------------------------------------------------------------------- log


def _continued(log: RunLog, header: Mapping[str, Any], pairings: PairScheduler) -> RunLog:
    """The log, once the outcomes in it are those of the pairings, or with its header where it is new."""
    if not log.lines:
        log.add(header)
        return log
    for number, entry in log.entries():
        damaged = IfamError(f"{log.path}, line {number} does not fit what is before it; remove the file to start over.")
        if not isinstance(entry, dict):
            raise damaged
        if number == 1:
            _check(log.path, entry, header)
            continue
        pairs = pairings.batch()
        if not (entry.keys() == {"fooled", "robust"} and all(tuple(one[:2]) in pairs for one in entry["fooled"])):
            raise damaged
        fooled = [(thing, background, answer) for thing, background, answer in entry["fooled"]]
        if pairings.settle(pairs, fooled) != (fooled, entry["robust"]):
            raise damaged
    return log


def _check(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other conditions."""
    now = json.loads(json.dumps(now))
    for name in [*now, *(name for name in before if name not in now)]:
        if before.get(name) != now.get(name):
            raise IfamError(
                f"{path} is of a run with {name} {before.get(name)!r}, but now it is {now.get(name)!r}; choose another "
                f"--out, or remove the file to start over."
            )


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------- result


def _summary(benchmark: Benchmark, objects: ImageFiles, backgrounds: ImageFiles, pairings: PairScheduler) -> Challenge:
    names, robust = benchmark.class_names, sorted(pairings.robust)
    fooled = [
        FooledObject(
            object=name_of(objects.paths[thing]),
            object_class=names[objects.records[thing].label],
            background=name_of(backgrounds.paths[scene]),
            background_class=names[backgrounds.records[scene].label],
            answer=NONE if answer < 0 else names[answer],
        )
        for thing, (scene, answer) in sorted(pairings.fooled.items())
    ]
    labels = objects.labels
    classes = {}
    for label, name in enumerate(names):
        if number := labels.count(label):
            classes[name] = _share(sum(labels[thing] == label for thing in robust), number)
    whole = _share(len(robust), len(objects))
    return Challenge(
        accuracy=whole.accuracy,
        interval=(whole.low, whole.high),
        count=len(objects),
        robust=[name_of(objects.paths[thing]) for thing in robust],
        fooled=fooled,
        classes=classes,
        backgrounds=_counts([one.background_class for one in fooled], names),
        answers=_counts([one.answer for one in fooled], [*names, NONE]),
        pairs=pairings.met,
        all_pairs=len(objects) * len(backgrounds),
    )


def _share(robust: int, count: int) -> ClassRobustness:
    """A share of objects, with its Wilson interval."""
    low, high = binomtest(robust, count).proportion_ci(LEVEL, method="wilson")
    return ClassRobustness(robust, count, robust / count, float(low), float(high))


def _counts(listed: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    return {name: listed.count(name) for name in names if name in listed}


def name_of(path: Path) -> str:
    """A file of a class folder."""
    return f"{path.parent.name}/{path.name}"
