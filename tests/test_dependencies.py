"""What is imported is declared, and the base install needs no extra."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ifam"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
# Extras that a user asks for; `dev` and `docs` are for whoever changes the package.
EXTRAS = {name: group for name, group in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
# The files that use an extra, and which: everything else runs with the base install.
USES = {
    "app/page.py": {"app"},
    "app/server.py": {"app"},
    "data/images.py": {"heif"},
    "data/dicom.py": {"medical"},
    "models/attribution.py": {"explain"},
    "auditing/any_classifier.py": {"onnx"},
    "exporting/export.py": {"export", "onnx"},
    "exporting/page.py": {"export"},
    "prediction/tables.py": {"parquet"},
    "training/lora.py": {"lora"},
    "report/fiftyone_samples.py": {"fiftyone"},
    "training/loggers.py": {"mlflow", "tensorboard", "wandb"},
}
# Extras whose objects a user hands over: nothing imports them.
HANDED = {"hf"}
# Imports whose absence is provided for, in a `try` of their own: shapes are checked in tests alone.
GUARDED = {"jaxtyping"}
# Functions that are given names of modules or distributions, and how many at most.
BY_NAME = {"import_module": 1, "import_extra": 1, "find_spec": 1, "RequirementCache": 2}


def normalized(requirement):
    """Name of a distribution, as the index has it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


BASE = {normalized(requirement) for requirement in PROJECT["dependencies"]}
EXTRA = {normalized(requirement): name for name, group in EXTRAS.items() for requirement in group}
PROVIDERS = {module: {*map(normalized, names)} for module, names in metadata.packages_distributions().items()}


def named(node):
    """The modules that a node of a syntax tree imports, or asks for by their names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    if isinstance(node, ast.Call):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = node.args[: BY_NAME.get(function, 0)]
        return [word.value for word in words if isinstance(word, ast.Constant)]
    return []


def imported(path):
    """Top-level names of the foreign modules that a file imports anywhere, with the lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in named(node):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names | GUARDED | {"ifam"}:
                yield top, node.lineno


def test_imports_are_found_wherever_they_stand(tmp_path):
    lines = ["import a.b", "def f():", "    from c import d", "import_module('e.f')", "importlib.util.find_spec('g')"]
    lines += ["import_extra('h', 'i', 'j')"]
    (tmp_path / "x.py").write_text("\n".join(lines), encoding="utf-8")
    assert sorted(imported(tmp_path / "x.py")) == [("a", 1), ("c", 3), ("e", 4), ("g", 5), ("h", 6)]


@pytest.mark.parametrize("name", FILES)
def test_what_is_imported_is_declared(name):
    """By the base install, or by the extra that is listed for this file."""
    extras = set()
    for module, line in imported(FILES[name]):
        # One that is not installed here has the name of its module.
        distributions = PROVIDERS.get(module, {normalized(module)})
        if distributions & BASE:
            continue
        needed = {EXTRA[distribution] for distribution in distributions & EXTRA.keys()}
        assert needed, f"{name}, line {line} imports {module}, which pyproject.toml does not declare"
        assert needed <= USES.get(name, set()), f"{name}, line {line} needs the extra {needed}: say so in USES"
        extras |= needed
    # Names that are no constants are not seen here: such a file says itself what it needs.
    assert extras == USES.get(name, set()) or "import_extra(name" in FILES[name].read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_is_declared_is_imported():
    modules = {module for path in FILES.values() for module, _ in imported(path)}
    used = {distribution for module in modules for distribution in PROVIDERS.get(module, ())}
    assert BASE - used == set()
    assert set(EXTRAS) - HANDED == set.union(*USES.values())


def base_closure():
    """The distributions that `pip install ifam` brings."""
    closure, todo = set(), [*BASE]
    while todo:
        name = todo.pop()
        if name in closure:
            continue
        closure.add(name)
        for requirement in metadata.requires(name) or ():
            text, _, marker = requirement.partition(";")
            extras = re.search(r"extra\s*==\s*['\"]([\w.-]+)", marker)
            wanted = name == "jsonargparse" and extras and extras[1] == "signatures"
            if (not extras or wanted) and installed(normalized(text)):
                todo.append(normalized(text))
    return closure


def installed(name):
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


BLOCKED = """
import importlib, importlib.metadata, importlib.util, re, sys
hidden, absent = (set(words.split(",")) for words in sys.argv[1:3])
# Lightning and torchmetrics ask for the versions of some packages, and import those that have one.
from_name = importlib.metadata.Distribution.from_name

def distribution(name):
    if re.sub(r"[-_.]+", "-", name).lower() in absent:
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

importlib.metadata.Distribution.from_name = distribution
find_spec = importlib.util.find_spec
# PyTorch asks whether some packages are there, without importing them.
importlib.util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in hidden else find_spec(name, package)
)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[3:]:
    importlib.import_module(name)
import ifam
for name in ifam.__all__:
    getattr(ifam, name)
"""


@pytest.mark.slow
def test_the_base_install_imports_every_module():
    """No extra is needed to import anything: those are asked for when they are used."""
    closure = base_closure()
    absent = set.union(*PROVIDERS.values()) - closure - {"ifam"}
    hidden = {module for module, names in PROVIDERS.items() if names <= absent}
    hidden -= sys.stdlib_module_names
    assert {"pydicom", "captum", "pytest"} <= hidden
    parts = [path.relative_to(SOURCE.parent).with_suffix("").parts for path in FILES.values()]
    modules = [".".join(part).removesuffix(".__init__") for part in parts]
    command = [sys.executable, "-c", BLOCKED, ",".join(sorted(hidden)), ",".join(sorted(absent)), *modules]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
