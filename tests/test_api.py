"""The public namespace is small and guarded: a name that comes or goes has to be written down here."""

import ast
import importlib
import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import ifam

PUBLIC = {
    "AuditResult",
    "Backbone",
    "Batch",
    "Calibration",
    "Certification",
    "DropParts",
    "DropUnsure",
    "HeatMaps",
    "IFAM",
    "IfamError",
    "KeepParts",
    "LossConfig",
    "ModelConfig",
    "Output",
    "PartContributions",
    "PlainViT",
    "Selection",
    "TrainConfig",
    "UseMask",
    "UseParts",
    "audit",
    "calibrate",
    "certify",
    "correct",
    "evaluate",
    "explain",
    "export",
    "fit",
    "iter_predictions",
    "load_benchmark",
    "load_calibration",
    "load_official",
    "losses",
    "model_card",
    "predict",
    "push_to_hub",
    "to_fiftyone",
}
SOURCES = sorted(Path(ifam.__file__).parent.rglob("*.py"))
MODULES = [
    ".".join(("ifam", *path.relative_to(Path(ifam.__file__).parent).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCES
]


def test_the_namespace_is_what_is_written_here():
    assert set(ifam.__all__) == PUBLIC
    assert ifam.__all__ == list(dict.fromkeys(ifam.__all__))
    assert set(dir(ifam)) == PUBLIC | {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_can_be_imported(name):
    value = getattr(ifam, name)
    if name == "losses":
        assert value is importlib.import_module("ifam.training.losses")
    else:
        # From where it says it lives, and under its own name.
        assert value.__name__ == name
        assert value is getattr(importlib.import_module(value.__module__), name)


def test_star_import_brings_these_and_no_more():
    space = {}
    exec("from ifam import *", space)
    assert set(space) - {"__builtins__"} == PUBLIC


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ifam' has no attribute 'Ifam'"):
        _ = ifam.Ifam
    with pytest.raises(ImportError, match="nonsense"):
        exec("from ifam import nonsense", {})


def test_type_checkers_see_every_name():
    """`from x import y as y` is what tools take for a name that is given out."""
    tree = ast.parse(Path(ifam.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    assert {alias.asname for node in tree.body for alias in node.names} == PUBLIC | {"__version__"}
    assert (Path(ifam.__file__).parent / "py.typed").exists()


def test_importing_the_package_is_quick():
    """`import ifam` and the configuration load no torch."""
    code = "import sys, ifam, ifam.config, ifam.cli.main; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_prediction_starts_without_what_only_training_needs():
    others = ("lightning", "torchmetrics", "sklearn", "scipy")
    code = f"import sys, ifam.inference, ifam.cli.predict; print([name for name in {others} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__, module
    for name, value in vars(loaded).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            assert value.__doc__, f"{module}.{name}"
            # Dataclasses without one are given their signature.
            assert not value.__doc__.startswith(f"{name}("), f"{module}.{name}"
            for member, function in vars(value).items():
                if inspect.isfunction(function) and not member.startswith("_") and member != "forward":
                    assert inspect.getdoc(getattr(value, member)), f"{module}.{name}.{member}"
        elif inspect.isfunction(value):
            assert value.__doc__, f"{module}.{name}"


@pytest.mark.parametrize("config", ["ModelConfig", "LossConfig", "TrainConfig"])
def test_every_setting_is_documented(config):
    kind = getattr(ifam, config)
    documented = {
        line.strip().split(":")[0] for line in kind.__doc__.split("Attributes:")[1].splitlines() if ":" in line
    }
    assert {field.name for field in fields(kind)} <= documented
