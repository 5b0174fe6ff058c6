"""Loggers of other programs: they get every value and setting, end with the training, and change nothing in it."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.experiments.compare import run_comparison
from ifam.experiments.comparison import Comparison, Row
from ifam.models.registry import build
from ifam.training import loggers
from ifam.training.fit import fit, seed_everything

TRAIN = TrainConfig(epochs=2, batch_size=8, base_lr=1e-3, monitor="accuracy", accelerator="cpu")


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 8})


def train(birds, folder, **changes):
    seed_everything(0)
    model = build("plain_vit", ModelConfig("ifam_tiny", image_size=40, num_classes=2))
    return model, fit(model, birds, replace(TRAIN, **changes), folder=folder, label="birds")


def same(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.slow
def test_another_logger_gets_all_values_and_settings_and_changes_nothing(birds, tmp_path, monkeypatch):
    """One of Lightning's own, in the place of one that is not installed here."""
    made, ended = [], []

    def make(folder, label):
        made.append(CSVLogger(folder, name=label, version=""))
        return made[-1]

    monkeypatch.setitem(loggers._MAKE, "wandb", make)
    monkeypatch.setitem(loggers._INSTALLED, "wandb", True)
    monkeypatch.setattr(CSVLogger, "finalize", lambda self, status: (self.save(), ended.append(status)))
    first, result = train(birds, tmp_path / "plain")
    second, _ = train(birds, tmp_path / "run", loggers=("wandb",))
    assert same(first, second)
    with (tmp_path / "run" / "birds" / "metrics.csv").open() as file:
        logged = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    assert logged == [row["val/accuracy"] for row in result.history]
    assert made[0].experiment.hparams["train.epochs"] == 2
    assert ended[-1] == "success"
    monkeypatch.setattr("ifam.training.progress.TrainingProgress.on_train_start", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(birds, tmp_path / "failed", loggers=("wandb",))
    assert ended[-1] == "failed"


def test_what_is_unknown_or_not_installed_is_said_before_anything_is_trained(birds, tmp_path, monkeypatch):
    with pytest.raises(IfamError, match=r"train\.loggers has 'comet', but 'wandb' and 'mlflow' are expected"):
        replace(TRAIN, loggers=("comet",))
    monkeypatch.setitem(loggers._INSTALLED, "mlflow", False)
    with pytest.raises(IfamError, match=r"train\.loggers has mlflow, .*: `pip install 'ifam\[mlflow\]'`"):
        train(birds, tmp_path / "run", loggers=("mlflow",))
    monkeypatch.setitem(loggers._INSTALLED, "mlflow", True)

    def unreachable(folder, label):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(loggers._MAKE, "mlflow", unreachable)
    with pytest.raises(IfamError, match=r"mlflow cannot be logged to \(no route to host\); mend its settings"):
        train(birds, tmp_path / "run", loggers=("mlflow",))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_of_several_processes_the_first_alone_begins_a_run(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setitem(loggers._INSTALLED, "mlflow", True)
    monkeypatch.setitem(loggers._MAKE, "mlflow", lambda folder, label: begun.append(label) or CSVLogger(folder))
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with loggers.loggers(("mlflow",), tmp_path, rank, {}):
            pass
    assert begun == ["0"]


def test_what_would_be_removed_with_a_temporary_folder_is_refused(birds, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    said = r"train\.loggers has wandb, whose runs would be removed .*; name a server by the variable WANDB_MODE"
    with pytest.raises(IfamError, match=said):
        train(birds, None, loggers=("wandb",))
    row = Row("a", "plain_vit", False, ModelConfig("ifam_tiny"), replace(TRAIN, loggers=("wandb",)), LossConfig())
    with pytest.raises(IfamError, match=said):
        run_comparison(Comparison((row,), (0,), "pondbirds"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WANDB_MODE", "online")
    loggers.refuse_lost(("wandb",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_real_ones_write_into_the_folder_of_the_training(birds, tmp_path, monkeypatch, name):
    """Two trainings in one process are two runs; nothing leaves the machine. What the libraries warn of is theirs."""
    pytest.importorskip(name)
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    first, result = train(birds, tmp_path / "plain")
    for run in ("one", "two"):
        model, _ = train(birds, tmp_path / run, loggers=(name,))
        assert same(first, model)
        logs: Path = tmp_path / run / "logs"
        if name == "wandb":
            assert len(list(logs.glob("wandb/offline-run-*/*.wandb"))) == 1
            continue
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{logs / 'mlflow.db'}")
        (found,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
        assert (found.info.run_name, found.info.status) == ("birds", "FINISHED")
        assert found.data.params["train.batch_size"] == "8"
        values = [one.value for one in client.get_metric_history(found.info.run_id, "val/accuracy")]
        assert values == [row["val/accuracy"] for row in result.history]
