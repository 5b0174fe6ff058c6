"""Attribution methods of torchcam and captum for vision transformers: one value for each patch.

A method takes a classifier, images and the class of each image whose logit it explains, and returns maps of patches,
none of them negative.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Float, Int, Tensor
from ifam.backbones.gated_attention import OverrideSDPA
from ifam.backbones.timm_compat import Vit, fused_attention, input_of_last_attention
from ifam.errors import IfamError
from ifam.models.predictor import Predictor

_INTEGRATION_STEPS = 32


@dataclass(frozen=True)
class PatchClassifier:
    """A classifier, and the vision transformer whose patches its maps are made of.

    Attributes:
        logits: Images [B, 3, S1, S2], and whatever else is `given`, to class logits [B, C].
        vit: A model of timm on patches; part of `logits`.
        features: Images to tokens, with all blocks of the transformer.
        class_tokens: Number of first tokens that the answer is read from; 0 for the mean of the patches.
        given: What `logits` takes besides the images, with a row for each.
    """

    logits: nn.Module
    vit: Any
    features: Callable[[Tensor], Tensor]
    class_tokens: int = 0
    given: tuple[Tensor, ...] = ()

    def patches(self, images: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of patches in the images, and height and width of a patch in pixels."""
        embed, (height, width) = self.vit.patch_embed, images.shape[2:]
        if getattr(self.vit, "dynamic_img_size", False):
            return tuple(embed.dynamic_feat_size((height, width))), tuple(embed.patch_size)
        rows, columns = embed.grid_size
        return (rows, columns), (height // rows, width // columns)


class UnmaskedClassifier(nn.Module):
    """A predictor that sees every patch, computed as in timm, so attribution methods can access its layers.

    Args:
        predictor: Its weights are shared.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.backbone, self.norm, self.head = predictor.backbone, predictor.norm, predictor.head

    def forward(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the whole image."""
        tokens = self.backbone(images)
        logits: Tensor = self.head(self.norm(self.backbone.pool(tokens)))
        return logits

    def as_patches(self) -> PatchClassifier:
        """It, as attribution methods take it."""
        return PatchClassifier(self, self.backbone.vit, self.backbone, int(self.backbone.has_class_token))


# Maps a classifier, images and classes to one value for each patch.
Attribution = Callable[[PatchClassifier, Tensor, Int[Tensor, " B"]], Float[Tensor, "B H W"]]


@cache
def has_libraries() -> bool:
    """Whether the extra `explain` is installed."""
    try:
        with quiet_import():
            for name in ("torchcam.methods", "captum.attr"):
                import_module(name)
    except ImportError:
        return False
    return True


@contextmanager
def quiet_import() -> Iterator[None]:
    """Ignore the warnings of libraries about each other during import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def class_activation(
    classifier: PatchClassifier, images: Tensor, classes: Int[Tensor, " B"], *, method: str = "GradCAM"
) -> Float[Tensor, "B H W"]:
    """A class activation map of torchcam: of the tokens of the last block, or of those that its attention reads.

    Where the answer is read from class tokens, patches have no influence after the last attention; where it is read
    from the patches, they have it until the end.

    Args:
        classifier: The classifier.
        images: Normalized images.
        classes: The class of each image.
        method: Name of a class in `torchcam.methods`.
    """
    with quiet_import():
        from torchcam import methods
    grid, _ = classifier.patches(images)
    vit, prefix = classifier.vit, int(classifier.vit.num_prefix_tokens)
    layer = input_of_last_attention(vit) if classifier.class_tokens else vit.blocks[-1]
    with getattr(methods, method)(
        classifier.logits, layer, reshape_transform=partial(_as_feature_maps, prefix=prefix, grid=grid)
    ) as cam:
        scores = classifier.logits(images.detach().requires_grad_(), *classifier.given)
        heat: Tensor = cam(classes.tolist(), scores, normalized=False)[0]
    return heat


def integrated_gradients(
    classifier: PatchClassifier, images: Tensor, classes: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Integrated gradients (arXiv 1703.01365) from the mean color in 32 steps; mean absolute value of each patch."""
    with quiet_import():
        from captum.attr import IntegratedGradients
    attribution = IntegratedGradients(classifier.logits).attribute(
        images.detach().requires_grad_(),
        target=classes,
        additional_forward_args=classifier.given or None,
        n_steps=_INTEGRATION_STEPS,
        internal_batch_size=max(1, len(images)),
    )
    return _of_patches(classifier, attribution.detach().sum(dim=1).abs())


def saliency(classifier: PatchClassifier, images: Tensor, classes: Int[Tensor, " B"]) -> Float[Tensor, "B H W"]:
    """The absolute gradient of the logit (arXiv 1312.6034), summed over channels; mean of each patch."""
    with quiet_import():
        from captum.attr import Saliency
    attribution = Saliency(classifier.logits).attribute(
        images.detach().requires_grad_(), target=classes, additional_forward_args=classifier.given or None
    )
    return _of_patches(classifier, attribution.detach().sum(dim=1))


def occlusion(classifier: PatchClassifier, images: Tensor, classes: Int[Tensor, " B"]) -> Float[Tensor, "B H W"]:
    """How much the logit falls when a patch has the mean color (arXiv 1311.2901); 0 where it rises."""
    with quiet_import():
        from captum.attr import Occlusion
    _, patch = classifier.patches(images)
    with torch.no_grad():
        attribution = Occlusion(classifier.logits).attribute(
            images,
            sliding_window_shapes=(3, *patch),
            strides=(3, *patch),
            target=classes,
            additional_forward_args=classifier.given or None,
        )
    return _of_patches(classifier, attribution.mean(dim=1)).relu()


@torch.no_grad()
def attention_rollout(
    classifier: PatchClassifier, images: Tensor, classes: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Attention rollout: products of attention over all blocks, averaged with the identity (arXiv 2005.00928).

    It is the same for all classes.

    Raises:
        IfamError: The attention is more than one product of queries and keys in each block.
    """
    vit, (grid, _) = classifier.vit, classifier.patches(images)
    weights: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        share: Tensor = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        weights.append(share.mean(dim=1))
        return share @ value

    if isinstance(vit, Vit):
        with fused_attention(vit), OverrideSDPA(attend):
            classifier.features(images)
    if len(weights) != len(vit.blocks):
        raise IfamError(
            f"Attention rollout needs one plain attention in each block, which {type(vit).__name__} does not have; use "
            f"another method, such as gradcam."
        )
    identity = torch.eye(weights[0].shape[-1], device=images.device)
    flow: Tensor = identity
    for share in weights:
        flow = (share + identity) / 2 @ flow
    first, prefix = classifier.class_tokens, int(vit.num_prefix_tokens)
    rows = flow[:, :first] if first else flow[:, prefix:]
    heat: Tensor = rows[:, :, prefix:].mean(dim=1).unflatten(1, grid)
    return heat


def _as_feature_maps(tokens: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Patch tokens [B, N, D] as feature maps [B, D, H, W]."""
    rows, columns = grid
    if tokens.ndim != 3 or tokens.shape[1] != prefix + rows * columns:
        raise IfamError(
            f"The last block has tokens of shape {list(tokens.shape)}, but [B, {prefix} + {rows} * {columns}, D] is "
            f"expected: give a vision transformer that keeps all patches, or the method integrated_gradients."
        )
    maps: Tensor = tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
    return maps


def _of_patches(classifier: PatchClassifier, pixels: Float[Tensor, "B S1 S2"]) -> Float[Tensor, "B H W"]:
    """The mean of the pixels of each patch; patches at the edge may have fewer."""
    (rows, columns), (height, width) = classifier.patches(pixels[:, None])
    room = (0, columns * width - pixels.shape[2], 0, rows * height - pixels.shape[1])
    mean = partial(F.avg_pool2d, kernel_size=(height, width))
    values: Tensor = mean(F.pad(pixels[:, None], room)) / mean(F.pad(torch.ones_like(pixels[:1, None]), room))
    return values[:, 0]


# Methods by their names in torchcam and captum.
METHODS: dict[str, Attribution] = {
    "gradcam": class_activation,
    "gradcam++": partial(class_activation, method="GradCAMpp"),
    "layercam": partial(class_activation, method="LayerCAM"),
    "integrated_gradients": integrated_gradients,
    "saliency": saliency,
    "occlusion": occlusion,
    "attention_rollout": attention_rollout,
}
# Those that need no library.
BUILT_IN = ("attention_rollout",)
