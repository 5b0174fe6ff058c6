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
    from ifam.auditing.run import AuditResult as AuditResult
    from ifam.auditing.run import audit as audit
    from ifam.backbones.backbone import Backbone as Backbone
    from ifam.checkpoints.hub import load_official as load_official
    from ifam.config import LossConfig as LossConfig
    from ifam.config import ModelConfig as ModelConfig
    from ifam.config import TrainConfig as TrainConfig
    from ifam.data import load_benchmark as load_benchmark
    from ifam.errors import IfamError as IfamError
    from ifam.evaluation.accuracy import evaluate as evaluate
    from ifam.inference import predict as predict
    from ifam.models.baselines import PlainViT as PlainViT
    from ifam.models.ifam import IFAM as IFAM
    from ifam.models.interventions import DropParts as DropParts
    from ifam.models.interventions import DropUnsure as DropUnsure
    from ifam.models.interventions import KeepParts as KeepParts
    from ifam.models.interventions import UseMask as UseMask
    from ifam.training import losses as losses
    from ifam.training.fit import fit as fit
    from ifam.types import Batch as Batch
    from ifam.types import Output as Output
    from ifam.types import Selection as Selection

_HOME = {
    "AuditResult": "ifam.auditing.run",
    "Backbone": "ifam.backbones.backbone",
    "Batch": "ifam.types",
    "DropParts": "ifam.models.interventions",
    "DropUnsure": "ifam.models.interventions",
    "IFAM": "ifam.models.ifam",
    "IfamError": "ifam.errors",
    "KeepParts": "ifam.models.interventions",
    "LossConfig": "ifam.config",
    "ModelConfig": "ifam.config",
    "Output": "ifam.types",
    "PlainViT": "ifam.models.baselines",
    "Selection": "ifam.types",
    "TrainConfig": "ifam.config",
    "UseMask": "ifam.models.interventions",
    "audit": "ifam.auditing.run",
    "evaluate": "ifam.evaluation.accuracy",
    "fit": "ifam.training.fit",
    "load_benchmark": "ifam.data",
    "load_official": "ifam.checkpoints.hub",
    "predict": "ifam.inference",
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
        return import_module("ifam.training.losses")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ifam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
