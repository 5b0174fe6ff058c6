"""The command that is running, as its results record it, so that `ifam repeat` can run it again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ifam.io import local_path

# Where results go and what they replace, and the names of the settings that were set: no figure depends on these.
_LEFT_OUT = ("out", "overwrite", "resume", "given")
# Settings that name a folder, or a model elsewhere.
_FOLDERS = ("model", "backbone", "predictor_backbone")

_running: ContextVar[dict[str, Any] | None] = ContextVar("running", default=None)


@contextmanager
def recorded(verb: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Record a command while it runs.

    Args:
        verb: Its name.
        settings: Its settings by name.
    """
    token = _running.set({"verb": verb, "settings": _plain(settings)})
    try:
        yield
    finally:
        _running.reset(token)


def complete(settings: Mapping[str, Any]) -> None:
    """Record settings with everything that was filled in, which might be filled in differently elsewhere."""
    if (command := _running.get()) is not None:
        command["settings"] = _plain(settings)


def running() -> dict[str, Any] | None:
    """Verb and settings of the command, ready for JSON; None where there is none, as in a program of one's own."""
    return _running.get()


def _plain(value: Any, name: str = "") -> Any:
    """A setting as JSON has it; folders are absolute, since the command may be repeated from another one."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one, str(key)) for key, one in value.items() if key not in _LEFT_OUT}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    is_folder = name in _FOLDERS and isinstance(value, str) and local_path(value).is_dir()
    return str(local_path(value).absolute()) if is_folder or isinstance(value, Path) else value
