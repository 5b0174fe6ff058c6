"""Rows of a batch of images, on one device or on several."""

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from ifam._typing import Float, Tensor
from ifam.errors import IfamError, first_line
from ifam.evaluation.conformal import Calibration
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.models.interventions import Intervention
from ifam.models.timm_interface import features_of, recorded_features
from ifam.prediction.reading import Item, ReadBatch
from ifam.prediction.row import DISAGREES, EVERYTHING, NO_CLASS, NOTHING, Maps, Prediction
from ifam.types import Output

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M")

_TOP = 5
# Of a larger share, nearly everything is visible: training warns of such a mask, too.
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Rows:
    """Classifies batches of files that were read.

    Attributes:
        interventions: Changes to the selection of every image.
        calibration: What gives the sets of classes.
        white: The value that is white in images of more than 8 bits, to read a file again.
    """

    interventions: Sequence[Intervention] = ()
    calibration: Calibration | None = None
    white: int = 0

    def of(self, model: Classifier, batch: ReadBatch) -> list[tuple[Item, Prediction]]:
        """A row for each file of a batch, those that could not be read too, in order."""
        good = [item for item in batch.items if not item.error]
        answers = iter(self._answers(model, good, batch.images) if good else ())
        return [
            (item, Prediction(item.found.path, error=item.error) if item.error else next(answers))
            for item in batch.items
        ]

    @torch.inference_mode()
    def _answers(
        self, model: Classifier, items: Sequence[Item], images: Float[Tensor, "B 3 S1 S2"]
    ) -> list[Prediction]:
        with evaluating(model), recorded_features(model) as features:
            output = model(images.to(device_of(model)), self.interventions)
        logits = finite_logits(output.logits)
        probabilities = logits.softmax(dim=1).cpu()
        names = model.config.class_labels
        sets, familiarity = None, None
        if self.calibration is not None:
            familiarity = self.calibration.familiarity(features_of(model, features, len(images)))
            sets = self.calibration.sets(output.logits, familiarity)
        selector = None
        if output.predictor_logits is not None and output.selector_logits is not None:
            selector = output.selector_logits.float().softmax(dim=1).cpu()
        visible, empty = output.visible_fraction.tolist(), output.empty.tolist()
        maps = self._maps(model, output)
        rows = []
        for i, shares in enumerate(probabilities):
            best = shares.topk(min(_TOP, len(names)))
            label = int(best.indices[0])
            top = tuple((names[c], p) for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True))
            flags = [NOTHING] * empty[i] + [EVERYTHING] * (visible[i] > _NEARLY_ALL)
            row = Prediction(items[i].found.path, label, *top[0], top, visible[i], maps=maps[i])
            row = replace(row, scaling=items[i].scaling or None)
            if sets is not None:
                ordered = [c for c in shares.argsort(descending=True).tolist() if sets[i, c]]
                row = replace(row, classes=tuple(names[c] for c in ordered))
                flags += [NO_CLASS] * (not ordered)
            if familiarity is not None:
                row = replace(row, familiarity=float(familiarity[i].max()))
            if selector is not None:
                own = int(selector[i].argmax())
                row = replace(row, selector_class=names[own], selector_probability=float(selector[i, own]))
                flags += [DISAGREES] * (own != label)
            if output.part_contributions is not None and output.prior is not None:
                added = tuple(output.part_contributions[i, :, label].tolist())
                row = replace(row, prior=float(output.prior[label]), contributions=added)
            rows.append(replace(row, flags=tuple(flags)))
        return rows

    def _maps(self, model: Classifier, output: Output) -> list[Maps]:
        """What a picture of each image is drawn from."""
        assert output.mask is not None, "models that select parts have a mask"
        kind = np.uint8 if model.config.num_parts < 256 else np.uint16
        parts = output.part_maps.argmax(dim=1).cpu().numpy().astype(kind)
        masks, shape = output.mask.cpu().numpy(), (output.mask.shape[1], output.mask.shape[2])
        return [
            Maps(
                parts=parts[i].copy(),
                num_parts=model.config.num_parts,
                packed=np.packbits(masks[i]),
                shape=shape,
                size=model.image_size,
                grid=model.mask_grid,
                white=self.white,
                seen=_seen(model, float(masks[i].mean())),
            )
            for i in range(len(masks))
        ]


def _seen(model: Classifier, share: float) -> str:
    """What a model saw of an image, in words."""
    if not model.masks_input:
        return f"{share:.0%} of the patches in the mask, which hides nothing"
    if not share:
        return "nothing visible: the answer is the predictor's prior"
    return f"{share:.0%} of the {'pixels' if model.masks_pixels else 'patches'} visible"


def dealt(batches: Iterable[T], models: Sequence[M], function: Callable[[M, T], R]) -> Generator[R, None, None]:
    """Results of batches in their order; several models work at once, each on every n-th batch.

    Args:
        batches: The batches, which are asked for as they are needed.
        models: Copies of one model on several devices.
        function: What a model makes of a batch.
    """
    if len(models) == 1:
        yield from (function(models[0], batch) for batch in batches)
        return
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        # One thread a model. Threads of its own begin with another number of threads, which decides about the last bit.
        pools = [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) for _ in models]
        for pool in pools:
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting: deque[Future[R]] = deque()
        for number, batch in enumerate(batches):
            index = number % len(models)
            waiting.append(pools[index].submit(function, models[index], batch))
            if len(waiting) == len(models):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def replicas(model: Classifier, devices: Sequence[torch.device | str]) -> list[Classifier]:
    """The model for each of several devices; itself where none is named, or where the first is its own.

    Raises:
        IfamError: There is no such device, or no room on it.
    """
    if not devices:
        return [model]
    try:
        first, *others = map(torch.device, devices)
        own = model if device_of(model) == first else _copied(model, first)
        return [own, *(_copied(model, device) for device in others)]
    except (RuntimeError, AssertionError) as error:
        raise IfamError(
            f"The model cannot be copied to the devices {', '.join(map(str, devices))} ({first_line(error)}); name "
            f"others, such as cpu or cuda:0."
        ) from error


def _copied(model: Classifier, device: torch.device) -> Classifier:
    """A copy on a device, which shares the weights of a model that is there."""
    if device_of(model) != device:
        return copy.deepcopy(model).to(device)
    # Weights in other places of the memory can give other last bits: kernels look at its alignment.
    return copy.deepcopy(model, {id(weight): weight for weight in (*model.parameters(), *model.buffers())})
