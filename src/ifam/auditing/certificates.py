"""Certificates of a model and of three baselines under the same masks: plain ViT, late mask and soft mask."""

from typing import Any

import torch

from ifam.auditing.certify import Certificate, Setting, certify, merge, predictor_settings
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, no_progress
from ifam.models.base import device_of
from ifam.models.baselines import LatePredictor
from ifam.models.ifam import IFAM
from ifam.models.interventions import UseMask
from ifam.models.masking import resize_values
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
    by_setting = [
        certify(model.predictor, images, mask, gate, settings=predictor_settings(), **shared),
        # End to end, the selector sees the attacked pixels too; only the mask is fixed.
        certify(
            lambda pixels, visible, given: model(pixels, [UseMask(given > 0)]).logits,
            images,
            mask,
            (outputs.mask if outputs.patches else outputs.selected).float(),
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


def share_weights(predictor: Predictor, kind: type[Predictor] = Predictor) -> Predictor:
    """A predictor of another class that shares the modules of the given one."""
    shared = kind(predictor.backbone, predictor.head.out_features)
    shared.norm, shared.head = predictor.norm, predictor.head
    return shared.eval()
