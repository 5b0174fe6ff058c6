"""Time and peak memory of inference on a batch: `ifam` and a plain eager model that prunes its predictor.

    python -m benchmarks.inference [--batch 4 16] [--visible 0.25 1.0] [--threads 2] [--markdown FILE]

The plain model gathers the visible patches and pads them to the longest of the batch. Masks are the same for every
contender, and counts vary within a batch as described in `benchmarks.step`. bf16 is autocast; with `bf16 weights` the
weights of both transformers are bf16 too, which saves their conversion in every call. Last comes the predictor alone,
at each share against the largest one.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.measure import Contender, bf16_missing, comparison, describe, measure, publish, storage_bytes, table
from benchmarks.plain import Forced, ForcedPlain
from benchmarks.step import Precision, Workload, parser, workload

Model = Forced | ForcedPlain


@dataclass(frozen=True)
class Way:
    """How a contender computes its predictions.

    Attributes:
        plain: Whether with the plain eager model.
        precision: Precision of the computation.
        execution: How `ifam` runs the predictor.
        bf16_weights: Whether both transformers' weights are bf16 too.
    """

    plain: bool = False
    precision: Precision = "float32"
    execution: str = "auto"
    bf16_weights: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        words = ["plain, pruned" if self.plain else "ifam"]
        words += [self.precision] if self.precision != "float32" else []
        words += ["weights"] if self.bf16_weights else []
        words += [self.execution] if self.execution != "auto" else []
        return " ".join(words)


def ways(precision: Precision) -> list[Way]:
    """Everything that is compared, plain first."""
    chosen = [Way(plain=True), Way()]
    chosen += [Way(execution=execution) for execution in ("dense", "padded", "packed")]
    chosen += [Way(plain=True, precision="bf16"), Way(precision="bf16")]
    chosen += [Way(precision="bf16", execution="packed"), Way(precision="bf16", bf16_weights=True)]
    if precision == "bf16":
        chosen = list(dict.fromkeys(replace(way, precision="bf16") for way in chosen))
    return chosen


class Models:
    """One model of each kind, with the same weights, built on first use.

    Args:
        work: The work.
        selector_size: Size to which the selector of `ifam` resizes the images; with another one, weights differ.
    """

    def __init__(self, work: Workload, selector_size: int | None = None) -> None:
        torch.manual_seed(0)
        config = replace(work.config(), selector_image_size=selector_size)
        self.ifam = Forced(config, pretrained=False).to(work.device).eval()
        self.plain = ForcedPlain(work.config()).to(work.device).eval()
        if selector_size is None:
            self.plain.load_state_dict(self.ifam.state_dict())
        self._bf16: dict[bool, Model] = {}

    def of(self, way: Way) -> Model:
        """The model for this way."""
        model: Model = self.plain if way.plain else self.ifam
        if not way.bf16_weights:
            return model
        if way.plain not in self._bf16:
            cast = copy.deepcopy(model)
            cast.selector.backbone.bfloat16()
            cast.predictor.backbone.bfloat16()
            self._bf16[way.plain] = cast
        return self._bf16[way.plain]


def contender(way: Way, models: Models, work: Workload, *, predictor_only: bool = False) -> Contender:
    """Inference on the workload's batch as a contender, or the reason why it cannot run."""
    missing = bf16_missing(work.device) if way.precision == "bf16" else ""
    if missing:
        return Contender(way.name, lambda: None, missing=missing)
    model = models.of(way)
    images, visible = work.data().images, work.masks(model.predictor.backbone.vit.patch_embed.grid_size)
    run: Callable[[], Any] = (lambda: model.predictor(images, visible)) if predictor_only else (lambda: model(images))

    def call() -> None:
        model.visible = visible
        setattr(model.predictor, "execution", way.execution)  # noqa: B010 (mypy takes it for a tensor)
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=way.precision == "bf16"),
        ):
            run()

    def resident() -> int:
        weights = model.predictor.parameters() if predictor_only else model.parameters()
        return storage_bytes([*weights, images, visible])

    return Contender(way.name, call, resident)


def predictor_table(args: argparse.Namespace, models: Models, batch: int) -> str:
    """The predictor alone: its time at each share of visible patches, in turns, and the ratio to the largest share."""
    shares = sorted(args.visible)
    chosen = [way for way in ways(args.precision) if way.execution == "auto" and not lacks_bf16(way, args.device)]
    contenders = [
        replace(
            contender(way, models, workload(args, batch=batch, visible=share), predictor_only=True),
            name=f"{way.name} at {share:.0%}",
        )
        for way in chosen
        for share in shares
    ]
    measurements = measure(contenders, repeats=args.repeats, warmup=args.warmup, device=args.device)
    rows = []
    for index, way in enumerate(chosen):
        of_way = measurements[index * len(shares) : (index + 1) * len(shares)]
        rows.append(
            [way.name]
            + [f"{one.median * 1e3:.1f}" for one in of_way]
            + [f"{1 / one.faster_than(of_way[-1]):.2f}" for one in of_way[:-1]]
        )
    header = [f"ms at {share:.0%}" for share in shares] + [f"{share:.0%} / {shares[-1]:.0%}" for share in shares[:-1]]
    return table(["predictor alone", *header], rows)


def lacks_bf16(way: Way, device: str) -> bool:
    """Whether the way is in bf16, but the device has no instructions for it."""
    return way.precision == "bf16" and bool(bf16_missing(device))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    args = parser(__doc__, several=True).parse_args(argv)
    base = workload(args, batch=args.batch[0], visible=args.visible[0])
    models = Models(base)
    parts = []
    for batch in args.batch:
        for share in args.visible:
            work = workload(args, batch=batch, visible=share)
            contenders = [contender(way, models, work) for way in ways(args.precision)]
            measurements = measure(contenders, repeats=args.repeats, warmup=args.warmup, device=args.device)
            parts.append(f"Inference: {work}, {args.precision}, {args.repeats} rounds.\n\n{comparison(measurements)}")
        parts.append(f"Batch {batch}:\n\n{predictor_table(args, models, batch)}")
    publish("\n\n".join([describe(args.device), *parts]), args.markdown)


if __name__ == "__main__":
    main()
