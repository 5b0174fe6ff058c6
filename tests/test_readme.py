"""README and guides are true: the Python of the README runs, commands parse, links lead somewhere (test_docs.py)."""

import re
import shlex
from pathlib import Path

import pytest

from ifam.cli.parser import parse

ROOT = Path(__file__).parents[1]
README, *GUIDES = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in (
        *("README.md", "CONTRIBUTING.md"),
        *("docs/start.md", "docs/experiments.md", "docs/certify.md", "docs/deployment.md"),
    )
)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    command
    for text in (README, *GUIDES)
    for command in re.findall(r"^(?:ifam|make|pip) .*?(?=\s*(?:#.*)?$)", text, re.MULTILINE)
]


def test_the_readme_has_six_lines_of_code_and_commands():
    assert [len(code.split("\n\n", 1)[1].splitlines()) + 1 for code in PYTHON] == [6]
    assert "ifam train photos" in COMMANDS
    assert sum(command.startswith("ifam ") for command in COMMANDS) >= 10


@pytest.mark.slow
def test_the_python_of_the_readme_runs():
    names: dict = {}
    exec(PYTHON[0], names)
    assert names["logits"].equal(names["model"].predictor(names["images"], names["out"].mask))
    assert names["out"].logits.shape == (4, 2)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ifam ")])
def test_the_commands_parse(command):
    words = shlex.split(command, comments=True)
    assert parse(words[1:])[0] == words[1]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_the_targets_exist(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
