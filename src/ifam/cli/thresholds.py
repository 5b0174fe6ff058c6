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
    """Compute how similar each part is to the patches it wins, for `ifam evaluate --drop_unsure`; kept with the model.

    Args:
        model: Folder of the model; its `config.json` is written.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Split to look at; "train", or all images where there are no splits.
        quantiles: Which quantiles; 0.01, 0.02, ..., 0.99 where none are given.
        limit: Images at most, evenly spread over the split.
        batch_size: Images at a time.
        device: Where to compute: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        overwrite: Replace thresholds that were computed otherwise: of other quantiles, images or weights.
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
        raise IfamError(f"{model} is on the hub, where nothing can be kept; copy it to a folder and name that.")
    ensure_writable(local_path(model), folder=True)
    name, images, options = load_eval_dataset(extra, benchmark, root, data, config.class_names, split)
    split = split or default_split(images, "train")
    print(images.describe(split))
    chosen = QUANTILES if quantiles is None else quantiles
    made = {"benchmark": name, "split": split, "data": options, "quantiles": list(chosen), "limit": limit}
    run = run_digest({**made, "images": fingerprint(images, [split]), "selector": selector_digest(net)})
    if "thresholds" in extra and extra["thresholds"].get("source", {}).get("run") != run and not overwrite:
        raise IfamError(
            f"{model} has thresholds that were computed otherwise (of other quantiles, images or weights); replace "
            f"them with --overwrite, or copy the model to another folder."
        )
    net = net.to(resolve_device(device))
    computed = compute_thresholds(net, images, split, chosen, batch_size=batch_size, limit=limit)
    path = store(computed, model, {"run": run})
    won = ", ".join(f"part {part}: {count}" for part, count in enumerate(computed.patches))
    print(f"Patches won in {computed.images} images of {name}, {split}: {won}.")
    print(f"Written to {path}: try `ifam evaluate --model {model} --drop_unsure {computed.quantiles[0]:g}`.")
