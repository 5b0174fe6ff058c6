"""Inherently faithful attention maps for vision transformers: the mask is the answer's only input.

    import ifam
    model = ifam.IFAM(ifam.ModelConfig(num_parts=4, num_classes=2))
    out = model(images)          # out.logits, out.mask, out.part_maps, ...

Names are imported when they are first used, so that `import ifam` and `ifam --help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ifam.version import __version__ as __version__

if TYPE_CHECKING:
    from ifam import losses as losses
    from ifam.auditing import AuditResult as AuditResult
    from ifam.auditing import audit as audit
    from ifam.backbone import Backbone as Backbone
    from ifam.baselines import PlainViT as PlainViT
    from ifam.config import LossConfig as LossConfig
    from ifam.config import ModelConfig as ModelConfig
    from ifam.config import TrainConfig as TrainConfig
    from ifam.data import load_benchmark as load_benchmark
    from ifam.errors import IfamError as IfamError
    from ifam.evaluation.groups import evaluate as evaluate
    from ifam.hub import load_official as load_official
    from ifam.interventions import DropParts as DropParts
    from ifam.interventions import DropUnsure as DropUnsure
    from ifam.interventions import KeepParts as KeepParts
    from ifam.interventions import UseMask as UseMask
    from ifam.model import IFAM as IFAM
    from ifam.prediction import predict as predict
    from ifam.training import fit as fit
    from ifam.types import Batch as Batch
    from ifam.types import Output as Output
    from ifam.types import Selection as Selection

_HOME = {
    "AuditResult": "ifam.auditing",
    "Backbone": "ifam.backbone",
    "Batch": "ifam.types",
    "DropParts": "ifam.interventions",
    "DropUnsure": "ifam.interventions",
    "IFAM": "ifam.model",
    "IfamError": "ifam.errors",
    "KeepParts": "ifam.interventions",
    "LossConfig": "ifam.config",
    "ModelConfig": "ifam.config",
    "Output": "ifam.types",
    "PlainViT": "ifam.baselines",
    "Selection": "ifam.types",
    "TrainConfig": "ifam.config",
    "UseMask": "ifam.interventions",
    "audit": "ifam.auditing",
    "evaluate": "ifam.evaluation.groups",
    "fit": "ifam.training",
    "load_benchmark": "ifam.data",
    "load_official": "ifam.hub",
    "predict": "ifam.prediction",
}

__all__ = [
    "IFAM",
    "AuditResult",
    "Backbone",
    "Batch",
    "DropParts",
    "DropUnsure",
    "IfamError",
    "KeepParts",
    "LossConfig",
    "ModelConfig",
    "Output",
    "PlainViT",
    "Selection",
    "TrainConfig",
    "UseMask",
    "audit",
    "evaluate",
    "fit",
    "load_benchmark",
    "load_official",
    "losses",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("ifam.losses")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ifam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
