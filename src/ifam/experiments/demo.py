"""`ifam demo`: a plain ViT and this model, trained alike on images whose background lies, and judged alike."""

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
from PIL import Image
from rich.table import Table
from torchvision.transforms.v2.functional import to_pil_image

from ifam.config import TrainConfig
from ifam.console import PlainConsole
from ifam.data import Benchmark, PondbirdsConfig, Prepared, collate, load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Accuracy, evaluate, hidden_influence
from ifam.io import check_folder, ensure_writable, replacing, run_digest, write_json
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM
from ifam.provenance import provenance
from ifam.report.html import DemoReport, PictureRow, write_demo_report
from ifam.report.overlays import contact_sheet, enlarge, part_overlay, predictor_view
from ifam.training.fit import FitResult, fit, seed_everything
from ifam.training.presets import TINY_LOSS, TINY_MODEL, TINY_PLAIN, TINY_TRAIN

ABOUT = (
    "Drawn birds: swimmers and perchers, on water or in a forest. "
    f"In {PondbirdsConfig().correlation:.0%} of the training and validation images the "
    "background agrees with the bird; in the test set it says nothing, so half of the test images contradict what "
    "the training images suggest."
)
PICTURES_PER_GROUP = 3


@dataclass(frozen=True)
class _Trained:
    """Both models of one seed."""

    plain: PlainViT
    ifam: IFAM
    fits: dict[str, FitResult]
    benchmark: Benchmark


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    seeds: int = 1,
    quick: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train, evaluate and report.

    Args:
        out: Folder for `report.html`, `results.json` and `model/` (the first seed's).
        seed: First seed, of data and training.
        seeds: How many.
        quick: Little data and one epoch: only shows that everything runs.
        threads: CPU threads; as many as there are cores where None.
        overwrite: Replace what is in the folder; without that, only a demo of the same seeds and size.

    Returns:
        What `results.json` holds.

    Raises:
        IfamError: There is no seed, or the folder cannot be written or holds something else.
    """
    if seeds < 1:
        raise IfamError(f"seeds is {seeds}, but at least 1 is needed.")
    torch.set_num_threads(threads or os.cpu_count() or 1)
    ensure_writable(out, folder=True)
    run = run_digest({"seed": seed, "seeds": seeds, "quick": quick})
    check_folder(out, "results.json", ["report.html", "pictures.png", "model"], run, overwrite)
    runs: list[dict[str, Any]] = []
    first: _Trained | None = None
    for s in range(seed, seed + seeds):
        trained = _train(s, quick)
        runs.append(_judge(trained, s))
        results = {"runs": runs, "summary": _summary(runs), "conditions": {**_conditions(quick), "run": run}}
        # After every seed, so that a run that is stopped has not been for nothing.
        write_json(out / "results.json", results)
        if first is None:
            first = trained
            first.ifam.save_pretrained(out / "model", {"benchmark": "pondbirds", "data": _data(s, quick)})
    assert first is not None
    pictures = _pictures(first)
    with replacing(out / "pictures.png") as beside:
        _sheet(pictures).save(beside)
    report = DemoReport(
        title="Pondbirds: what a classifier looks at",
        conditions={"seeds": ", ".join(str(r["seed"]) for r in runs), **_conditions(quick)},
        runs=runs,
        pictures=pictures,
        curves=_curves(first.fits),
        about=ABOUT,
        num_parts=first.ifam.config.num_parts,
    )
    write_demo_report(out / "report.html", report)
    return results


def _data(seed: int, quick: bool) -> dict[str, Any]:
    return {"seed": seed, **({"num_train": 200, "num_val": 100, "num_test": 200} if quick else {})}


def _settings(train: TrainConfig, seed: int, quick: bool) -> TrainConfig:
    train = replace(train, seed=seed)
    return replace(train, epochs=1, batch_size=32) if quick else train


def _train(seed: int, quick: bool) -> _Trained:
    """The same backbone, data, augmentation and epochs for both; each with its own tuned learning rate."""
    benchmark = load_benchmark("pondbirds", options=_data(seed, quick))
    config = replace(TINY_MODEL, num_classes=len(benchmark.class_names), class_names=benchmark.class_names)

    seed_everything(seed)
    plain = PlainViT(config)
    fits = {"plain_vit": fit(plain, benchmark, _settings(TINY_PLAIN, seed, quick), label=f"seed {seed}: plain ViT")}
    seed_everything(seed)
    ifam = IFAM(config)
    fits["ifam"] = fit(ifam, benchmark, _settings(TINY_TRAIN, seed, quick), TINY_LOSS, label=f"seed {seed}: iFAM     ")
    return _Trained(plain, ifam, fits, benchmark)


def _judge(trained: _Trained, seed: int) -> dict[str, Any]:
    """The figures of one seed."""
    started = time.perf_counter()
    plain = evaluate(trained.plain, trained.benchmark, label=f"seed {seed}: judging the plain ViT")
    both = evaluate(trained.ifam, trained.benchmark, label=f"seed {seed}: judging iFAM")
    assert both.selector is not None
    return {
        "seed": seed,
        "plain_vit": _figures(plain.predictor),
        "selector": _figures(both.selector),
        "ifam": {
            **_figures(both.predictor),
            "mask_iou": both.mask_iou,
            "visible_fraction": both.visible_fraction,
        },
        "hidden_influence": hidden_influence(trained.ifam, trained.benchmark.split("test")),
        "seconds": {
            **{name: round(f.seconds, 1) for name, f in trained.fits.items()},
            "evaluation": round(time.perf_counter() - started, 1),
        },
    }


def _figures(accuracy: Accuracy) -> dict[str, Any]:
    return {"average": accuracy.average, "worst_group": accuracy.worst_group, "groups": accuracy.groups}


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, lowest and highest of each figure over the seeds."""
    found: dict[str, Any] = {}
    for model, names in (
        ("plain_vit", ("worst_group", "average")),
        ("selector", ("worst_group", "average")),
        ("ifam", ("worst_group", "average", "mask_iou", "visible_fraction")),
    ):
        for name in names:
            values = [run[model][name] for run in runs]
            found.setdefault(model, {})[name] = {
                "mean": statistics.fmean(values),
                "low": min(values),
                "high": max(values),
            }
    return found


def _conditions(quick: bool) -> dict[str, Any]:
    shown = asdict(_settings(TINY_TRAIN, 0, quick))
    return {
        "quick": quick,
        "epochs": shown["epochs"],
        "batch size": shown["batch_size"],
        "parts": TINY_MODEL.num_parts,
        "mask gradient": TINY_MODEL.mask_gradient,
        "selector's backbone tuned": shown["selector_tuning"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        **provenance(),
    }


@torch.inference_mode()
def _pictures(trained: _Trained) -> list[tuple[str, list[PictureRow]]]:
    """The first images of each group of the test set: chosen by position, not by how well they came out."""
    ifam, plain, benchmark = trained.ifam, trained.plain, trained.benchmark
    examples = benchmark.split("test")
    prepared = Prepared(examples, ifam.image_size, ifam.normalization)
    chosen: dict[int, list[int]] = {group: [] for group in range(len(benchmark.group_names))}
    for i in range(len(examples)):
        place = chosen[int(examples[i]["group"])]
        if len(place) < PICTURES_PER_GROUP:
            place.append(i)
    rows = []
    for group, name in enumerate(benchmark.group_names):
        batch = collate([prepared[i] for i in chosen[group]])
        out, other = ifam(batch.images), plain(batch.images).logits
        pictures = []
        for j, i in enumerate(chosen[group]):
            image = enlarge(to_pil_image(examples[i]["image"]))
            answer, plain_answer = out.logits[j].softmax(0).max(0), other[j].softmax(0).max(0)
            pictures.append(
                PictureRow(
                    image=image,
                    parts_overlay=part_overlay(image, out.part_maps[j]),
                    predictor_view=predictor_view(image, out.mask[j]),
                    truth=benchmark.class_names[int(batch.labels[j])],
                    plain_answer=benchmark.class_names[int(plain_answer.indices)],
                    plain_confidence=float(plain_answer.values),
                    ifam_answer=benchmark.class_names[int(answer.indices)],
                    ifam_confidence=float(answer.values),
                )
            )
        rows.append((name, pictures))
    return rows


def _sheet(pictures: Sequence[tuple[str, Sequence[PictureRow]]]) -> Image.Image:
    """The first image of each group: input, parts, what the predictor saw, and both answers."""
    firsts = [(group, rows[0]) for group, rows in pictures if rows]
    return contact_sheet(
        [(row.image, row.parts_overlay, row.predictor_view) for _, row in firsts],
        [f"{group}.  plain ViT: {row.plain_answer};  iFAM: {row.ifam_answer}" for group, row in firsts],
    )


def _curves(fits: Mapping[str, FitResult]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Validation and training curves by model."""
    wanted = {
        "train/total": "training loss",
        "val/accuracy": "validation accuracy",
        "val/mask_iou": "validation mask IoU",
    }
    names = {"plain_vit": "Plain ViT", "ifam": "iFAM"}
    return {
        names[model]: {
            title: [(epoch + 1, row[key]) for epoch, row in enumerate(found.history) if key in row]
            for key, title in wanted.items()
            if any(key in row for row in found.history)
        }
        for model, found in fits.items()
    }


def print_demo(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of the report."""
    summary = _summary(runs)

    def spread(model: str, name: str, form: str = ".1%") -> str:
        value = summary[model][name]
        ends = f" ({value['low']:{form}} to {value['high']:{form}})" if len(runs) > 1 else ""
        return f"{value['mean']:{form}}{ends}"

    table = Table(title=f"pondbirds, test set, {len(runs)} seed{'s' if len(runs) > 1 else ''}", title_justify="left")
    for column in ("", "worst group", "average", "mask IoU", "visible"):
        table.add_column(column, justify="left" if not column else "right")
    for model, name in (("plain_vit", "plain ViT"), ("selector", "selector alone"), ("ifam", "iFAM")):
        extra = (spread("ifam", "mask_iou", ".2f"), spread("ifam", "visible_fraction")) if model == "ifam" else ("", "")
        table.add_row(name, spread(model, "worst_group"), spread(model, "average"), *extra)
    PlainConsole().print(table)
    influence = max(run["hidden_influence"] for run in runs)
    print(f"Largest change of any logit when all hidden pixels are replaced: {influence}")


__all__ = ["print_demo", "run_demo"]
