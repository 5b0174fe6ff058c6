"""One image, and its answer as parts are hidden and patches are painted in or out. Knows nothing of any interface."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration
from ifam.inference import display_crop, preprocess
from ifam.models.base import Classifier, device_of, finite_logits
from ifam.models.contributions import PartContributions, can_explain, explain_output
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, UseMask
from ifam.models.masking import make_mask
from ifam.models.timm_interface import features_of, recorded_features
from ifam.types import Output, Selection

# What a brush does: "this" belongs to the object, "not this" does not, "as found" is what the selector said.
BRUSHES = ("this", "not this", "as found")


@dataclass(frozen=True)
class Answer:
    """The answer to an image with the edits made so far.

    Attributes:
        output: The model's output for this one image.
        probabilities: Of each class.
        classes: The calibrated set: its classes, the most probable first. None without a calibration, and after edits:
            the stated error holds for the model's own masks alone.
        part_of_patch: Part of each patch of the selector; the number of parts is the background.
        edited: Whether something is hidden or painted.
        seconds: What it took, without drawing.
    """

    output: Output
    probabilities: Float[Tensor, " C"]
    classes: tuple[int, ...] | None
    part_of_patch: Int[Tensor, "H W"]
    edited: bool
    seconds: float

    @property
    def prediction(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """Its probability."""
        return float(self.probabilities.max())

    @property
    def mask(self) -> Bool[Tensor, "H2 W2"]:
        """What the predictor saw."""
        assert self.output.mask is not None, "the model masks its input"
        return self.output.mask[0].cpu()

    @property
    def empty(self) -> bool:
        """Whether the predictor saw nothing, so that the answer is its prior."""
        return bool(self.output.empty[0])


class Exploration:
    """An image in a model. The selector runs once; each answer after an edit costs one pass of the predictor.

    Args:
        model: A model that masks its input, in evaluation mode.
        image: The image, of any size and mode.
        calibration: Of this model, for sets of classes.

    Attributes:
        view: The part of the image that the model sees, for display.
        patches: Tokens of the selector, [1, P, D].
        grid: Rows and columns of what can be painted: the patches, or cells of a finer mask.
        dropped: Parts that are hidden.
        shown: Where "this" was painted, [rows, columns] of the grid.
        hidden: Where "not this" was painted.
    """

    def __init__(self, model: IFAM, image: Image.Image, calibration: Calibration | None = None) -> None:
        self.view = display_crop(image, model)
        self._pixels = preprocess(image, model)[None].to(device_of(model))
        with torch.no_grad():
            self.patches = model.selector.patches(self._pixels)
        self.use(model, calibration)
        self.reset()

    def use(self, model: IFAM, calibration: Calibration | None = None) -> None:
        """Answer with another model, whose selector has the same tokens (`ifam.correct`); edits are kept."""
        self._model, self._calibration = model, calibration
        self._answer: Answer | None = None
        self._explained: tuple[Answer, PartContributions | None] | None = None
        with torch.no_grad():
            self._selection = model.selector.select(self.patches)
        own, fine = model.selector.backbone.grid, model.mask_grid
        finer = model.masks_pixels and fine[0] > own[0] and fine[1] > own[1]
        self.grid = fine if finer else own

    @property
    def edited(self) -> bool:
        """Whether something is hidden or painted."""
        return bool(self.dropped) or self.painted

    @property
    def painted(self) -> bool:
        """Whether something is painted."""
        return bool(self.shown.any() or self.hidden.any())

    @property
    def parts(self) -> dict[int, float]:
        """Parts that the selector found, and the share of its patches that each has."""
        winners = self._selection.winners[0].flatten()
        counts = winners.bincount(minlength=self._model.config.num_parts + 1)[:-1].tolist()
        return {part: count / len(winners) for part, count in enumerate(counts) if count}

    def reset(self) -> None:
        """Take all edits back."""
        self._answer = None
        self.dropped: tuple[int, ...] = ()
        self.shown, self.hidden = (torch.zeros(self.grid, dtype=torch.bool) for _ in range(2))

    def repaint(self, shown: Bool[Tensor, "R C"], hidden: Bool[Tensor, "R C"]) -> None:
        """Put paint back that was there before."""
        self._answer, self.shown, self.hidden = None, shown, hidden

    def drop(self, parts: Iterable[int]) -> None:
        """Hide these parts, and no others.

        Raises:
            IfamError: The model has no such part.
        """
        dropped = tuple(sorted(set(parts)))
        DropParts(dropped)(self._selection)
        self.dropped, self._answer = dropped, None

    def paint(self, cells: Iterable[tuple[int, int]], brush: str, radius: int = 0) -> None:
        """Paint cells of the grid and what is within a radius of them.

        Args:
            cells: Row and column of each; those outside of the grid are ignored.
            brush: What they become, of `BRUSHES`.
            radius: In cells; 0 for the cells alone.

        Raises:
            IfamError: There is no such brush.
        """
        if brush not in BRUSHES:
            raise IfamError(f"There is no brush {brush!r}; use {', '.join(map(repr, BRUSHES))}.")
        self._answer = None
        rows, columns = (torch.arange(count)[:, None] for count in self.grid)
        touched = torch.zeros(self.grid, dtype=torch.bool)
        for row, column in cells:
            near = (rows - row).square() + (columns - column).square().T <= radius * radius
            touched |= near
        self.shown = self.shown & ~touched | (touched if brush == "this" else False)
        self.hidden = self.hidden & ~touched | (touched if brush == "not this" else False)

    @torch.no_grad()
    def answer(self) -> Answer:
        """The answer with all edits: one pass of the predictor, and none where nothing has changed since the last."""
        if self._answer is not None:
            return self._answer
        started = time.perf_counter()
        model, selection = self._model, self._edited_selection()
        with recorded_features(model) as features:
            output = model.classify(self._pixels, selection)
        logits = finite_logits(output.logits)
        classes = None
        if self._calibration is not None and not self.edited:
            familiarity = self._calibration.familiarity(features_of(model, features, 1))
            found = self._calibration.sets(logits, familiarity)[0]
            classes = tuple(c for c in logits[0].argsort(descending=True).tolist() if found[c])
        parts = selection.winners[0].cpu()
        probabilities, seconds = logits[0].softmax(dim=0).cpu(), time.perf_counter() - started
        self._answer = Answer(output, probabilities, classes, parts, self.edited, seconds)
        return self._answer

    @torch.no_grad()
    def contributions(self, answer: Answer) -> PartContributions | None:
        """What each part adds to the answer; None where the model has too many parts for that."""
        if self._explained is None or self._explained[0] is not answer:
            can = can_explain(self._model)
            self._explained = answer, explain_output(self._model, self._pixels, answer.output) if can else None
        return self._explained[1]

    def _edited_selection(self) -> Selection:
        """The selection with the edits: the parts of the selector, without those that are dropped, then the paint."""
        model, selection = self._model, self._selection
        if self.dropped:
            selection = DropParts(self.dropped)(selection)
        if not self.painted:
            return selection
        own = self.grid == model.selector.backbone.grid
        visible = (make_mask(selection) if own else model.mask(selection, self._pixels)).visible.cpu()
        # On what the selector found, so that a patch that is painted in belongs to the part it is most like.
        return UseMask((visible | self.shown) & ~self.hidden)(self._selection)


class PlainAnswer:
    """The answer of a model that sees the whole image, for comparison.

    Args:
        model: A classifier of the same classes.
        image: The image.
        class_names: The classes of the model that it stands beside.

    Attributes:
        prediction: The most probable class.
        confidence: Its probability.
    """

    @torch.no_grad()
    def __init__(self, model: Classifier, image: Image.Image, class_names: tuple[str, ...]) -> None:
        logits = finite_logits(model(preprocess(image, model)[None].to(device_of(model))).logits)[0]
        probabilities = logits.softmax(dim=0)
        self.prediction, self.confidence = class_names[int(probabilities.argmax())], float(probabilities.max())
