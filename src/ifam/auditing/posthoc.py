"""Comparison with post-hoc attribution: what maps of a plain ViT claim, and what it does when only that is shown.

Every map is cut to the patches it ranks highest, as many as iFAM's mask shows of the same image. Then everything else
is hidden, and the plain ViT is asked again: the other patches are no longer there (`removed`, as for iFAM's predictor),
or painted in the mean colour (`grey`, the usual way). For iFAM, removing what its mask hides changes nothing by
construction.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.background_swap import coverage
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, Stopwatch, chunks, no_progress
from ifam.backbones.gated_attention import OverrideSDPA
from ifam.evaluation.attacks import hidden_pixel_mask
from ifam.models.base import device_of, evaluating
from ifam.models.ifam import IFAM
from ifam.models.masking import resize_values
from ifam.models.predictor import Predictor

# From the model, images and their answers to one number a patch, 0 or more.
Explain = Callable[["UnmaskedClassifier", Tensor, Tensor], Float[Tensor, "B H W"]]
MISSING = "Grad-CAM and integrated gradients were left out: `pip install 'ifam[explain]'` brings them."
_INTEGRATION_STEPS = 32


@dataclass(frozen=True)
class Explanation:
    """How far one way to explain can be trusted.

    Attributes:
        name: The way.
        model: The model that it explains.
        kept: Share of the patches that it keeps.
        agreement_removed: Share of images that keep their answer when all other patches are removed.
        drop_removed: Mean drop of its probability then.
        agreement_grey: Share that keep it when all other patches are painted in the mean colour; for iFAM the mask
            is made anew from the painted image.
        drop_grey: Mean drop of its probability then.
        pointing: Share of images whose hottest patch has its centre on the object; None where the truth is not known.
        energy: Share of the heat, over the whole map, that falls on the object; None likewise.
        energy_kept: Share of the kept patches' area that is object; None likewise.
        accuracy: Share of right answers of the model; None where labels are not known.
        seconds: Time for one image, from pixels to the map.
    """

    name: str
    model: str
    kept: float
    agreement_removed: float
    drop_removed: float
    agreement_grey: float
    drop_grey: float
    pointing: float | None
    energy: float | None
    energy_kept: float | None
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class PostHoc:
    """iFAM's mask beside explanations of a plain ViT.

    Attributes:
        plain: Which plain ViT that was.
        rows: iFAM first.
        notes: What was left out, and how to get it.
    """

    plain: str
    rows: tuple[Explanation, ...]
    notes: tuple[str, ...]


class UnmaskedClassifier(nn.Module):
    """A predictor that is shown every patch, computed as timm does: what explainers can look into.

    Args:
        predictor: Its weights, shared.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.backbone, self.norm, self.head = predictor.backbone, predictor.norm, predictor.head

    def forward(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the whole image."""
        tokens = self.backbone(images)
        logits: Tensor = self.head(self.norm(self.backbone.pool(tokens)))
        return logits


def compare_explanations(
    model: IFAM,
    plain: Predictor,
    cases: AuditInputs,
    observed: ModelOutputs,
    *,
    plain_name: str = "plain ViT",
    batch_size: int = 16,
    advance: Advance = no_progress,
) -> PostHoc:
    """Explain a plain ViT after the fact, and hold its explanations against iFAM's mask.

    Args:
        model: The model, in evaluation mode.
        plain: A plain ViT on the same grid of patches.
        cases: The images.
        observed: What the model selected in them.
        plain_name: What the plain ViT is, for the record.
        batch_size: Images at a time.
        advance: Progress callback, called with the number of finished images.
    """
    judge = _Judge(cases, observed, batch_size)
    rows = [_own(model, judge)]
    advance(len(cases))
    whole = UnmaskedClassifier(plain).to(device_of(model))
    with evaluating(plain), evaluating(whole):
        for name, explain in explainers().items():
            maps, seconds = explain_all(whole, explain, cases.images, batch_size, advance)
            rows.append(judge.row(name, maps, seconds, whole, plain))
    return PostHoc(plain_name, tuple(rows), () if has_libraries() else (MISSING,))


@cache
def has_libraries() -> bool:
    """Whether the extra `explain` is installed."""
    try:
        with _imported():
            for name in ("torchcam.methods", "captum.attr"):
                import_module(name)
    except ImportError:
        return False
    return True


def explainers() -> Mapping[str, Explain]:
    """The ways to explain, by name; those of the extra `explain` only where it is installed."""
    own: dict[str, Explain] = {"random patches": random_patches, "attention rollout": attention_rollout}
    more: dict[str, Explain] = {"Grad-CAM": grad_cam, "integrated gradients": integrated_gradients}
    return own | (more if has_libraries() else {})


def explain_all(
    whole: UnmaskedClassifier, explain: Explain, images: Tensor, batch_size: int, advance: Advance = no_progress
) -> tuple[Float[Tensor, "N H W"], float]:
    """Maps of all images, and the seconds that one takes."""
    device, found = device_of(whole), []
    clock = Stopwatch(device)
    with torch.no_grad():
        whole(images[:1].to(device))  # the first call of anything is slow
    for rows in chunks(len(images), batch_size):
        batch = images[rows].to(device)
        with clock:
            with torch.no_grad():
                answers = whole(batch).argmax(dim=1)
            maps = explain(whole, batch, answers)
        found.append(maps.detach().float().cpu())
        advance(len(batch))
    return torch.cat(found), clock.seconds / max(1, len(images))


def random_patches(whole: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]) -> Float[Tensor, "B H W"]:
    """No explanation at all: what patches drawn by lot achieve."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(images), *whole.backbone.grid, generator=generator)


@torch.no_grad()
def attention_rollout(whole: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]) -> Float[Tensor, "B H W"]:
    """Attention multiplied through all blocks, with the skip connection as half of each (arXiv 2005.00928)."""
    weights: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        share: Tensor = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        weights.append(share.mean(dim=1))
        return share @ value

    with OverrideSDPA(attend):
        whole.backbone(images)
    one = torch.eye(weights[0].shape[-1], device=images.device)
    flow: Tensor = one
    for share in weights:
        flow = (share + one) / 2 @ flow
    backbone = whole.backbone
    read = flow[:, :1] if backbone.has_class_token else flow[:, backbone.num_prefix_tokens :]
    heat: Tensor = read[:, :, backbone.num_prefix_tokens :].mean(dim=1).unflatten(1, backbone.grid)
    return heat


