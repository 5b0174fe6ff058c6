"""`ifam certify`."""

import sys
from pathlib import Path
from typing import Any, Literal

from ifam.cli.common import check_classes, resolve_device
from ifam.io import check_folder, ensure_writable, run_digest, write_json


def certify(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    out: Path = Path("certify"),
    kind: Literal["columns", "blocks"] = "columns",
    width: int = 1,
    region: int | None = None,
    region_pixels: int | None = None,
    attack: int = 20,
    steps: int = 200,
    limit: int = 1000,
    batch_size: int = 64,
    device: str = "auto",
    num_resamples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Prove which answers no change of the pixels in one region can alter, although the mask may change with them.

    The answers are those of a vote of windows, each of which sees nothing else. The exit status is 1 if an attack
    changes an answer that is certain.

    Args:
        model: Folder or hub id of the model, of the methods ifam, frozen_predictor, plain_vit or group_dro.
        benchmark: Name of the data set; by default the one the model was trained on.
        root: Folder of the images.
        split: Split to certify; by default "test", or "val" if there is no test split.
        out: Folder for certify.json and certify.html.
        kind: What votes: bands of columns of patches, against regions of columns, or blocks, against squares.
        width: Width of these windows in patches.
        region: Size of the region in patches, 1 without either.
        region_pixels: Its size in pixels, for one that may begin anywhere, in place of `region`.
        attack: Images that are attacked inside of the region, to try the proof; 0 for none.
        steps: Steps of each gradient attack.
        limit: Largest number of images, evenly spaced in the split.
        batch_size: Images at a time.
        device: Device to compute on: "cpu", "cuda", or "auto" for a GPU if available.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of everything random.
        overwrite: Replace the content of `out`; otherwise only a result under the same conditions is replaced.
        data: Settings of the data set, by name.
    """
    from ifam.auditing.smoothing import certify, region_size
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import eval_options, load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.evaluation.conformal import model_digest
    from ifam.model_files import weights_digest
    from ifam.models.windows import window_shape
    from ifam.report.certification import print_certification
    from ifam.report.results import write_report

    ensure_writable(out, folder=True)
    saved = hub.read(model)
    trained = saved.extra
    eval_options(trained, benchmark, data)
    net = hub.load(saved)
    # Before images are read or drawn.
    window_shape(kind, width, net.window_grid)
    size = region_size(net, kind, region, region_pixels)
    name, images, options = load_eval_dataset(trained, benchmark, root, data, net.config.class_names, split)
    check_classes(images, net.config)
    split, source = split or images.default_eval_split, remembered_root(trained, benchmark, root)
    print(images.describe(split))
    # Everything that the figures depend on.
    conditions: dict[str, Any] = {"benchmark": name, "split": split, "data": options}
    conditions |= {"root": None if source is None else str(source.absolute()), "images": fingerprint(images, [split])}
    settings: dict[str, Any] = {"kind": kind, "width": width, "attack": attack, "steps": steps, "limit": limit}
    settings |= {"num_resamples": num_resamples, "seed": seed}
    weights = weights_digest(net.state_dict())
    conditions |= {"weights": weights, "model_digest": model_digest(net, weights)}
    run = run_digest({**conditions, **settings, "region": size})
    check_folder(out, "certify.json", ["certify.html"], run, overwrite)
    conditions |= {"run": run, "model": model, "note": images.note}
    net.to(resolve_device(device))
    result = certify(net, images, split=split, region=size, batch_size=batch_size, conditions=conditions, **settings)
    try:
        print_certification(result)
    finally:
        write_json(out / "certify.json", result.to_dict(), allow_nan=False)
        page = write_report([out / "certify.json"], out / "certify.html", overwrite=True)
    print(f"Open {page} to look; the figures are in {out / 'certify.json'}.")
    if not result.passed:
        sys.exit(1)
