"""A console that prints text verbatim, without markup, emoji or control characters."""

from typing import Any

from rich.console import Console
from rich.text import Text

from ifam.io import printable


class PlainConsole(Console):
    """A console that prints text verbatim; the arguments are those of `rich.console.Console`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """The text, with control characters escaped."""
        return super().render_str(printable(text), **kwargs)
