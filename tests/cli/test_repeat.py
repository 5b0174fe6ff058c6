"""`ifam repeat`: a result file holds all that it takes to come by the same figures again."""

import json
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

import miniatures
from ifam.cli.main import main
from ifam.commands import recorded, running
from ifam.config import ModelConfig
from ifam.data import load_benchmark
from ifam.experiments import demo
from ifam.experiments.compare import run_comparison
from ifam.experiments.comparison import Comparison, read_rows
from ifam.models.registry import build
from ifam.training.presets import TINY_LOSS, TINY_MODEL, TINY_TRAIN
from programs import Program

DATA = [f"--data.{name}={value}" for name, value in (("num_train", 32), ("num_val", 16), ("num_test", 16))]
QUICK = ["--model.backbone=ifam_tiny", "--train.accelerator=cpu", "--train.epochs=1", "--train.batch_size=8", *DATA]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with its result, of settings that are not those of the preset, and of a folder that is named briefly."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["train", "--out=model", "--train.seed=5", "--model.part_dropout=0.1", "--data.correlation=0.9", *QUICK])
        options = ["--drop_parts=[1]", "--num_resamples=20", "--seed=3", "--out=evaluation/results.json"]
        main(["evaluate", "--model=model", *options])
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def changed(file, change):
    """A result of which something is changed."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["repeat", *map(str, words)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ifam: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.slow
def test_a_training_and_an_evaluation_are_repeated_to_the_last_bit_from_another_folder(trained, tmp_path, capsys):
    for result, name in ((trained / "model", "new"), (trained / "evaluation" / "results.json", "again")):
        main(["repeat", str(result), "--out", str(tmp_path / name)])
        assert "came out the same, to the last bit." in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (trained / "model/model.safetensors").read_bytes()
    files = (trained / "evaluation" / "results.json", tmp_path / "again" / "results.json")
    first, again = (json.loads(file.read_text()) for file in files)
    assert again["conditions"]["interventions"] == first["conditions"]["interventions"] == {"drop_parts": [1]}
    assert again["predictor"] == first["predictor"]


@pytest.mark.slow
def test_a_comparison_is_repeated_with_the_settings_of_every_row(tmp_path, capsys):
    rows = "{plain_vit: {train: {clip_norm: null}}, without noise: {method: ifam, model: {gumbel_noise: false}}}"
    out = tmp_path / "comparison"
    main(["compare", f"--methods={rows}", "--seeds=[2]", f"--out={out}", "--num_resamples=0", *QUICK])
    main(["repeat", str(out / "compare.json")])
    assert "came out the same, to the last bit." in capsys.readouterr().out.splitlines()[-1]
    files = (out / "runs.jsonl", tmp_path / "comparison-repeat" / "runs.jsonl")
    first, again = ([json.loads(line)["settings"] for line in file.read_text().splitlines()] for file in files)
    assert again == first
    assert first[0]["train"]["clip_norm"] is None
    assert first[1]["model"]["gumbel_noise"] is False
    digests = json.loads((out / "compare.json").read_text())["conditions"]["images"]
    assert digests == {"2": first[0]["images"]}
    file = changed(out / "compare.json", lambda content: content["conditions"].update(images={"2": "0" * 16}))
    assert "have changed" in refused(capsys, file, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_training_that_was_stopped_and_went_on_is_repeated_in_one_go(tmp_path, capsys):
    # Where it goes on, and where it is repeated, there are more threads than where it began.
    threads, began = torch.get_num_threads(), 1
    run, words = tmp_path / "run", [*QUICK, "--train.epochs=4"]
    with Program("train", f"--out={run}", *words, threads=began) as training:
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert training.poll() is None
            time.sleep(0.02)
        training.send_signal(signal.SIGTERM)
        training.communicate()
    assert training.returncode == 128 + signal.SIGTERM
    try:
        for command in (["train", f"--out={run}", "--resume"], ["repeat", str(run)]):
            torch.set_num_threads(began + 1)
            main(command)
            assert torch.get_num_threads() == began
    finally:
        torch.set_num_threads(threads)
    assert "came out the same, to the last bit." in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_challenge_and_the_demo_are_repeated(tmp_path, capsys, monkeypatch):
    comparison = demo.demo_comparison
    few = {"num_train": 64, "num_val": 24, "num_test": 48}
    monkeypatch.setattr(demo, "demo_comparison", lambda *args: replace(comparison(*args), data=few))
    miniatures.imagenet9_challenge(tmp_path / "data")
    model = build("ifam", ModelConfig("ifam_tiny", num_parts=2, num_classes=9))
    model.save_pretrained(tmp_path / "model")
    options = [f"--model={tmp_path / 'model'}", f"--root={tmp_path / 'data'}", "--device=cpu"]
    main(["challenge", f"--out={tmp_path / 'challenge'}", *options])
    main(["demo", "--quick", f"--out={tmp_path / 'demo'}", "--threads=1"])
    for name in ("challenge", "demo"):
        main(["repeat", str(tmp_path / name)])
        assert "came out the same, to the last bit." in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_an_audit_and_a_certification_are_repeated(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    main(["audit", "model", "--limit=6", "--explain=2", "--out=audit"])
    with suppress(SystemExit):
        main(["certify", "model", "--limit=6", "--attack=1", "--steps=2", "--num_resamples=20", "--out=certify"])
    for name in ("audit", "certify"):
        digest = json.loads((copy / name / f"{name}.json").read_text())["conditions"]["images"]
        assert isinstance(digest, str)
        capsys.readouterr()
        main(["repeat", name])
        assert "came out the same" in capsys.readouterr().out


@pytest.mark.slow
def test_the_audit_of_any_classifier_is_repeated_where_its_function_is_named(copy, capsys, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "by_color_of_test.py").write_text(
        "import torch\n\n\ndef corner(images):\n    return torch.stack([images[:, 0, 0, 0], images[:, 2, 0, 0]], 1)\n"
    )
    monkeypatch.syspath_prepend(copy)
    words = ["--benchmark=pondbirds", *DATA, "--split=test", "--limit=8", "--max_flips=0", "--out=audited"]
    with pytest.raises(SystemExit) as judged:
        main(["audit", "--any", "by_color_of_test:corner", *words])
    assert judged.value.code == 1
    assert "name it with --any by_color_of_test:corner" in refused(capsys, "audited")
    assert "made with no --any" in refused(capsys, "evaluation", "--any", "by_color_of_test:corner")
    main(["repeat", "audited", "--any", "by_color_of_test:corner"])
    assert "came out the same" in capsys.readouterr().out


@pytest.mark.slow
def test_figures_that_differ_are_named_and_the_status_is_1(copy, capsys):
    def lower(content):
        content["predictor"]["average"] -= 0.25

    file = changed(copy / "evaluation" / "results.json", lower)
    with pytest.raises(SystemExit) as caught:
        main(["repeat", str(file)])
    assert caught.value.code == 1
    said = capsys.readouterr().out
    assert "1 of " in said
    assert "predictor.average:" in said


@pytest.mark.slow
def test_the_number_of_threads_is_that_of_the_result_and_other_versions_are_named(copy, capsys):
    def elsewhere(content):
        content["conditions"]["environment"] |= {"threads": 3, "torch": "2.0.0"}

    file, threads = changed(copy / "evaluation" / "results.json", elsewhere), torch.get_num_threads()
    try:
        main(["repeat", str(file)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr()
    assert f"torch was 2.0.0 and is {torch.__version__.partition('+')[0]}" in said.err
    assert "threads" not in said.err


def test_images_that_have_changed_are_refused_before_the_work(copy, capsys, tmp_path):
    file = changed(copy / "model" / "results.json", lambda content: content["conditions"].update(images="0" * 16))
    said = refused(capsys, file, "--out", tmp_path / "new")
    assert "have changed" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("place", "name", "value", "said"),
    [
        ("conditions", "environment", [1], "environment is [1]"),
        ("conditions", "root", 5, "root is 5"),
        ("conditions", "data", [1], "data is [1]"),
        ("conditions", "split", None, "does not say which images"),
        ("settings", "seed", float("nan"), "seed in {file} is nan"),
        ("settings", "later", 1, "{file}: `ifam evaluate` has no setting 'later'"),
        ("settings", "data", {"later": 1}, "{file}: pondbirds has no setting 'later'"),
    ],
)
def test_a_result_that_was_edited_or_is_of_a_later_version_is_named(copy, capsys, tmp_path, place, name, value, said):
    def edit(content):
        conditions = content["conditions"]
        (conditions if place == "conditions" else conditions["command"]["settings"])[name] = value

    file = changed(copy / "evaluation" / "results.json", edit)
    assert said.format(file=file) in refused(capsys, file, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [True, 2**40])
def test_an_impossible_number_of_threads_is_not_set(copy, capsys, threads):
    change = {"threads": threads}
    file = changed(
        copy / "evaluation/results.json", lambda content: content["conditions"]["environment"].update(change)
    )
    main(["repeat", str(file)])
    assert "came out the same" in capsys.readouterr().out


def test_folders_of_both_backbones_are_recorded_with_their_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    with recorded("train", {"model": ModelConfig(backbone="small", predictor_backbone="large")}):
        model = running()["settings"]["model"]
    assert (model["backbone"], model["predictor_backbone"]) == (str(tmp_path / "small"), str(tmp_path / "large"))


def test_what_cannot_be_repeated_is_one_sentence(copy, capsys, tmp_path):
    results = copy / "model" / "results.json"
    before = results.read_bytes()
    assert "choose another --out" in refused(capsys, results, "--out", copy / "model")
    assert "There is no file" in refused(capsys, tmp_path / "nothing.json")
    assert "no result" in refused(capsys, tmp_path)
    assert "leave --resume out" in refused(capsys, copy / "evaluation" / "results.json", "--resume")
    assert results.read_bytes() == before
    (copy / "model" / "audit.json").write_text("{}")
    assert "name one file" in refused(capsys, copy / "model")
    assert "is not a result" in refused(capsys, copy / "model" / "audit.json")
    changed(results, lambda content: content["conditions"]["command"].update(verb="prepare"))
    assert "does not say which command" in refused(capsys, results)
    changed(results, lambda content: content["conditions"].update(command=None))
    assert "does not say which command" in refused(capsys, results)


@pytest.mark.slow
def test_a_result_of_a_python_program_says_that_no_command_wrote_it(tmp_path, capsys):
    data = {"num_train": 32, "num_val": 8, "num_test": 8}
    rows = read_rows({"plain_vit": {"train": {"epochs": 1, "batch_size": 8}}}, TINY_MODEL, TINY_TRAIN, TINY_LOSS)
    run_comparison(Comparison(rows, (0,), "pondbirds", data=data, num_resamples=0), tmp_path / "out")
    assert len(load_benchmark("pondbirds", options=data).split("train")) == 32
    assert "Python program" in refused(capsys, tmp_path / "out")
