"""Time and peak memory of a training step: `ifam` and the same method in plain eager PyTorch.

    python -m benchmarks.step [--threads 2] [--visible 0.25] [--compile] [--executions] [--markdown FILE]
    python -m benchmarks.step --profile [--only "plain,tokens/none"]

A step is the forward pass, the losses, the backward pass, clipping, the optimizer and clearing the gradients. Weights
and images are random, which costs the same as real ones. Masks are the same for every contender and show exactly
`--visible` of the patches, as a mean: images show from half to one and a half times that. A row `a/b` is ifam with
`selector_tuning` a and `mask_gradient` b; the plain model trains the selector's tokens and passes no gradient through
the mask, like the paper's code, so `tokens/none` is the same setting.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn

from benchmarks.measure import (
    Contender,
    bf16_missing,
    comparison,
    describe,
    flop_counter,
    matmul_rate,
    measure,
    profile_table,
    publish,
    storage_bytes,
)
from benchmarks.plain import Forced, ForcedPlain, visible_masks
from ifam.config import LossConfig, MaskGradient, ModelConfig, TrainConfig, Tuning
from ifam.data import Benchmark
from ifam.training.losses import weighted_sum
from ifam.training.module import Training, prepare
from ifam.training.optimization import parameter_groups
from ifam.types import Batch

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Workload:
    """The work that all contenders do.

    Attributes:
        backbone: timm's name of the vision transformer of both stages.
        size: Side of the images in pixels.
        batch: Images in a step.
        parts: Foreground parts K.
        classes: Classes C.
        visible: Share of the patches that the predictor sees, over the whole batch.
        device: Device of the work.
        backbone_kwargs: Passed to timm.
    """

    backbone: str = "vit_small_patch14_reg4_dinov2"
    size: int = 224
    batch: int = 4
    parts: int = 8
    classes: int = 200
    visible: float = 0.25
    device: str = "cpu"
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """For the head of a table."""
        return (
            f"{self.backbone}, {self.size} px, batch {self.batch}, K={self.parts}, {self.classes} classes, "
            f"{self.visible:.0%} visible"
        )

    def config(self, mask_gradient: MaskGradient = "none") -> ModelConfig:
        """The model's settings."""
        return ModelConfig(
            backbone=self.backbone,
            image_size=self.size,
            num_parts=self.parts,
            num_classes=self.classes,
            mask_gradient=mask_gradient,
            backbone_kwargs=self.backbone_kwargs,
        )

    def data(self) -> Batch:
        """Random images and labels, always the same."""
        source = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, generator=source)
        return Batch(images, torch.randint(self.classes, (self.batch,), generator=source)).to(self.device)

    def masks(self, grid: tuple[int, int]) -> torch.Tensor:
        """Visible patches of each image, bool [B, H, W], always the same."""
        return visible_masks(self.batch, grid, self.visible).to(self.device)


@dataclass(frozen=True)
class Setting:
    """How a contender does the work.

    Attributes:
        plain: Whether in plain eager PyTorch.
        tuning: What is trained in the selector's backbone.
        mask_gradient: For which patches the predictor's loss reaches the selector.
        precision: Precision of the forward pass; weights are float32.
        execution: How `ifam` runs the predictor.
        compile: Use `torch.compile`.
        checkpointing: Recompute activations in the backward pass.
    """

    plain: bool = False
    tuning: Tuning = "tokens"
    mask_gradient: MaskGradient = "none"
    precision: Precision = "float32"
    execution: str = "auto"
    compile: bool = False
    checkpointing: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        words = ["plain" if self.plain else f"{self.tuning}/{self.mask_gradient}"]
        words += [self.precision] if self.precision != "float32" else []
        words += [self.execution] if self.execution != "auto" else []
        words += ["compiled"] if self.compile else []
        words += ["checkpointed"] if self.checkpointing else []
        return " ".join(words)


