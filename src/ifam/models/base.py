"""What every model of this package offers, so that one trainer, one evaluation and one way of saving serve them all."""

from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import nn

from ifam import saved_models
from ifam._typing import Float, Tensor
from ifam.backbones.architecture import check_tensors
from ifam.backbones.backbone import Backbone, fill_buffers, selector_backbone
from ifam.backbones.hf_dinov2 import resolve
from ifam.config import Execution, MaskGradient, ModelConfig
from ifam.errors import IfamError
from ifam.model_files import CONFIG, WEIGHTS, read_safetensors
from ifam.models.selector import Selector
from ifam.types import Batch, Output, Selection

# What loading gives back; beartype does not know `Self` here.
_Model = TypeVar("_Model", bound="Classifier")


class Classifier(nn.Module):
    """A model that is trained, judged, saved and loaded by name (see `ifam.models.baselines.METHODS`).

    A subclass defines `forward(images)`, which gives logits [B, C] or an `Output`, and `trunk` and `last_layer`.

    Args:
        config: The model's settings.

    Attributes:
        method: Name in `METHODS`; what `config.json` remembers.
        variants: Other names in `METHODS` with a model of this very class, which is trained otherwise.
        needs_masks: Whether it answers only to images with a true mask.
        hides: Whether its answer depends on visible patches alone.
    """

    method: str = "ifam"
    variants: ClassVar[tuple[str, ...]] = ()
    needs_masks: ClassVar[bool] = False
    hides: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        # A subclass is another model: it shares no name with its parent.
        cls.variants = cls.__dict__.get("variants", ())

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = resolve(config)

    @property
    def trunk(self) -> Backbone:
        """The transformer whose image size and normalisation the images have."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer that gives the logits of the answer."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.trunk.image_size

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations of the input."""
        mean, std = self.trunk.normalisation
        return self.config.mean or mean, self.config.std or std

    def answer(self, batch: Batch) -> Tensor | Output:
        """What the model says about a batch, of which it may use the true masks if it `needs_masks`."""
        found: Tensor | Output = self(batch.images)
        return found

    def judged(self, batch: Batch) -> dict[str, Float[Tensor, "B C"]]:
        """The logits that training compares with the labels, by the name of their loss term in `LossConfig`."""
        out = self.answer(batch)
        return {"classification": out.logits if isinstance(out, Output) else out}

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write `config.json` and `model.safetensors` to a folder.

        Each file is complete or absent, and a failure leaves no new folder.

        Args:
            folder: Where to; made if need be.
            extra: Anything for JSON that should travel with the model (`hub.read_config` gives it back).

        Raises:
            IfamError: The folder cannot be written, or `extra` or the configuration cannot be written as JSON.
        """
        saved_models.write(folder, self.state_dict(), self.config, self.method, extra)

    @classmethod
    def from_pretrained(cls: type[_Model], source: str | Path, *, revision: str | None = None) -> _Model:
        """Read a model of this class from a folder or from the Hugging Face hub.

        Args:
            source: A folder, or the id `owner/name` of a model on the Hugging Face hub.
            revision: Branch, tag or commit on the hub.

        Returns:
            The model, in evaluation mode.

        Raises:
            IfamError: It is of another class, a file is missing or damaged, the configuration has unknown or impossible
                fields, or the weights do not fit it.
        """
        folder = saved_models.locate(source, revision)
        method, (config, _) = saved_models.read_method(folder), saved_models.read_config(folder)
        if method not in (cls.method, *cls.variants):
            raise IfamError(
                f"{folder} holds a model of the method {method!r}, but one of {cls.method!r} is expected; give one "
                f"of those (`ifam.checkpoints.hub.load_any` reads every method)."
            )
        try:
            # No memory is taken before the weights are read into it.
            with torch.device("meta"):
                model = cls(config, pretrained=False)
        except (TypeError, AttributeError, RuntimeError, AssertionError) as error:
            raise IfamError(f"{folder / CONFIG} describes no model ({error}); save the model again.") from error
        model.method = method
        weights = read_safetensors(folder / WEIGHTS)
        check_tensors({name: tuple(t.shape) for name, t in model.state_dict().items()}, weights)
        model.load_state_dict(weights, assign=True)
        fill_buffers(model)
        return model.eval()


class PartClassifier(Classifier):
    """A model whose selector assigns every patch to a part; what differs is the `conclusion` drawn from it.

    Args:
        config: The model's settings.
        pretrained: Start the selector from a pretrained backbone.

    Raises:
        IfamError: A setting makes no model.
    """

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
        )

    @property
    def trunk(self) -> Backbone:
        """The selector's transformer."""
        return self.selector.backbone

    def conclude(self, images: Tensor, selection: Selection) -> Output:
        """The answer to images [B, 3, S, S] once their parts are selected."""
        raise NotImplementedError


def _check(config: ModelConfig) -> None:
    """Refuse settings of which no model can be made."""
    for name, choices in (("mask_gradient", get_args(MaskGradient)), ("execution", get_args(Execution))):
        if getattr(config, name) not in choices:
            raise IfamError(f"{name} is {getattr(config, name)!r}, but {', '.join(choices)} exist.")
    if config.class_names and len(config.class_names) != config.num_classes:
        raise IfamError(
            f"class_names has {len(config.class_names)} names for {config.num_classes} classes; give one for each."
        )
