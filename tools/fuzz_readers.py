"""Readers of files from outside, and valid files that `tools.fuzz` damages."""

import csv
import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ifam.checkpoints import hub
from ifam.checkpoints.authors import to_official
from ifam.cli.parser import parse
from ifam.config import ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.data.images import load_image
from ifam.data.masks import load_mask
from ifam.experiments.runs import Runs
from ifam.models.ifam import IFAM
from ifam.report.results import write_report
from ifam.run_files import RunStatus
from ifam.serialization import to_json
from ifam.training.fit import fit
from ifam.training.resume import find_checkpoint


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        make: Writes valid files to a folder and returns those to damage.
        read: Reads the damaged one, at its place in the folder.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


def _model(folder: Path) -> IFAM:
    torch.manual_seed(0)
    kwargs = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    config = ModelConfig("vit_tiny_patch16_224", image_size=32, num_parts=2, backbone_kwargs=kwargs)
    model = IFAM(config, pretrained=False)
    trained = {"benchmark": "folder", "root": None, "data": {"white": 0}, "precision": "32-true"}
    hub.save(model, folder / "model", trained)
    return model


def _weights(folder: Path) -> list[Path]:
    _model(folder)
    return [folder / "model" / "model.safetensors"]


def _config(folder: Path) -> list[Path]:
    _model(folder)
    return [folder / "model" / "config.json"]


def _answer(path: Path) -> object:
    model = hub.load(path.parent)
    height, width = model.image_size
    # Larger ones are what the settings ask for, and only slow.
    return model(torch.zeros(1, 3, height, width)) if height * width < 1 << 16 else None


def _authors(folder: Path) -> list[Path]:
    path = folder / "a.pt"
    torch.save({"model_state": to_official(_model(folder)), "epoch": 3, "score": 0.5}, path)
    return [path]


def _settings(folder: Path) -> list[Path]:
    path = folder / "mine.yaml"
    path.write_text(
        "benchmark: folder\nroot: photos\nmethod: ifam\npreset: laptop\nout: runs/x\noverwrite: false\n"
        "model: {backbone: ifam_tiny, image_size: [80, 80], mean: [0.5, 0.5, 0.5], backbone_kwargs: {depth: 2}}\n"
        "train:\n  epochs: 3\n  base_lr: 1e-4\n  clip_norm: null\n  group_dro: 0.01\n  flip: true\n"
        "loss: {entropy: 1.0}\ndata:\n  val_fraction: 0.2\n  csv: images.csv\n  classes: [a, b]\n  seed: 0\n",
        encoding="utf-8",
    )
    return [path]


def _photos(folder: Path) -> None:
    for name in "ab":
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 6), (i * 40, 90, 60)).save(folder / "photos" / name / f"{i}.png")
    Image.new("L", (8, 6), 255).save(folder / "photos" / "mask.png")


def _list(folder: Path) -> list[Path]:
    _photos(folder)
    text = io.StringIO()
    rows = [(f"{name}/{i}.png", name, f"{name} {i % 2}", "train", "mask.png") for name in "ab" for i in range(4)]
    csv.writer(text).writerows([("path", "label", "group", "split", "mask"), *rows])
    paths = [folder / "photos" / name for name in ("images.csv", "semicolons.csv", "utf16.csv")]
    paths[0].write_bytes(text.getvalue().encode())
    paths[1].write_bytes(text.getvalue().replace(",", ";").encode("utf-8-sig"))
    paths[2].write_bytes(text.getvalue().encode("utf-16"))
    return paths


def _images(folder: Path) -> list[Path]:
    chance = np.random.default_rng(0)
    color, gray = chance.integers(0, 256, (20, 30, 3), np.uint8), chance.integers(0, 65536, (20, 30), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.bmp", "c.tif", "d.webp", "e.ppm", "f.gif"):
        Image.fromarray(color).save(folder / name)
    Image.fromarray(color).save(folder / "g.jpg", exif=exif)
    Image.fromarray(gray).save(folder / "h.png")
    Image.fromarray(gray.astype(np.float32) / 65535).save(folder / "i.tif")
    Image.fromarray(color).convert("CMYK").save(folder / "j.jpg")
    Image.fromarray(color).convert("P").save(folder / "k.png", transparency=3)
    return sorted(folder.iterdir())


def _masks(folder: Path) -> list[Path]:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:20] = 255
    Image.fromarray(mask).save(folder / "a.png")
    Image.fromarray(mask // 255).convert("P").save(folder / "b.gif")
    np.save(folder / "c.npy", mask)
    np.save(folder / "d.npy", (mask / 255).astype(np.float32)[..., None])
    return sorted(folder.iterdir())


def _result(folder: Path) -> list[Path]:
    from ifam.evaluation.accuracy import evaluate
    from ifam.report.console import write_results

    images = load_benchmark("pondbirds", options={"num_train": 4, "num_val": 4, "num_test": 4, "image_size": 32})
    write_results(evaluate(_model(folder), images, "test", num_resamples=2), folder / "results.json", {"run": "x"})
    return [folder / "results.json"]


def _show(path: Path) -> object:
    return write_report([path], path.with_name("page.html"), overwrite=True)


def _shards(folder: Path) -> list[Path]:
    """Shards of images with their classes as text, and as JSON with masks."""
    picture, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 6), (40, 90, 60)).save(picture, "png")
    Image.new("L", (8, 6), 255).save(mask, "png")
    kinds: tuple[dict[str, bytes], ...] = (
        {"cls": b"%d"},
        {"json": b'{"label": "%d", "group": "g", "split": "train"}', "mask.png": mask.getvalue()},
    )
    paths = []
    for number, members in enumerate(kinds):
        paths.append(folder / str(number) / "a.tar")
        paths[-1].parent.mkdir()
        with tarfile.open(paths[-1], "w") as tar:
            for key in range(4):
                for kind, content in {"png": picture.getvalue(), **members}.items():
                    said = content % (key % 2) if kind in ("cls", "json") else content
                    member = tarfile.TarInfo(f"{key:04}.{kind}")
                    member.size = len(said)
                    tar.addfile(member, io.BytesIO(said))
    return paths


