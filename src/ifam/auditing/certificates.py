"""Certificates of a model and of three baselines under the same masks: plain ViT, late mask and soft mask."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.certify import EXECUTIONS, Certificate, Setting, certify, merge, predictor_settings
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, no_progress
from ifam.config import Execution
from ifam.models.base import device_of
from ifam.models.baselines import LatePredictor
from ifam.models.ifam import IFAM
from ifam.models.interventions import UseMask, UseParts
from ifam.models.masking import resize_values
from ifam.models.part_sum import AdditivePredictor, part_masks
from ifam.models.predictor import Predictor
from ifam.models.soft_mask import SoftPredictor


def certificates(
    model: IFAM,
    plain: Predictor,
    inputs: AuditInputs,
    outputs: ModelOutputs,
    batch_size: int,
    seed: int,
    advance: Advance = no_progress,
) -> list[Certificate]:
    """Certify the model, in every setting and end to end, and three baselines under the same masks.

    Args:
        model: The model, in evaluation mode.
        plain: The plain ViT whose weights the baselines use.
        inputs: The images.
        outputs: What the model returned for them.
        batch_size: Images at a time.
        seed: Seed of the noise.
        advance: Progress callback, called five times for each image.

    Returns:
        iFAM, plain ViT, late mask, soft mask.
    """
    device = device_of(model)
    shared: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "advance": advance}
    images, mask, gate = inputs.images, outputs.mask, outputs.gate
    # Where each part is seen alone, an answer depends on which part a patch belongs to: it is held like the mask.
    winners = (outputs.winners,) if outputs.held() else ()
    by_setting = [
        certify(model.predictor, images, mask, gate, held=outputs.held(), settings=predictor_settings(), **shared),
        # End to end, the selector sees the attacked pixels too; only the mask is fixed.
        certify(
            lambda pixels, visible, given, *parts: model(pixels, [*map(UseParts, parts), UseMask(given > 0)]).logits,
            images,
            mask,
            (outputs.mask if outputs.patches else outputs.selected).float(),
            held=winners,
            settings=[Setting(label="whole model", no_gradient=False)],
            **shared,
        ),
    ]
    plain = plain.to(device).eval()
    late, soft = share_weights(plain, LatePredictor), share_weights(plain, SoftPredictor)
    weights = resize_values(outputs.part_maps[:, :-1].amax(dim=1), outputs.grid)
    patches = outputs.patch_mask
    return [
        merge("iFAM", by_setting),
        certify(lambda x, visible: plain(x, torch.ones_like(visible)), images, patches, name="plain ViT", **shared),
        certify(late, images, patches, name="late mask", **shared),
        certify(soft, images, patches, weights, name="soft mask", **shared),
    ]


def part_certificates(
    model: IFAM,
    inputs: AuditInputs,
    outputs: ModelOutputs,
    batch_size: int,
    seed: int,
    advance: Advance = no_progress,
) -> list[Certificate]:
    """Certify what each part contributes: no pixel outside of its own visible patches may change a bit of it.

    Args:
        model: The model, in evaluation mode.
        inputs: The images.
        outputs: What the model returned for them.
        batch_size: Images at a time.
        seed: Seed of the noise.
        advance: Progress callback, called once for each image and part.

    Returns:
        A certificate for each part; none for a model whose predictor sees all parts together.
    """
    predictor, parts = model.predictor, outputs.patch_parts
    if parts is None or not isinstance(predictor, AdditivePredictor):
        return []
    of_parts = part_masks(parts, predictor.num_parts).float()
    own = F.interpolate(of_parts, (outputs.mask.shape[1], outputs.mask.shape[2])).bool() & outputs.mask[:, None]
    return [
        certify(
            Contribution(predictor, part),
            inputs.images,
            own[:, part],
            held=(outputs.mask, parts),
            name=f"part {part}",
            settings=[Setting(execution) for execution in EXECUTIONS],
            batch_size=batch_size,
            seed=seed,
            device=device_of(model),
            advance=advance,
        )
        for part in range(predictor.num_parts)
    ]


class Contribution(nn.Module):
    """What one part contributes to the logits, where the mask of all parts stays the same.

    Args:
        predictor: The predictor, which sees each part alone.
        part: Index of the part.
    """

    def __init__(self, predictor: AdditivePredictor, part: int) -> None:
        super().__init__()
        self.predictor, self.part = predictor, part

    @property
    def execution(self) -> Execution:
        """How the predictor computes visible patches."""
        return self.predictor.execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self.predictor.execution = execution

    def forward(
        self,
        images: Float[Tensor, "B 3 S1 S2"],
        own: Bool[Tensor, "B H W"],
        mask: Bool[Tensor, "B H W"],
        patch_parts: Int[Tensor, "B H2 W2"],
    ) -> Float[Tensor, "B C"]:
        """The contribution to each class; `own`, where the part is visible, follows from the mask and the parts."""
        contributions, _ = self.predictor.contributions(images, mask, patch_parts=patch_parts)
        return contributions[:, self.part]


def share_weights(predictor: Predictor, kind: type[Predictor] = Predictor) -> Predictor:
    """A predictor of another class that shares the modules of the given one."""
    shared = kind(predictor.backbone, predictor.head.out_features)
    shared.norm, shared.head = predictor.norm, predictor.head
    return shared.eval()
