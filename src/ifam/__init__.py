"""Inherently faithful attention maps for vision transformers: the mask is the answer's only input.

    import ifam
    model = ifam.IFAM(ifam.ModelConfig(num_parts=4, num_classes=2))
    out = model(images)          # out.logits, out.mask, out.part_maps, ...

The names in `__init__.pyi` are imported when they are first used, so that `import ifam` and `ifam --help` are quick.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from ifam.version import __version__ as __version__

_HOME = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = [name for name in _HOME if name != "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ifam' has no attribute {name!r}")
    home = import_module(_HOME[name])
    return getattr(home, name) if hasattr(home, name) else import_module(f"{_HOME[name]}.{name}")


def __dir__() -> list[str]:
    return list(_HOME)
