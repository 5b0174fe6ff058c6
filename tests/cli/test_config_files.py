"""Settings files as people edit them: each mistake is one sentence that names file and key."""

from pathlib import Path

import pytest

from ifam.cli.main import main

# What the file holds, the verb, and what is said.
WRONG = {
    "a key twice": ("train:\n  epochs: 3\n  epochs: 4\n", "train", "line 3: epochs was already set in line 2"),
    "a verb's key twice": ("seed: 3\nsplit: val\nseed: 4\n", "evaluate", "line 3: seed was already set in line 1"),
    "a key twice in a row": (
        "methods:\n  ifam:\n    train: {epochs: 1, epochs: 2}\n",
        "compare",
        "line 3: epochs was already set",
    ),
    "a tab": ("train:\n\tepochs: 3\n", "train", "a tab is used instead of spaces"),
    "unclosed": ("data: [1\n", "train", "is not valid YAML"),
    "empty": ("", "train", "is empty"),
    "comments alone": ("# seed: 3\n", "train", "is empty"),
    "a list": ("- 1\n", "train", "contains no settings"),
    "a text": ("just text\n", "train", "contains no settings"),
    "an unknown setting": (
        "epoks: 3\n",
        "train",
        "line 1: `ifam train` has no setting 'epoks'; it has benchmark",
    ),
    "an unknown field": (
        "train:\n  epoks: 3\n",
        "train",
        "line 2: train has no setting 'epoks' (did you mean 'epochs'?); it has epochs",
    ),
    "an unknown setting of the data": (
        "benchmark: folder\ndata:\n  val_fracton: 0.3\n",
        "train",
        "line 3: folder has no setting 'val_fracton' (did you mean 'val_fraction'?); it has skip_bad",
    ),
    "a word for a number of the data": (
        "root: photos\ndata:\n  val_fraction: half\n",
        "train",
        "data.val_fraction in mine.yaml is half, but a share from 0 (none) to below 1 is expected",
    ),
    "one value for many": ("train: 3\n", "train", "line 1: train is one value"),
    "a list for one": ("train:\n  epochs: [1, 2]\n", "train", "train.epochs in mine.yaml is "),
    "a word for a number": ("seed: many\n", "evaluate", "seed in mine.yaml is "),
    "a list for settings": ("data: [1]\n", "train", "line 1: data is one value, but settings below it"),
    "no value": ("train:\n  epochs:\n", "train", "line 2: train.epochs has no value"),
    "no number": ("seed:\n", "evaluate", "line 1: seed has no value"),
    "an empty path": ('out: ""\n', "train", "line 1: out is an empty path"),
    "an empty model": ('model: ""\n', "evaluate", "line 1: model is an empty path"),
    "the settings of another verb": ("method: ifam\nmodel: {num_parts: 3}\n", "evaluate", "has no setting 'method'"),
    "another file in it": ("config: other.yaml\n", "train", "has no setting 'config'"),
}


def fails(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ifam: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(("text", "verb", "says"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("joined", [False, True])
def test_a_mistake_in_a_file_is_one_sentence(text, verb, says, joined, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text, encoding="utf-8")
    said = fails(capsys, verb, *(["--config=mine.yaml"] if joined else ["--config", "mine.yaml"]))
    assert says in said
    assert "mine.yaml" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_what_is_no_file_of_text_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bytes.yaml").write_bytes(b"\xff\xfe a")
    Path("folder.yaml").mkdir()
    for name, says in [("bytes", "is not a text in UTF-8"), ("folder", "is a folder"), ("missing", "does not exist")]:
        said = fails(capsys, "train", "--config", f"{name}.yaml")
        assert f"{name}.yaml {says}" in said


def test_the_second_of_two_files_is_checked_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("benchmark: folder\n", encoding="utf-8")
    Path("b.yaml").write_text("seed: 3\nseed: 4\n", encoding="utf-8")
    assert "b.yaml, line 2" in fails(capsys, "evaluate", "--config", "a.yaml", "--config", "b.yaml")


@pytest.mark.parametrize("text", ["benchmark: nope\n", "\ufeffbenchmark: nope\n", "# a\n---\nbenchmark: nope\n"])
def test_a_file_that_is_right_is_read(text, tmp_path, capsys):
    """Also with the mark that some editors put before a text; what is wrong here is what the file says."""
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert "There is no benchmark" in fails(capsys, "train", "--config", tmp_path / "mine.yaml")


# --- paths -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_paths_are_expanded_wherever_they_are_written(home, capsys):
    """Each names its place in the home in its complaint, and none makes a folder called `~` or `$HOME`."""
    (home / "mine.yaml").write_text("benchmark: folder\nroot: ~/photos\n")
    (home / "page.html").write_text("mine")
    for words, says in [
        (["train", "--benchmark", "folder", "--root=~/photos"], "photos"),
        (["train", "--benchmark", "folder", "--root=$HOME/photos"], "photos"),
        (["train", "--config=~/mine.yaml"], "photos"),
        (["evaluate", "--model=~/runs/ifam"], "runs/ifam"),
        (["evaluate", "--model", "${HOME}/runs/ifam"], "runs/ifam"),
        (["predict", "~/a.png", "--model=~/model"], "model"),
        (["report", "~/results.json"], "results.json"),
        (["convert", "~/a.pt", "out"], "a.pt"),
        (["report", "x.json", "--out=~"], ""),
        (["train", "--out=~/page.html"], "page.html is a file"),
    ]:
        said = fails(capsys, *words)
        assert str(home / says) in said, words
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--out", ""],
        ["train", "--out="],
        ["train", "--benchmark", "folder", "--root", ""],
        ["evaluate", "--model="],
        ["evaluate", "--model", " "],
        ["predict", ""],
        ["report", "x", "--out="],
        ["convert", "", "x"],
        ["audit", "--plain="],
    ],
)
def test_an_empty_path_is_refused(words, home, capsys):
    said = fails(capsys, *words)
    assert "empty path" in said or "names nothing" in said
    assert list(Path().iterdir()) == []


def test_what_is_meant_to_be_local_is_not_looked_for_on_the_hub(home, capsys, monkeypatch):
    monkeypatch.setattr("ifam.saved_models.download", lambda *_: pytest.fail("the hub was asked"))
    Path("models").mkdir()
    for name in ("runs/ifam", "models/birds", "./models/birds", "runs/ifam/", "models\\birds", "a/b/c"):
        assert "There is no file or folder" in fails(capsys, "evaluate", "--model", name)
