"""Low-rank adapters (LoRA, arXiv 2106.09685) in transformers that are being trained, by the library peft.

With $W$ frozen, each linear layer of a block computes $W x + 2 B A x$, where $A$ has as many rows, and $B$ as many
columns, as the rank. After the training $W + 2 B A$ takes the place of $W$, so that the model is an ordinary one.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ifam.backbones.backbone import Backbone
from ifam.backbones.timm_compat import layers_are_called
from ifam.config import TrainConfig
from ifam.importing import import_extra

# Scale of the product of the two matrices; as usual, twice.
_SCALE = 2


def check_installed(config: TrainConfig) -> None:
    """Refuse adapters where peft is missing.

    Raises:
        IfamError: It is not installed.
    """
    if "lora" in (config.selector_tuning, config.predictor_tuning):
        import_extra("peft", "lora", "Tuning by 'lora' needs")


@contextmanager
def adapters(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Add adapters to the transformers that are tuned by "lora"; at the end of the block, merge them into the weights.

    Args:
        model: The model; changed in place.
        config: Settings of the training.
    """
    tuning = {"selector": config.selector_tuning, "predictor": config.predictor_tuning}
    adapted = [
        module.vit
        for name, module in model.named_modules()
        if isinstance(module, Backbone) and tuning.get(name.partition(".")[0]) == "lora"
    ]
    with ExitStack() as stack:
        for vit in adapted:
            stack.enter_context(layers_are_called(vit))
            stack.callback(_merge, vit)
            _add(vit, config.lora_rank)
        yield


def _add(vit: nn.Module, rank: int) -> None:
    """Adapters in every linear layer of the blocks, attention and MLP."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, module in vit.named_modules() if name.startswith("blocks.") and type(module) is nn.Linear]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules=layers), vit)


def _merge(vit: nn.Module) -> None:
    """Plain layers again, with the adapters in their weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in [*vit.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(vit.get_submodule(parent), child, module.get_base_layer())
    vars(vit).pop("peft_config", None)
