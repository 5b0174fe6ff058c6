"""`ifam` in processes of its own, forked from one that has imported it: they start in milliseconds, not in ten seconds.

They have no standard input, run no code at exit, and cannot be started again for other devices. Some tests start the
installed program instead.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("ifam.cli.main", "ifam.training.presets", "ifam.training.fit", "ifam.training.trainer", "ifam.inference"),
        *("ifam.experiments.compare", "ifam.evaluation.accuracy", "ifam.report.console", "ifam.data.eval_dataset"),
        *("sklearn.metrics", "jsonargparse.typing", "torch.utils.tensorboard", "tensorboard"),
    ]
)


class Program:
    """A process that runs a command line, with the methods of `subprocess.Popen` that tests need.

    Args:
        *words: What follows `ifam`.
        cwd: Its working directory.
        threads: Number of its threads.
        **variables: Variables of its environment, beside those of this process.
    """

    def __init__(self, *words, cwd=None, threads=1, **variables):
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("out", "err")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
        self._process = _CONTEXT.Process(
            target=_run, args=([*map(str, words)], self._files, os.fspath(cwd or Path.cwd()), threads, environment)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self):
        """Its exit status, if it has ended."""
        return self._process.exitcode

    def send_signal(self, number):
        """Send a signal to it; its process group has its number."""
        os.kill(self.pid, number)

    def communicate(self, timeout=120):
        """Wait for its end; what it wrote to standard output and standard error."""
        self._process.join(timeout)
        assert self.poll() is not None, f"it has not ended within {timeout} seconds"
        return tuple(file.read_text(encoding="utf-8") for file in self._files)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
        self._folder.cleanup()


def free_port():
    """A port on which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@contextmanager
def in_two_programs(*words, **options):
    """Two processes that run a command line together, as `torchrun` starts them."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    meeting |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    with ExitStack() as stack:
        places = ({"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1"))
        yield [stack.enter_context(Program(*words, **options, **meeting, **place)) for place in places]


def run(*words, **options):
    """Run a command line to its end: exit status, standard output and standard error."""
    with Program(*words, **options) as program:
        out, err = program.communicate()
        return program.returncode, out, err


def _run(words, files, cwd, threads, environment):
    """In the process: run a command line as `python -m ifam.cli` does."""
    os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["ifam", *words]
    import torch

    from ifam.cli.main import main

    torch.set_num_threads(threads)
    main(words)


def is_alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def alive_after(process, seconds):
    """Whether a process is still alive after some seconds; returns as soon as it is not."""
    until = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return is_alive(process)


def descendants(process):
    """Processes that a process has started, and theirs."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    found = [process]
    for pid, parent in sorted(tuple(map(int, line.split())) for line in listed.splitlines()):
        if parent in found:
            found.append(pid)
    return found[1:]
