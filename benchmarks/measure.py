"""Time and peak memory of several contenders for the same work, measured in turns in one process.

With turns, a temporary slowdown of the machine affects all contenders: ratios are the median over rounds of the ratio
within a round. Peak memory is all memory that is alive at once: weights, gradients, optimizer state, inputs,
activations. On the CPU it is summed up from the events of PyTorch's allocator, so that it is the same in every run;
scratch space that a library allocates itself is not included.
"""

import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from ifam.errors import IfamError

# Without this, the native part of the profiler reports on a CPU that there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

MIB = 2**20


@dataclass(frozen=True)
class Contender:
    """An implementation to measure.

    Attributes:
        name: Name in the table.
        call: Runs it once.
        resident: Bytes that it keeps between calls.
        missing: Why it cannot run here, if it cannot.
    """

    name: str
    call: Callable[[], object]
    resident: Callable[[], int] = lambda: 0
    missing: str = ""


@dataclass(frozen=True)
class Measurement:
    """Time and memory of a contender.

    Attributes:
        name: Name of the contender.
        seconds: Duration of each call, in order of the rounds; empty if it could not run.
        peak: Most bytes alive at once, including what it keeps between calls.
        missing: Why it could not run.
    """

    name: str
    seconds: tuple[float, ...] = ()
    peak: int = 0
    missing: str = ""

    @property
    def median(self) -> float:
        """Median duration."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the durations."""
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def faster_than(self, other: "Measurement") -> float:
        """How many times as fast as another: the median over rounds of the ratio of both in the same round."""
        return statistics.median(a / b for a, b in zip(other.seconds, self.seconds, strict=True))


def measure(
    contenders: Sequence[Contender], *, repeats: int, warmup: int = 1, device: torch.device | str = "cpu"
) -> list[Measurement]:
    """Measure the contenders in turns.

    Args:
        contenders: The contenders.
        repeats: Rounds that are timed.
        warmup: Calls of each before anything is measured, at least 1: the first builds state and tunes kernels.
        device: Device of the work.

    Returns:
        A measurement for each contender; for those that do not run here, with the reason.
    """
    device = torch.device(device)
    missing = {contender.name: contender.missing or _warm(contender, warmup) for contender in contenders}
    ready = [contender for contender in contenders if not missing[contender.name]]
    gc.collect()
    peaks = {contender.name: contender.resident() + allocated(contender.call, device) for contender in ready}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats):
        # Rotate the first contender, so that none always follows the same one.
        start = turn % max(1, len(ready))
        for contender in ready[start:] + ready[:start]:
            seconds[contender.name].append(duration(contender.call, device))
    return [Measurement(c.name, tuple(seconds[c.name]), peaks.get(c.name, 0), missing[c.name]) for c in contenders]


def _warm(contender: Contender, calls: int) -> str:
    """Call it a few times; returns why it does not run here, or an empty string."""
    try:
        for _ in range(max(1, calls)):
            contender.call()
    except (IfamError, torch.OutOfMemoryError) as error:
        return " ".join(str(error).split())
    return ""


def duration(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Seconds that a call takes, the work that it leaves in a GPU's queue included."""
    if torch.device(device).type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def allocated(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes alive at once during a call, on top of those alive before it.

    On the CPU the call must not release memory from before it: the profiler does not record such a release.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    # Each event is one allocation, or with a negative size one release.
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        if event.device_type().name == "CPU":
            alive += int(event.nbytes())
            peak = max(peak, alive)
    return peak


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of tensors; shared storages count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def bf16_missing(device: torch.device | str) -> str:
    """Why bfloat16 would only be emulated here; empty where the device has instructions for it."""
    if torch.device(device).type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return "" if has else "this GPU has no bf16 instructions"
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "" if has else "PyTorch reports no bf16 instructions on this CPU"


def flop_counter() -> FlopCounterMode:
    """A counter of the FLOPs of matrix products, convolutions and attention.

    The fused attention of CPUs is counted here: PyTorch before 2.15 counts it as zero.
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {fused: _attention_flops, backward: _attention_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Weights of all keys for all queries, and the mean of the values: shapes [B, h, N, d], [B, h, M, d|e]."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention_backward_flops(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """The weights once more, then the gradients of weights, values, queries and keys."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (3 * width + 2 * value[3])


def matmul_rate(dtype: torch.dtype, device: torch.device | str = "cpu", size: int | None = None) -> float:
    """FLOP/s of a large matrix product, the best of a few, as the peak of the machine."""
    size = size or (8192 if torch.device(device).type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(duration(lambda: torch.mm(a, b), device) for _ in range(5))


def describe(device: torch.device | str) -> str:
    """Device and versions, for the head of a table."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    cpu = f"{capabilities.get('cpu_name', platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
    bf16 = "no bf16 instructions" if bf16_missing("cpu") else "bf16 instructions"
    where = f"CPU ({cpu}, {bf16}), {torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{where}; torch {torch.__version__}, timm {timm.__version__}, ifam at {revision()}."


def revision() -> str:
    """The commit of this checkout, and whether files differ from it."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no git revision"
    return commit.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(measurements: Sequence[Measurement]) -> str:
    """Measurements as a table; the others are compared with the first that ran."""
    reference = next((one for one in measurements if one.seconds), None)
    rows = []
    for one in measurements:
        if reference is None or not one.seconds:
            rows.append([one.name, f"not run: {one.missing}", "", "", "", ""])
            continue
        low, high = one.quartiles
        rows.append(
            [
                one.name,
                f"{one.median * 1e3:.1f}",
                f"{low * 1e3:.1f} to {high * 1e3:.1f}",
                f"{one.faster_than(reference):.2f}",
                f"{one.peak / MIB:.0f}",
                f"{one.peak / reference.peak:.2f}" if reference.peak else "",
            ]
        )
    return table(["", "ms (median)", "quartiles", "times as fast", "peak MiB", "memory ratio"], rows)


def profile_table(name: str, parts: Mapping[str, tuple[float, float]], peak: float) -> str:
    """A table of the time of each part, and its share of the peak of the machine.

    Args:
        name: Name of the contender.
        parts: Seconds and FLOPs of each part.
        peak: Peak FLOP/s of the machine.
    """
    total = sum(seconds for seconds, _ in parts.values()), sum(flops for _, flops in parts.values())
    rows = []
    for part, (seconds, flops) in {**parts, "all": total}.items():
        rate = flops / seconds if seconds else 0.0
        share = f"{seconds / total[0]:.1%}"
        rows.append(
            [part, f"{seconds * 1e3:.1f}", share, f"{flops / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{rate / peak:.0%}"]
        )
    return table([name, "ms", "share", "GFLOP", "GFLOP/s", "of peak"], rows)


def publish(text: str, file: Path | None) -> None:
    """Print a text, and write it to a file if one is given."""
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
