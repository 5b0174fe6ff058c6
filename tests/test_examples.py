"""The scripts and notebooks in `examples/` are short, and run without a network or arguments."""

import ast
import json
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each prints.
PRINTS = {"own_folder.py": "visible", "what_if.py": "without part 1", "audit_model.py": "PASSED: "}
NOTEBOOKS = {
    "own_folder.ipynb": "PASSED: ",
    "what_if.ipynb": "the set: ",
    "any_classifier.ipynb": "of the answers flip",
}


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*PRINTS, *NOTEBOOKS}


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


def cells_of(name):
    """The cells of a notebook, each with its text."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [(cell, "".join(cell["source"])) for cell in notebook["cells"]]


def run_cell(code, names):
    """Run a cell as a notebook does; the value of its last expression, as text in HTML if it has one."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    show = getattr(value, "_repr_html_", None)
    # A figure has the method, but shows itself in another way.
    return "" if value is None else (show and show()) or repr(value)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_short_and_stored_without_outputs(name):
    cells = cells_of(name)
    assert len({cell["id"] for cell, _ in cells}) == len(cells)
    code = [(cell, text) for cell, text in cells if cell["cell_type"] == "code"]
    assert sum(len(text.splitlines()) for _, text in code) <= 60
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell, _ in code)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    shown = [run_cell(text, names) for cell, text in cells_of(name) if cell["cell_type"] == "code"]
    assert NOTEBOOKS[name] in capsys.readouterr().out
    # Rows show their pictures, and contributions their sums.
    assert ("<img" in "".join(shown)) == (name != "any_classifier.ipynb")
    assert name != "what_if.ipynb" or "(part 0)" in "".join(shown)
