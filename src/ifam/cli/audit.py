"""`ifam audit`."""

import sys
from pathlib import Path
from typing import Any

from ifam.cli.common import resolve_device
from ifam.io import check_folder, ensure_writable, run_digest


def audit(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    out: Path = Path("audit"),
    plain: Path | None = None,
    limit: int = 200,
    explain: int = 50,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Prove what the answer rests on: attack hidden pixels, swap backgrounds, read masks, drop parts, compare.

    The exit status is 1 where a hidden pixel changes an answer.

    Args:
        model: Folder or hub id of the model.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Split to audit; "test", or "val" where there is no test split.
        out: Folder for audit.json, audit.html and the pictures.
        plain: Folder of a trained plain ViT, to explain after the fact; the model's own predictor where none is given.
        limit: Images at most, evenly spread over the split.
        explain: Images at most for explanations after the fact, which are slow.
        batch_size: Images at a time.
        device: Where to compute: "cpu", "cuda", or "auto" for a GPU where there is one.
        seed: Seed of everything random.
        overwrite: Replace what is in `out`; without that, only an audit under the same conditions.
        data: Settings of the data set, by name.
    """
    from ifam.auditing.run import audit, load_plain
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import eval_options, load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.model_files import weights_digest
    from ifam.models.ifam import IFAM
    from ifam.report.audit_tables import print_audit
    from ifam.report.results import write_audit

    ensure_writable(out, folder=True)
    saved = hub.read(model)
    trained = saved.extra
    eval_options(trained, benchmark, data)
    net = IFAM.from_saved(saved)
    net.to(resolve_device(device))
    name, images, options = load_eval_dataset(trained, benchmark, root, data, net.config.class_names, split)
    split, source = split or images.default_eval_split, remembered_root(trained, benchmark, root)
    print(images.describe(split))
    other = None if plain is None else load_plain(plain)
    # All that the figures depend on.
    conditions: dict[str, Any] = {
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "split": split,
    }
    conditions |= {"data": options, "images": fingerprint(images, [split]), "weights": weights_digest(net.state_dict())}
    conditions |= {"plain_weights": None if other is None else weights_digest(other.state_dict())}
    run = run_digest({**conditions, "limit": limit, "explain": explain, "seed": seed})
    check_folder(out, "audit.json", ["audit.html", "audit_pictures"], run, overwrite)
    conditions |= {"run": run, "model": model, "note": images.note, **({} if plain is None else {"plain": str(plain)})}
    settings: dict[str, Any] = {"limit": limit, "explain": explain, "batch_size": batch_size, "seed": seed}
    result = audit(net, images, split=split, plain=other, conditions=conditions, **settings)
    try:
        print_audit(result)
    finally:
        _, page = write_audit(result, out)
    print(f"Open {page} to look; the figures are in {out / 'audit.json'}.")
    if not result.passed:
        sys.exit(1)
