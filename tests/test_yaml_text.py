"""Text that YAML would read as something else stays text."""

import csv
import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from ifam import yaml_text
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.cli.parser import VERBS
from ifam.evaluation.comparisons import Run
from ifam.experiments.runs import Runs

ODD = ["0", "no", "1e3", "null", "true", "~", "yes", "1_000", "0x1F", "0o17", "1:30", ".nan", "-", "+1", "2020-01-01"]
ODD += ["a: b", "a #b", " lead", "trail ", "'quoted'", '"double"', "[x]", "{x}", "new\nline", "tab\t", "Ünïcödé", "😀"]
ODD += ["\u2028separator", "\x85", "<<", "*star", "&and", "!bang", "%percent", "@at", "`back", "|", ">", "?", "a" * 200]


def parse(*words):
    """Settings of the first word's verb, as it gets them."""
    got = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VERBS, words[0], _recorder(VERBS[words[0]], got))
        main(list(words))
    return got


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD)
def test_settings_that_are_written_are_read_as_they_were(tmp_path, text):
    settings = {
        "benchmark": "folder",
        "root": f"/{text}",
        "data": {"label_column": text, "val_fraction": 0.1},
        "model": {"class_names": [text, "other"], "num_parts": 3},
        "train": {"base_lr": 1e-6},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml_text.dump(settings), encoding="utf-8", newline="\n")
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == settings
    parsed = parse("train", "--config", str(path))
    assert parsed["data"] == settings["data"]
    assert parsed["model"].class_names == (text, "other")
    assert str(parsed["root"]) == f"/{text}"
    assert parsed["train"].base_lr == 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("text", ["0", "no", "1e3", "true", "1_000", "0x1F", "2020-01-01", "yes", ".inf", "1:30"])
def test_settings_that_people_write_without_quotes_are_text(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(f"mask_from: {text}\nmodel: {text}\nout: {text}\ndata:\n  label_column: {text}\n  seed: 3\n")
    parsed = parse("evaluate", "--config", str(path))
    assert (parsed["mask_from"], parsed["model"], str(parsed["out"])) == (text, text, text)
    assert parsed["data"] == {"label_column": text, "seed": 3}
    path.write_text(f"methods:\n  {text}: {{method: ifam}}\n  plain_vit:\nmodel: {{class_names: [{text}, a]}}\n")
    parsed = parse("compare", "--config", str(path))
    assert list(parsed["methods"]) == [text, "plain_vit"]
    assert parsed["model"].class_names == (text, "a")
    words = ["--benchmark", "folder", "--data", f"{{label_column: {text}}}"]
    parsed = parse("compare", "--methods", f"{{{text}: {{method: ifam}}}}", *words)
    assert list(parsed["methods"]) == [text]
    assert parsed["data"] == {"label_column": text}


def test_what_may_be_nothing_can_be_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("mask_from: null\nroot: ~\nmodel: x\n")
    parsed = parse("evaluate", "--config", str(tmp_path / "a.yaml"))
    assert (parsed["mask_from"], parsed["root"]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD)
def test_text_on_the_command_line(text):
    assert parse("train", "--benchmark", "folder", f"--data.label_column={text}")["data"] == {"label_column": text}
    parsed = parse("evaluate", "--data.seed", "3", "--data.mask_column", text)
    assert parsed["data"] == {"mask_column": text, "seed": 3}


def _recorder(verb, got):
    """The verb as far as the command line goes: what it would have been called with."""

    def record(**settings):
        got.update(settings)

    record.__signature__ = inspect.signature(verb)
    record.__doc__ = verb.__doc__
    return record


def test_a_missing_value_is_the_parsers_to_name(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--benchmark", "folder", "--data.label_column"])
    assert stopped.value.code == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize("text", ODD)
def test_runs_of_rows_with_odd_names(tmp_path, text):
    runs = Runs(tmp_path / "runs.jsonl", {(text, 0): {"a": text}})
    runs.add(Run(text, 0, {}, {}, {}, settings={"a": text}, elapsed=1.0))
    assert Runs(tmp_path / "runs.jsonl", {(text, 0): {"a": text}}).done[text, 0].settings == {"a": text}


@pytest.mark.slow
def test_odd_names_from_training_to_report(tmp_path, capsys):
    """Columns and classes that YAML, markup and HTML read otherwise, through every verb of a usual day."""
    classes = ["1e3", "no [/y] <script>alert(1)</script> $a$b_c"]
    chance = np.random.default_rng(0)
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "0", "no", "split", "1e3"])
        for number in range(16):
            Image.fromarray(chance.integers(0, 255, (80, 80, 3), np.uint8)).save(tmp_path / f"{number}.png")
            mask = np.zeros((80, 80), np.uint8)
            mask[20:50, 20:50] = 255
            Image.fromarray(mask).save(tmp_path / f"m{number}.png")
            split = "train" if number < 8 else "val"
            writer.writerow([f"{number}.png", classes[number % 2], f"[red]group {number % 2}", split, f"m{number}.png"])
    out = tmp_path / "run"
    words = ["--data.csv", "list.csv", "--data.label_column", "0", "--data.group_column=no"]
    words += ["--root", str(tmp_path), "--benchmark", "folder", "--model.backbone", "ifam_tiny"]
    words += ["--model.image_size", "80", "--train.epochs", "1", "--train.batch_size", "8"]
    main(["train", *words, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "[red]group 0" in printed
    read = hub.read(out)
    config, extra = read.config, read.extra
    assert config.class_names == tuple(classes)
    assert extra["data"] == {"csv": "list.csv", "label_column": "0", "group_column": "no"}
    main(["train", "--config", str(out / "train.yaml"), "--out", str(tmp_path / "again")])
    assert hub.read(tmp_path / "again").config == config
    main(["evaluate", "--model", str(out), "--mask_from", "1e3", "--num_resamples", "0"])
    main(["predict", str(tmp_path / "0.png"), "--model", str(out), "--out", str(tmp_path / "rows.jsonl")])
    printed = capsys.readouterr().out
    assert "1e3" in printed
    main(["report", str(out), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "no [/y] &lt;script&gt;" in page
    row = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))
    assert row["class_name"] in classes


def test_names_are_the_same_under_a_locale_of_ascii(tmp_path):
    """Read as ASCII, a name would be another text than the one that the model knows."""
    (tmp_path / "modèle 🦆").mkdir()
    here = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "ifam.cli", "train", "--config", str(tmp_path / "modèle 🦆")]
    done = subprocess.run(command, capture_output=True, env=here, check=False)
    assert done.returncode == 2
    assert "modèle 🦆 is a folder, but a file is expected" in done.stderr.decode("utf-8")
