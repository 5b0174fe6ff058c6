"""Reading a pickle from a stranger: containers, numbers and strings, and nothing that runs."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

from ifam.errors import IfamError

# Python 2 wrote `__builtin__`; a set has no code of its own in the older protocols.
_PLAIN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "OrderedDict"): OrderedDict,
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class or function but those of `_PLAIN`, so that nothing can be called."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The container of that name."""
        if (module_name, global_name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return _PLAIN[module_name, global_name]


def read_plain_pickle(path: Path, mend: str) -> Any:
    """What a pickle of containers, numbers and strings holds.

    Args:
        path: The file.
        mend: What the user can do where it holds anything else.

    Raises:
        IfamError: It holds anything else, or is no pickle.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise IfamError(
            f"{path} is no pickle of plain containers, numbers and strings ({error or type(error).__name__}), and "
            f"anything else is not read because it could run code; {mend}."
        ) from None
