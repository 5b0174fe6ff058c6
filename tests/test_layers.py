"""Imports go one way: a file knows only the files above it (DESIGN, section 2). Read off the syntax tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ifam"

# From top to bottom; what stands on one line may import each other, but never in a circle.
LAYERS = [
    ["_typing", "types", "errors", "ranges", "config", "progress", "io", "console", "yaml_text"],
    ["attention"],
    ["layout"],
    ["vit"],
    ["positions", "files", "architecture"],
    ["provenance"],
    ["dinov2"],
    ["backbone"],
    ["selector"],
    ["interventions"],
    ["masking"],
    ["predictor"],
    ["classifier"],
    ["model"],
    ["baselines", "soft_mask", "crops"],
    ["losses", "geometry", "metrics", "group_dro"],
    ["hub", "official"],
    ["data"],
    ["recipes", "optimization"],
    ["training"],
    ["evaluation"],
    ["report"],
    ["prediction"],
    ["pretraining"],
    ["auditing", "retraining", "runs"],
    ["comparing"],
    ["verbs", "comparison_verbs"],
    ["config_files"],
    ["demo", "app", "export", "cli"],
    ["__init__", "__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Stronger than the order.
NEVER = {("selector", "predictor"), ("predictor", "selector")}
ONLY = {"data": {"data", "types", "_typing", "errors", "io"}}

# `Classifier.save_pretrained` and `from_pretrained` are shortcuts to `hub`, imported when they are called;
# `evaluation.tables` prints the rows that `prediction` makes.
EXCEPTIONS = {("classifier", "hub"), ("evaluation.tables", "prediction")}

# `pretraining` makes the embedded backbone's weights, from timm's class; `demo` notes timm's version.
KNOW_TIMM = {"vit", "positions", "backbone", "pretraining", "demo"}


def _modules():
    """Dotted name below `ifam` and syntax tree of every file."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


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
    assert {"attention", "layout", "config", "errors", "_typing"} <= GRAPH["backbone"]
    assert {"predictor", "masking", "classifier"} <= GRAPH["model"]
    assert all(_exists(target) for targets in GRAPH.values() for target in targets - {"__init__", "hub"})


@pytest.mark.parametrize("name", GRAPH)
def test_every_file_has_its_place(name):
    assert _top(name) in RANK, f"say in LAYERS where {name} belongs"


@pytest.mark.parametrize("name", GRAPH)
def test_imports_go_up_only(name):
    source = _top(name)
    for target in map(_top, GRAPH[name]):
        if (name, target) in EXCEPTIONS or source == target:
            continue
        if target == "__init__":  # nothing but the version lies there that a file could want
            continue
        assert RANK[target] <= RANK[source], f"{name} imports {target}, which is below it"
        assert (source, target) not in NEVER, f"{name} must not know {target}"
        assert target in ONLY.get(source, RANK), f"{name} may import only {ONLY.get(source)}, not {target}"


def test_files_take_nothing_but_the_version_from_the_package_itself():
    for name, tree in _modules():
        if _top(name) in {"__init__", "__main__"}:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "ifam":
                wanted = {alias.name for alias in node.names if not _exists(alias.name)}
                assert wanted <= {"__version__", "hub"}, f"{name} imports {wanted} from ifam"


def test_no_circle():
    edges = {
        name: {t for t in targets if (name, t) not in EXCEPTIONS and t != "__init__"} for name, targets in GRAPH.items()
    }
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for target in edges.get(name, ()):
                visit(target, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])


def test_the_exceptions_are_inside_of_functions():
    tree = dict(_modules())["classifier"]
    top_level = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    assert "hub" not in set(_own(top_level))


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_few_files_know_the_transformers_library(library):
    users = {name for name, tree in _modules() if library in map(_top, _imports(tree))}
    assert users <= KNOW_TIMM


def test_configuration_and_errors_need_no_torch():
    for name, tree in _modules():
        if name in {"config", "errors", "ranges"}:
            assert not {"torch", "timm"} & set(map(_top, _imports(tree))), name
            assert set(_own(tree)) <= {"errors", "ranges"}, name


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
from ifam.model import IFAM
assert Float[Tensor, "B C"] is Tensor
config = ModelConfig("ifam_tiny", num_parts=2, backbone_kwargs={"depth": 1, "embed_dim": 16})
out = IFAM(config, pretrained=False).eval()(torch.randn(1, 3, 80, 80))
print(ifam.__version__, tuple(out.logits.shape))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("(1, 2)")
