"""The scripts in `examples/` are short, and run without a network or arguments."""

import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each prints.
PRINTS = {"own_folder.py": "visible", "what_if.py": "without part 1", "audit_model.py": "PASSED: "}


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_is_short(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    ends = pytest.raises(SystemExit, match=r"^0$") if name == "audit_model.py" else nullcontext()
    with ends:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert PRINTS[name] in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


@pytest.mark.slow
def test_the_example_of_interventions_takes_a_saved_model(monkeypatch, capsys, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["what_if.py", str(tmp_path / "model")])
    runpy.run_path(str(EXAMPLES / "what_if.py"), run_name="__main__")
    assert "everything visible   100% visible" in capsys.readouterr().out
