"""A training that is stopped, killed or out of space goes on, and ends with the weights of one that was not."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ifam.backbones.vit import TINY
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.interruption import Interrupted, interruptible
from ifam.models.registry import build
from ifam.training.batches import Batches
from ifam.training.fit import fit, seed_everything
from ifam.training.randomness import Stream, derived_seed, drawing_from
from ifam.training.resume import BEST, FOLDER, LAST, Checkpoints, find_checkpoint
from programs import in_two_programs

MODEL = ModelConfig(backbone=TINY, image_size=40, num_parts=2)
TRAIN = TrainConfig(epochs=2, batch_size=8, base_lr=1e-3, monitor="accuracy", accelerator="cpu", crop=0.5)


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 32, "num_val": 8, "num_test": 8})


def make():
    seed_everything(0)
    return build("ifam", MODEL)


def train(birds, folder, config=TRAIN, **options):
    """Weights, result and log of a training."""
    model = make()
    result = fit(model, birds, config, folder=folder, tokens=folder.parent / f"tokens of {folder.name}", **options)
    return model.state_dict(), result, (folder / "logs" / "metrics.csv").read_bytes()


class StoppedError(Exception):
    """Ends a training after a checkpoint."""


def stop_after(monkeypatch, number):
    """Save after every step, and end the training after a number of checkpoints."""
    save, left = Checkpoints.save, [number]

    def counted(self, trainer, name):
        save(self, trainer, name)
        left[0] -= 1
        if left[0] == 0:
            raise StoppedError

    monkeypatch.setattr(Checkpoints, "interval", 0.0)
    monkeypatch.setattr(Checkpoints, "save", counted)


def train_in_part(birds, folder, number, config=TRAIN, **options):
    """A training that ends after a number of checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, number)
        with pytest.raises(StoppedError):
            train(birds, folder, config, **options)


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


