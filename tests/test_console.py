"""Names on the screen are shown as they are."""

import io

import pytest
from rich.table import Table

from ifam.console import PlainConsole
from ifam.progress import ProgressBar


@pytest.mark.parametrize(
    "name", ["duck [water]", "x [/y]", "[bold]b", ":duck:", "[link=x]y[/link]", "\\[a]", "Ente 🦆"]
)
def test_names_are_not_parsed(name):
    screen = io.StringIO()
    console = PlainConsole(file=screen, width=100)
    table = Table(name, title=f"title {name}", caption=f"caption {name}")
    table.add_row(f"cell {name}")
    console.print(table)
    console.print(f"line {name}")
    for place in ("title", "caption", "cell", "line"):
        assert f"{place} {name}" in screen.getvalue()
    screen = io.StringIO()
    with ProgressBar(console=PlainConsole(file=screen, force_terminal=True, width=160)) as bar:
        bar.add_task(name, total=1)
    assert name in screen.getvalue()


def test_a_name_does_not_steer_the_terminal():
    screen = io.StringIO()
    PlainConsole(file=screen, force_terminal=True).print("a\x1b[31mb\x07c\u202ed\re")
    assert screen.getvalue() == "a\\x1b[31mb\\x07c\\u202ed\\re\n"
