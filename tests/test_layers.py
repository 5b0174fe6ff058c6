"""Imports go one way: a package knows only those above it, and a file only those above it in its package.

Read off the syntax tree.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ifam"

# Packages and single files, from the bottom of the house to its top: each may import what stands on the lines before
# it. Those on one line may import each other, but never in a circle.
RANKS = [
    [
        "_typing",
        "version",
        "types",
        "errors",
        "ranges",
        "importing",
        "config",
        "data_config",
        "interruption",
        "launch",
        "distributed",
        "logs",
        "pulse",
        "io",
    ],
    ["commands", "serialization", "run_log"],
    ["run_files"],
    ["console", "progress", "yaml_text", "model_files", "saved_models", "provenance"],
    ["backbones", "data"],
    ["models"],
    ["checkpoints", "evaluation", "training"],
    ["auditing"],
    ["report"],
    ["prediction", "experiments", "exporting", "inference", "publishing", "explanation"],
    ["app"],
    ["__init__"],
    ["cli"],
]
RANK = {name: rank for rank, line in enumerate(RANKS) for name in line}

# The order of files inside of packages where it says something; each may import those before it.
ORDER = {
    "backbones": [
        *("timm_compat", "mask_gradient", "gated_attention", "token_layout", "rotary", "masked_pass"),
        *("vit", "architecture", "hf_dinov2", "backbone", "timm_classifier"),
    ],
    "models": [
        *(
            "precision",
            "token_cache",
            "noise",
            "selector",
            "interventions",
            "masking",
            "pixel_mask",
            "windows",
            "predictor",
            "part_sum",
            "timm_interface",
            "base",
            "ifam",
        ),
        *("contributions", "soft_mask", "crops", "baselines", "segment_first", "registry", "attribution"),
    ],
    "checkpoints": ["safe_pickle", "authors", "hub"],
    "evaluation": [
        *(
            "metrics",
            "hidden_pixel_attacks",
            "bootstrap",
            "seeds",
            "comparisons",
            "pairings",
            "part_metrics",
            "part_quality",
            "collect",
            "accuracy",
        ),
        *("smoothing", "flips", "background_gap", "thresholds", "features", "conformal", "coverage"),
        "challenge",
    ],
    "auditing": [
        *("inputs", "certify", "certificates", "background_swap", "mask_leakage", "sufficiency", "mask_alone"),
        *("posthoc", "run"),
        *("region_attack", "smoothing"),
        *("any_classifier", "reliance", "audit_any"),
    ],
    "prediction": ["sources", "reading", "row", "tables", "output", "classification"],
    "exporting": ["graph", "verification", "export", "page"],
    "app": ["exploration", "session", "panel", "page", "examples", "server"],
    "experiments": ["runs", "pictures", "comparison", "compare", "demo"],
    "training": [
        *(
            "affine",
            "losses",
            "group_dro",
            "optimization",
            "lora",
            "randomness",
            "batches",
            "metrics_file",
            "progress",
            "loggers",
            "resume",
            "trainer",
            "diagnostics",
            "module",
            "fit",
            "last_layer",
            "corrections",
        ),
        "presets",
    ],
    "cli": [
        *("config_files", "stopped", "common"),
        *(
            "app",
            "audit_any",
            "audit",
            "calibrate",
            "certify",
            "challenge",
            "compare",
            "convert",
            "demo",
            "evaluate",
            "export",
            "predict",
            "prepare",
            "push",
            "repeat",
            "report",
        ),
        *("retrain", "thresholds", "train"),
        *("parser", "main", "__main__"),
    ],
}

# Stronger than the order.
NEVER = {
    ("models.selector", "models.predictor"),
    ("models.predictor", "models.selector"),
    ("evaluation", "training"),
    ("evaluation", "checkpoints"),
    ("training", "checkpoints"),
    ("backbones", "data"),
}
ONLY = {"data": {"data", "data_config", "importing", "types", "_typing", "errors", "io", "pulse"}}

KNOW_TIMM = {"backbones.timm_compat", "backbones.vit", "backbones.rotary", "backbones.timm_classifier"}


@cache
def _modules():
    """Dotted name below `ifam` and syntax tree of every file."""
    trees = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        trees.append((name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))
    return trees


def _exists(name):
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _imports(tree):
    """Dotted names of all modules imported anywhere in a file, function bodies included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                known = inner.startswith("ifam.") and _exists(inner.removeprefix("ifam."))
                yield inner if known else node.module


def _own(tree):
    """Modules of this package that a file imports, without `ifam.`; the package itself is `__init__`."""
    for name in _imports(tree):
        if name == "ifam" or name.startswith("ifam."):
            yield name.removeprefix("ifam").removeprefix(".") or "__init__"


