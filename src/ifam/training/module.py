"""One step of joint training of selector and predictor: a LightningModule for every model of this package."""

import math
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torchmetrics.utilities.distributed import gather_all_tensors

from ifam._typing import Tensor
from ifam.backbones.backbone import Backbone
from ifam.config import LossConfig, TrainConfig
from ifam.data import Benchmark
from ifam.distributed import rank_and_world_size
from ifam.errors import IfamError
from ifam.evaluation.metrics import AccuracyByGroup, ExactMean, MaskIoU
from ifam.models.base import Classifier, PartClassifier
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mask
from ifam.models.noise import uniform_like
from ifam.models.selector import Selector
from ifam.models.token_cache import drops_inside
from ifam.models.windows import window_at
from ifam.training.affine import Affine, sample_affine, transform
from ifam.training.batches import validation_batches
from ifam.training.diagnostics import SelectorFigures, SelectorMetric
from ifam.training.group_dro import group_dro
from ifam.training.losses import classification, part_terms, weighted_sum
from ifam.training.optimization import adamw, learning_rate_factor, normalized_weight_decay, parameter_groups
from ifam.training.randomness import Stream, derived_seed
from ifam.types import Batch, Output


def prepare(model: Classifier, config: TrainConfig) -> None:
    """Prepare a model for training: freeze parameters, and set checkpointing and compilation.

    Args:
        model: The model; changed in place.
        config: Settings of the training.
    """
    for group in parameter_groups(model, config):
        for parameter in group.parameters.values():
            parameter.requires_grad_(group.trainable)
    for backbone in (module for module in model.modules() if isinstance(module, Backbone)):
        backbone.vit.set_grad_checkpointing(config.checkpointing)
        if config.compile:
            backbone.compile_blocks()


def epochs_of_method(config: TrainConfig, model: Classifier) -> TrainConfig:
    """The settings without epochs of a selector alone, where there are not both stages.

    So a comparison trains the classifiers of all methods equally long.
    """
    if isinstance(model, IFAM):
        return config
    return replace(config, epochs=config.epochs - config.selector_epochs, selector_epochs=0)


