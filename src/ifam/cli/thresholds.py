"""`ifam thresholds`."""

from pathlib import Path
from typing import Any

from ifam.cli.common import resolve_device
from ifam.errors import IfamError
from ifam.io import ensure_writable, local_path, run_digest


def thresholds(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    quantiles: list[float] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Compute similarity thresholds of each part for `ifam evaluate --drop_unsure`, and store them with the model.

    Args:
        model: Folder of the model; thresholds are written to its `config.json`.
        benchmark: Name of the data set; by default the one the model was trained on.
        root: Folder of the images.
        split: Split to compute them on; by default "train", or all images without splits.
        quantiles: Quantiles; by default 0.01, 0.02, ..., 0.99.
        limit: Largest number of images, evenly spaced in the split.
        batch_size: Images at a time.
        device: Device to compute on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
        overwrite: Replace thresholds of other quantiles, images or weights.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import default_split, eval_options, load_eval_dataset
    from ifam.data.fingerprints import fingerprint
    from ifam.evaluation.thresholds import QUANTILES, compute_thresholds, selector_digest, store

    saved = hub.read(model)
    config, extra = saved.config, saved.extra
    eval_options(extra, benchmark, data)
    net = hub.load(saved)
    if not Path(model).expanduser().is_dir():
        raise IfamError(f"{model} is on the hub, where thresholds cannot be stored; copy it to a folder and give that.")
    ensure_writable(local_path(model), folder=True, option="--model")
    name, images, options = load_eval_dataset(extra, benchmark, root, data, config.class_names, split)
    split = split or default_split(images, "train")
    print(images.describe(split))
    quantiles = list(QUANTILES if quantiles is None else quantiles)
    conditions = {"benchmark": name, "split": split, "data": options, "quantiles": quantiles, "limit": limit}
    run = run_digest({**conditions, "images": fingerprint(images, [split]), "selector": selector_digest(net)})
    previous = extra.get("thresholds")
    source = previous.get("source") if isinstance(previous, dict) else None
    if previous and not overwrite and not (isinstance(source, dict) and source.get("run") == run):
        raise IfamError(
            f"{model} has thresholds of other quantiles, images or weights; replace "
            f"them with --overwrite, or copy the model to another folder."
        )
    net = net.to(resolve_device(device))
    computed = compute_thresholds(net, images, split, quantiles, batch_size=batch_size, limit=limit)
    path = store(computed, model, {"run": run})
    won = ", ".join(f"part {part}: {count}" for part, count in enumerate(computed.patches))
    print(f"Patches won in {computed.images} images of {name}, {split}: {won}.")
    print(f"Written to {path}: try `ifam evaluate --model {model} --drop_unsure {computed.quantiles[0]:g}`.")
