"""Several real processes end together, and one of them speaks; started by Lightning, torchrun and as Slurm does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ifam.cli.main import main
from ifam.config import ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.distributed import await_stopped, first_process, reported_elsewhere
from ifam.models.registry import build
from ifam.training.fit import fit
from ifam.training.resume import FOLDER, LAST
from processes import in_two_processes
from programs import alive_after, descendants, free_port, in_two_programs
from shards import picture, samples, write_shard
from test_launch import SRUN

IFAM = [sys.executable, "-m", "ifam.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ifam.cli"]
QUICK = [
    *("--model.backbone", "ifam_tiny", "--model.image_size", "40", "--train.batch_size", "4", "--train.epochs", "2"),
    *("--train.accelerator", "cpu"),
]
# An image that the second of two processes reads in the first epoch.
OF_SECOND = 14


def photos(folder, bad=()):
    """Shards with 16 images for training; of some, the end is missing, which only decoding notices."""
    for split, numbers in {"train": range(16), "test": range(16, 23), "val": range(23, 28)}.items():
        members = samples(numbers)
        members |= {f"{n:04d}.jpg": picture(n, kind="jpg")[:900] for n in bad if n in numbers}
        write_shard(folder / f"{split}-000.tar", members)
    return folder


def outcome(run):
    """The figures of a training."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in results.items() if name != "conditions"}, (
        run / "logs" / "metrics.csv"
    ).read_bytes()


def test_the_first_process_of_torchrun_is_the_first_on_whatever_machine(monkeypatch):
    for rank, slurm in (("0", "1"), ("1", "0")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("SLURM_PROCID", slurm)
        assert first_process() == (rank == "0")
    monkeypatch.delenv("RANK")
    assert first_process()


def start(words, **variables):
    """A process with one thread, since the number of threads decides about the last bit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, words)], **streams, env=environment)


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """The same training, started in three ways: its folder, and what each process that was started prints."""
    folder = tmp_path_factory.mktemp("ways")
    words = ["train", "--root", photos(folder / "photos"), *QUICK, "--out"]
    outs = {name: folder / "runs" / name for name in ("lightning", "torchrun", "slurm")}
    tasks = [SRUN | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "MASTER_ADDR": "127.0.0.1"} for rank in ("0", "1")]
    started = {
        "lightning": [start([*IFAM, *words, outs["lightning"], "--train.devices", "2"])],
        "torchrun": [start([*TORCHRUN, *words, outs["torchrun"]])],
        "slurm": [start([*IFAM, *words, outs["slurm"]], **task) for task in tasks],
    }
    said = {name: [process.communicate(timeout=300) for process in several] for name, several in started.items()}
    for name, several in started.items():
        assert not any(process.returncode for process in several), said[name]
    return {name: (outs[name], *zip(*said[name], strict=True)) for name in outs}


@pytest.mark.slow
def test_however_processes_are_started_they_train_together(ways):
    first, *others = (outcome(out) for out, _, _ in ways.values())
    assert others == [first, first]
    # Two steps of eight images in each epoch, not four of four.
    assert b"\n0,1," in first[1]
    assert b"\n1,3," in first[1]


@pytest.mark.slow
def test_one_of_the_processes_speaks(ways):
    for out, printed, errors in ways.values():
        text = "".join(printed)
        assert text.count("Preset ") == text.count(f"The model is in {out}") == 1
        assert [line.split(":")[0] for line in "".join(errors).splitlines() if line.startswith("epoch")] == [
            "epoch 1 of 2",
            "epoch 2 of 2",
        ]
    assert [bool(text) for text in ways["slurm"][1]] == [True, False]
    assert ways["slurm"][2][1] == ""


# --- the end ---------------------------------------------------------------------------------------------


def _command(rank, folder, words):
    """Run a command line in one of several processes, and note what it says and how it ends."""
    with (folder / f"output {rank}").open("w", encoding="utf-8") as sys.stdout:
        sys.stderr = sys.stdout
        code = 0
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    (folder / f"status {rank}").write_text(str(code), encoding="utf-8")
    os._exit(0)


def ended(folder, words):
    """Lines and status of each of two processes that run a command line."""
    in_two_processes(_command, folder, folder, [*map(str, words)])
    output = [(folder / f"output {rank}").read_text(encoding="utf-8").splitlines() for rank in range(2)]
    return output, [(folder / f"status {rank}").read_text(encoding="utf-8") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("bad", "steps"), [((OF_SECOND,), "training"), (range(16), "training"), (range(16, 23), "evaluation")]
)
def test_an_error_in_one_process_or_in_all_is_one_sentence(bad, steps, tmp_path):
    with pytest.raises(SystemExit):
        # An error of an earlier command in the same process counts no more.
        main(["audit", str(tmp_path / "nothing")])
    words = ["train", "--root", photos(tmp_path / "photos", bad), *QUICK, "--out", tmp_path / "run"]
    output, status = ended(tmp_path, words)
    assert status == ["2", "2"]
    said = [line for lines in output for line in lines if line.startswith("ifam: ")]
    assert len(said) == 1, output
    assert "is not a readable image (image file is truncated" in said[0]
    assert not any("Traceback" in line or "gloo" in line for lines in output for line in lines)
    assert (tmp_path / "run" / "model.safetensors").exists() == (steps == "evaluation")


def _stop(rank, port, folder):
    """End as on a signal; the second process takes longer to ask for errors."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    os.environ["RANK"] = str(rank)
    if rank:
        time.sleep(0.5)
    (folder / str(rank)).write_text(str(reported_elsewhere()), encoding="utf-8")
    await_stopped()
    os._exit(0)


def test_the_end_of_the_first_process_on_a_signal_is_no_error_to_the_others(tmp_path):
    port = free_port()
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=_stop, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in "01"] == ["False", "False"]


