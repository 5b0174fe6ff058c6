"""User-facing errors: what is wrong, what was expected, how to fix it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class IfamError(ValueError):
    """An error of the input, not of the program. The command line prints its sentence and exits with 2."""


class ReportedError(IfamError):
    """Another process has ended with an error, which it reports itself. The command line exits with 2 in silence."""


def first_line(error: BaseException) -> str:
    """The first nonblank line of the message of an error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def located(where: object) -> Iterator[None]:
    """Put the file that is read in the block before the message of an error in it."""
    try:
        yield
    except IfamError as error:
        raise IfamError(f"{where}: {error}") from error


def suggestion(name: str, known: Iterable[str]) -> str:
    """A suffix for messages on an unknown name: " (did you mean 'epochs'?)", or nothing."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
