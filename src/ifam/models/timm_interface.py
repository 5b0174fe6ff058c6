"""The interface of timm's models, for code that was written for them: features, head, and preprocessing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from ifam._typing import Float, Tensor
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.part_sum import AdditivePredictor


class TimmInterface(nn.Module):
    """What timm's models offer beside `forward`; `Classifier` has it.

    Attributes:
        config: The model's settings.
    """

    config: ModelConfig

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer that computes the final logits."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        raise NotImplementedError

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations of the input."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """Width D of what `forward_features` returns."""
        return self.last_layer.in_features

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The input, as `timm.data.resolve_model_data_config` and `timm.data.create_transform` expect it."""
        mean, std = self.normalization
        return {
            "architecture": self.config.backbone,
            "input_size": (3, *self.image_size),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": self.num_classes,
        }

    def get_classifier(self) -> nn.Linear:
        """The linear layer that computes the final logits."""
        return self.last_layer

    def forward_features(self, images: Tensor) -> Float[Tensor, "B D"]:
        """One vector for each image, of which `forward_head` gives the class logits.

        It is what the last layer sees: of a model that masks its input, a function of the visible patches alone.

        Args:
            images: Normalized images [B, 3, S, S].
        """
        with recorded_features(self) as inputs:
            self(images)
        return features_of(self, inputs, len(images))

    def forward_head(self, features: Float[Tensor, "B D"], pre_logits: bool = False) -> Float[Tensor, "B _"]:
        """Class logits of what `forward_features` returned, or that itself with `pre_logits`."""
        if pre_logits:
            return features
        logits: Tensor = self.last_layer(features.to(self.last_layer.weight.dtype))
        return logits

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifiers of all stages with new ones, of random weights, to be trained.

        Args:
            num_classes: Number of classes.
            global_pool: As in timm, where it chooses how tokens are pooled; here this belongs to the model.

        Raises:
            IfamError: There is no class, or another pooling is asked for.
        """
        if num_classes < 1:
            raise IfamError(
                f"num_classes is {num_classes}, but at least 1 is needed; `forward_features` gives features."
            )
        if global_pool is not None:
            raise IfamError(f"global_pool is {global_pool!r}, but the pooling belongs to the model; leave it out.")
        for parent in list(self.modules()):
            for name in ("head", "classifier"):
                old = getattr(parent, name, None)
                if isinstance(old, nn.Linear) and old.out_features == self.num_classes:
                    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
                    setattr(parent, name, new.to(old.weight.device, old.weight.dtype))
        self.config = replace(self.config, num_classes=num_classes, class_names=())


@contextmanager
def recorded_features(model: TimmInterface) -> Iterator[list[Tensor]]:
    """The inputs of the last layer in every forward pass within the block, [B, ..., D] each.

    Args:
        model: Any model.
    """
    inputs: list[Tensor] = []
    hook = model.last_layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def features_of(model: TimmInterface, inputs: Sequence[Tensor], images: int) -> Float[Tensor, "B D"]:
    """One vector for each image, whose scores by the last layer are the logits.

    Args:
        model: The model.
        inputs: What `recorded_features` gave in a forward pass.
        images: Number of images B.
    """
    if isinstance(getattr(model, "predictor", None), AdditivePredictor):
        # A row for each part, and one for no part at all; linear scores add up like their vectors.
        rows, prior = (one.float() for one in inputs)
        parts: Tensor = rows.unflatten(0, (images, -1)) - prior
        return prior + parts.sum(dim=1)
    (vectors,) = (one.float() for one in inputs)
    # In the selector, the mean of the scores of all parts.
    return vectors.reshape(images, -1, vectors.shape[-1]).mean(dim=1)
