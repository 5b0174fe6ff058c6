"""`ifam push`: a model on the hub, with a card made from its results."""

import json

import pytest
import yaml

import ifam
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.errors import IfamError
from ifam.evaluation.conformal import load_calibration

DATA = [f"--data.{name}={value}" for name, value in (("num_train", 32), ("num_val", 32), ("num_test", 16))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with a result of each kind beside it."""
    folder = tmp_path_factory.mktemp("published") / "birds"
    quick = ["--model.backbone=ifam_tiny", "--train.accelerator=cpu", "--train.epochs=1", "--train.batch_size=8"]
    main(["train", f"--out={folder}", *quick, *DATA])
    main(["calibrate", f"--model={folder}", "--error=0.2"])
    main(["audit", f"--model={folder}", "--limit=2", "--explain=1", f"--out={folder}"])
    return folder


@pytest.fixture
def model(trained, tmp_path):
    folder = tmp_path / "birds"
    folder.mkdir()
    for file in trained.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def metadata(text):
    """The card's metadata, between its two lines of dashes."""
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.slow
def test_the_card_has_the_figures_of_the_results(model):
    card = ifam.model_card(model, "someone/birds", license="mit")
    results = json.loads((model / "results.json").read_text())
    data = metadata(card.content)
    assert (data["license"], data["library_name"]) == ("mit", "ifam")
    (index,) = data["model-index"]
    figures = {one["name"]: one["value"] for task in index["results"] for one in task["metrics"]}
    assert figures["worst-group accuracy"] == round(results["predictor"]["worst_group"], 4)
    assert figures["average accuracy"] == round(results["predictor"]["average"], 4)
    assert {task["dataset"]["type"] for task in index["results"]} == {"pondbirds"}
    text = card.content
    for group in results["predictor"]["groups"]:
        assert f"| {group} | " in text
    for words in (
        'hub.load("someone/birds")',
        "hidden pixels",
        "Sets of classes",
        "drawn by this package (Apache-2.0)",
        "@article{",
        " to ",
    ):
        assert words in text


@pytest.mark.slow
def test_results_of_other_weights_are_left_out(model):
    content = json.loads((model / "results.json").read_text())
    content["conditions"]["weights"] = "0" * 64
    (model / "results.json").write_text(json.dumps(content))
    text = ifam.model_card(model).content
    assert "model-index" not in metadata(text)
    assert "Accuracy on" not in text
    (model / "audit.json").write_text("{")
    with pytest.raises(IfamError, match=r"audit\.json"):
        ifam.model_card(model)


@pytest.mark.slow
def test_what_is_pushed_answers_as_before_and_has_no_path_of_this_machine(model, stub, capsys):
    config = json.loads((model / "config.json").read_text())
    config["extra"] |= {"root": "/home/someone/photos", "retraining": {"from": "/home/someone/runs/ifam", "C": [1]}}
    (model / "config.json").write_text(json.dumps(config))
    main(["push", str(model), "someone/birds", "--license=apache-2.0", "--private", "--revision=main"])
    assert "The model is at http" in capsys.readouterr().out
    there = stub.root / "someone" / "birds"
    assert {file.name for file in there.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "calibration.safetensors")
    }
    assert (there / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    for name in ("README.md", "config.json"):
        assert not any(place in (there / name).read_text() for place in ("/home", str(model.parent)))
    saved = hub.read("someone/birds", revision="main")
    assert saved.extra["retraining"] == {"from": "ifam", "C": [1]}
    assert saved.extra["data"] == config["extra"]["data"]
    assert load_calibration(saved.folder, hub.load(saved)) is not None


@pytest.mark.slow
def test_a_card_that_was_edited_is_pushed_as_it_is_and_not_overwritten(model, stub, capsys):
    main(["push", str(model), "someone/birds", "--card_only"])
    assert not stub.asked
    (model / "README.md").write_text("# My birds\n")
    with pytest.raises(SystemExit) as caught:
        main(["push", str(model), "someone/birds", "--card_only"])
    assert caught.value.code == 2
    assert "may have been edited" in capsys.readouterr().err
    main(["push", str(model), "someone/birds"])
    assert (stub.root / "someone/birds/README.md").read_text() == "# My birds\n"
    main(["push", str(model), "someone/birds", "--card_only", "--overwrite"])
    assert "My birds" not in (model / "README.md").read_text()


def test_names_of_classes_are_text_on_the_card(make_model, tmp_path):
    names = ("<b>a|b</b>", "*x*", "c\nd", "e", "f")
    make_model(class_names=names).save_pretrained(tmp_path / "model")
    text = ifam.model_card(tmp_path / "model").content
    assert "<b>" not in text
    assert r"\|" in text
    assert "No result lay beside the model" in text


@pytest.mark.parametrize("repo", ["birds", "a/b/c", "some one/birds", ""])
def test_an_id_that_is_none_is_refused_before_anything_is_read(repo, tmp_path):
    with pytest.raises(IfamError, match="owner/name"):
        ifam.push_to_hub(tmp_path / "nothing", repo)


def test_a_hub_that_refuses_is_one_sentence(make_model, tmp_path, stub):
    make_model().save_pretrained(tmp_path / "model")
    with pytest.raises(IfamError, match="could not be pushed to 'someone/forbidden'"):
        ifam.push_to_hub(tmp_path / "model", "someone/forbidden")
