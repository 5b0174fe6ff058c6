"""The screen, on which names are never parsed: not as markup, not as emoji, not by the terminal."""

from typing import Any

from rich.console import Console
from rich.text import Text

from ifam.io import printable


class PlainConsole(Console):
    """A console that shows every text as it is; the arguments are those of `rich.console.Console`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """The text, characters that would steer the terminal escaped."""
        return super().render_str(printable(text), **kwargs)