# Two epochs of four steps with one validation each save 3 + 1 + 2 checkpoints: steps but the last one, before the
# validation, the best, and the last. With two steps to an update it is one less; the selector's epoch is never best.
MOMENTS = {"first step": 1, "before the validation": 4, "between best and last": 5, "epoch": 6, "next epoch": 8}
# With the moments that matter most to them.
SETTINGS = {
    "crops": ({}, ("first step", "next epoch")),
    "averages": ({"ema_decay": 0.9}, tuple(MOMENTS)),
    "groups, accumulated": ({"group_dro": 0.01, "accumulate": 2}, ("first step", "epoch")),
    "tokens in half precision": (
        {"selector_tuning": "none", "crop": 1.0, "precision": "bf16-mixed"},
        ("first step", "next epoch"),
    ),
    "the selector alone": (
        {"selector_epochs": 1, "schedule": "linear", "warmup_epochs": 1},
        ("before the validation", "next epoch"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "moments"), SETTINGS.values(), ids=SETTINGS)
def test_a_training_that_was_stopped_ends_as_one_that_was_not(birds, tmp_path, settings, moments):
    config = replace(TRAIN, **settings)
    weights, result, log = train(birds, tmp_path / "whole", config)
    for name in moments:
        train_in_part(birds, tmp_path / name, MOMENTS[name], config)
        torch.rand(3)  # whatever was drawn in between
        again, resumed, log_again = train(birds, tmp_path / name, config, resume=True)
        assert same(weights, again), name
        assert (resumed.history, resumed.best_epoch) == (result.history, result.best_epoch), name
        assert log_again == log, name
    # Logged twice, and shown once.
    events = EventAccumulator(str(tmp_path / moments[-1] / "logs"))
    events.Reload()
    for name in ("train/total", "val/accuracy"):
        assert [one.value for one in events.Scalars(name)] == pytest.approx([row[name] for row in result.history])


@pytest.mark.slow
@pytest.mark.parametrize(("training", "calls", "steps"), [(True, 1, 2), (True, 4, 4), (False, 1, 4), (False, 2, 8)])
def test_a_signal_is_waited_with_until_the_step_is_done(birds, tmp_path, training, calls, steps):
    """In the first of two batches of a step, in the last step of an epoch, and in the validations, of averages."""
    config = replace(TRAIN, ema_decay=0.9, accumulate=2)
    weights, result, log = train(birds, tmp_path / "whole", config)
    model, seen = make(), []

    def stop(module, args):
        seen.extend([1] * (module.training == training))
        if len(seen) == calls:
            seen.append(1)
            os.kill(os.getpid(), signal.SIGUSR1)

    handle = model.predictor.register_forward_pre_hook(stop)
    place = {"folder": tmp_path / "run", "tokens": tmp_path / "tokens of run"}
    with pytest.raises(Interrupted), interruptible():
        fit(model, birds, config, **place)
    handle.remove()
    batches = find_checkpoint(tmp_path / "run")[1]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert batches == steps
    again, resumed, log_again = train(birds, tmp_path / "run", config, resume=True)
    assert same(weights, again)
    assert (resumed.history, log_again) == (result.history, log)


@pytest.mark.slow
def test_a_validation_that_was_repeated_is_over(birds, tmp_path):
    """A training that was stopped before a validation, and again after it, does not validate once more."""
    config = replace(TRAIN, epochs=3)
    weights, result, log = train(birds, tmp_path / "whole", config)
    train_in_part(birds, tmp_path / "run", MOMENTS["before the validation"], config)
    # Before the validation again, the best, and the last.
    train_in_part(birds, tmp_path / "run", 3, config, resume=True)
    again, resumed, log_again = train(birds, tmp_path / "run", config, resume=True)
    assert log_again == log
    assert resumed.history == result.history
    assert same(weights, again)


@pytest.mark.slow
def test_speed_settings_may_change_and_change_nothing(birds, tmp_path):
    weights, *_ = train(birds, tmp_path / "whole")
    train_in_part(birds, tmp_path / "run", 2)
    other = replace(TRAIN, workers=1, devices=1, accelerator="auto" if not torch.cuda.is_available() else "cpu")
    again, *_ = train(birds, tmp_path / "run", other, resume=True)
    assert same(weights, again)


@pytest.fixture(scope="module")
def stopped(birds, tmp_path_factory):
    """The folder of a training that was stopped after its first epoch, with a best and a last checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_in_part(birds, folder, 7)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("train.epochs 2, but now it is 3", {"config": replace(TRAIN, epochs=3)}),
        ("train.seed 0, but now it is 1", {"config": replace(TRAIN, seed=1)}),
        ("loss.entropy 1.0, but now it is 0.5", {"losses": LossConfig(entropy=0.5)}),
    ],
)
def test_other_settings_are_refused_by_name(birds, stopped, name, changes):
    before = contents(stopped)
    with pytest.raises(IfamError, match=rf"has a training with {name}; leave it as it was, or start over"):
        fit(make(), birds, **{"config": TRAIN, **changes}, folder=stopped, resume=True)
    assert contents(stopped) == before


def test_other_images_are_refused(stopped):
    others = load_benchmark("pondbirds", options={"num_train": 32, "num_val": 8, "num_test": 8, "seed": 1})
    with pytest.raises(IfamError, match="on images that have changed since; restore them, or start over"):
        fit(make(), others, TRAIN, folder=stopped, resume=True)


def damage(path):
    """Change a byte of the largest tensor, which PyTorch would not notice."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda one: one.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_left_out_for_that_of_the_best_epoch(stopped, tmp_path, caplog):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in (LAST, BEST):
        (folder / name).write_bytes((stopped / FOLDER / name).read_bytes())
    assert find_checkpoint(tmp_path)[0] == folder / LAST
    damage(folder / LAST)
    assert find_checkpoint(tmp_path)[0] == folder / BEST
    assert f"{folder / LAST} is damaged" in caplog.text
    (folder / BEST).write_bytes(b"half a file")
    with pytest.raises(IfamError, match=r"last\.ckpt is damaged .*, and there is no other checkpoint; start over with"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path / "empty") is None


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(birds, stopped, tmp_path):
    """No file may be larger than half a checkpoint."""
    for path in (path for path in stopped.rglob("*") if path.is_file()):
        copy = tmp_path / "run" / path.relative_to(stopped)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    last = tmp_path / "run" / FOLDER / LAST
    before, limits = last.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(IfamError) as caught:
            train(birds, tmp_path / "run", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == (
        f"{last.with_name(BEST)} cannot be written (File too large); the checkpoint before it is kept: make room, and "
        f"go on with --resume."
    )
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} == {LAST, BEST}
    assert same(train(birds, tmp_path / "whole")[0], train(birds, tmp_path / "run", resume=True)[0])


def test_random_numbers_have_seeds_of_their_own():
    places = [(Stream.STEP, 0, 1), (Stream.STEP, 1, 0), (Stream.AUGMENTATION, 0, 1), (Stream.STEP, 0, 2)]
    assert len({derived_seed(3, *place) for place in places} | {derived_seed(4, *places[0])}) == 5
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    first = torch.rand(2)
    with drawing_from(7):
        inside = torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    assert torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(7)))