@pytest.mark.slow
def test_a_signal_to_all_processes_ends_them_with_its_status(tmp_path):
    run = tmp_path / "run"
    words = ["train", "--root", photos(tmp_path / "photos"), *QUICK, "--train.epochs", "1000", "--out", run]
    with in_two_programs(*words) as programs:
        until = time.monotonic() + 100
        while not (run / FOLDER / LAST).exists() and time.monotonic() < until:
            time.sleep(0.02)
        for program in programs:
            program.send_signal(signal.SIGTERM)
        (_, first), (_, second) = (program.communicate() for program in programs)
        assert [program.returncode for program in programs] == [143, 143], first + second
    assert f"ifam: Stopped by SIGTERM: the training is saved in {run / FOLDER / LAST}" in first
    assert second == ""


def children(process):
    """Numbers of the processes that another one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(process):
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc lists processes")
@pytest.mark.parametrize("how", ["an error", "a kill"])
def test_what_lightning_has_started_ends_together_with_status_2(how, tmp_path):
    """Lightning itself would kill the first process within five seconds, without a word."""
    bad = [OF_SECOND] if how == "an error" else []
    words = ["train", "--root", photos(tmp_path / "photos", bad), *QUICK, "--train.devices", "2"]
    words += ["--out", tmp_path / "run", "--train.epochs", "2" if bad else "10000"]
    with start([*IFAM, *words]) as run:
        until = time.monotonic() + 100
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        while not (bad or last.exists()) and time.monotonic() < until:
            time.sleep(0.05)
        for child in children(run.pid) if not bad else ():
            os.kill(child, signal.SIGKILL)
        _, errors = run.communicate(timeout=100)
    said = [
        line
        for line in errors.splitlines()
        if not line.startswith(("epoch", "Augmentation")) and "still working" not in line
    ]
    assert run.returncode == 2
    assert len(said) == 1, errors
    assert ("is not a readable image" if bad else "Process 1 of this training was ended (SIGKILL)") in said[0]


# --- none outlives the one that started it ------------------------------------------------------------

# What a process that starts another one for a device does, and what that one does.
PARENT = """
import subprocess, sys, time
from ifam.distributed import ended_together
with ended_together(None):
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
    print(child.pid, child.stdout.readline().decode(), flush=True)
    time.sleep(60)
"""
CHILD = """
import time
from ifam.distributed import end_with_parent
{}
print(flush=True)
time.sleep(60)
"""


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("follows", [True, False])
def test_a_process_for_another_device_ends_with_the_one_that_started_it(follows):
    """Also if that one is killed; a process that was started for something else goes on."""
    words = [sys.executable, "-c", PARENT, CHILD.format("end_with_parent()" if follows else "")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            assert alive_after(child, 10 if follows else 2.5) != follows
        finally:
            if not follows:
                os.kill(child, signal.SIGKILL)


def train(folder):
    """A training that takes long, with two processes that load images."""
    torch.set_num_threads(1)
    birds = load_benchmark("pondbirds", options={"num_train": 64, "num_val": 8, "num_test": 8})
    model = build("plain_vit", ModelConfig("ifam_tiny", image_size=40, num_classes=2))
    fit(model, birds, TrainConfig(1000, 8, accelerator="cpu", workers=2), folder=folder)


@needs_proc
@pytest.mark.slow
def test_processes_that_load_images_end_with_a_training_that_is_killed(tmp_path):
    training = torch.multiprocessing.get_context("fork").Process(target=train, args=(tmp_path,))
    training.start()
    until = time.monotonic() + 60
    while len(loaders := descendants(training.pid)) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    training.kill()
    training.join()
    assert len(loaders) == 4, "two for training images and two for validation images"
    assert not any(alive_after(loader, 15) for loader in loaders)
