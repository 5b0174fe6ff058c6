"""`ifam train`."""

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from ifam import commands
from ifam.cli.common import check_resume, ensure_no_model, ensure_no_stopped_training, is_finished
from ifam.cli.config_files import last_value
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.distributed import first_process
from ifam.errors import IfamError
from ifam.io import ensure_writable


def train(
    benchmark: str = "pondbirds",
    root: Path | None = None,
    method: str = "ifam",
    preset: Literal["auto", "laptop", "paper"] = "auto",
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    loss: LossConfig = LossConfig(),  # noqa: B008
    data: dict[str, Any] | None = None,
    allow_tiny_backbone: bool = False,
    given: Collection[str] = (),
) -> None:
    """Train a model on a benchmark or on your own folder of images.

    Args:
        benchmark: Name of the data set, or "folder" for your own `class/image` tree.
        root: Folder of the images; may be given without its name, as in `ifam train photos`.
        method: "ifam", or a baseline: plain_vit, plain_vit_mean, plain_vit_attentive, attentive_probe,
            selector, late_mask, soft_mask, given_mask, box_crop, gray_background, foreground_background,
            frozen_predictor, group_dro, trained_crops, frozen_crops (docs/comparisons.md).
        preset: Settings for what is not set: "laptop" for minutes on a processor, "paper" for days on GPUs; by default
            "laptop" without a GPU or below 5,000 training images.
        out: Folder for the model, its resolved configuration, logs and results; by default `runs/METHOD`.
        overwrite: Replace an existing model; it is removed as soon as training begins.
        resume: Go on where the training in `out` was stopped, with its settings: `ifam train --out DIR --resume` is
            enough.
        model: The model. The number of classes and their names come from the data.
        train: Training settings.
        loss: Weight of each loss term.
        data: Settings of the data set, by name.
        allow_tiny_backbone: Train the small embedded backbone if the weights of the default one cannot be downloaded:
            only for trying things out.
        given: Names of the settings that were set explicitly, such as "train.seed"; they are never overridden.
    """
    from ifam.data import load_benchmark
    from ifam.data.eval_dataset import training_list
    from ifam.data.fingerprints import fingerprint
    from ifam.evaluation.accuracy import evaluate
    from ifam.model_files import weights_digest
    from ifam.models.token_cache import TOKENS, reused_tokens
    from ifam.report.console import print_evaluation, write_results
    from ifam.run_files import kept_status
    from ifam.training import presets
    from ifam.training.batches import augmentation
    from ifam.training.fit import check, fit, seed_everything
    from ifam.training.module import epochs_of_method
    from ifam.training.resume import find_checkpoint, other_setting
    from ifam.training.trainer import on_processes

    train, out = presets.apply_method_defaults(method, train, given), out or Path("runs") / method
    check_resume(resume, overwrite)
    if resume and is_finished(out):
        print(f"The training in {out} is finished, and nothing was changed.")
        return
    resumed = resume and find_checkpoint(out) is not None
    # In a mistyped folder, or without the settings of the training, none on the default images begins.
    if resume and not {"root", "benchmark"}.intersection(given):
        missing = f"{out} has no train.yaml with the settings" if resumed else f"There is no training in {out}"
        raise IfamError(
            f"{missing} to go on with, and no images are named; check --out, or give images and settings, as in `ifam "
            f"train photos --out {out} --resume`."
        )
    if not resumed:
        ensure_no_model(out, overwrite)
        ensure_no_stopped_training(out, overwrite)
    ensure_writable(out, folder=True)
    on_processes(train)
    images = load_benchmark(benchmark, root, data)
    config = presets.with_classes(model, images, given)
    seed_everything(train.seed)
    chosen, reason = presets.choose(preset, len(images.split("train")), train.accelerator)
    before = last_value([f"--config={out / 'train.yaml'}"], "preset") if resume else None
    # All settings are those of the run: another preset would only give them a wrong name in the results.
    if resumed and before not in (None, chosen):
        raise other_setting(out, "preset", before, chosen)
    reason = "as in the run" if chosen == before else reason
    options: dict[str, Any] = {"allow_tiny_backbone": allow_tiny_backbone, "given": given}
    setup = presets.build(config, train, loss, images, method, preset=chosen, **options)
    setup = replace(setup, train=epochs_of_method(setup.train, setup.model))
    check(images, setup.train, setup.model)
    settings = {
        "method": method,
        "preset": chosen,
        "benchmark": benchmark,
        # Absolute, since the model may be evaluated from another folder.
        "root": None if root is None else str(root.absolute()),
        "data": data or {},
        "model": asdict(setup.config),
        # With the settings that depend on the data.
        "train": {**asdict(setup.train), **asdict(augmentation(setup.train, images))},
        "loss": asdict(setup.losses),
    }
    commands.complete(settings)
    if first_process():
        print(presets.describe(chosen, reason, setup.config, setup.train))
        if resume and not resumed:
            print(f"There is no checkpoint in {out}, so that the training starts from the beginning.")
    if not resumed:
        presets.begin_run(settings, out, overwrite)
    with kept_status(out):
        tokens, label = out.parent / TOKENS, f"training on {images.name}"
        result = fit(setup.model, images, setup.train, setup.losses, out, label=label, tokens=tokens, resume=resumed)
        training_data = {name: settings[name] for name in ("benchmark", "root", "data")} | training_list(images)
        if first_process():
            facts = {"seed": setup.train.seed, "precision": setup.train.precision, "best_epoch": result.best_epoch}
            setup.model.save_pretrained(out, {**training_data, **facts})
        split = images.default_eval_split
        precision = setup.train.precision
        with reused_tokens(setup.model, tokens, len(images.split(split)), precision):
            evaluation = evaluate(setup.model, images, split, precision=precision)
        conditions = {
            **settings,
            "split": split,
            "note": images.note,
            "weights": weights_digest(setup.model.state_dict()),
            "images": fingerprint(images, dict.fromkeys(("train", "val", split))),
        }
        try:
            print_evaluation(evaluation, f"{images.name}, {split}")
        finally:
            if first_process():
                write_results(evaluation, out / "results.json", conditions)
    try_out = f"predict --model {out} IMAGES" if setup.model.selects_parts else f"evaluate --model {out}"
    print(f"The model is in {out}: try `ifam {try_out}`.")
