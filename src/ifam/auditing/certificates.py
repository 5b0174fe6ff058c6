"""The certificate of a model, and beside it those of a plain ViT, a late mask and a soft mask with the same masks."""

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
    cases: AuditInputs,
    observed: ModelOutputs,
    batch_size: int,
    seed: int,
    advance: Advance = no_progress,
) -> list[Certificate]:
    """Certificates of the model, in every setting and as a whole, and of three baselines under the same masks.

    Args:
        model: The model, in evaluation mode.
        plain: The plain ViT whose weights the baselines have.
        cases: The images.
        observed: What the model selected in them.
        batch_size: Images at a time.
        seed: Seed of the noise.
        advance: Told five times of every image that is done.

    Returns:
        iFAM, plain ViT, late mask, soft mask.
    """
    device = device_of(model)
    shared: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "advance": advance}
    images, mask, gate = cases.images, observed.mask, observed.gate
    own = [
        certify(model.predictor, images, mask, gate, settings=predictor_settings(), **shared),
        # The whole model sees the attacked pixels in its selector too; only the mask is held.
        certify(
            lambda pixels, visible, selected: model(pixels, [UseMask(selected > 0)]).logits,
            images,
            mask,
            observed.selected.float(),
            settings=[Setting(label="whole model", no_gradient=False)],
            **shared,
        ),
    ]
    plain = plain.to(device).eval()
    late, soft = share_weights(plain, LatePredictor), share_weights(plain, SoftPredictor)
    weights = resize_values(observed.part_maps[:, :-1].amax(dim=1), observed.grid)
    return [
        merge("iFAM", own),
        certify(lambda x, visible: plain(x, torch.ones_like(visible)), images, mask, name="plain ViT", **shared),
        certify(late, images, mask, name="late mask", **shared),
        certify(soft, images, mask, weights, name="soft mask", **shared),
    ]


def share_weights(predictor: Predictor, kind: type[Predictor] = Predictor) -> Predictor:
    """A predictor of a kind, the plain one by default, with the same modules, not a copy of them."""
    shared = kind(predictor.backbone, predictor.head.out_features)
    shared.norm, shared.head = predictor.norm, predictor.head
    return shared.eval()
