"""Who has started a process: real sets of variables of torchrun and Slurm, and what is missing in others."""

import re

import pytest

from ifam.config import TrainConfig
from ifam.errors import IfamError
from ifam.launch import Launch, launched
from ifam.training.trainer import on_processes

# Of the second of two tasks on one machine, by `sbatch --ntasks-per-node=2` and `srun`.
SRUN = {
    **{"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NNODES": "1"},
    **{"SLURM_JOB_ID": "4711", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "node[07-08]", "SLURM_STEP_ID": "0"},
    **{"SLURM_JOB_NAME": "train.sh", "ENVIRONMENT": "BATCH"},
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, and no others."""

    def set_variables(variables, **changes):
        for name, value in {**variables, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    set_variables(dict.fromkeys([*SRUN, *TORCHRUN, "MASTER_PORT", "MASTER_ADDR"]))
    return set_variables


def test_torchrun_and_srun_are_known(environment):
    assert launched() is None
    environment(SRUN)
    assert launched() == Launch("srun", 1, 2, 1)
    environment(
        SRUN, SLURM_NTASKS="16", SLURM_NTASKS_PER_NODE="8", SLURM_NNODES="2", SLURM_PROCID="9", SLURM_NODEID="1"
    )
    assert launched() == Launch("srun", 2, 8, 9)
    environment(TORCHRUN)
    assert launched() == Launch("torchrun", 2, 4, 5), "which srun may have started"
    assert launched().processes == 8


@pytest.mark.parametrize(
    "variables",
    [
        # `salloc`, and a shell in it; a batch script without and with `--ntasks=1`; a single task.
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "interactive", "SLURM_NNODES": "1"},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "bash"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1", "ENVIRONMENT": "BATCH"},
        {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": None},
        {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": None},
    ],
)
def test_a_single_process_of_slurm_is_one_alone(environment, variables):
    environment(variables)
    assert launched() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SLURM_NTASKS": None}, "SLURM_PROCID is set in the environment, but SLURM_NTASKS is not; start"),
        (
            {"SLURM_NTASKS": None, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            "SLURM_NTASKS_PER_NODE is set in the environment, but SLURM_NTASKS is not; start",
        ),
        ({"SLURM_PROCID": None}, "SLURM_NTASKS is set in the environment, but SLURM_PROCID is not; start"),
        ({"SLURM_LOCALID": None}, "SLURM_NTASKS is set in the environment, but SLURM_LOCALID is not; start"),
        ({"SLURM_NODEID": None}, "SLURM_NTASKS is set in the environment, but SLURM_NODEID is not; start"),
        ({"SLURM_JOB_ID": None}, "SLURM_NTASKS is set in the environment, but SLURM_JOB_ID is not; start"),
        ({"SLURM_NTASKS_PER_NODE": None}, "but SLURM_NTASKS_PER_NODE is not set; give `--ntasks-per-node`"),
        (
            {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": None},
            "SLURM_NNODES is set in the environment, but SLURM_NODELIST is not; start",
        ),
        ({"SLURM_STEP_ID": None}, "a batch script starts its commands once; put `srun` before this one"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS is 'two' in the environment, but a whole number is expected"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is '' in the environment, but a whole number is expected"),
        ({"SLURM_NTASKS": "3"}, "do not agree (SLURM_NTASKS 3, SLURM_NTASKS_PER_NODE 2, SLURM_NNODES 1"),
        ({"SLURM_NNODES": "2"}, "do not agree"),
        ({"SLURM_PROCID": "2"}, "do not agree"),
        ({"SLURM_JOB_NAME": "bash"}, "processes would each train alone; start them as SLURM_JOB_NAME=train srun"),
    ],
)
def test_half_set_variables_of_slurm_are_a_sentence(environment, changes, said):
    environment({**SRUN, **changes})
    with pytest.raises(IfamError, match=re.escape(said)):
        launched()


def test_devices_are_those_that_processes_were_started_for(environment):
    config = TrainConfig(accelerator="cpu")
    assert on_processes(config) == config
    environment(TORCHRUN)
    for devices, nodes in (("auto", 1), (-1, 1), (4, 2)):
        found = on_processes(TrainConfig(accelerator="cpu", devices=devices, num_nodes=nodes))
        assert (found.devices, found.num_nodes) == (4, 2)
    with pytest.raises(IfamError, match=r"train.devices is 2, but torchrun has started 4 processes on each of 2 mach"):
        on_processes(TrainConfig(accelerator="cpu", devices=2))
    with pytest.raises(IfamError, match=r"train.num_nodes is 3, but torchrun"):
        on_processes(TrainConfig(accelerator="cpu", num_nodes=3))


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_fsdp_on_a_processor_is_a_sentence(accelerator, monkeypatch):
    """PyTorch refuses it there: `FSDP needs a non-CPU accelerator device`."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(IfamError, match=r"train.strategy is 'fsdp', which Lightning and PyTorch run on GPUs only"):
        on_processes(TrainConfig(accelerator=accelerator, devices=2, strategy="fsdp"))