def grad_cam(whole: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]) -> Float[Tensor, "B H W"]:
    """Grad-CAM (arXiv 1610.02391) at the first norm of the last block, enlarged to the image as it is shown."""
    from torchcam.methods import GradCAM

    backbone = whole.backbone
    patches = partial(_as_pictures, prefix=backbone.num_prefix_tokens, grid=backbone.grid)
    layer: Any = backbone.vit.blocks[-1].norm1
    with GradCAM(whole, layer, reshape_transform=patches) as cam:
        heat = cam(answers.tolist(), whole(images))[0]
    pixels = F.interpolate(heat[:, None], images.shape[2:], mode="bilinear")[:, 0]
    return _pooled(pixels - pixels.amin(dim=(1, 2), keepdim=True), backbone.grid)


def integrated_gradients(
    whole: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Integrated gradients (arXiv 1703.01365) from the mean colour, in 32 steps; a patch counts with its mean size."""
    with _imported():
        from captum.attr import IntegratedGradients
    found = IntegratedGradients(whole).attribute(
        images, target=answers, n_steps=_INTEGRATION_STEPS, internal_batch_size=max(1, len(images))
    )
    return _pooled(found.sum(dim=1).abs(), whole.backbone.grid)


def _pooled(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over the pixels of each patch."""
    mean: Tensor = F.adaptive_avg_pool2d(pixels[:, None].float(), grid)[:, 0]
    return mean


@contextmanager
def _imported() -> Iterator[None]:
    """What libraries say of each other while they are imported is not about the user's work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_pictures(tokens: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Patch tokens [B, N, D] as pictures [B, D, H, W]."""
    pictures: Tensor = tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
    return pictures


def cut(maps: Float[Tensor, "N H W"], mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The hottest patches of each map, as many as the mask of the same image shows."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)
    return (place < mask.flatten(1).sum(dim=1, keepdim=True)).view_as(mask)


class _Judge:
    """Holds maps against what the models do.

    Args:
        cases: The images.
        observed: What iFAM selected in them.
        batch_size: Images at a time.
    """

    def __init__(self, cases: AuditInputs, observed: ModelOutputs, batch_size: int) -> None:
        self.cases, self.observed, self.batch_size = cases, observed, batch_size
        self.covered = None if cases.truth is None else coverage(cases.truth, observed.grid)

    def row(self, name: str, maps: Tensor, seconds: float, whole: UnmaskedClassifier, plain: Predictor) -> Explanation:
        """Figures of a map of the plain ViT."""
        kept = cut(maps, self.observed.mask)
        first = self.ask(whole, self.cases.images)
        removed = self.ask(plain, self.cases.images, kept)
        grey = self.ask(whole, self.painted(kept))
        return self.figures(name, "plain ViT", (maps, kept), (first, removed, grey), seconds)

    def figures(
        self,
        name: str,
        model: str,
        shown: tuple[Tensor, Tensor],
        answers: tuple[Tensor, Tensor, Tensor],
        seconds: float,
    ) -> Explanation:
        """Figures from map and kept patches, and from logits of the whole, the cut and the painted image."""
        (maps, kept), (first, removed, grey) = shown, answers
        own = first.argmax(dim=1, keepdim=True)
        sure = [logits.softmax(dim=1).gather(1, own) for logits in answers]
        labels, covered = self.cases.labels, self.covered
        return Explanation(
            name=name,
            model=model,
            kept=float(kept.float().mean()),
            agreement_removed=float((removed.argmax(dim=1) == own[:, 0]).float().mean()),
            drop_removed=float((sure[0] - sure[1]).mean()),
            agreement_grey=float((grey.argmax(dim=1) == own[:, 0]).float().mean()),
            drop_grey=float((sure[0] - sure[2]).mean()),
            pointing=None if self.cases.truth is None else pointing(maps, self.cases.truth),
            energy=None if covered is None else energy(maps, covered),
            energy_kept=None if covered is None else energy(kept.float(), covered),
            accuracy=None if labels is None else float((own[:, 0] == labels).float().mean()),
            seconds=seconds,
        )

    def painted(self, kept: Tensor) -> Tensor:
        """The images in the mean colour but for the kept patches."""
        return self.cases.images.masked_fill(hidden_pixel_mask(kept, self.cases.images), 0.0)

    @torch.no_grad()
    def ask(self, model: nn.Module, *inputs: Tensor) -> Float[Tensor, "N C"]:
        """Logits, batch by batch."""
        device, found = device_of(model), []
        for rows in chunks(len(inputs[0]), self.batch_size):
            out: Any = model(*(values[rows].to(device) for values in inputs))
            found.append(getattr(out, "logits", out).float().cpu())
        return torch.cat(found)


def _own(model: IFAM, judge: _Judge) -> Explanation:
    """The row of iFAM: its map is the probability of the object, its cut the mask."""
    observed, images = judge.observed, judge.cases.images
    removed = judge.ask(model.predictor, images, observed.mask, observed.gate)
    grey = judge.ask(model, judge.painted(observed.mask))
    heat = resize_values(1 - observed.part_maps[:, -1], observed.grid)
    answers = (observed.logits, removed, grey)
    found = judge.figures("mask", "iFAM", (heat, observed.mask), answers, observed.seconds)
    truth = judge.cases.truth
    # Probabilities of many patches are exactly 1; the margin tells them apart.
    return found if truth is None else replace(found, pointing=pointing(observed.margin, truth))


def pointing(maps: Float[Tensor, "N H W"], truth: Bool[Tensor, "N S1 S2"]) -> float:
    """Share of the images whose hottest patch has its centre on the object (the pointing game)."""
    rows, columns = maps.shape[1:]
    best = maps.flatten(1).argmax(dim=1)
    y = (2 * (best // columns) + 1) * truth.shape[1] // (2 * rows)
    x = (2 * (best % columns) + 1) * truth.shape[2] // (2 * columns)
    return float(truth[torch.arange(len(maps)), y, x].float().mean())


def energy(maps: Float[Tensor, "N H W"], covered: Float[Tensor, "N H W"]) -> float:
    """Share of the heat of each map that falls on the object, mean over images with any heat."""
    total = maps.flatten(1).sum(dim=1)
    inside = (maps * covered).flatten(1).sum(dim=1)
    return float((inside[total > 0] / total[total > 0]).mean()) if bool((total > 0).any()) else 0.0
