"""Runs trainings in forks of this process, and kills them at random moments; `tests/training/test_resume.py` uses it.

Usage: killed_trainings.py FOLDER WORDS, with the words of a command line as JSON. FOLDER/whole is a training that is
left alone, FOLDER/0 and so on are killed and resumed until they are finished. Prints the number of kills.
"""

import contextlib
import csv
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import yaml

from ifam.cli.main import main
from ifam.model_files import read_safetensors
from ifam.training.resume import Checkpoints, find_checkpoint

KILLS = 20
# Imported once, for all forks.
HEAVY = ("ifam.training.presets", "ifam.training.fit", "ifam.evaluation.accuracy", "ifam.report.console", "tensorboard")
HEAVY += ("ifam.data.eval_dataset", "sklearn.metrics", "jsonargparse.typing", "torch.utils.tensorboard")


def start(words):
    """A process that runs a command line; its number."""
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            main(words)
            os._exit(0)
        os._exit(1)
    return process


def ends_within(process, seconds):
    """Whether a process ends before it is killed after some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, "the command failed"
            return True
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def check_files(run):
    """Every file that is there is whole."""
    checks = {
        "results.json": lambda path: json.loads(path.read_text()),
        "config.json": lambda path: json.loads(path.read_text()),
        "train.yaml": lambda path: yaml.safe_load(path.read_text())["train"]["epochs"],
        "model.safetensors": read_safetensors,
        "logs/metrics.csv": lambda path: [row["step"] + row["epoch"] for row in csv.DictReader(path.open())],
    }
    for name, check in checks.items():
        if (run / name).exists():
            check(run / name)
    if (run / "checkpoints" / "last.ckpt").exists():
        assert find_checkpoint(run)[0].name == "last.ckpt"


def run(folder, words):
    """The report."""
    torch.set_num_threads(1)
    Checkpoints.interval = 0.0
    for name in HEAVY:
        importlib.import_module(name)
    began = time.monotonic()
    assert ends_within(start([*words, "--out", str(folder / "whole" / "run")]), 200)
    duration = time.monotonic() - began
    moments, kills, saving, runs = random.Random(0), 0, 0, 0
    while kills < KILLS:
        out, resume = folder / str(runs) / "run", []
        while True:
            seconds = moments.uniform(0, duration) if kills < KILLS else 200
            if ends_within(start([*words, "--out", str(out), *resume]), seconds):
                break
            kills, resume = kills + 1, ["--resume"]
            saving += any(out.glob("checkpoints/.*.tmp*"))
            check_files(out)
        runs += 1
    return {"kills": kills, "while saving": saving, "runs": runs, "seconds": duration}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), json.loads(sys.argv[2]))))
