"""Help, and what is refused before any work starts: settings of data sets, unknown names, flags."""

import os
import re
import resource
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from ifam.cli.main import main
from ifam.cli.parser import VERBS, known_settings, parse
from ifam.data_config import DATA_CONFIGS, any_config
from ifam.errors import IfamError

MANY = [verb for verb in VERBS if "data" in known_settings([verb])]


def shown(capsys, *words):
    """What a command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 0
    return capsys.readouterr().out


def fails(capsys, *words):
    """The one sentence of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ifam: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


# --- help ------------------------------------------------------------------------------------------------

BENCHMARKS = [[verb, "--benchmark", name] for verb in ("train", "compare", "evaluate") for name in DATA_CONFIGS]


@pytest.mark.parametrize("words", [*([verb] for verb in VERBS), *BENCHMARKS], ids=" ".join)
def test_help_is_short(words, capsys):
    lines = shown(capsys, *words, "--help").splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"usage: ifam {words[0]} [options]{lines[0].partition('[options]')[2]}"
    assert "--help-all" in "".join(lines)


@pytest.mark.parametrize("verb", VERBS)
def test_all_settings_are_in_the_long_help(verb, capsys):
    text = shown(capsys, verb, "--help-all")
    assert max(map(len, text.splitlines())) <= 80
    known = known_settings([verb])
    for name, kind in known.items():
        for option in [f"{name}.{field.name}" for field in fields(kind)] if is_dataclass(kind) else [name]:
            positional = option.upper() in text.splitlines()[0]
            assert positional or re.search(rf"^  (--)?{re.escape(option)}\b", text, re.MULTILINE), option
    # Each option says something.
    assert not re.search(r"^  --\S+( \S+)?\n( {24}\(type: [^\n]*\)\n)?(?=  --|\n|\Z)", text, re.MULTILINE)
    assert ("--print_config" in text) > ("--print_config" in shown(capsys, verb, "--help"))


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_help_has_the_settings_of_the_data_set(name, capsys):
    kind = DATA_CONFIGS[name]
    text, common = (shown(capsys, "train", "--benchmark", name, option) for option in ("--help-all", "--help"))
    assert set(kind.common) <= {field.name for field in fields(kind)}
    for field in fields(kind):
        entry = re.search(rf"^  --data\.{field.name}\b.*?(?=^  --|\Z)", text, re.MULTILINE | re.DOTALL)
        said = re.sub(r"\s+", " ", entry[0])
        assert "type: " in said or "{" in said or field.default is False
        assert field.default in (False, (), "") or f"default: {field.default})" in said, field.name
        assert (f"--data.{field.name}" in common.split()) == (field.name in kind.common)
    assert set(re.findall(r"--data\.(\w+)", text)) == {field.name for field in fields(kind)}


def test_the_settings_of_all_data_sets_are_known_where_the_data_set_is_not():
    names = {field.name for kind in DATA_CONFIGS.values() for field in fields(kind)}
    assert {field.name for field in fields(any_config())} == names


def test_help_needs_no_torch():
    for verb in VERBS:
        code = f"import sys; from ifam.cli.main import main; sys.argv = ['ifam', '{verb}', '--help']; main()"
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not re.search(r"\| +(torch|numpy|timm)$", done.stderr, re.MULTILINE), verb


# --- flags -----------------------------------------------------------------------------------------------


def test_flags_are_flags(capsys):
    assert re.search(r"^  --overwrite  ", shown(capsys, "train", "--help"), re.MULTILINE)
    settings = parse(["train", "--train.compile", "--model.gumbel_noise", "false", "--train.flip", "--overwrite"])[1]
    assert (settings["train"].compile, settings["train"].flip, settings["model"].gumbel_noise) == (True, True, False)
    assert settings["overwrite"] is True
    assert parse(["train", "--train.compile", "true"])[1]["train"].compile is True
    assert parse(["train", "--train.flip", "null"])[1]["train"].flip is None
    assert parse(["train", "photos", "--data.skip_bad", "--data.check=false"])[1]["data"] == {
        "skip_bad": True,
        "check": False,
    }
    assert "overwrite is maybe, but bool is expected" in fails(capsys, "train", "--overwrite", "maybe")


# --- settings of data sets -------------------------------------------------------------------------------

