"""Cost of a training step or of inference by visible share, image size and batch size.

    python -m benchmarks.scaling [--mode step|inference] [--markdown FILE] [--plot FILE.png]
    python -m benchmarks.scaling --fractions 0.05 0.25 1.0 --sizes 224 --batches 4

One thing varies at a time: the others stay at `--visible`, `--size` and `--batch`. This common point is measured once
for all sweeps. An empty list skips a sweep.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import inference, step
from benchmarks.inference import Models, Way
from benchmarks.measure import MIB, Contender, Measurement, describe, measure, publish, table
from benchmarks.step import Setting, Workload, parser, workload

# Labels of the axes, by the field of `Workload`.
AXES = {"visible": "visible patches in %", "size": "image size in pixels", "batch": "images in a batch"}

# Measurements at each value of an axis, by contender; the first contender is the reference.
Sweep = dict[float, list[Measurement]]

# The same, by visible share, image size and batch.
Known = dict[tuple[float, int, int], list[Measurement]]


def contenders(args: argparse.Namespace, work: Workload) -> list[Contender]:
    """The contenders at one point, plain first."""
    if args.mode == "inference":
        models = Models(work)
        chosen = [Way(plain=True, precision=args.precision), Way(precision=args.precision)]
        return [inference.contender(way, models, work) for way in chosen]
    settings = [
        Setting(plain=True, precision=args.precision),
        Setting(precision=args.precision),
        Setting(tuning="none", mask_gradient="visible", precision=args.precision),
    ]
    return [step.contender(setting, work) for setting in settings]


def sweep(args: argparse.Namespace, axis: str, values: Sequence[float], known: Known) -> Sweep:
    """Measurements at each value of one axis; those of points that are known are taken from there, others added."""
    found: Sweep = {}
    for value in values:
        work = workload(args, **{axis: value})
        point = (work.visible, work.size, work.batch)
        if point not in known:
            known[point] = measure(contenders(args, work), repeats=args.repeats, warmup=args.warmup, device=args.device)
        found[value] = known[point]
    return found


def label(axis: str, value: float) -> str:
    """A value as shown in table and figure."""
    return f"{value * 100:g}" if axis == "visible" else f"{value:g}"


def sweep_table(axis: str, measurements: Sweep) -> str:
    """A line per value: time and memory of each contender, and its ratio to the first."""
    names = [one.name for one in next(iter(measurements.values()))]
    header = [AXES[axis]]
    header += [f"{name}, {unit}" for name in names for unit in ("ms", "MiB")]
    header += [f"{name}, times as fast" for name in names[1:]]
    rows = []
    for value, (first, *others) in measurements.items():
        cells = [label(axis, value)]
        for one in (first, *others):
            cells += [f"{one.median * 1e3:.0f}", f"{one.peak / MIB:.0f}"] if one.seconds else ["", ""]
        ran = [one.seconds and first.seconds for one in others]
        cells += [f"{one.faster_than(first):.2f}" if ok else "" for one, ok in zip(others, ran, strict=True)]
        rows.append(cells)
    return table(header, rows)


def plot(sweeps: Mapping[str, Sweep], title: str, file: Path) -> None:
    """Time above, peak memory below, a column for each axis."""
    figure, axes = plt.subplots(
        2, len(sweeps), figsize=(3.6 * len(sweeps), 5.6), squeeze=False, sharex="col", layout="constrained"
    )
    for column, (axis, measurements) in enumerate(sweeps.items()):
        draw(axes[0, column], axis, measurements, lambda one: one.median)
        draw(axes[1, column], axis, measurements, lambda one: one.peak / MIB)
        axes[1, column].set_xlabel(AXES[axis])
    axes[0, 0].set_ylabel("time in s")
    axes[1, 0].set_ylabel("peak memory in MiB")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # The names of training steps are pairs.
    is_step = any("/" in name for name in labels)
    pairs = "trained in the selector's backbone / gradient through the mask" if is_step else None
    figure.legend(handles, labels, title=pairs, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize="medium")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw(panel: Axes, axis: str, measurements: Sweep, figure_of: Callable[[Measurement], float]) -> None:
    """One line for each contender that ran."""
    for index, first in enumerate(next(iter(measurements.values()))):
        ran = {value: figure_of(ones[index]) for value, ones in measurements.items() if ones[index].seconds}
        panel.plot(list(ran), list(ran.values()), marker="o", markersize=4, label=first.name)
    panel.set_xticks(list(measurements), [label(axis, value) for value in measurements], fontsize="small")
    panel.set_ylim(0, 1.08 * panel.dataLim.y1)
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the figure with `--plot`."""
    options = parser(__doc__)
    options.set_defaults(repeats=3)
    options.add_argument("--mode", choices=("step", "inference"), default="step")
    options.add_argument("--fractions", type=float, nargs="*", default=[0.05, 0.25, 0.5, 1.0])
    options.add_argument("--sizes", type=int, nargs="*", default=[112, 168, 224, 336])
    options.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8])
    options.add_argument("--plot", type=Path, help="draw the sweeps into this picture")
    args = options.parse_args(argv)
    chosen = {"visible": args.fractions, "size": args.sizes, "batch": args.batches}
    known: Known = {}
    sweeps = {axis: sweep(args, axis, values, known) for axis, values in chosen.items() if values}
    title = f"{'Training step' if args.mode == 'step' else 'Inference'}: {workload(args)}, {args.precision}"
    tables = [sweep_table(axis, measurements) for axis, measurements in sweeps.items()]
    publish("\n\n".join([f"{title}, {args.repeats} rounds. {describe(args.device)}", *tables]), args.markdown)
    if args.plot and sweeps:
        plot(sweeps, title, args.plot)


if __name__ == "__main__":
    main()
