"""The two stages, joined by the mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn

from ifam._typing import Tensor
from ifam.backbone import Backbone
from ifam.config import Execution, MaskGradient, ModelConfig
from ifam.errors import IfamError
from ifam.interventions import Intervention
from ifam.masking import make_mask
from ifam.predictor import Predictor
from ifam.selector import Selector
from ifam.types import Mask, Output, Selection


class IFAM(nn.Module):
    """An inherently faithful classifier (arXiv 2506.08915): the mask is the answer's only input.

    Args:
        config: The model's settings.
        pretrained: Start both stages from pretrained backbones; False needs no network.

    Raises:
        IfamError: A setting makes no model.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        _check(config)
        self.config = config
        size, kwargs = config.image_size, config.backbone_kwargs
        self.selector = Selector(
            Backbone(config.backbone, image_size=size, pretrained=pretrained, **kwargs),
            config.num_parts,
            config.num_classes,
            temperature=config.temperature,
            gumbel_noise=config.gumbel_noise,
            part_dropout=config.part_dropout,
        )
        name = config.predictor_backbone or config.backbone
        self.predictor = Predictor(
            Backbone(name, image_size=size, pretrained=pretrained, **kwargs),
            config.num_classes,
            config.mask_gradient,
            config.execution,
        )
        if self.selector.backbone.grid != self.predictor.backbone.grid:
            raise IfamError(
                f"The selector {config.backbone} has {self.selector.backbone.grid} patches and the predictor {name} "
                f"{self.predictor.backbone.grid}; choose backbones with the same patch size."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.selector.backbone.image_size

    def forward(self, images: Tensor, interventions: Sequence[Intervention] = ()) -> Output:
        """Classify images by the parts that were selected, and by nothing else.

        Args:
            images: Normalised images [B, 3, S, S].
            interventions: Changes to the selection, applied in order before the mask is made.

        Returns:
            The answer with everything that led to it.
        """
        selection = self.selector(images)
        for intervention in interventions:
            selection = intervention(selection)
        mask = self.mask(selection)
        logits = self.predictor(images, mask.visible, mask.gate)
        return output(logits, mask, selection)

    def mask(self, selection: Selection) -> Mask:
        """The mask of a selection: sampled in training mode, without any noise in evaluation mode."""
        return make_mask(
            selection,
            training=self.training,
            temperature=self.config.temperature,
            gumbel_noise=self.config.gumbel_noise,
            part_dropout=self.config.mask_part_dropout,
        )

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations of the input."""
        mean, std = self.selector.backbone.normalisation
        return self.config.mean or mean, self.config.std or std

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write `config.json` and `model.safetensors` to a folder; see `ifam.hub.save`."""
        from ifam import hub

        hub.save(self, folder, extra)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "IFAM":
        """Read a model from a folder or from the Hugging Face hub; see `ifam.hub.load`."""
        from ifam import hub

        return hub.load(source)


def output(logits: Tensor, mask: Mask, selection: Selection) -> Output:
    """Gather what the stages said."""
    return Output(
        logits=logits,
        mask=mask.visible,
        part_maps=selection.part_maps,
        selector_logits=selection.selector_logits,
        part_scores=selection.part_scores,
        part_features=selection.part_features,
        similarity=selection.similarity,
    )


def _check(config: ModelConfig) -> None:
    """Refuse settings of which no model can be made."""
    for name, least in (("num_parts", 1), ("num_classes", 1)):
        value = getattr(config, name)
        if value < least:
            raise IfamError(f"{name} is {value}, but at least {least} is needed.")
    if config.temperature <= 0:
        raise IfamError(f"temperature is {config.temperature}, but must be above 0; the paper uses 1.")
    for name in ("part_dropout", "mask_part_dropout"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise IfamError(f"{name} is {value}, but a probability from 0 to below 1 is expected.")
    for name, choices in (("mask_gradient", get_args(MaskGradient)), ("execution", get_args(Execution))):
        if getattr(config, name) not in choices:
            raise IfamError(f"{name} is {getattr(config, name)!r}, but {', '.join(choices)} exist.")
    if config.class_names and len(config.class_names) != config.num_classes:
        raise IfamError(
            f"class_names has {len(config.class_names)} names for {config.num_classes} classes; give one for each."
        )