# Words behind a verb, and what is said.
WRONG = {
    "unknown": (
        ["train", "photos", "--data.val_fracton", "0.3"],
        "folder has no setting 'val_fracton' (did you mean 'val_fraction'?); it has skip_bad",
    ),
    "of another data set": (["train", "--data.val_fraction", "0.3"], "pondbirds has no setting 'val_fraction'"),
    "a word": (
        ["train", "photos", "--data.val_fraction", "x"],
        "data.val_fraction is x, but a share from 0 (none) to below 1 is expected",
    ),
    "out of range": (
        ["compare", "photos", "--data.val_fraction", "1"],
        "folder: val_fraction is 1.0, but a share from 0 (none) to below 1 is expected",
    ),
    "no choice": (["train", "--benchmark", "waterbirds", "--data.labels", "x"], "data.labels is x, but"),
    "no flag": (["train", "--root", "photos", "--data.check", "x"], "data.check is x, but bool is expected"),
    "in braces": (["train", "photos", "--data", "{val_fraction: x}"], "data.val_fraction is x, but a share from 0"),
    "unknown in braces": (
        ["train", "photos", "--data", "{val_fracton: 1}"],
        "no --data.val_fracton (did you mean 'val_fraction'?)",
    ),
    "no braces": (["train", "--data", "3"], "data is '3', but settings, such as '{seed: 1}'"),
    "no data set has it": (
        ["evaluate", "--data.chek", "1"],
        "No data set has a setting 'chek' (did you mean 'check'?)",
    ),
    "a data set of a model": (["evaluate", "saved", "--data.hue_swap", "0"], "folder has no setting 'hue_swap'"),
    "a value of a model's": (["audit", "saved", "--data.seed=-1"], "folder: seed is -1, but a whole number"),
    "the challenge's": (["challenge", "--data.variant", "only_bg"], "data.variant is only_bg, but"),
    "a benchmark": (["train", "--benchmark", "foldr"], "no benchmark 'foldr' (did you mean 'folder'?); choose one of"),
    "an option": (["train", "--train.epoks", "1"], "There is no --train.epoks (did you mean 'epochs'?)"),
    "an abbreviation": (["train", "--train.epoch", "1"], "There is no --train.epoch (did you mean 'epochs'?)"),
    "a file": (
        ["thresholds", "--config", "mine.yaml"],
        "mine.yaml, line 3: folder has no setting 'seeed' (did you mean",
    ),
    "a file's value": (["retrain", "--config", "other.yaml"], "data.labels in other.yaml is 3, but"),
}


@pytest.mark.parametrize(("words", "says"), WRONG.values(), ids=WRONG)
def test_settings_are_refused_before_work_starts(words, says, capsys, monkeypatch):
    Path("saved").mkdir()
    Path("saved/config.json").write_text('{"extra": {"benchmark": "folder"}}', encoding="utf-8")
    Path("mine.yaml").write_text("benchmark: folder\ndata:\n  seeed: 1\n", encoding="utf-8")
    Path("other.yaml").write_text("benchmark: waterbirds\ndata: {labels: 3}\n", encoding="utf-8")
    before = sorted(Path().rglob("*"))
    monkeypatch.setitem(VERBS, words[0], _never(VERBS[words[0]]))
    assert says in fails(capsys, *words)
    assert sorted(Path().rglob("*")) == before


def _never(verb):
    """The verb, which must not be run."""
    from functools import wraps

    return wraps(verb)(lambda **settings: pytest.fail("work has started"))


@pytest.mark.slow
def test_what_is_wrong_is_said_within_seconds():
    # Of processor time: other work on the machine does not count.
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    words = [sys.executable, "-m", "ifam.cli", "train", "photos", "--data.val_fraction", "2"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ifam: folder: val_fraction is 2.0")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 5
    assert not list(Path().iterdir())


@pytest.mark.parametrize("verb", MANY)
def test_only_settings_that_were_given_reach_the_verb(verb):
    """The others may be those of a saved model."""
    where = [] if verb == "challenge" else ["--benchmark", "imagenet9"]
    assert parse([verb, *where])[1].get("data") is None
    assert parse([verb, *where, "--data.mapping", "007"])[1]["data"] == {"mapping": "007"}


@pytest.mark.parametrize("text", ["data: null", "data:", "data: {}", "seed: 0"])
def test_no_settings_of_a_data_set(text):
    Path("mine.yaml").write_text(f"{text}\nbatch_size: 3\n", encoding="utf-8")
    settings = parse(["evaluate", "--config", "mine.yaml"])[1]
    assert (settings.get("data"), settings["batch_size"]) in [(None, 3), ({}, 3)]


def test_settings_are_written_out(capsys):
    words = ["--data.label_column", "007", "--data.classes", "['1', no way]"]
    text = shown(capsys, "train", "photos", *words, "--print_config")
    assert "  label_column: '007'\n" in text
    assert "  val_fraction: 0.2\n" in text
    Path("mine.yaml").write_text(text, encoding="utf-8")
    settings = parse(["train", "--config", "mine.yaml"])[1]
    assert (settings["data"]["label_column"], settings["data"]["classes"]) == ("007", ("1", "no way"))
    text = shown(capsys, "evaluate", "--data.check", "--print_config")
    assert text.endswith("data:\n  check: true\n")


@pytest.mark.parametrize("words", [["--examples", "a.png", "b.png"], ["--examples", '["a.png", "b.png"]']])
def test_an_option_of_several_words_takes_them_all(words):
    assert parse(["export", "--html=page.html", *words])[1]["examples"] == [Path("a.png"), Path("b.png")]


def test_an_option_of_several_words_is_given_once():
    with pytest.raises(IfamError, match="--examples is given twice; give all its values after one"):
        parse(["export", "--html=page.html", "--examples", "a.png", "--out=m.onnx", "--examples", "b.png"])