class Training(L.LightningModule):
    """One step of training, for a two-stage model or a baseline.

    Args:
        model: The model, after `prepare`.
        config: Settings of the training.
        losses: Weight of each loss term.
        benchmark: Names of classes and groups, for the validation metrics.
        num_images: Training images, for the normalized weight decay.
    """

    def __init__(
        self, model: Classifier, config: TrainConfig, losses: LossConfig, benchmark: Benchmark, num_images: int
    ) -> None:
        super().__init__()
        self.model, self.config, self.losses, self.num_images = model, config, losses, num_images
        self.groups = parameter_groups(model, config)
        self.fixed_tokens = config.selector_tuning == "none"
        self.drops_inside = any(drops_inside(one) for one in model.modules() if isinstance(one, Backbone))
        self.selector_epochs = epochs_of_method(config, model).selector_epochs
        self.accuracy = AccuracyByGroup(len(benchmark.group_names))
        self.mask_iou = MaskIoU()
        self.val_loss, self.visible = ExactMean(), ExactMean()
        self.val_batches = validation_batches(benchmark)
        # Sum of each loss term over the images of this epoch, and their number.
        self.sums: dict[str, Tensor] = {}
        self.seen = 0
        # Rank of the best epoch so far, and its number, from 1.
        self.best: tuple[float, ...] = ()
        self.best_epoch = 0
        self.selector_metric: SelectorMetric | None = None
        # Those of the best epoch.
        self.selector_figures: SelectorFigures | None = None
        if model.selects_parts:
            self.selector_metric = SelectorMetric(model.config.num_parts, model.config.num_classes)
        if config.group_dro is not None:
            present = benchmark.groups("train").bincount(minlength=len(benchmark.group_names)) > 0
            # A buffer: saved with the checkpoints, and moved with the model.
            self.group_weights: Tensor
            self.register_buffer("group_weights", present / present.sum())

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Draw the noise of a step from a seed of its own, the same on all devices (see `ifam.models.noise`)."""
        # What transformers drop inside is drawn for the images of each device.
        device = self.global_rank if self.drops_inside else 0
        torch.manual_seed(derived_seed(self.config.seed, Stream.STEP, self.current_epoch, batch_index, device))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The weighted sum of all loss terms."""
        terms = self.terms(batch)
        weights = asdict(self.losses)
        total = weighted_sum(terms, {name: weights[name] for name in terms})
        if not bool(total.isfinite()):
            wrong = ", ".join(name for name, value in terms.items() if not bool(value.isfinite()))
            raise IfamError(
                f"The loss is no longer finite in epoch {self.current_epoch + 1} ({wrong}); lower --train.base_lr or "
                f"a --train.*_lr_factor."
            )
        for name, value in {**terms, "total": total}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float() * len(batch.images)
        self.seen += len(batch.images)
        return total

    def on_train_epoch_end(self) -> None:
        """Log the mean of each loss term by name."""
        for name, value in self.sums.items():
            self.log(f"train/{name}", value / self.seen, sync_dist=True)
        self.sums, self.seen = {}, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is not a weight: the best epoch so far, and the sums of this epoch."""
        figures = self.selector_figures
        gather = gather_all_tensors if self.trainer.world_size > 1 else lambda value: [value]
        checkpoint["progress"] = {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "selector_figures": None if figures is None else asdict(figures),
            # Of each device.
            "sums": {name: gather(value) for name, value in self.sums.items()},
            "seen": self.seen,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` saved."""
        progress = checkpoint["progress"]
        self.best, self.best_epoch, self.seen = (progress[name] for name in ("best", "best_epoch", "seen"))
        rank = self.global_rank
        self.sums = {name: values[rank].to(self.device) for name, values in progress["sums"].items()}
        if progress["selector_figures"] is not None:
            self.selector_figures = SelectorFigures(**progress["selector_figures"])

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss term of a batch, unweighted."""
        model, size, seen, whole = self.model, self.model.image_size, None, batch
        # Below 1, so that an image is left.
        if count := int(self.config.window_share * len(batch.images)):
            seen, whole = self._windows(batch[:count]), batch[count:]
        if not isinstance(model, PartClassifier):
            return self._classification(_joined(seen, model.predict_batch(whole)), batch)
        affine = sample_affine(size) if self.losses.equivariance != 0 else None
        patches, others = self._patches(model.selector, whole, affine)
        moved: dict[str, Any] = {}
        if others is not None:
            moved = {"equivariant_maps": model.selector.part_maps(others), "affine": affine, "image_size": size}
        selection = model.selector.select(patches)
        if self.current_epoch < self.selector_epochs:
            out = Output(selector_logits=selection.selector_logits, selection=selection)
        else:
            out = model.classify(whole.images, selection)
        parts = part_terms(out.part_maps, out.part_features, **moved)
        return parts | self._classification(_joined(seen, out), batch)

    def _windows(self, batch: Batch) -> Output:
        """The output for one window of each image, at random."""
        config, model = self.config, self.model
        position = uniform_like(batch.images[:, :2, 0, 0].float())
        windows = window_at(position, config.window_kind, config.window_width, model.window_grid)
        if isinstance(model, IFAM) and self.current_epoch < self.selector_epochs:
            return model.classify_windows(batch.images, windows, selector_alone=True)
        return model.classify_windows(batch.images, windows)

    def _patches(self, selector: Selector, batch: Batch, affine: Affine | None) -> tuple[Tensor, Tensor | None]:
        """Patch tokens of the images and of the transformed images, up to which the selector processes them."""
        images = batch.images
        if not self.fixed_tokens:
            if affine is None:
                return selector.patches(images), None
            first, second = selector.patches(torch.cat([images, transform(images, affine)])).chunk(2)
            return first, second
        # A frozen selector sees each image once: mirror images and transformed images are made of its tokens.
        mirrored = torch.zeros_like(batch.labels, dtype=torch.bool) if batch.mirrored is None else batch.mirrored
        mirrored = mirrored[:, None, None, None]
        tokens = selector.patches(torch.where(mirrored, images.flip(3), images))
        tokens = tokens.mT.unflatten(2, selector.backbone.grid)
        tokens = torch.where(mirrored, tokens.flip(3), tokens)
        grid, size = selector.backbone.grid, self.model.image_size
        moved = None if affine is None else transform(tokens, affine.resized(size, grid)).flatten(2).mT
        return tokens.flatten(2).mT, moved

    def _classification(self, out: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of each stage that classifies; with GroupDRO, the final one is for the worst group."""
        stages = {"classification": out.predictor_logits, "selector_classification": out.selector_logits}
        terms = {name: classification(logits, batch.labels) for name, logits in stages.items() if logits is not None}
        return terms | self._robust(next(iter(terms)), out.logits, batch)

    def _robust(self, name: str, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """GroupDRO loss, if enabled."""
        if self.config.group_dro is None:
            return {}
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        loss, weights = group_dro(losses, batch.groups_or_classes, self.group_weights, self.config.group_dro)
        self.group_weights.copy_(weights)
        return {name: loss}

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Update the validation metrics with a batch, unless it only keeps this device in step with the others."""
        rank, devices = rank_and_world_size()
        if batch_index * devices + rank >= self.val_batches:
            return
        out = self._answers(batch)
        logits = out.logits.float()
        self.accuracy.update(logits, batch.labels, batch.groups_or_classes)
        self.val_loss.update(F.cross_entropy(logits, batch.labels, reduction="none"))
        if self.selector_metric is not None:
            self.selector_metric.update(out, batch.labels)
        if out.mask is not None:
            self.visible.update(out.visible_fraction)
            if batch.masks is not None:
                truth = patch_mask(batch.masks, (out.mask.shape[1], out.mask.shape[2]))
                self.mask_iou.update(out.mask, truth)

    def _answers(self, batch: Batch) -> Output:
        """The output for a validation batch; while the selector is trained alone, its own."""
        model = self.model
        if not isinstance(model, IFAM) or self.current_epoch >= self.selector_epochs:
            return model.predict_batch(batch)
        selection = model.select(batch.images)
        mask = model.mask(selection, batch.images)
        return Output(None, selection.selector_logits, mask.visible, mask.gate, selection)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, worst group, loss and mask IoU, and whether this epoch is the best so far."""
        figures = {"accuracy": self.accuracy.average(), "worst_group": self.accuracy.worst()}
        loss = self.val_loss.mean()
        logged = {**figures, "loss": loss}
        # Ties are frequent in small validation groups.
        other = figures["worst_group" if self.config.monitor == "accuracy" else "accuracy"]
        rank = (figures[self.config.monitor], other, -loss)
        best = self.is_best(rank)
        self.best_epoch = self.current_epoch + 1 if best else self.best_epoch
        if self.selector_metric is not None:
            # On every device, which exchange their counts.
            latest = self.selector_metric.figures()
            self.selector_figures = latest if best else self.selector_figures
            self.selector_metric.reset()
        if not math.isnan(visible := self.visible.mean()):
            logged["visible_fraction"] = visible
        if self.mask_iou.known():
            logged["mask_iou"] = self.mask_iou.pooled()
        for name, value in logged.items():
            # Of values that are the same on all devices, the maximum is exact; their mean might not be.
            self.log(f"val/{name}", value, sync_dist=True, reduce_fx="max")
        self.accuracy.reset()
        self.mask_iou.reset()
        self.val_loss.reset()
        self.visible.reset()

    def is_best(self, rank: tuple[float, ...]) -> bool:
        """Whether an epoch is at least as good as all before it; ranks are compared in order, higher is better.

        Epochs in which the selector is trained alone are not.
        """
        if rank < self.best or self.current_epoch < self.selector_epochs:
            return False
        self.best = rank
        return True

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: int | float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of the gradient."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Lightning's own clipping refuses fused optimizers in mixed precision, because of float16's scaler.
            nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """AdamW over the named groups, and its learning rate step by step."""
        config = self.config
        batch = config.batch_size * config.accumulate * self.trainer.world_size
        rate = config.base_lr * math.sqrt(batch / 16)
        decay = normalized_weight_decay(config.weight_decay, self.num_images, batch, config.epochs)
        optimizer = adamw(self.groups, config, rate, decay)
        # Lightning's own number would load batches before it knows where to go on.
        steps = math.ceil(self.num_images // self.trainer.world_size // config.batch_size / config.accumulate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _joined(first: Output | None, second: Output) -> Output:
    """The logits of two outputs, one batch after the other; the second alone where there is no first."""
    if first is None:
        return second

    def joined(name: str) -> Tensor | None:
        logits = [getattr(one, name) for one in (first, second)]
        return None if logits[0] is None else torch.cat(logits)

    return Output(joined("predictor_logits"), joined("selector_logits"))
