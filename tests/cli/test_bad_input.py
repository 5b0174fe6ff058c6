"""Bad input of any kind: an answer, or one sentence that names the thing and the mend; and nothing is lost."""

import hashlib
import math
import os
import shlex
import shutil
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from bad_inputs import BAD, GOOD, QUICK, Link
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.cli.parser import VERBS
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data_config import DATA_CONFIGS
from ifam.errors import IfamError
from ifam.models.ifam import IFAM
from ifam.ranges import check_types
from programs import run


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Two classes of five pictures, and a model of them."""
    root = tmp_path_factory.mktemp("material")
    chance = np.random.default_rng(0)
    for name, color in (("brick", (180, 60, 40)), ("grass", (40, 160, 60))):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(5):
            pixels = (np.array(color) + chance.integers(-30, 30, (40, 50, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    config = ModelConfig(backbone="ifam_tiny", image_size=80, num_parts=3, class_names=("brick", "grass"))
    torch.manual_seed(0)
    hub.save(IFAM(config), root / "model", {"benchmark": "folder", "root": None, "data": {}})
    return root


@pytest.fixture
def folder(material, tmp_path, monkeypatch):
    """A copy of the material, in which commands run."""
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def make(files):
    """Write what a case needs."""
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif content is None:
            path.unlink()
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        elif isinstance(content, str | bytes):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        elif callable(content):
            content(path)
        elif name.endswith(".npy"):
            np.save(path, content)
        else:
            Image.fromarray(content).save(path)


def words(command):
    """The words of a command; a model and its images are named where they are not."""
    given = shlex.split(command) if isinstance(command, str) else command
    return [*given, *(["--root", "photos"] if given[:2] in (["evaluate", "model"], ["thresholds", "model"]) else [])]


def contents(folder):
    """What is in a folder: a hash of each file, and the links."""
    return {
        path.relative_to(folder): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def sentence(said):
    """The one sentence of a command that was refused."""
    assert said.count("\n") == 1, said
    assert said.startswith("ifam: ")
    assert said.endswith(".\n")
    assert said.removesuffix("\n").isprintable()
    return said


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_lost(name, folder, capsys):
    files, command, says = BAD[name]
    make(files)
    before = contents(folder)
    with pytest.raises(SystemExit) as stopped:
        main(words(command))
    assert stopped.value.code == 2
    said = sentence(capsys.readouterr().err)
    assert all(part in said for part in says), said
    assert len(said) < 1500
    assert contents(folder) == before


@pytest.mark.parametrize("name", GOOD)
def test_odd_input_has_its_answer(name, folder, capsys):
    files, command, says = GOOD[name]
    make(files)
    before = contents(folder)
    main(words(command))
    said = capsys.readouterr()
    assert all(part in said.out for part in says)
    assert "ifam: " not in said.err
    assert before.items() <= contents(folder).items()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a billion laughs", "weights that are NaN"])
def test_the_program_itself_says_the_same(name, folder):
    files, command, says = BAD[name]
    make(files)
    status, out, said = run(*words(command))
    assert (status, out) == (2, "")
    assert all(part in sentence(said) for part in says)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take its own permissions away and have them back")
@pytest.mark.parametrize(
    ("locked", "command", "says"),
    [
        ("photos/brick/0.jpg", "predict photos/brick/0.jpg --model model --out out --strict", "Permission denied"),
        ("photos/brick", "predict photos/brick --model model --out out", "change its permissions"),
        ("photos", "predict photos/brick/0.jpg --model model --out out", "check its name and permissions"),
        ("photos/brick", f"train photos {QUICK}", "change its permissions"),
        ("model/config.json", "predict photos --model model --out out", "Permission denied"),
        ("model/model.safetensors", "predict photos --model model --out out", "change its permissions"),
        ("model", "predict photos --model model --out out", "check its name and permissions"),
        ("new.yaml", "train --config new.yaml", "cannot be read (Permission denied); give another"),
    ],
)
def test_what_may_not_be_read_is_named(locked, command, says, folder, capsys):
    (folder / "new.yaml").write_text("seed: 1\n", encoding="utf-8")
    for path in (folder, *folder.parents[:-1]):
        path.chmod(0o777)
    before = contents(folder)
    (folder / locked).chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(SystemExit) as stopped:
            main(words(command))
    finally:
        os.seteuid(0)
        (folder / locked).chmod(0o755)
    said = sentence(capsys.readouterr().err)
    assert stopped.value.code == 2
    assert locked in said
    assert says in said
    assert contents(folder) == before


# --- numbers ---------------------------------------------------------------------------------------------

CONFIGS = (ModelConfig, LossConfig, TrainConfig, *DATA_CONFIGS.values())
NUMBERS = [
    pytest.param(kind, name, id=f"{kind.__name__}.{name}")
    for kind in CONFIGS
    for name, hint in get_type_hints(kind).items()
    if name in {field.name for field in fields(kind)} and ("int" in str(hint) or "float" in str(hint))
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_a_setting_that_is_a_number_is_finite_and_no_word(kind, name):
    """Also of settings to come: each number has its range."""
    allowed = str(get_type_hints(kind)[name])
    for value in (math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(IfamError, match=rf"\b{name} is .* expected"):
            check(kind, name, (value,) * 3 if name in ("mean", "std") else value)
    for value in (True, "", "x", [], {}, b"1", None, 1j):
        if (value is None and "None" in allowed) or (isinstance(value, str) and "str" in allowed):
            continue
        with pytest.raises(IfamError, match=rf"\b{name} is .* expected"):
            check(kind, name, value)
    for value in (0, 1, -1):
        try:
            check(kind, name, (float(value),) * 3 if name in ("mean", "std") else value)
        except IfamError as error:
            assert name in str(error)  # noqa: PT017


def check(kind, name, value):
    """Check a setting as its class does; its own constructor is checked by beartype before that."""
    check_types(kind, {name: value})
    settings = object.__new__(kind)
    for field in fields(kind):
        object.__setattr__(settings, field.name, getattr(kind(), field.name))
    object.__setattr__(settings, name, value)
    settings.__post_init__()


OPTIONS = [
    pytest.param(verb, name, one.annotation, id=f"{verb} --{name}")
    for verb, function in VERBS.items()
    for name, one in signature(function).parameters.items()
    if "int" in str(one.annotation) or "float" in str(one.annotation)
]


@pytest.mark.parametrize(("verb", "name", "kind"), OPTIONS)
@pytest.mark.parametrize("value", [".nan", "-1"])
def test_an_option_that_is_a_number_has_a_range(verb, name, kind, value, capsys):
    given = f"[{value}]" if "list" in str(kind) else value
    required = {"predict": ["x.png"], "report": ["x"], "convert": ["a", "b"]}.get(verb, [])
    if verb == "prepare":
        required = ["cutouts", "--objects=a", "--backgrounds=b", "--out=c"]
    with pytest.raises(SystemExit) as stopped:
        main([verb, *required, f"--{name}={given}"])
    assert stopped.value.code == 2
    assert f"{name} is " in sentence(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "1"])
def test_zero_and_one_can_be_trained_where_they_are_allowed(value, folder, capsys):
    """All at once: learning rates, decay, clipping, dropout, noise, and weights of losses."""
    off = ["part_dropout", "mask_part_dropout", "min_visible"] if value == "0" else ["mask_resolution", "temperature"]
    rates = [field.name for field in fields(TrainConfig) if field.name.endswith("_lr_factor")]
    train = ["base_lr", "weight_decay", "clip_norm", "warmup_factor", "min_factor", "workers", "seed", *rates]
    train += ["selector_epochs", "warmup_epochs", "ema_decay"] if value == "0" else ["accumulate", "crop", "batch_size"]
    given = [f"--model.{name}={value}" for name in off] + [f"--train.{name}={value}" for name in train]
    given += [f"--loss.{field.name}={value}" for field in fields(LossConfig) if field.name != "classification"]
    main([*shlex.split(f"train photos {QUICK}"), *given])
    assert "The model is in new" in capsys.readouterr().out
    assert all(one.isfinite().all() for one in hub.load(folder / "new").state_dict().values())