class TrainStep:
    """One whole step of training.

    Args:
        terms: The loss terms of a batch, unweighted.
        model: The model.
        optimizer: Optimizer of its trained parameters.
        batch: Images and labels.
        precision: Precision of the forward pass.
    """

    def __init__(
        self,
        terms: Callable[[Batch], dict[str, torch.Tensor]],
        model: Forced | ForcedPlain,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        precision: Precision,
    ) -> None:
        self.terms, self.model, self.optimizer, self.batch, self.precision = terms, model, optimizer, batch, precision
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weights = asdict(LossConfig())

    def loss(self) -> torch.Tensor:
        """Forward pass and losses."""
        with torch.autocast(self.batch.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.terms(self.batch)
            return weighted_sum(terms, {name: self.weights[name] for name in terms})

    def update(self) -> None:
        """Clipping and optimizer, after the backward pass."""
        nn.utils.clip_grad_norm_(self.trained, TrainConfig().clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        """Run the step."""
        self.loss().backward()
        self.update()

    def resident(self) -> int:
        """Bytes of weights, optimizer state and images; gradients exist only within a step."""
        state = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, torch.Tensor)
        ]
        tensors = [*self.model.parameters(), *self.model.buffers(), *state]
        return storage_bytes([*tensors, self.batch.images, self.batch.labels, self.model.visible])


def train_step(setting: Setting, work: Workload) -> TrainStep:
    """A step in this setting, with a model of its own."""
    torch.manual_seed(0)
    config = TrainConfig(selector_tuning=setting.tuning, batch_size=work.batch)
    extras: dict[str, Any] = {name: True for name in ("compile", "checkpointing") if getattr(setting, name)}
    if setting.plain:
        plain = ForcedPlain(work.config()).to(work.device).train()
        plain.visible = work.masks(plain.selector.backbone.vit.patch_embed.grid_size)
        return TrainStep(plain.terms, plain, _adamw(plain, config), work.data(), setting.precision)
    model = Forced(work.config(setting.mask_gradient), pretrained=False).to(work.device)
    model.visible = work.masks(model.selector.backbone.grid)
    if setting.execution != "auto":
        setattr(model.predictor, "execution", setting.execution)  # noqa: B010 (mypy takes it for a tensor)
    config = replace(config, **extras)
    benchmark = Benchmark("random images", {}, tuple(map(str, range(work.classes))), ("all",))
    prepare(model, config)
    training = Training(model, config, LossConfig(), benchmark, 1000).train().to(work.device)
    return TrainStep(training.terms, model, _adamw(model, config, fused=True), work.data(), setting.precision)