def _top(name):
    return name.split(".")[0]


GRAPH = {name: set(_own(tree)) for name, tree in _modules()}


def test_the_graph_is_read_at_all():
    assert {"backbones.masked_pass", "config", "errors", "_typing"} <= GRAPH["backbones.backbone"]
    assert {"models.predictor", "models.masking", "models.base"} <= GRAPH["models.ifam"]
    assert "inference" in GRAPH["cli.predict"], "imports inside of functions count"
    assert all(_exists(target) for targets in GRAPH.values() for target in targets)


@pytest.mark.parametrize("name", GRAPH)
def test_every_file_has_its_place(name):
    assert _top(name) in RANK, f"say in RANKS where {name} belongs"
    if _top(name) in ORDER and "." in name:
        assert name.partition(".")[2] in ORDER[_top(name)], f"say in ORDER where {name} belongs"


def test_every_place_is_taken():
    assert set(RANK) - {"__init__"} == set(map(_top, GRAPH)) - {"__init__"}
    assert {f"{package}.{file}" for package, files in ORDER.items() for file in files} == {
        name for name in GRAPH if "." in name and _top(name) in ORDER
    }


@pytest.mark.parametrize("name", GRAPH)
def test_imports_go_up_only(name):
    source = _top(name)
    for target in GRAPH[name]:
        top = _top(target)
        assert not {(name, target), (source, top)} & NEVER, f"{name} must not know {target}"
        assert RANK[top] <= RANK[source], f"{name} imports {target}, which is below it"
        assert top in ONLY.get(source, RANK), f"{name} may import only {ONLY.get(source)}, not {target}"
        if source == top and source in ORDER and "." in name and "." in target:
            order = [f"{source}.{file}" for file in ORDER[source]]
            assert order.index(target) < order.index(name), f"{name} imports {target}, which is below it"


def _circle(graph):
    """The names along one circle of the graph; nothing if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        circle = next(filter(None, map(visit, sorted(graph.get(name, ())))), [])
        path.pop()
        done.add(name)
        return circle

    return next(filter(None, map(visit, graph)), [])


def test_no_circle():
    assert not (circle := _circle(GRAPH)), " -> ".join(circle)


def test_no_circle_of_packages():
    packages = {}
    for name, targets in GRAPH.items():
        packages.setdefault(_top(name), set()).update({_top(target) for target in targets} - {_top(name)})
    assert not (circle := _circle(packages)), " -> ".join(circle)


@pytest.mark.parametrize(
    ("file", "target"), [("models.base", "checkpoints.hub"), ("io", "cli.main"), ("data.base", "data")]
)
def test_a_circle_would_be_noticed(file, target):
    assert len(_circle({**GRAPH, file: GRAPH[file] | {target}})) > 2


def test_models_know_nothing_of_what_reads_checkpoints():
    for name in GRAPH:
        if _top(name) == "models":
            assert "checkpoints" not in map(_top, GRAPH[name]), name


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_few_files_know_the_transformers_library(library):
    users = {name for name, tree in _modules() if library in map(_top, _imports(tree))}
    assert users <= KNOW_TIMM


def test_configuration_and_errors_need_no_torch():
    for name, tree in _modules():
        if name in {"config", "data_config", "errors", "ranges", "importing"}:
            assert not {"torch", "timm"} & set(map(_top, _imports(tree))), name
            assert set(_own(tree)) <= {"errors", "ranges", "importing"}, name


def test_annotations_are_real_objects():
    for name, tree in _modules():
        assert "__future__" not in set(_imports(tree)), f"{name}: shapes could not be checked"


@pytest.mark.slow
def test_the_package_works_without_jaxtyping():
    code = """
import sys
sys.modules["jaxtyping"] = None
import ifam
import torch
from ifam._typing import Float, Tensor
from ifam.config import ModelConfig
from ifam.models.ifam import IFAM
assert Float[Tensor, "B C"] is Tensor
config = ModelConfig("ifam_tiny", num_parts=2, backbone_kwargs={"depth": 1, "embed_dim": 16})
out = IFAM(config, pretrained=False).eval()(torch.randn(1, 3, 80, 80))
print(ifam.__version__, tuple(out.logits.shape))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("(1, 2)")


def test_private_names_of_timm_are_in_one_file():
    """`vit._pos_embed` and the like; underscores of our own objects are read through `self`."""
    private = re.compile(r"\b(?:vit|block|attn|timm)\._[a-z]|timm\.[\w.]+ import [^\n]*\b_[a-z]")
    users = {
        path.stem for path in (SOURCE / "backbones").rglob("*.py") if private.search(path.read_text(encoding="utf-8"))
    }
    assert users == {"timm_compat"}
