"""Which program has started this process together with others: `torchrun`, or Slurm's `srun`. Imports no torch.

Neither is asked for: both say in environment variables how many processes there are, and which this one is. Where they
say it in part only, each process would train alone and write into the folder of the others, or wait for ever.
"""

import os
from dataclasses import dataclass
from typing import Literal

from ifam.errors import IfamError

# Names of jobs in which Lightning takes Slurm's variables for those of the shell: `salloc`, `srun --pty bash`.
_INTERACTIVE = ("bash", "interactive")
_PLACE = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


@dataclass(frozen=True)
class Launch:
    """Processes that another program has started for the same work.

    Attributes:
        program: The program.
        nodes: Number of machines.
        per_node: Number of processes on each of them.
        rank: Number of this process, from 0.
    """

    program: Literal["torchrun", "srun"]
    nodes: int
    per_node: int
    rank: int

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.nodes * self.per_node


def launched() -> Launch | None:
    """How this process was started together with others; None where it was started alone.

    Raises:
        IfamError: A variable that Slurm sets for each process is missing, or is no number.
    """
    # `torchrun` may itself be started by `srun`, once for each machine.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        per_node = _number("LOCAL_WORLD_SIZE")
        return Launch("torchrun", _number("WORLD_SIZE") // per_node, per_node, _number("RANK"))
    return _slurm()


def _slurm() -> Launch | None:
    """The processes of a step of Slurm; None for a single one that is not started by `srun`."""
    placed = next((name for name in _PLACE if os.environ.get(name, "0") not in ("", "0")), None)
    if os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        if placed:
            raise IfamError(
                f"{placed} is {os.environ[placed]} in a job that is called {os.environ['SLURM_JOB_NAME']!r}, whose "
                f"processes would each train alone; start them as SLURM_JOB_NAME=train srun ..."
            )
        return None
    if "SLURM_NTASKS" not in os.environ:
        several = os.environ.get("SLURM_NTASKS_PER_NODE", "1") != "1" and "SLURM_NTASKS_PER_NODE"
        if placed or several:
            raise _missing("SLURM_NTASKS", placed or str(several))
        return None
    for name in _PLACE:
        if name not in os.environ:
            raise IfamError(
                f"SLURM_NTASKS is set in the environment, but {name} is not; start the training with `srun`, or "
                f"unset SLURM_NTASKS."
            )
    tasks, rank, _, _ = _number("SLURM_NTASKS"), *map(_number, _PLACE)
    if tasks == 1:
        return None
    if os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ:
        raise IfamError(
            f"SLURM_NTASKS is {tasks}, but a batch script starts its commands once; put `srun` before this one."
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise IfamError(
            f"SLURM_NTASKS is {tasks}, but SLURM_NTASKS_PER_NODE is not set; give `--ntasks-per-node` instead of "
            f"`--ntasks`."
        )
    per_node = _number("SLURM_NTASKS_PER_NODE")
    nodes, rest = divmod(tasks, per_node)
    if rest or rank >= tasks or int(os.environ.get("SLURM_NNODES", nodes)) != nodes:
        known = ", ".join(
            f"{name} {os.environ[name]}"
            for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_PROCID")
            if name in os.environ
        )
        raise IfamError(f"The variables of Slurm do not agree ({known}); start the training with `srun`.")
    # From the one Lightning derives the port on which processes meet, from the other their address.
    if not {"SLURM_JOB_ID", "MASTER_PORT"} & {*os.environ}:
        raise _missing("SLURM_JOB_ID", "SLURM_NTASKS")
    if nodes > 1 and not {"SLURM_NODELIST", "MASTER_ADDR"} & {*os.environ}:
        raise _missing("SLURM_NODELIST", "SLURM_NNODES" if "SLURM_NNODES" in os.environ else "SLURM_NTASKS")
    return Launch("srun", nodes, per_node, rank)


def _missing(name: str, there: str) -> IfamError:
    return IfamError(
        f"{there} is set in the environment, but {name} is not; start the training with `srun`, or unset {there}."
    )


def _number(name: str) -> int:
    """The value of a variable."""
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise IfamError(f"{name} is {text!r} in the environment, but a whole number is expected; unset or correct it.")
    return int(text)