def test_augmentation_and_order_depend_on_the_epoch_only(birds):
    config = replace(TRAIN, crop=0.3)
    loader = Batches(make(), birds, config).train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append([batch.images for batch in loader])
        torch.rand(3)  # whatever was drawn in between
    assert all(map(torch.equal, epochs[0], epochs[2]))
    assert not all(map(torch.equal, epochs[0], epochs[1]))
    loader.load_state_dict({"epoch": 1, "batches": 3})
    loader.sampler.set_epoch(1)
    (rest,) = loader
    assert torch.equal(rest.images, epochs[1][3])
    assert len(loader) == 4
    loader.sampler.set_epoch(0)
    assert all(map(torch.equal, epochs[0], (batch.images for batch in loader)))


# ------------------------------------------------------------------------------------------------ processes

# Starts processes that have everything imported already, and kills them.
SERVER = Path(__file__).parents[1] / "killed_trainings.py"
WORDS = [
    *("train", "--model.backbone", "ifam_tiny", "--model.image_size", "40", "--train.batch_size", "8"),
    *("--train.epochs", "2", "--data.num_train", "24", "--data.num_val", "8", "--data.num_test", "8"),
    *("--train.ema_decay", "0.9", "--train.selector_tuning", "none"),
]


def outcome(run):
    """What must not depend on kills: weights, settings, figures and log."""
    results = json.loads((run / "results.json").read_text())
    conditions = {name: results["conditions"].pop(name) for name in ("weights", "split")}
    results.pop("conditions")
    files = [(run / name).read_bytes() for name in ("model.safetensors", "config.json", "train.yaml")]
    return files, conditions, results, (run / "logs" / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_trainings_that_are_killed_at_random_moments_end_as_one_that_was_not(tmp_path):
    words = [sys.executable, "-W", "ignore", str(SERVER), str(tmp_path), json.dumps(WORDS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == 20
    assert report["while saving"] >= 1
    whole = outcome(tmp_path / "whole" / "run")
    for number in range(report["runs"]):
        assert outcome(tmp_path / str(number) / "run") == whole, number
        assert not list((tmp_path / str(number)).rglob(".*.tmp*"))


@pytest.mark.slow
def test_a_training_on_two_devices_goes_on(tmp_path):
    """Its means are over both, each of which has summed up its part of the epoch."""
    words = [*WORDS, "--data.num_train", "64", "--train.accelerator", "cpu", "--train.epochs", "4"]
    words += ["--train.devices", "2"]
    outs = [tmp_path / name / "run" for name in ("whole", "stopped")]
    # Lightning starts the second process, and the first alone gets the signal.
    started = [sys.executable, "-W", "ignore", "-m", "ifam.cli", *words, "--out", outs[1]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        until = time.monotonic() + 100
        while not (outs[1] / FOLDER / LAST).exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 143, said
    for more in (["--out", outs[0]], ["--out", outs[1], "--resume"]):
        with in_two_programs(*words, *more) as programs:
            said = [program.communicate() for program in programs]
            assert [program.returncode for program in programs] == [0, 0], said
    assert outcome(outs[0]) == outcome(outs[1])