def _adamw(model: nn.Module, config: TrainConfig, fused: bool | None = None) -> torch.optim.AdamW:
    """AdamW over the groups of the recipe; freezes what they do not train."""
    groups = []
    for group in parameter_groups(model, config):
        parameters = list(group.parameters.values())
        for parameter in parameters:
            parameter.requires_grad_(group.trainable)
        if group.trainable:
            decay = config.weight_decay if group.weight_decay else 0.0
            groups.append({"params": parameters, "lr": config.base_lr * group.lr_scale, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=fused)


def contender(setting: Setting, work: Workload) -> Contender:
    """A step as a contender, or the reason why it cannot run."""
    missing = bf16_missing(work.device) if setting.precision == "bf16" else ""
    if missing:
        return Contender(setting.name, lambda: None, missing=missing)
    step = train_step(setting, work)
    return Contender(setting.name, step, step.resident)


def settings(args: argparse.Namespace) -> list[Setting]:
    """The settings selected on the command line."""
    gradients: tuple[MaskGradient, ...] = ("none", "visible", "full")
    chosen = [Setting(plain=True)]
    chosen += [Setting(mask_gradient=gradient) for gradient in gradients]
    chosen += [Setting(tuning="none", mask_gradient=gradient) for gradient in gradients[:2]]
    chosen += [Setting(tuning="none", mask_gradient=gradient, precision="bf16") for gradient in gradients[:2]]
    chosen += [Setting(plain=True, precision="bf16")]
    if args.executions:
        chosen += [Setting(execution=execution) for execution in ("dense", "padded", "packed")]
    if args.compile:
        chosen += [Setting(compile=True), Setting(tuning="none", compile=True)]
        chosen += [Setting(tuning="none", precision="bf16", compile=True)]
    if args.checkpointing:
        chosen += [Setting(checkpointing=True)]
    if args.precision == "bf16":
        chosen = list(dict.fromkeys(replace(setting, precision="bf16") for setting in chosen))
    return select(chosen, args.only)


def select(chosen: Sequence[Setting], only: str) -> list[Setting]:
    """The settings whose names are in a comma-separated list; all for an empty list."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := sorted(set(names) - {setting.name for setting in chosen}):
        known = ", ".join(setting.name for setting in chosen)
        raise SystemExit(f"--only names {', '.join(unknown)}, but there are: {known}.")
    return [setting for setting in chosen if not names or setting.name in names]


def profile(step: TrainStep, repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds (median) and FLOPs of each part of a step.

    FLOPs are those of matrix products, convolutions and attention, as `benchmarks.measure.flop_counter` counts them.
    """
    device = step.batch.images.device

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    step()
    runs = [split(step, now) for _ in range(repeats)]
    with flop_counter() as counter:
        flops = split(step, lambda: float(counter.get_total_flops()))
    return {part: (statistics.median(run[part] for run in runs), flops[part]) for part in flops}


def split(step: TrainStep, meter: Callable[[], float]) -> dict[str, float]:
    """Increase of a meter in each part of a step."""
    spent: dict[str, float] = {}

    def metered(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = meter()
            result = call(*args, **kwargs)
            spent[part] = spent.get(part, 0.0) + meter() - start
            return result

        return run

    model = step.model
    with ExitStack() as stack:
        for part, owner, name in (
            ("selector's backbone", model.selector, "patches"),
            ("predictor", model.predictor, "forward"),
        ):
            stack.enter_context(mock.patch.object(owner, name, metered(part, getattr(owner, name))))
        start = meter()
        loss = step.loss()
        spent["heads, mask, transform, losses"] = meter() - start - sum(spent.values())
    metered("backward", loss.backward)()
    metered("clip, optimizer", step.update)()
    return spent


def profiles(args: argparse.Namespace, work: Workload) -> str:
    """The profile of each setting."""
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
    peaks: dict[Precision, float] = {}
    tables = []
    for setting in settings(args):
        precision = setting.precision
        if precision == "bf16" and bf16_missing(work.device):
            continue
        if precision not in peaks:
            peaks[precision] = matmul_rate(dtypes[precision], work.device)
        parts = profile(train_step(setting, work), args.repeats)
        tables.append(profile_table(setting.name, parts, peaks[precision]))
    reached = ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {precision}" for precision, peak in peaks.items())
    return "\n\n".join([*tables, f"Peak: {reached}, the rate of one large matrix product here."])


def parser(description: str | None, *, several: bool = False) -> argparse.ArgumentParser:
    """The options of all these commands; with `several`, more than one batch size and share can be given."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--backbone", default=Workload.backbone)
    options.add_argument("--backbone-kwargs", type=json.loads, default={}, help="JSON, passed to timm")
    options.add_argument("--size", type=int, default=Workload.size)
    options.add_argument("--batch", type=int, default=[4, 16] if several else 4, nargs="+" if several else None)
    options.add_argument("--parts", type=int, default=Workload.parts)
    options.add_argument("--classes", type=int, default=Workload.classes)
    options.add_argument(
        "--visible",
        type=float,
        default=[0.25, 1.0] if several else 0.25,
        nargs="+" if several else None,
        help="share of the patches, above 0, up to 1",
    )
    options.add_argument("--device", default=Workload.device)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--warmup", type=int, default=1)
    options.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of every contender")
    options.add_argument("--markdown", type=Path, help="also write the output to this file")
    return options


def workload(args: argparse.Namespace, **changes: Any) -> Workload:
    """The workload of a command line, with other values where given; sets the number of threads."""
    torch.set_num_threads(args.threads)
    fields = ("backbone", "size", "batch", "parts", "classes", "visible", "device", "backbone_kwargs")
    return Workload(**{name: changes.get(name, getattr(args, name)) for name in fields})


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--only", default="", help="comma-separated names of rows; all where empty")
    options.add_argument("--compile", action="store_true", help="add compiled contenders (needs a C++ compiler)")
    options.add_argument("--executions", action="store_true", help="add dense, padded and packed execution")
    options.add_argument("--checkpointing", action="store_true", help="add activation checkpointing")
    options.add_argument("--profile", action="store_true", help="show where the time goes instead")
    args = options.parse_args(argv)
    work = workload(args)
    head = f"Training step: {work}, {args.precision}, {args.repeats} rounds. {describe(work.device)}"
    if args.profile:
        publish(f"{head}\n\n{profiles(args, work)}", args.markdown)
        return
    contenders = [contender(setting, work) for setting in settings(args)]
    measurements = measure(contenders, repeats=args.repeats, warmup=args.warmup, device=work.device)
    publish(f"{head}\n\n{comparison(measurements)}", args.markdown)


if __name__ == "__main__":
    main()
