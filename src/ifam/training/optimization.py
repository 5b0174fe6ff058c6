"""Parameter groups, weight decay, and the learning rate schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ifam.config import TrainConfig, Tuning

TOKENS = ("cls_token", "reg_token", "pos_embed")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with the same training settings.

    Attributes:
        name: Name of the group.
        lr_scale: Multiplies the base learning rate.
        weight_decay: Whether weight decay applies.
        trainable: Whether they are trained.
        parameters: Parameters by name.
    """

    name: str
    lr_scale: float
    weight_decay: bool
    trainable: bool
    parameters: dict[str, nn.Parameter]


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """All parameters of a model, grouped by their training settings (arXiv 2506.08915, section 4.2).

    Weight decay is for matrices only: none on 1-D tensors, tokens, prototypes and the modulation.
    """
    groups: dict[str, ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        role, factor, trained = _role(name, config)
        token = name.rsplit(".", 1)[-1] in TOKENS
        decays = parameter.ndim > 1 and not token and role not in ("prototypes", "modulation")
        key = f"{role}{' tokens' if token else '' if decays else ' without decay'}"
        group = groups.setdefault(key, ParameterGroup(key, factor, decays, trained, {}))
        group.parameters[name] = parameter
    return list(groups.values())


def _role(name: str, config: TrainConfig) -> tuple[str, float, bool]:
    """Role of a parameter, its learning rate factor, and whether it is trained."""
    token = name.rsplit(".", 1)[-1] in TOKENS
    if ".lora_" in name:
        return f"{name.split('.')[0]} backbone adapters", config.lora_lr_factor, True

    def tuned(tuning: Tuning) -> bool:
        return tuning == "all" or (tuning in ("tokens", "lora") and token)

    if name.startswith("selector.backbone."):
        return "selector backbone", config.selector_lr_factor, tuned(config.selector_tuning)
    if name.startswith("predictor.backbone."):
        return "predictor backbone", config.predictor_lr_factor, tuned(config.predictor_tuning)
    if name.startswith("selector.prototypes"):
        return "prototypes", config.prototype_lr_factor, True
    if name.startswith("selector.modulation"):
        return "modulation", config.modulation_lr_factor, True
    return f"{name.split('.')[0]} head", config.head_lr_factor, True


def adamw(groups: Sequence[ParameterGroup], config: TrainConfig, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW over the groups that are trained, in one fused kernel.

    Args:
        groups: From `parameter_groups`.
        config: Settings of the training.
        rate: Learning rate, before each group's factor.
        decay: Weight decay of the groups that have one.
    """
    trained = [
        {
            "name": group.name,
            "params": list(group.parameters.values()),
            "lr": rate * group.lr_scale,
            "weight_decay": decay if group.weight_decay else 0.0,
        }
        for group in groups
        if group.trainable
    ]
    # With a gradient scaler, which only float16 needs, Lightning cannot clip for a fused optimizer.
    return torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=not config.precision.startswith("16"))


def normalized_weight_decay(weight_decay: float, num_images: int, batch_size: int, epochs: int) -> float:
    """`weight_decay * sqrt(1 / (steps per epoch * epochs))` (arXiv 1711.05101, appendix B.1).

    A step is a full batch: an incomplete batch at the end of an epoch is dropped.
    """
    return weight_decay / math.sqrt(max(1, num_images // batch_size) * epochs)


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Share of the learning rate in a step (counted from 0).

    In the warm-up it rises with every step, and its last step has the full rate. Then it falls epoch by epoch, as in
    the paper, starting with the full rate with or without a warm-up.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_factor + (1 - config.warmup_factor) * (step + 1) / warmup
    epoch, total = step // steps_per_epoch - config.warmup_epochs, config.epochs - config.warmup_epochs
    if config.schedule == "step":
        return config.step_factor ** (epoch // (config.step_epochs or math.ceil(total / 3)))
    if config.schedule == "linear":
        return 1 - (1 - config.min_factor) * epoch / total
    return config.min_factor + (1 - config.min_factor) * (1 + math.cos(math.pi * epoch / total)) / 2
