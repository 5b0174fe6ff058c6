"""A data set of one's own by the name of a function: what it gives, what is refused, and when its code is run."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.data import load_benchmark
from ifam.data.fingerprints import fingerprint
from ifam.errors import IfamError
from ifam.importing import import_extra

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"
NAME = "own_of_test:squares"
CODE = '''
import sys
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from ifam.data import Benchmark

print("own code runs")

class Squares:
    """Dark and light squares; reads nothing but `number`."""

    def __init__(self, number, first, label=lambda index: index % 2):
        self.number, self.first, self.label = number, first, label

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index >= self.number:
            raise IndexError(index)
        label = self.label(index)
        value = 40 + 120 * (index % 2) + (self.first + index) % 40
        return {"image": Image.new("L", (24, 24), value), "label": label, "group": index % 2}

def squares(root: Path | None = None, number: int = 8, kind: Literal["plain", "odd"] = "plain", note=None):
    splits = {name: Squares(number, 10 * place) for place, name in enumerate(("train", "val", "test"))}
    return Benchmark("any name", splits, ("dark", "light"), ("dark", "light"), note or "")

def rooted(root):
    return squares(note=str(root))

def without_root(seed=0):
    return squares()

def raises():
    raise RuntimeError("no connection\\nto the server")

def ends():
    raise SystemExit(0)

def other():
    return {"train": []}

def one_class():
    return Benchmark("x", {"train": Squares(4, 0)}, ("dark",), ())

def no_splits():
    return Benchmark("x", {}, ("dark", "light"), ())

def empty():
    return Benchmark("x", {"train": Squares(0, 0)}, ("dark", "light"), ())

def no_val():
    return Benchmark("x", {"train": Squares(8, 0), "test": Squares(8, 0)}, ("dark", "light"), ())

def out_of_range():
    splits = {name: Squares(8, 0, lambda index: index) for name in ("train", "val")}
    return Benchmark("x", splits, ("dark", "light"), ())

def ends_later():
    splits = {name: Squares(8, 0, lambda index: sys.exit(0)) for name in ("train", "val")}
    return Benchmark("x", splits, ("dark", "light"), ())

def negative():
    listed = Squares(8, 0)
    listed.labels = [0, 1, -100, 0, 1, 0, 1, 0]
    return Benchmark("x", {"train": listed}, ("dark", "light"), ())

def needs(a):
    return squares()

def untyped(a: dict = {}):
    return squares()

number = 3
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A folder with a module of data sets, that is the working directory."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_of_test.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    sys.modules.pop("own_of_test", None)


TINY = "--model.backbone ifam_tiny --model.image_size 16 --model.num_parts 2 --train.batch_size 4 --train.epochs 1"


@pytest.fixture(scope="module")
def trained(module):
    main(
        [
            "train",
            "--benchmark",
            NAME,
            "--data.number",
            "6",
            "--out",
            "run",
            *TINY.split(),
            "--train.warmup_epochs",
            "0",
        ]
    )
    return module / "run"


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*words])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Traceback" not in said.err
    return said.err


def test_the_parameters_of_a_function_are_its_settings(module):
    images = load_benchmark(NAME, options={"number": 4, "note": "mine"})
    assert (images.name, images.note, len(images.split("val"))) == (NAME, "mine", 4)
    example = images.split("train")[1]
    assert example["image"].mode == "RGB"
    assert images.groups("train").tolist() == [0, 1, 0, 1]
    assert load_benchmark("own_of_test:rooted", "photos").note == "photos"
    # Changed pixels are noticed, although nothing but the images is there to compare.
    before = fingerprint(images)
    sys.modules["own_of_test"].Squares.__getitem__.__globals__["Image"] = Shifted
    try:
        assert fingerprint(images) != before
    finally:
        sys.modules["own_of_test"].Image = Image
    assert fingerprint(images) == before


class Shifted:
    @staticmethod
    def new(mode, size, value):
        return Image.new(mode, size, value + 1)


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("missing:f", {}, "missing:f cannot be imported (ModuleNotFoundError: No module named 'missing')"),
        ("own_of_test:absent", {}, "own_of_test has no 'absent'; name a function of it with --benchmark"),
        ("own_of_test:number", {}, "own_of_test:number is a int, but a function is expected"),
        ("own_of_test:raises", {}, "own_of_test:raises raised RuntimeError (no connection); correct"),
        ("own_of_test:ends", {}, "The code of own_of_test:ends ended the program (SystemExit: 0), but is expected to"),
        ("own_of_test:other", {}, "own_of_test:other returned a dict, but an ifam.data.Benchmark"),
        ("own_of_test:one_class", {}, "returned the classes ['dark'], but two or more"),
        ("own_of_test:no_splits", {}, "returned no splits"),
        ("own_of_test:empty", {}, "own_of_test:empty, split 'train' has no images"),
        ("own_of_test:negative", {}, "split 'train': the label of image 2 is -100, but a whole number from 0 to 1"),
        ("own_of_test:needs", {}, "The parameter 'a' of own_of_test:needs cannot be a setting"),
        ("own_of_test:untyped", {}, "settings are bool, int, float, str"),
        (NAME, {"numbr": 3}, "has no setting 'numbr' (did you mean 'number'?)"),
        (NAME, {"number": "three"}, "number is 'three', but a whole number is expected"),
        (NAME, {"kind": "even"}, "kind is 'even', but 'plain' or 'odd' is expected"),
        ("own_of_test:rooted", {}, "needs the folder of its files; give --root DIR"),
        ("own_of_test.squares", {}, "There is no benchmark 'own_of_test.squares'"),
    ],
)
def test_what_is_no_data_set_is_refused_in_a_sentence(module, function, options, said):
    with pytest.raises(IfamError) as raised:
        load_benchmark(function, options=options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_reading_an_image_does_not_end_the_program(module):
    images = load_benchmark("own_of_test:ends_later")
    with pytest.raises(IfamError, match="The code of own_of_test:ends_later, split 'train' ended the program"):
        images.split("train")[0]


def test_a_root_without_a_parameter_is_refused(module):
    with pytest.raises(IfamError, match="has no parameter 'root', but --root is photos"):
        load_benchmark("own_of_test:without_root", "photos")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("own_of_test:no_val", "own_of_test:no_val has no split 'val'"),
        ("own_of_test:out_of_range", "the label of image"),
        ("missing:f", "missing:f cannot be imported"),
    ],
)
def test_training_on_it_ends_in_a_sentence(module, capsys, function, said):
    assert said in refused(capsys, "train", "--benchmark", function, "--out", "bad", *TINY.split())
    assert not (module / "bad" / "config.json").exists()


@pytest.mark.slow
def test_every_verb_takes_it(trained, module, capsys):
    named = ["--model", "run", "--benchmark", NAME]
    main(["evaluate", *named, "--num_resamples", "0"])
    said = capsys.readouterr()
    assert f"--benchmark {NAME} runs the code of this module with your rights." in said.err
    # With the settings of the training.
    assert "6 images of 2 classes, split test" in said.out
    main(["calibrate", *named, "--error", "0.4"])
    main(["audit", *named, "--limit", "4", "--explain", "1", "--out", "audit"])
    main(["report", "run", "audit", "--out", "page.html"])
    assert NAME in (module / "page.html").read_text(encoding="utf-8")
    main(["repeat", "run/results.json", "--benchmark", NAME, "--out", "again"])
    assert "figures of run/results.json came out the same, to the last bit" in capsys.readouterr().out
    compared = ["--methods", "[plain_vit]", "--seeds", "[0]", "--data.number", "6", *TINY.split()]
    main(["compare", "--benchmark", NAME, "--out", "compared", *compared])
    assert json.loads((module / "compared" / "compare.json").read_text())["conditions"]["benchmark"] == NAME


@pytest.mark.slow
def test_the_module_and_commands_of_the_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section = GUIDE.read_text(encoding="utf-8").split("### A data set by a function")[1].split("\n### ")[0]
    (tmp_path / "pairs.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    train, evaluate = (line.split()[1:] for line in section.splitlines() if line.startswith("    ifam "))
    main([*train, *TINY.split()])
    main(evaluate)
    assert "32 images of 2 classes, split test" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_on_it_goes_on_where_it_is_named_again(trained, module, capsys):
    assert "A settings file names the function" in refused(capsys, "train", "--out", "run", "--resume")
    main(["train", "--out", "run", "--resume", "--benchmark", NAME])
    assert "is finished" in capsys.readouterr().out


# --- code ------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(trained, module, tmp_path, monkeypatch):
    """A model, its settings and its results, that name a module which leaves a file when it is imported."""
    (module / "stranger_of_test.py").write_text("open('sprung', 'w').close()\ndef f():\n    pass\n")
    folder = module / "theirs"
    if not folder.exists():
        folder.mkdir()
        for name in ("config.json", "model.safetensors", "results.json", "train.yaml"):
            content = (trained / name).read_bytes()
            (folder / name).write_bytes(content.replace(NAME.encode(), b"stranger_of_test:f"))
    yield folder
    assert not (module / "sprung").exists()


@pytest.mark.parametrize(
    "words",
    [
        *(f"{verb} --model theirs" for verb in ("evaluate", "audit", "calibrate", "thresholds", "certify", "retrain")),
        "evaluate --model theirs --data.number 3",
        "audit --any timm:resnet18 --selector theirs",
    ],
)
def test_a_model_alone_imports_nothing(stranger, capsys, words):
    assert "name it with --benchmark stranger_of_test:f on the command line if you trust it" in refused(
        capsys, *words.split()
    )


def test_files_alone_import_nothing(stranger, capsys):
    assert "theirs/results.json names the function" in refused(capsys, "repeat", "theirs/results.json")
    other = refused(capsys, "repeat", "theirs/results.json", "--benchmark", NAME)
    assert "names the function 'stranger_of_test:f'" in other
    for words in (["train", "--config", "theirs/train.yaml"], ["train", "--out", "theirs", "--resume"]):
        assert "A settings file names the function 'stranger_of_test:f'" in refused(capsys, *words)
    after = ["train", "--benchmark", NAME, "--config", "theirs/train.yaml"]
    assert "A settings file names the function 'stranger_of_test:f'" in refused(capsys, *after)


def test_a_model_is_read_used_and_sent_without_its_data(stranger, module, capsys):
    from ifam.report.card import model_card

    assert hub.load("theirs")(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 2)
    Image.new("RGB", (20, 20)).save(module / "photo.png")
    main(["predict", "--model", "theirs", "photo.png", "--out", "rows.csv"])
    assert "stranger\\_of\\_test:f" in str(model_card("theirs"))


def test_a_result_is_not_repeated_on_another_data_set(trained, module, capsys):
    (module / "pond.json").write_text((trained / "results.json").read_text().replace(NAME, "pondbirds"))
    assert f"pond.json was made with --benchmark pondbirds, but --benchmark {NAME} was given" in refused(
        capsys, "repeat", "pond.json", "--benchmark", NAME
    )


def test_a_library_of_an_extra_that_is_missing_or_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_library.py").write_text("raise ImportError('no symbol x')", encoding="utf-8")
    (tmp_path / "half_library.py").write_text("import missing_library", encoding="utf-8")
    for name, reason in (
        ("missing_library", "is not installed"),
        ("broken_library", r"cannot be imported \(no symbol x\)"),
        ("half_library", r"cannot be imported \(No module named 'missing_library'\)"),
    ):
        with pytest.raises(IfamError, match=rf"^Rows need {name}, which {reason}; run `pip install 'ifam\[rows\]'`\.$"):
            import_extra(name, "rows", "Rows need")
