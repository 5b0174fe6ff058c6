"""The base classes of all models: one interface for training, evaluation, saving and loading."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from ifam import saved_models
from ifam._typing import Float, Tensor
from ifam.backbones.architecture import check_tensors
from ifam.backbones.backbone import Backbone, selector_backbone
from ifam.backbones.hf_dinov2 import resolve
from ifam.backbones.timm_compat import fill_buffers
from ifam.backbones.vit import check_saved_backbone
from ifam.config import ModelConfig
from ifam.data.base import FitAndCrop, ImageDataset, TransformedDataset, collate
from ifam.errors import IfamError, first_line, located
from ifam.model_files import CONFIG, WEIGHTS, read_safetensors
from ifam.models.interventions import Intervention
from ifam.models.selector import Selector
from ifam.models.timm_interface import TimmInterface
from ifam.models.windows import Windows
from ifam.types import Batch, Output, Selection

# The return type of loading; beartype does not support `Self` here.
_Model = TypeVar("_Model", bound="Classifier")


class Classifier(TimmInterface):
    """A model that is trained, evaluated, saved and loaded by name (see `ifam.models.registry.METHODS`).

    A subclass defines `forward`, `input_backbone` and `last_layer`.

    Args:
        config: The model's settings.

    Attributes:
        method: Name in `METHODS`, which is saved in `config.json`.
        variants: Other names in `METHODS` of this class, for models that are trained differently.
        needs_masks: Whether it is given a mask of each image, the true one or another.
        masks_input: Whether its prediction depends on visible patches alone.
        selects_parts: Whether it has a selector, so that its outputs have a selection and a mask.
        takes_interventions: Whether its predictor uses the mask of the selection, so that interventions have an effect.
        adds_parts: Whether its predictor can see each part alone (`ModelConfig.aggregation`).
    """

    method: str = "ifam"
    variants: ClassVar[tuple[str, ...]] = ()
    needs_masks: ClassVar[bool] = False
    masks_input: ClassVar[bool] = False
    selects_parts: ClassVar[bool] = False
    takes_interventions: ClassVar[bool] = False
    adds_parts: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        # Variants are not inherited: each name belongs to one class.
        cls.variants = cls.__dict__.get("variants", ())

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        if config.aggregation == "sum" and not self.adds_parts:
            raise IfamError(
                f"aggregation is 'sum', but the method {self.method} does not show the predictor one part at a time; "
                f"use 'joint', or the method ifam."
            )
        self.config = resolve(config)

    @property
    def input_backbone(self) -> Backbone:
        """The transformer that determines the size and normalization of the images."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.input_backbone.input_size

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations of the input."""
        mean, std = self.input_backbone.normalization
        return self.config.mean or mean, self.config.std or std

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images become the input, as JSON has it: resized until they cover the size, cropped, normalized."""
        mean, std = self.normalization
        return {"size": [*self.image_size], **FitAndCrop.description, "mean": [*mean], "std": [*std]}

    def prepare_batch(self, examples: ImageDataset, count: int | None = None) -> Batch:
        """Examples of a data set as the model takes them: resized, cropped, normalized, with labels and annotations.

        Args:
            examples: A split of a `Benchmark`, or any sequence of dicts like its own.
            count: The first so many; all where it is None.
        """
        prepared = TransformedDataset(examples, self.image_size, self.normalization)
        return collate([prepared[index] for index in range(len(prepared))[:count]])

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the mask: the patches of the transformer that classifies."""
        return self.input_backbone.grid

    @property
    def window_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches that windows are made of (`ifam.models.windows`).

        Raises:
            IfamError: The method needs whole images, or a pixel outside of a window could matter.
        """
        raise IfamError(
            f"A model of the method {self.method} cannot see windows of an image alone; give one of the methods ifam, "
            f"frozen_predictor, plain_vit or group_dro."
        )

    @property
    def masks_pixels(self) -> bool:
        """Whether its mask is finer than patches (`ModelConfig.mask_resolution`)."""
        return self.masks_input and self.config.mask_resolution != "patch"

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images.

        Args:
            images: Normalized images [B, 3, S, S].
            interventions: Changes to the selection, applied in order before the mask is made.
            masks: True where the object is, bool [B, S, S], for methods that are given a mask; others ignore it.

        Raises:
            IfamError: The model does not support interventions, or masks are needed and missing.
        """
        raise NotImplementedError

    def predict_batch(self, batch: Batch) -> Output:
        """Classify a batch; its `masks_to_give` are used if the model `needs_masks`."""
        out: Output = self(batch.images, masks=batch.masks_to_give)
        return out

    def classify_windows(self, images: Tensor, windows: Windows) -> Output:
        """Classify windows of images, of which alone anything is computed; pixels outside may hold anything.

        Args:
            images: Normalized images [B, 3, S, S].
            windows: The window of each, on the `window_grid`.

        Returns:
            The logits; for models that mask their input, the mask on the whole grid, False outside of the window.
        """
        raise NotImplementedError

    def select(self, images: Tensor) -> Selection:
        """Assign the patches of images [B, 3, S, S] to parts.

        Raises:
            IfamError: The model selects no parts.
        """
        raise self._without_parts()

    def classify(self, images: Tensor, selection: Selection) -> Output:
        """Classify images [B, 3, S, S] given their parts.

        Raises:
            IfamError: The model selects no parts.
        """
        raise self._without_parts()

    def _without_parts(self) -> IfamError:
        return IfamError(f"The method {self.method} selects no parts.")

    def check_interventions(self, interventions: object) -> None:
        """Refuse interventions where they would have no effect.

        Args:
            interventions: The interventions, or anything that is true where there are some.

        Raises:
            IfamError: There are interventions, and the model does not support them.
        """
        if interventions and not self.takes_interventions:
            raise IfamError(f"{self.method} does not support interventions: no mask of parts decides its answer.")

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write `config.json` and `model.safetensors` to a folder.

        Each file is complete or absent, and a failure leaves no new folder.

        Args:
            folder: Where to; made if need be.
            extra: JSON-serializable content to save with the model (`hub.read` returns it).

        Raises:
            IfamError: The folder cannot be written, or `extra` or the configuration cannot be written as JSON.
        """
        saved_models.write(folder, self.state_dict(), self.config, self.method, extra, self.preprocessing)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: object = None,
        extra: dict[str, Any] | None = None,
        files: Iterable[Path] = (),
        private: bool = False,
        revision: str | None = None,
        message: str = "Upload an ifam model",
    ) -> str:
        """Upload the model to the Hugging Face hub, with the credentials that `huggingface_hub` finds.

        `ifam.push_to_hub` uploads a folder, with a card made from the results in it.

        Args:
            repo_id: Id `owner/name` of the repository; made if need be.
            card: A model card, such as from `ifam.model_card`, or its text; it becomes `README.md`.
            extra: As for `save_pretrained`.
            files: Other files to upload beside the model, such as its calibration.
            private: Whether a new repository is private.
            revision: Branch to upload to; made if need be.
            message: Message of the commit.

        Returns:
            Address of the commit.

        Raises:
            IfamError: The hub refused, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, extra)
            if card is not None:
                (Path(folder) / saved_models.CARD).write_text(str(card), encoding="utf-8")
            for file in files:
                shutil.copy(file, folder)
            return saved_models.upload(Path(folder), repo_id, private=private, revision=revision, message=message)

    @classmethod
    def from_pretrained(cls: type[_Model], source: str | Path, *, revision: str | None = None) -> _Model:
        """Read a model of this class from a folder or from the Hugging Face hub.

        Args:
            source: A folder, or the id `owner/name` of a model on the Hugging Face hub.
            revision: Branch, tag or commit on the hub.

        Returns:
            The model, in evaluation mode.

        Raises:
            IfamError: It is of another class, a file is missing or damaged, the configuration has unknown fields or
                invalid values, its images were prepared in another way than this version does, or the weights do not
                fit it.
        """
        return cls.from_saved(saved_models.read(source, revision=revision))

    @classmethod
    def from_saved(cls: type[_Model], saved: saved_models.SavedModel) -> _Model:
        """Read the weights of a model whose `config.json` was read already; see `from_pretrained`."""
        folder, method, config = saved.folder, saved.method, saved.config
        if method not in (cls.method, *cls.variants):
            raise IfamError(
                f"{folder} holds a model of the method {method!r}, but one of {cls.method!r} is expected; give one "
                f"of these (`ifam.checkpoints.hub.load` reads every method)."
            )
        where = folder / CONFIG
        check_saved_backbone(config.backbone, config.backbone_kwargs, where)
        check_saved_backbone(config.predictor_backbone or config.backbone, config.predictor_kwargs or {}, where)
        try:
            # Built on the meta device: no memory is allocated before the weights are loaded.
            with torch.device("meta"):
                model = cls(config, pretrained=False)
        except IfamError:
            raise
        except Exception as error:  # timm can raise anything for the settings of a stranger
            raise IfamError(
                f"{where} does not describe a model ({first_line(error)}); save the model again."
            ) from error
        model.method = method
        saved.check_preprocessing(model.preprocessing)
        weights = read_safetensors(folder / WEIGHTS)
        with located(folder / WEIGHTS):
            check_tensors({name: tuple(t.shape) for name, t in model.state_dict().items()}, weights)
            if len(types := sorted({str(weight.dtype) for weight in weights.values()})) > 1:
                raise IfamError(f"The weights are of several types ({', '.join(types)}); save the model in one.")
        model.load_state_dict(weights, assign=True)
        fill_buffers(model)
        return model.eval()


class PartClassifier(Classifier):
    """A model whose selector assigns every patch to a part; subclasses implement `classify`.

    Args:
        config: The model's settings.
        pretrained: Start the selector from a pretrained backbone.

    Raises:
        IfamError: A setting is invalid.
    """

    selects_parts = True

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config)
        _check(config)
        self.selector = Selector(
            selector_backbone(config, pretrained),
            config.num_parts,
            config.num_classes,
            temperature=config.temperature,
            gumbel_noise=config.gumbel_noise,
            part_dropout=config.part_dropout,
            min_visible=config.min_visible,
        )

    @property
    def input_backbone(self) -> Backbone:
        """The selector's transformer."""
        return self.selector.backbone

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images by their selected parts.

        Args:
            images: Normalized images [B, 3, S, S].
            interventions: Changes to the selection, applied in order before the mask is made.
            masks: Ignored; use the intervention `ifam.UseMask` to set a mask.

        Returns:
            The logits, the mask and the selection.
        """
        self.check_interventions(interventions)
        selection = self.select(images)
        for intervention in interventions:
            selection = intervention(selection)
        return self.classify(images, selection)

    def select(self, images: Tensor) -> Selection:
        """Assign the patches of images [B, 3, S, S] to parts."""
        selection: Selection = self.selector(images)
        return selection


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's weights."""
    return next(module.parameters()).device


def finite_logits(logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Class logits in float32 at least, after a check that they are numbers.

    Raises:
        IfamError: Some are NaN or infinite, whose largest one would be no answer.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not bool(logits.isfinite().all()):
        raise IfamError(
            "The model answers with NaN or infinity: its weights are too large or damaged, or the numbers overflow in "
            "16 bits; train it again, or use another precision."
        )
    return logits


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, then restore the mode of the module."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _check(config: ModelConfig) -> None:
    """Refuse names of classes that do not fit their number, which is that of the data in training."""
    if config.class_names and len(config.class_names) != config.num_classes:
        raise IfamError(
            f"class_names has {len(config.class_names)} names for {config.num_classes} classes; give one for each."
        )
