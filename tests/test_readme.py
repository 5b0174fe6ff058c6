"""The README is true: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from ifam.cli.parser import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^(?:ifam|make|pip) .*?(?=\s*(?:#.*)?$)", README, re.MULTILINE)


def test_the_readme_has_code_and_commands():
    assert len(PYTHON) == 2
    assert sum(command.startswith("ifam ") for command in COMMANDS) >= 3


@pytest.mark.slow
def test_the_python_of_the_readme_runs():
    names: dict = {}
    exec(PYTHON[0], names)
    assert names["logits"].equal(names["model"].predictor(names["images"], names["out"].mask))
    assert names["out"].logits.shape == (4, 2)


def test_the_hub_snippet_names_a_function_that_exists():
    import ifam

    assert "ifam.load_official(" in PYTHON[1]
    assert callable(ifam.load_official)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ifam ")])
def test_the_commands_of_the_readme_parse(command):
    words = shlex.split(command, comments=True)
    assert parse(words[1:])[0] == words[1]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_the_targets_of_the_readme_exist(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_the_links_of_the_readme_lead_somewhere(link):
    assert (ROOT / link).exists()
