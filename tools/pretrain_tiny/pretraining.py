"""Pretrain the tiny vision transformer that replaces DINOv2 where there is no network.

It is a ViT of 0.8 M weights (width 128, depth 4, patches of 8 on 80x80 pixels) trained for some
minutes on random scenes (`textures.py`: textures, clutter, and one random blob spliced in) to solve
three tasks at once, with many patches hidden:

- *splice*: a linear layer on every visible patch token predicts how much of the patch the blob covers;
- *reconstruction*: a light decoder reconstructs the hidden patches (masked autoencoder, per-patch normalized);
- *summary*: linear layers on the class token predict colors, texture and layout of the visible patches, often
  only those of the blob or only those of the background.

It is not DINOv2: it was trained on no photographs and no categories, and the splice task teaches it explicitly that
a compact pasted object differs from its surroundings, a separation of foreground and background that DINOv2 learns
without this supervision. No image or label of a benchmark is used: the generator cannot draw one, and this module
does not import them.

The file in the package is `pretrain_tiny(out, steps=1800, threads=1)`; its .json holds seed and versions.
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.vit import IMAGENET, TINY_ARCH
from ifam.errors import IfamError
from ifam.io import check_absent, ensure_writable, replacing, write_json
from ifam.progress import ProgressBar
from tools.pretrain_tiny.textures import Scenes, draw_scenes, hsv_to_rgb, patch_coverage

MEAN, STD = IMAGENET
_HUES = 12
_WARMUP_STEPS = 60
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.05
_WEIGHTS = {"splice": 1.0, "reconstruction": 0.5, "summary": 2.0, "layout": 0.2}
_SPLICE_SCALE = 0.5
_CHUNK = 16  # scenes drawn at once: small enough for the CPU's cache


@dataclass(frozen=True)
class _View:
    """The visible patches of each sample: their indices, and which of these are valid (others pad the row)."""

    index: Int[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]


def build_tiny_vit() -> VisionTransformer:
    """Build the tiny backbone with fresh weights."""
    return VisionTransformer(**TINY_ARCH)


def normalize(images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Normalize RGB images in [0, 1] by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def _patches(planes: Tensor, patch: int) -> Tensor:
    """Cut images [B, C, S, S] to patches [B, P, C * patch * patch], row-major."""
    return F.unfold(planes, patch, stride=patch).transpose(1, 2)


def _summary_targets(images: Float[Tensor, "B 3 S S"], patch: int) -> Float[Tensor, "B P F"]:
    """Describe every patch: mean color, shares of 16 colors, fine and coarse edges."""
    hues = torch.stack([torch.arange(_HUES) / _HUES, torch.full((_HUES,), 0.7), torch.full((_HUES,), 0.65)], -1)
    grays = torch.tensor([0.05, 0.35, 0.65, 0.95])[:, None].expand(-1, 3)
    anchors = torch.cat([hsv_to_rgb(hues), grays]).to(images.device)  # [16, 3]
    small = F.avg_pool2d(images, 2)
    distance = anchors.square().sum(1)[:, None] - 2 * anchors @ small.flatten(2)  # + |pixel|^2, equal for all
    shares = F.avg_pool2d((-16 * distance).softmax(1).view(len(images), -1, *small.shape[-2:]), patch // 2)
    mean = F.avg_pool2d(images, patch)
    fine, coarse = _edges(images, patch), _edges(small, patch // 2)
    # Rough scales, so that all numbers have about the same weight.
    return torch.cat([4 * mean, 4 * shares, fine, coarse], 1).flatten(2).transpose(1, 2)


def _edges(images: Float[Tensor, "B 3 S S"], patch: int) -> Float[Tensor, "B 5 H W"]:
    """Give, per patch: contrast, strength of edges, and how far they agree on one direction (stripes do)."""
    gray = images.mean(1, keepdim=True)
    x = F.pad(gray[..., 1:] - gray[..., :-1], (0, 1))
    y = F.pad(gray[..., 1:, :] - gray[..., :-1, :], (0, 0, 0, 1))
    pooled = F.avg_pool2d(torch.cat([gray, gray * gray, x * x, y * y, x * y], 1), patch)
    mean, square, xx, yy, xy = pooled.split(1, 1)
    strength = xx + yy + 1e-4
    doubled = torch.cat([xx - yy, 2 * xy], 1) / strength  # the direction's angle, doubled
    contrast = (square - mean.square()).clamp(min=1e-6).sqrt()
    return torch.cat([10 * contrast, 8 * strength.sqrt(), 2 * doubled, 2 * doubled.norm(dim=1, keepdim=True)], 1)


class _Student(nn.Module):
    """The backbone with the heads of its three tasks, which are discarded afterwards."""

    def __init__(self, decoder_width: int = 64) -> None:
        super().__init__()
        self.vit = build_tiny_vit()
        width, patch = self.vit.embed_dim, TINY_ARCH["patch_size"]
        patches = self.vit.patch_embed.num_patches
        self.splice_axis = nn.Parameter(torch.randn(width))
        self.splice_offset = nn.Parameter(torch.tensor(-1.0))
        self.summary = nn.Linear(width, 3 + _HUES + 4 + 10)
        self.layout = nn.Linear(width, patches)
        self.narrow = nn.Linear(width, decoder_width)
        self.blank = nn.Parameter(torch.zeros(decoder_width))
        self.positions = nn.Parameter(0.02 * torch.randn(patches, decoder_width))
        self.decoder = type(self.vit.blocks[0])(decoder_width, num_heads=4, mlp_ratio=2)
        self.paint = nn.Sequential(nn.LayerNorm(decoder_width), nn.Linear(decoder_width, 3 * patch * patch))

    def encode(self, images: Float[Tensor, "B 3 S S"], view: _View | None) -> Float[Tensor, "B T D"]:
        """Compute the normalized tokens of the prefix and of the patches in view (all, if there is none)."""
        vit: Any = self.vit
        tokens: Tensor = vit.patch_embed(images) + vit.pos_embed
        attn_mask = None
        prefix = torch.cat([vit.cls_token, vit.reg_token], 1).expand(len(images), -1, -1)
        if view is not None:
            tokens = tokens.gather(1, view.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
            if not view.valid.all():
                attn_mask = F.pad(view.valid, (prefix.shape[1], 0), value=True)[:, None, None, :]
        tokens = torch.cat([prefix, tokens], 1)
        for block in vit.blocks:
            tokens = block(tokens, attn_mask=attn_mask)
        normalized: Tensor = vit.norm(tokens)
        return normalized

    def splice(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"]:
        """Predict how much of each patch is spliced, as a logit.

        The axis has a fixed length, so that confident predictions need tokens that are far apart, which also helps
        nearest prototypes.
        """
        axis = F.normalize(self.splice_axis, dim=0)
        return _SPLICE_SCALE * (tokens @ axis) + self.splice_offset

    def reconstruct(self, tokens: Float[Tensor, "B N D"], view: _View) -> Float[Tensor, "B P F"]:
        """Reconstruct every patch from the tokens of the visible ones."""
        seen = self.narrow(tokens)
        canvas = self.blank.expand(len(seen), len(self.positions), -1)
        canvas = canvas.scatter(1, view.index.unsqueeze(-1).expand_as(seen), seen)
        patches: Tensor = self.paint(self.decoder(canvas + self.positions))
        return patches


def _random_view(count: int, patches: int, generator: torch.Generator) -> _View:
    """Show a random 10 to 75 % of the patches; the number is drawn once per batch."""
    device = generator.device
    share = 0.10 + 0.65 * float(torch.rand((), generator=generator, device=device))
    order = torch.rand((count, patches), generator=generator, device=device).argsort(1)
    index = order[:, : max(4, round(share * patches))]
    return _View(index, torch.ones_like(index, dtype=torch.bool))


def _region_view(coverage: Float[Tensor, "B P"], generator: torch.Generator, longest: int = 40) -> _View:
    """Show only the object (seven samples in ten) or only the background, at most `longest` patches of it."""
    device = generator.device
    inside = torch.rand((len(coverage), 1), generator=generator, device=device) < 0.7
    threshold = 0.15 + 0.5 * torch.rand((len(coverage), 1), generator=generator, device=device)
    wanted = torch.where(inside, coverage >= threshold, coverage < 0.1)
    noise = torch.rand(coverage.shape, generator=generator, device=device)
    index = (wanted + noise).topk(longest, 1).indices
    valid = wanted.gather(1, index)
    valid[:, 0] = True  # never an empty view
    return _View(index, valid)


def _reconstruction_loss(reconstruction: Tensor, images: Tensor, view: _View, patch: int) -> Tensor:
    target = _patches(images, patch)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-4).sqrt()
    error = (reconstruction - target).square().mean(-1)
    hidden = torch.ones_like(error).scatter(1, view.index, 0.0)
    return (error * hidden).sum() / hidden.sum()


def _summary_loss(summary: Tensor, targets: Tensor, view: _View | None) -> Tensor:
    if view is None:
        return F.smooth_l1_loss(summary, targets.mean(1))
    seen = targets.gather(1, view.index.unsqueeze(-1).expand(-1, -1, targets.shape[-1]))
    weight = view.valid.float().unsqueeze(-1)
    return F.smooth_l1_loss(summary, (seen * weight).sum(1) / weight.sum(1))


def _losses(student: _Student, scenes: Scenes, generator: torch.Generator) -> dict[str, Tensor]:
    """Compute all losses on one batch, for a random (or full) view and for a view of a region."""
    patch, prefix = TINY_ARCH["patch_size"], student.vit.num_prefix_tokens
    images, coverage = normalize(scenes.images), patch_coverage(scenes.foreground, patch)
    targets = _summary_targets(scenes.images, patch)
    full_view = float(torch.rand((), generator=generator, device=generator.device)) < 0.3
    view = None if full_view else _random_view(len(images), coverage.shape[1], generator)
    tokens = student.encode(images, view)
    losses = {"summary": 0.5 * _summary_loss(student.summary(tokens[:, 0]), targets, view)}
    label = coverage if view is None else coverage.gather(1, view.index)
    spliced = student.splice(tokens[:, prefix:])
    losses["splice"] = F.binary_cross_entropy_with_logits(spliced, label)
    if view is not None:
        reconstruction = student.reconstruct(tokens[:, prefix:], view)
        losses["reconstruction"] = _reconstruction_loss(reconstruction, images, view, patch)
    half = len(images) // 2  # the second view costs as much as the first, so it uses half of the images
    region = _region_view(coverage[:half], generator)
    tokens = student.encode(images[:half], region)
    losses["summary"] = losses["summary"] + 0.5 * _summary_loss(student.summary(tokens[:, 0]), targets[:half], region)
    seen = torch.zeros_like(coverage[:half]).scatter(1, region.index, region.valid.float())
    losses["layout"] = F.binary_cross_entropy_with_logits(student.layout(tokens[:, 0]), seen)
    return losses


class _Trainer:
    """One run: a student, its optimizer and its stream of scenes, all from one seed."""

    def __init__(self, seed: int, steps: int, batch_size: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student = _Student().to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.batch_size, self.steps, self.done = batch_size, steps, 0
        named = list(self.student.named_parameters())
        free = ("pos_embed", "token", "blank", "positions")  # neither these nor 1-D tensors decay
        decayed = [p for name, p in named if p.ndim > 1 and not any(word in name for word in free)]
        others = [p for name, p in named if p.ndim <= 1 or any(word in name for word in free)]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.98))

    def rate(self) -> float:
        """Learning rate of this step: linear warm-up, then a cosine to zero."""
        warm = min(1.0, (self.done + 1) / min(_WARMUP_STEPS, max(1, self.steps // 5)))
        return _LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))

    def step(self) -> dict[str, float]:
        """Train on a new batch, and return the losses by name."""
        chunks = [
            draw_scenes(min(_CHUNK, self.batch_size - start), self.generator, TINY_ARCH["img_size"])
            for start in range(0, self.batch_size, _CHUNK)
        ]
        scenes = Scenes(torch.cat([c.images for c in chunks]), torch.cat([c.foreground for c in chunks]))
        losses = _losses(self.student, scenes, self.generator)
        total = sum((_WEIGHTS[name] * value for name, value in losses.items()), torch.zeros(()))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return {name: value.item() for name, value in losses.items()}


def _steps_within(minutes: float, seed: int, batch_size: int, device: torch.device) -> int:
    """Measure the speed in a trial run and return the number of steps that fit into the time."""
    trial = _Trainer(seed, 1000, batch_size, device)
    for _ in range(3):
        trial.step()
    start, measured = time.perf_counter(), 12
    for _ in range(measured):
        trial.step()
    each = (time.perf_counter() - start) / measured
    return max(10, round(minutes * 60 / each))


def _train(trainer: _Trainer) -> dict[str, float]:
    """Run all steps with a progress bar and return the losses as moving averages."""
    running: dict[str, float] = {}
    with ProgressBar() as bar:
        task = bar.add_task("pretraining", total=trainer.steps)
        for step in range(1, trainer.steps + 1):
            for name, value in trainer.step().items():
                running[name] = 0.97 * running.get(name, value) + 0.03 * value
            if not all(math.isfinite(value) for value in running.values()):
                raise IfamError(f"Pretraining diverged at step {step}: the loss is not finite; try another seed.")
            losses = "  ".join(f"{name} {value:.3f}" for name, value in sorted(running.items()))
            bar.update(task, advance=1, description=f"pretraining ({losses})")
    return running


def pretrain_tiny(
    out: Path,
    minutes: float = 9.0,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pretrain the tiny backbone on random scenes and write its weights, and a JSON file with their hash.

    The same seed, steps, batch size, threads and versions give the same file, bit for bit, on one kind of
    CPU. Without `steps`, a short trial measures the speed and the number of steps is chosen to fill the minutes;
    it is recorded, so that the run can be repeated.

    Args:
        out: File to write, ending in .safetensors. A .json file of the same name is written next to it.
        minutes: Duration of the training, if `steps` is not given.
        seed: Seed of the weights, the scenes and the masks.
        steps: Number of training steps, instead of the minutes.
        batch_size: Scenes per step.
        threads: CPU threads; PyTorch's own choice by default.
        device: Device of the training, such as "cpu" or "cuda".
        overwrite: Replace existing files.

    Returns:
        The content of the .json file (hash, size, architecture, seed, steps, versions), the last losses and the
        duration in seconds.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise IfamError(f"{out} does not end in .safetensors; give a file name that does.")
    if batch_size < 2 or (steps is not None and steps < 1) or (steps is None and minutes <= 0):
        raise IfamError(
            "Pretraining needs batch_size >= 2, steps >= 1 and minutes > 0, "
            f"but these are {batch_size}, {steps} and {minutes}."
        )
    ensure_writable(out)
    check_absent([out, out.with_suffix(".json")], overwrite)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        start, target = time.perf_counter(), torch.device(device)
        if steps is None:
            steps = _steps_within(minutes, seed, batch_size, target)
        trainer = _Trainer(seed, steps, batch_size, target)
        losses = _train(trainer)
        record = _save(trainer, out, {"seed": seed, "steps": steps, "batch_size": batch_size})
    finally:
        torch.set_num_threads(before)
    return {**record, "losses": losses, "seconds": time.perf_counter() - start}


def _save(trainer: _Trainer, out: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Write the backbone's weights and the record of the run."""
    weights = {name: value.detach().cpu().contiguous() for name, value in trainer.student.vit.state_dict().items()}
    versions = {name: version(name) for name in ("torch", "timm")}
    about = {**run, "arch": TINY_ARCH, "versions": versions, "mean": MEAN, "std": STD}
    # One key only: safetensors does not fix the order of several, which would change the hash.
    content = save(weights, metadata={"ifam": json.dumps(about, sort_keys=True)})
    with replacing(out) as temporary:
        temporary.write_bytes(content)
    record = {
        "file": out.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "weights": sum(value.numel() for value in weights.values()),
        **about,
    }
    write_json(out.with_suffix(".json"), record)
    return record
