"""Settings of model, losses and training. Imports no torch, so that it loads fast."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ifam.errors import IfamError
from ifam.ranges import (
    COUNT,
    NATURAL,
    NOT_NEGATIVE,
    OFF_OR_POSITIVE,
    POSITIVE,
    POSITIVE_SHARE,
    PROBABILITY,
    SEED,
    SHARE,
    SIDE,
    Range,
    check_ranges,
    check_types,
)

MaskGradient = Literal["full", "visible", "none"]
Execution = Literal["auto", "padded", "packed", "dense"]
Aggregation = Literal["joint", "sum"]
Tuning = Literal["tokens", "none", "all", "lora"]

# Weights stay in 32 bits; only computation may be in fewer.
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
LOGGERS = ("wandb", "mlflow")


@dataclass(frozen=True)
class ModelConfig:
    """The two-stage model (arXiv 2506.08915, section 3).

    Attributes:
        backbone: Name of a timm vision transformer, `ifam_tiny` (embedded, needs no network), or the folder or hub id
            of a Dinov2 in the layout of `transformers`, such as `microsoft/rad-dino` (docs/models.md).
        image_size: Side of the square input in pixels, or its height and width; the backbone's own where it is None.
        num_parts: Foreground parts K; the background is an additional one. For `frozen_crops`, the crops per image.
        num_classes: Classes C.
        predictor_backbone: Backbone of the predictor; the selector's where it is None.
        backbone_kwargs: Passed to `timm.create_model` for both backbones.
        predictor_kwargs: Passed to it for the predictor's backbone instead, if given.
        selector_image_size: Size to which the selector resizes its images, of the same aspect ratio; `image_size`
            where it is None. Methods without a first stage ignore it.
        mask_resolution: What the mask shows or hides: the predictor's patches ("patch", as in the paper), or squares of
            this many pixels, which divide its patches. Hidden pixels of a visible patch are then blanked before it is
            embedded (`ifam.models.pixel_mask`). Methods that do not mask their input have patches.
        edge_aware: For squares, let the outline of the mask follow edges of the image (a guided filter).
        min_visible: Least share of each image that is assigned to parts, those patches that are most like one, and is
            visible (in training, before noise and dropped parts), so that no object is missed altogether; 0 as in the
            paper.
        temperature: Softmax temperature tau of the part maps.
        gumbel_noise: Gumbel(0, 1) noise on part maps and mask, in training only.
        part_dropout: Probability that a whole part is dropped from the selector's classifier, in training.
        mask_part_dropout: Probability that a whole part is hidden from the predictor, in training.
        mask_gradient: How the predictor's loss reaches the selector: "full" (exact, every patch), "visible"
            (exact for visible patches, nothing for hidden ones) or "none".
        aggregation: How the parts make the answer: the predictor sees them together ("joint", as in the paper), or each
            alone, and the logits are a prior and the sum of what each part contributes ("sum"; only `ifam` and
            `frozen_predictor`, whose parts cannot see each other).
        execution: How the predictor computes the visible patches of a batch: "padded" to the longest image, "packed"
            without padding, "dense" (every patch computed, the hidden ones blank and masked) or "auto", the fastest
            that fits. All give the same numbers.
        class_names: Names of the classes, in order of their index.
        mean: Channel means of the input normalization; each backbone's own where it is None.
        std: Channel standard deviations; each backbone's own where it is None.
    """

    backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    image_size: int | tuple[int, int] | None = None
    num_parts: int = 4
    num_classes: int = 2
    predictor_backbone: str | None = None
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    predictor_kwargs: dict[str, Any] | None = None
    selector_image_size: int | tuple[int, int] | None = None
    mask_resolution: int | Literal["patch"] = "patch"
    edge_aware: bool = True
    min_visible: float = 0.0
    temperature: float = 1.0
    gumbel_noise: bool = True
    part_dropout: float = 0.3
    mask_part_dropout: float = 0.3
    mask_gradient: MaskGradient = "visible"
    aggregation: Aggregation = "joint"
    execution: Execution = "auto"
    class_names: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    # Shown by `--help`; `--help-all` shows all.
    common: ClassVar[tuple[str, ...]] = ("backbone", "image_size", "num_parts")
    ranges: ClassVar[dict[str, Range]] = {
        "image_size": SIDE,
        "selector_image_size": COUNT,
        "mask_resolution": Range("'patch' or a whole number of at least 1", low=1),
        "num_parts": Range("a whole number of at least 1, up to 10000", low=1, high=10_000),
        "num_classes": Range("a whole number of at least 1, up to 1000000", low=1, high=1_000_000),
        "min_visible": PROBABILITY,
        "temperature": POSITIVE,
        "part_dropout": PROBABILITY,
        "mask_part_dropout": PROBABILITY,
        # Pixels are from 0 to 1, not bytes.
        "mean": SHARE,
        "std": POSITIVE,
    }

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        check_ranges(vars(self), self.ranges)
        for name in ("backbone_kwargs", "predictor_kwargs"):
            if taken := [key for key in ("name", "image_size", "pretrained") if key in (getattr(self, name) or {})]:
                raise IfamError(f"{name} has {taken[0]!r}, which is not a setting of the architecture; leave it out.")

    @property
    def class_labels(self) -> tuple[str, ...]:
        """Name of each class: "class 0" and so on where `class_names` is empty."""
        return self.class_names or tuple(f"class {c}" for c in range(self.num_classes))


@dataclass(frozen=True)
class LossConfig:
    """Weight of each term of the training objective (arXiv 2506.08915, section 3.3), 0 or a positive number.

    A term of weight 0 is off.

    Attributes:
        classification: Cross-entropy of the predictor.
        selector_classification: Cross-entropy of the selector's own classifier.
        presence: Every part appears somewhere in the batch.
        enforced_presence: Background appears near the border of every image.
        total_variation: Part maps are piecewise constant.
        entropy: Each patch belongs to one part.
        orthogonality: Features of different parts differ.
        equivariance: Part maps move with the image.
        concentration: Each part stays in one place.
    """

    classification: float = 1.0
    selector_classification: float = 1.0
    presence: float = 1.0
    enforced_presence: float = 2.0
    total_variation: float = 1.0
    entropy: float = 1.0
    orthogonality: float = 1.0
    equivariance: float = 1.0
    concentration: float = 0.0

    common: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Range]] = {
        "classification": OFF_OR_POSITIVE,
        "selector_classification": OFF_OR_POSITIVE,
        "presence": OFF_OR_POSITIVE,
        "enforced_presence": OFF_OR_POSITIVE,
        "total_variation": OFF_OR_POSITIVE,
        "entropy": OFF_OR_POSITIVE,
        "orthogonality": OFF_OR_POSITIVE,
        "equivariance": OFF_OR_POSITIVE,
        "concentration": OFF_OR_POSITIVE,
    }

    def __post_init__(self) -> None:
        check_types(type(self), vars(self), "loss.")
        check_ranges(vars(self), self.ranges, "loss.")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training (arXiv 2506.08915, section 4.2).

    Attributes:
        epochs: Passes over the training images, at least 1.
        batch_size: Images in a step, on each device; at least 1.
        base_lr: Learning rate at batch 16; the actual one is `base_lr * sqrt(batch / 16)`, batch being the images
            of all devices and accumulated steps. 0 or positive.
        selector_lr_factor: Multiplies the learning rate of the selector's transformer, weights and tokens;
            0 or positive, as all factors.
        predictor_lr_factor: Multiplies the learning rate of the predictor's transformer, weights and tokens.
        prototype_lr_factor: Multiplies the learning rate of the part prototypes.
        modulation_lr_factor: Multiplies the learning rate of the modulation of the part features.
        head_lr_factor: Multiplies the learning rate of every fresh norm and classifier.
        schedule: How the learning rate falls after the warm-up, epoch by epoch: "cosine", "linear" or "step".
        selector_epochs: First epochs, in which the selector is trained alone, and whose weights are not kept; 0 for
            none, fewer than `epochs`. Methods without selector and predictor leave them out.
        warmup_epochs: Epochs in which it first rises, step by step, to the full rate; 0 for none, fewer than `epochs`.
        warmup_factor: Share of the learning rate from which the warm-up rises, 0 to 1; the first step is above it.
        min_factor: Share of the learning rate at the end of a cosine or of a line, 0 to 1.
        step_epochs: Epochs from one step of "step" to the next; a third of all, rounded up, where it is None.
        step_factor: Multiplies the learning rate at each step of "step"; above 0, up to 1.
        weight_decay: Normalized decay; AdamW gets `weight_decay * sqrt(1 / (steps per epoch * epochs))`. 0 for none.
        clip_norm: Largest norm of the gradient; 0 or None for no clipping.
        selector_tuning: What is trained in the selector's backbone: its class, register and position "tokens",
            "none", "all", or "lora" (adapters).
        predictor_tuning: The same for the predictor's backbone.
        lora_rank: Rank, at least 1, of the low-rank adapters of "lora" (arXiv 2106.09685; `pip install 'ifam[lora]'`):
            they and the tokens are trained in the place of the weights, into which they are merged afterwards.
        lora_lr_factor: Multiplies the learning rate of the adapters.
        cache_tokens: Compute the patch tokens of a frozen selector (`selector_tuning: none`) once for each image, and
            keep them beside the run. It changes the speed only.
        group_dro: Train for the worst group (GroupDRO, arXiv 1911.08731), with this step size of the groups' weights;
            0 keeps them equal, None trains for the average. The classification loss is then that of the groups,
            weighted, and every group is sampled equally often. The groups of training images must be known; where the
            data have no groups, the classes are the groups.
        window_share: Share of the images of each batch, 0 to below 1, of which both stages see one random window alone,
            with the losses of classification, for the votes of `ifam certify`; 0 for none.
        window_kind: What these windows are: bands of "columns" of patches, or square "blocks".
        window_width: Their width in patches.
        ema_decay: Decay of an exponential moving average of the weights, which is then what is
            validated and saved; 0 or None for none, else below 1.
        accumulate: Steps whose gradients are accumulated before an update, at least 1.
        precision: Lightning's name of the precision, "32-true", "bf16-mixed" or "16-mixed"; weights are always 32-bit.
        compile: Compile the transformers' blocks with `torch.compile`; needs a C++ compiler, and some steps to warm up.
        checkpointing: Keep only the tokens between blocks, and compute the rest again in the backward pass: less
            memory, more time.
        monitor: Validation metric that selects the checkpoint: "worst_group" or "accuracy". Ties are decided by the
            other of the two, then by the loss, and then in favor of the later epoch.
        augment: "each" for the augmentations below, each with its own setting; "none" for no augmentation.
        flip: Mirror half of the images, left and right; None to do so unless the data set does not allow it
            (handwriting, X-rays).
        crop: Random crops of at least this share of the area, resized; above 0, and 1 for none.
        workers: Processes that load images; where it is None, up to 8 with a GPU, and none without one, where they
            would compete with the model for the CPU.
        seed: Seed of everything random, from 0 to 4294967295.
        loggers: Where the values of each epoch are logged besides `metrics.csv` and TensorBoard: "wandb", "mlflow".
        devices: Devices on each machine, or "auto".
        num_nodes: Machines.
        accelerator: Lightning's name of the accelerator, or "auto".
        strategy: Lightning's name of the strategy ("auto", "ddp", "fsdp").
    """

    epochs: int = 90
    batch_size: int = 16
    base_lr: float = 1e-6
    selector_lr_factor: float = 1.0
    predictor_lr_factor: float = 1.0
    prototype_lr_factor: float = 1e3
    modulation_lr_factor: float = 1e4
    head_lr_factor: float = 1e4
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    selector_epochs: int = 0
    warmup_epochs: int = 0
    warmup_factor: float = 0.0
    min_factor: float = 0.0
    step_epochs: int | None = None
    step_factor: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float | None = 2.0
    selector_tuning: Tuning = "tokens"
    predictor_tuning: Tuning = "all"
    lora_rank: int = 8
    lora_lr_factor: float = 10.0
    cache_tokens: bool = True
    group_dro: float | None = None
    window_share: float = 0.0
    window_kind: Literal["columns", "blocks"] = "columns"
    window_width: int = 2
    ema_decay: float | None = None
    accumulate: int = 1
    precision: str = "32-true"
    compile: bool = False
    checkpointing: bool = False
    monitor: Literal["worst_group", "accuracy"] = "worst_group"
    augment: str = "each"
    flip: bool | None = None
    crop: float = 1.0
    workers: int | None = None
    seed: int = 0
    loggers: tuple[str, ...] = ()
    devices: int | str = "auto"
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str = "auto"

    common: ClassVar[tuple[str, ...]] = (
        *("epochs", "batch_size", "base_lr", "selector_tuning", "predictor_tuning", "precision", "workers", "seed"),
    )
    ranges: ClassVar[dict[str, Range]] = {
        "epochs": COUNT,
        "batch_size": COUNT,
        "base_lr": NOT_NEGATIVE,
        "selector_lr_factor": NOT_NEGATIVE,
        "predictor_lr_factor": NOT_NEGATIVE,
        "prototype_lr_factor": NOT_NEGATIVE,
        "modulation_lr_factor": NOT_NEGATIVE,
        "head_lr_factor": NOT_NEGATIVE,
        "lora_rank": COUNT,
        "lora_lr_factor": NOT_NEGATIVE,
        "selector_epochs": NATURAL,
        "warmup_epochs": NATURAL,
        "warmup_factor": SHARE,
        "min_factor": SHARE,
        "step_epochs": COUNT,
        "step_factor": POSITIVE_SHARE,
        "weight_decay": OFF_OR_POSITIVE,
        "clip_norm": OFF_OR_POSITIVE,
        "group_dro": NOT_NEGATIVE,
        "window_share": PROBABILITY,
        "window_width": COUNT,
        "ema_decay": PROBABILITY,
        "accumulate": COUNT,
        "crop": POSITIVE_SHARE,
        "workers": NATURAL,
        "seed": SEED,
        "devices": Range("-1 (all) or a whole number of at least 1", low=-1),
        "num_nodes": COUNT,
    }

    def __post_init__(self) -> None:
        check_types(type(self), vars(self), "train.")
        check_ranges(vars(self), self.ranges, "train.")
        if self.devices == 0:
            raise IfamError("train.devices is 0, but -1 (all) or a whole number of at least 1 is expected.")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise IfamError(
                f"train.warmup_epochs is {self.warmup_epochs}, but fewer than the {self.epochs} epochs are expected: "
                f"the full learning rate would never be reached."
            )
        if self.selector_epochs and self.selector_epochs >= self.epochs:
            raise IfamError(
                f"train.selector_epochs is {self.selector_epochs}, but fewer than the {self.epochs} epochs are "
                f"expected: the predictor would never be trained."
            )
        if self.augment not in ("each", "none"):
            raise IfamError(
                f"train.augment is {self.augment!r}, but 'each' or 'none' is expected: the share of the area that "
                f"crops keep is train.crop, and mirror images are train.flip."
            )
        if unknown := [name for name in self.loggers if name not in LOGGERS]:
            raise IfamError(f"train.loggers has {unknown[0]!r}, but 'wandb' and 'mlflow' are expected.")
        if self.precision not in PRECISIONS:
            raise IfamError(
                f"train.precision is {self.precision!r}, but '32-true', 'bf16-mixed' or '16-mixed' is expected: "
                f"weights are kept in 32 bits."
            )
