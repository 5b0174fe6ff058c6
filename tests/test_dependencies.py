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
# Extras that a user asks for; `dev` is for whoever changes the package.
EXTRAS = {name: group for name, group in PROJECT["optional-dependencies"].items() if name != "dev"}
# Imports whose absence is provided for, in a `try` of their own: shapes are checked in tests alone.
GUARDED = {"jaxtyping"}


def normalized(requirement):
    """Name of a distribution, as the index has it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


BASE = {normalized(requirement) for requirement in PROJECT["dependencies"]}
EXTRA = {normalized(requirement): name for name, group in EXTRAS.items() for requirement in group}
PROVIDERS = {module: {*map(normalized, names)} for module, names in metadata.packages_distributions().items()}


def imported(path):
    """Top-level names of the foreign modules that a file imports anywhere, with the lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "ifam":
                yield top, node.lineno


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_what_is_imported_is_declared(path):
    for module, line in imported(path):
        if module not in GUARDED:
            declared = PROVIDERS.get(module, set()) & (BASE | EXTRA.keys())
            assert declared, f"{path.name}, line {line} imports {module}, which pyproject.toml does not declare"


def test_what_is_declared_is_imported():
    """Only what a dependency of ours needs by itself may be missing here."""
    modules = {module for path in SOURCE.rglob("*.py") for module, _ in imported(path)}
    used = {distribution for module in modules for distribution in PROVIDERS.get(module, ())}
    assert BASE - used == set()


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
import importlib, sys
hidden = set(sys.argv[1].split(","))

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[2:]:
    importlib.import_module(name)
import ifam
for name in ifam.__all__:
    getattr(ifam, name)
"""


@pytest.mark.slow
def test_the_base_install_imports_every_module():
    """No extra is needed to import anything: those are asked for when they are used."""
    closure = base_closure()
    hidden = {module for module, names in PROVIDERS.items() if not names & (closure | {"ifam"})}
    hidden -= sys.stdlib_module_names
    assert {"pydicom", "captum", "pytest"} <= hidden
    parts = [path.relative_to(SOURCE.parent).with_suffix("").parts for path in sorted(SOURCE.rglob("*.py"))]
    modules = [".".join(part).removesuffix(".__init__") for part in parts]
    command = [sys.executable, "-c", BLOCKED, ",".join(sorted(hidden)), *modules]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
