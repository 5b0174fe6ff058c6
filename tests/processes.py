"""Two processes that share a group of PyTorch's, as two devices would."""

import torch


def in_two_processes(work, folder, *args):
    """Run `work(rank, *args)` in two processes, each with one thread and a group that both have joined.

    Args:
        work: What to do; a function of a test, since the processes are forks of this one.
        folder: An empty folder, where the two meet.
        *args: Handed to `work` after the rank.
    """
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=_join, args=(rank, work, folder, args)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def _join(rank, work, folder, args):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    work(rank, *args)
    torch.distributed.destroy_process_group()