def _read_shard(path: Path) -> object:
    images = load_benchmark("folder", path.parent, {"val_fraction": 0.25})
    return [images.split(name)[place] for name in images.splits for place in range(len(images.split(name)))]


def _unfinished_training(folder: Path) -> list[Path]:
    status = RunStatus("running", 1.0e9, 1.0e9, 1, "here", "Training: 1 of 2, 3 s gone.")
    (folder / "logs").mkdir()
    paths = [folder / "status.json", folder / "train.yaml", folder / "logs" / "metrics.csv"]
    paths[0].write_text(json.dumps(to_json(status)), encoding="utf-8")
    paths[1].write_text("method: ifam\ntrain:\n  epochs: 2\n", encoding="utf-8")
    paths[2].write_text("epoch,step,train/total,val/accuracy\n0,1,0.5,\n0,1,,0.25\n", encoding="utf-8")
    return paths


def _show_training(path: Path) -> object:
    folder = path.parent.parent if path.parent.name == "logs" else path.parent
    return write_report([folder], folder / "page.html", overwrite=True)


def _unfinished_comparison(folder: Path) -> list[Path]:
    group = {"a": {"count": 4, "accuracy": 0.5, "interval": [0.25, 0.75]}}
    figures = {"worst_group": 0.5, "average": 0.75, "seconds": 3.0}
    line = {"row": "ifam", "figures": figures, "groups": group, "parameters": {"trained": 3, "total": 4}}
    lines = [json.dumps({**line, "seed": seed, "settings": {"train": {"epochs": 2}}}) for seed in range(2)]
    status = RunStatus("stopped", 1.0e9, 1.0e9, 1, "here", runs=(("ifam", 0), ("ifam", 1), ("plain_vit", 0)))
    paths = [folder / "status.json", folder / "runs.jsonl"]
    paths[0].write_text(json.dumps(to_json(status)), encoding="utf-8")
    paths[1].write_text("".join(f"{one}\n" for one in lines), encoding="utf-8")
    return paths


def _show_comparison(path: Path) -> object:
    if path.name == "runs.jsonl":
        Runs(path, {("plain_vit", 0): {}})
    return _show_training(path)


def _checkpoints(folder: Path) -> list[Path]:
    birds = load_benchmark("pondbirds", options={"num_train": 8, "num_val": 4, "num_test": 4, "image_size": 32})
    fit(_model(folder), birds, TrainConfig(epochs=1, batch_size=8, accelerator="cpu"), folder=folder / "run")
    (folder / "run" / "checkpoints" / "best.ckpt").unlink()
    return [folder / "run" / "checkpoints" / "last.ckpt"]


def _go_on(path: Path) -> object:
    logger = logging.getLogger("ifam")
    level = logger.level
    # Each damaged checkpoint is warned of.
    logger.setLevel(logging.ERROR)
    try:
        return find_checkpoint(path.parent.parent)
    finally:
        logger.setLevel(level)


READERS: dict[str, Reader] = {
    "weights": Reader(_weights, _answer),
    "config": Reader(_config, _answer),
    "authors": Reader(_authors, hub.load_official),
    "settings": Reader(_settings, lambda path: parse(["train", "--config", str(path)])),
    "list": Reader(_list, lambda path: load_benchmark("folder", path.parent, {"csv": path.name})),
    "image": Reader(_images, load_image),
    "mask": Reader(_masks, load_mask),
    "result": Reader(_result, _show),
    "shard": Reader(_shards, _read_shard),
    "training": Reader(_unfinished_training, _show_training),
    "comparison": Reader(_unfinished_comparison, _show_comparison),
    "checkpoint": Reader(_checkpoints, _go_on),
}
