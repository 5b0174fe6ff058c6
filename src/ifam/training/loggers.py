"""Loggers of other programs: TensorBoard where it is installed, Weights & Biases and MLflow by name."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.imports import RequirementCache

from ifam.distributed import first_process
from ifam.errors import IfamError, first_line


def refuse_lost(names: Sequence[str]) -> None:
    """Refuse loggers that would write into the folder of a training, where that is temporary.

    Raises:
        IfamError: There is one.
    """
    for name in names:
        if _ELSEWHERE[name] not in os.environ:
            raise IfamError(
                f"train.loggers has {name}, whose runs would be removed with the training's folder; name a server by "
                f"the variable {_ELSEWHERE[name]}, or leave it out."
            )


@contextmanager
def loggers(names: Sequence[str], folder: Path, label: str, settings: Mapping[str, Any]) -> Iterator[list[Logger]]:
    """The loggers of a training, which are closed at the end of the block.

    A training that goes on logs everything again: TensorBoard forgets what was logged from step 0 on, and in the others
    it is a new run.

    Args:
        names: Those beside TensorBoard: "wandb", "mlflow".
        folder: Folder of the training.
        label: Name of the run.
        settings: What the training depends on, by name, which is logged once.

    Raises:
        IfamError: One is not installed.
    """
    for name in names:
        if not _INSTALLED[name]:
            raise IfamError(f"train.loggers has {name}, which is not installed: `pip install 'ifam[{name}]'`.")
    made: list[Logger] = []
    if RequirementCache("tensorboard"):
        made.append(TensorBoardLogger(folder, name="logs", version="", purge_step=0))
    others: list[Logger] = []
    status = "failed"
    # Both libraries keep there what one logger was told, and the next training would take it for the user's.
    before = {name: os.environ.get(name) for name in _ELSEWHERE.values()}
    try:
        # One run, however many processes train: each client of MLflow would make the file.
        for name in names if first_process() else ():
            others.append(_begun(name, folder, label, settings))
        yield [*made, *others]
        status = "success"
    finally:
        for one in others:
            _close(one, status)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begun(name: str, folder: Path, label: str, settings: Mapping[str, Any]) -> Logger:
    """A logger that has begun its run."""
    try:
        one = _MAKE[name](folder, label)
        one.log_hyperparams({**settings})
    except Exception as error:  # whatever its server, or the connection to it, leads to
        raise IfamError(
            f"{name} cannot be logged to ({first_line(error)}); mend its settings, or leave it out of train.loggers."
        ) from error
    return one


def _wandb(folder: Path, label: str) -> Logger:
    # Nothing leaves the machine unasked: `wandb sync` uploads the run.
    offline = "WANDB_MODE" not in os.environ
    project = os.environ.get("WANDB_PROJECT", "ifam")
    return WandbLogger(name=label, project=project, save_dir=folder / "logs", offline=offline)


def _mlflow(folder: Path, label: str) -> Logger:
    # A server where the environment names one, else a file.
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'logs' / 'mlflow.db').resolve()}")
    return MLFlowLogger(experiment_name="ifam", run_name=label, tracking_uri=uri)


def _close(one: Logger, status: str) -> None:
    """End a run: the next training of this process is another one."""
    one.finalize(status)
    if isinstance(one, WandbLogger):
        one.experiment.finish(exit_code=int(status != "success"))


# The variable by which each logs to a server.
_ELSEWHERE = {"wandb": "WANDB_MODE", "mlflow": "MLFLOW_TRACKING_URI"}
_INSTALLED = {"wandb": RequirementCache("wandb"), "mlflow": RequirementCache("mlflow", "mlflow")}
_MAKE: dict[str, Callable[[Path, str], Logger]] = {"wandb": _wandb, "mlflow": _mlflow}
