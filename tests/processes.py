"""Processes that share a group of PyTorch's, as those of several devices do."""

import os

import torch


def in_processes(count, work, folder, *args):
    """Run `work(rank, *args)` in several processes, each with one thread and a group that all have joined.

    They find themselves in the environment that `torchrun` makes.

    Args:
        count: Number of processes.
        work: What to do; a function of a test, since the processes are forks of this one.
        folder: A folder, where they meet.
        *args: Handed to `work` after the rank.
    """
    meeting = folder / f"meeting {len(list(folder.glob('meeting *')))}"
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=_join, args=(rank, count, work, meeting, args)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def _join(rank, count, work, meeting, args):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    work(rank, *args)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def in_two_processes(work, folder, *args):
    """`in_processes` with two."""
    in_processes(2, work, folder, *args)
