"""Imports by name: libraries of extras, and functions that a user names as `PACKAGE.MODULE:FUNCTION`.

Importing a function of a user runs code. Imports no torch.
"""

import inspect
import sys
import types
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ifam.errors import IfamError, first_line

# Types of settings, which JSON and YAML can hold.
_PLAIN = (bool, int, float, str)


def import_extra(library: str, extra: str, purpose: str, instead: str = "") -> Any:
    """A library that is no part of the base install.

    Args:
        library: Name of its module.
        extra: The extra of ifam that installs it.
        purpose: What needs it: the beginning of the message.
        instead: What else can be done: its end.

    Raises:
        IfamError: It is not installed, or cannot be imported.
    """
    try:
        return import_module(library)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        reason = "is not installed" if missing else f"cannot be imported ({first_line(error)})"
        raise IfamError(f"{purpose} {library}, which {reason}; run `pip install 'ifam[{extra}]'`{instead}.") from error


def names_function(name: str) -> bool:
    """Whether a name has the form `PACKAGE.MODULE:FUNCTION`."""
    module, _, function = name.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


@contextmanager
def returning(name: str) -> Iterator[None]:
    """Run code of a user in the block, which must not end the program: its exit status would be taken for ours.

    Args:
        name: The function whose code it is, for the message.

    Raises:
        IfamError: It ended the program.
    """
    try:
        yield
    except SystemExit as ended:
        raise IfamError(
            f"The code of {name} ended the program (SystemExit: {ended.code!r}), but is expected to return; take calls "
            f"such as `sys.exit` out of it."
        ) from ended


def import_function(name: str, option: str) -> Any:
    """A function by name; its module is imported, so that its code is run.

    Args:
        name: `PACKAGE.MODULE:FUNCTION`, which is found from the working directory, too.
        option: The option that names it, for messages.

    Raises:
        IfamError: It cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    # Last, so that nothing in the working directory takes the place of an installed package.
    sys.path.append(str(Path.cwd()))
    try:
        with returning(name):
            imported = import_module(module)
            found = getattr(imported, function, None)
    except IfamError:
        raise
    except Exception as error:  # whatever its code raises
        raise IfamError(
            f"{name} cannot be imported ({type(error).__name__}: {first_line(error)}); give PACKAGE.MODULE:FUNCTION, "
            f"installed or in the working directory."
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not hasattr(imported, function):
        raise IfamError(f"{module} has no {function!r}; name a function of it with {option} {module}:FUNCTION.")
    if not callable(found):
        raise IfamError(f"{name} is a {type(found).__name__}, but a function is expected; name one with {option}.")
    return found


def parameters_of(
    name: str, option: str, reserved: Collection[str] = (), skipped: str = ""
) -> list[tuple[str, Any, Any]]:
    """Name, type and default of each parameter of a function that is a setting; the function is imported.

    Args:
        name: `PACKAGE.MODULE:FUNCTION`.
        option: The option that names it, for messages.
        reserved: Names that no setting can have.
        skipped: A parameter that is none.

    Raises:
        IfamError: It cannot be imported, or a parameter has no default, or a type that JSON and YAML do not have.
    """
    function = import_function(name, option)
    try:
        parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise IfamError(f"The parameters of {name} cannot be read ({error}); name a function with {option}.") from error
    settings: list[tuple[str, Any, Any]] = []
    for one in parameters.values():
        if one.name == skipped or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        if one.kind is one.POSITIONAL_ONLY or one.default is one.empty or one.name in reserved:
            raise IfamError(
                f"The parameter {one.name!r} of {name} cannot be a setting; give it a default and a name of its own."
            )
        hint = hints.get(one.name, type(one.default) if isinstance(one.default, _PLAIN) else Any)
        if not _is_plain(hint) or not isinstance(one.default, (*_PLAIN, tuple, type(None))):
            raise IfamError(
                f"The parameter {one.name!r} of {name} is {hint}, but settings are bool, int, float, str, Literal or "
                f"tuples of these; annotate it so."
            )
        settings.append((one.name, hint | None if one.default is None and hint is not Any else hint, one.default))
    return settings


def _is_plain(hint: Any) -> bool:
    """Whether a value of this type comes back as it was from JSON or YAML."""
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return all(_is_plain(inner) for inner in get_args(hint) if inner is not ...)
    return hint in (*_PLAIN, Any, type(None)) or get_origin(hint) is Literal
