"""A table of bad inputs: what lies in the folder, the command, and what its one sentence must name.

Files are made beside `photos/` (two classes of five pictures) and `model/` (trained on them, by its settings):
bytes or text are written, an array is saved in the format of its name, `None` removes the file, a name that ends
with "/" is a folder, `Link` a symbolic link, and a function changes what is there.
"""

import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

QUICK = (
    "--model.backbone ifam_tiny --model.image_size 80 --train.accelerator cpu --train.epochs 1 --train.batch_size 4 "
    "--train.base_lr 1e-4 --out new"
)
TRAIN = f"train photos {QUICK}"
LIST = f"{TRAIN} --data.csv images.csv"
PREDICT = "predict photos --model model --out out"
ONE = "predict x.png --model model --out out --strict"
DRAWN = "--benchmark pondbirds --data.num_train 2 --data.num_val 2 --data.num_test 4 --image_size 80 --out out"
CUT = "--root photos --selector model --out out"


class Link(NamedTuple):
    """A symbolic link to a path relative to its own folder."""

    target: str


class Case(NamedTuple):
    """Files by name, the words of a command, and what is said: the thing and the mend."""

    files: dict[str, Any]
    command: str | list[str]
    says: tuple[str, ...]


def case(files: dict[str, Any], command: str | list[str], *says: str) -> Case:
    return Case(files, command, says)


def picture(size=(40, 30), mode="RGB", kind="PNG", **options) -> bytes:
    """A gray picture in a file."""
    buffer = io.BytesIO()
    Image.new(mode, size, None if mode == "P" else "gray").save(buffer, kind, **options)
    return buffer.getvalue()


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (40, 30), color) for color in ("gray", "red")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------- lists

ROWS = "".join(f"{name}/{i}.{'png' if i % 2 else 'jpg'},{name}\n" for name in ("brick", "grass") for i in range(5))


def listed(text: str | bytes) -> dict[str, Any]:
    return {"photos/images.csv": text}


def columns(header: str, values: str) -> dict[str, Any]:
    """A list with a further column of the same value in each row."""
    return listed(f"path,label,{header}\n" + ROWS.replace("\n", f",{values}\n"))


def masked(array: np.ndarray, ending: str = "png") -> dict[str, Any]:
    """A list in which all images have the same mask."""
    return {**columns("mask", f"mask.{ending}"), f"photos/mask.{ending}": array}


# ------------------------------------------------------------------------------------------------ models


def settings(**changes) -> dict[str, Any]:
    """The `config.json` of the model with other values."""

    def change(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return {"model/config.json": change}


def trained(**changes) -> dict[str, Any]:
    """The `config.json` of the model with other values about its training."""

    def change(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["extra"] |= changes
        path.write_text(json.dumps(content), encoding="utf-8")

    return {"model/config.json": change}


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, Any]:
    """The weights of the model after a change."""

    def rewrite(path):
        tensors = load_file(path)
        changed = change(tensors)
        path.unlink()
        save_file(tensors if changed is None else changed, path)

    return {"model/model.safetensors": rewrite}


def head(value: float) -> dict[str, Any]:
    """Weights whose last layer has this value."""
    return weights(lambda w: {**w, HEAD: torch.full_like(w[HEAD], value)})


def cut(path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def checkpoint(content: Any) -> dict[str, Any]:
    return {"a.pt": lambda path: torch.save(content, path)}


HEAD = "predictor.head.weight"
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + bytes(range(256))
NO_MODEL = "but a folder that `save_pretrained` wrote is expected; give the folder of the model that was exported"
WORD = "x" * 100_000

# ------------------------------------------------------------------------------------------------- YAML

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


NINE = "data: {num_train: 9, num_val: 9, num_test: 9}\n"


def yaml(text: str | bytes, says: str, *more: str, verb: str = "evaluate") -> Case:
    return Case({"mine.yaml": text}, f"{verb} --config mine.yaml", ("mine.yaml", says, *more))


BAD = {
    # --- images
    "an image of 0 bytes": case({"x.png": b""}, ONE, "x.png", "the file is empty; copy or download it again"),
    "an image that was cut off": case({"x.png": picture()[:60]}, ONE, "x.png is not a readable image", "remove it"),
    "a JPEG that was cut off": case(
        {"x.jpg": picture(kind="JPEG")[:300]},
        ONE.replace("png", "jpg"),
        "x.jpg is not a readable image",
        "leave --strict out",
    ),
    "a TIFF that was cut off": case(
        {"x.tif": picture(kind="TIFF")[:100]}, ONE.replace("png", "tif"), "x.tif is not a readable image", "remove it"
    ),
    "a text named as an image": case({"x.png": "hello"}, ONE, "x.png is not a readable image", "remove it, or leave"),
    "a web page named as an image": case({"x.png": "<!DOCTYPE html><p>404"}, ONE, "x.png", "it is a web page", "open"),
    "an image of NaN": case(
        {"x.tif": np.full((9, 9), np.nan, np.float32)},
        ONE.replace("png", "tif"),
        "x.tif",
        "none of its values",
        "remove",
    ),
    "an image of 1e30": case(
        {"x.tif": np.full((9, 9), 1e30, np.float32)},
        ONE.replace("png", "tif"),
        "x.tif",
        "values go up to 1e+30; save it with 8 or 16 bits",
    ),
    "a vector image": case({"x.svg": "<svg/>"}, ONE.replace("png", "svg"), "x.svg is not a readable image", "remove"),
    "an image that is not there": case({}, ONE, "x.png does not exist; give image files, folders"),
    "a device": case({}, ONE.replace("x.png", "/dev/null"), "/dev/null is not a regular file; give image files"),
    "a name of 300 letters": case({}, ONE.replace("x.png", "x" * 300), "cannot be used (File name too long); check"),
    "a name with a zero byte": case(
        {}, ["predict", "x\0.png", "--model", "model"], r"names nothing; give a file or folder"
    ),
    "a name with a newline": case(
        {}, ["predict", "a\nb.png", "--model", "model"], r"a\nb.png does not exist; give image"
    ),
    "a name with an escape sequence": case(
        {}, ["predict", "\x1b[2J", "--model", "model"], r"No image matches \x1b[2J; check"
    ),
    "a name with a dash": case({"-x.png": picture()}, ONE.replace("x.png", "-x.png"), "-x.png", "as ./-NAME"),
    "a file after the options": case(
        {"x.png": picture()}, f"{PREDICT} --strict x.png", "x.png is not expected here; give"
    ),
    "a link to itself": case({"x.png": Link("x.png")}, ONE, "x.png does not exist; give image files, folders"),
    "a file for a folder": case({}, ONE.replace("x.png", "photos/brick/0.jpg/x"), "0.jpg/x does not exist; give image"),
    "an empty folder": case(
        {"e/": ""}, ONE.replace("x.png", "e"), "The folder e contains no images", "add some, or leave"
    ),
    "a folder of links in circles": case(
        {"e/": "", "e/a": Link("."), "e/b.png": Link("b.png")},
        ONE.replace("x.png", "e"),
        "e contains no images",
        "add some",
    ),
    "a table of no format": case({}, f"{PREDICT}.xlsx", "out.xlsx ends with .xlsx, but .csv, .jsonl, .parquet is"),
    "a folder for a table": case({"out.csv/": ""}, f"{PREDICT}.csv", "out.csv is a folder", "choose another --out"),
    "a table that is not ours": case({"out.csv": "mine"}, f"{PREDICT}.csv", "out.csv already exists", "--overwrite"),
    "a list without rows": case(
        {"l.csv": "path\n"}, "predict l.csv --model model", "l.csv lists no images; add a row for each"
    ),
    "a list of no bytes": case(
        {"l.csv": ""}, "predict l.csv --model model", "l.csv has no column 'path'; it has no header at all"
    ),
    "a list without paths": case(
        {"l.csv": "file,label\nx,y\n"},
        "predict l.csv --model model",
        "l.csv has no column 'path'; it has file, label; give the column of the paths with --path_column",
    ),
    "a list with a hole": case(
        {"l.csv": "path,label\nphotos/brick/0.jpg,x\n,y\n"}, "predict l.csv --model model", "l.csv, line 3 has no path"
    ),
    "a pattern without an image": case(
        {}, "predict 'photos/**/*.bmp' --model model", "No image matches photos/**/*.bmp; check the pattern"
    ),
    "a pattern of other files": case(
        {"photos/x.txt": "hello"}, "predict 'photos/*.txt' --model model", "No image matches photos/*.txt, only 1 .txt"
    ),
    "a device that is not there": case({}, f"{PREDICT} --device cpu,cuda:99", "There is no device 'cuda:99' here"),
    "a part too many": case({}, f"{PREDICT} --drop_parts [3]", "There is no part 3: this model has parts 0 to 2"),
    "half a part": case({}, f"{PREDICT} --keep_parts [1.5]", "keep_parts is [1.5], but list[int]"),
    "a part that is NaN": case({}, f"{PREDICT} --drop_parts [.nan]", "drop_parts is [nan], but list[int]"),
    "the folder of the images": case(
        {},
        "predict photos/brick --model model --out out --overlays photos/brick",
        "photos/brick has files that are not pictures of `ifam predict`; choose another --overlays",
    ),
    # --- folders
    "no folder": case({}, f"train nowhere {QUICK}", "There is no folder nowhere; give one whose sub-folders"),
    "an image for a folder": case(
        {}, f"train photos/brick/0.jpg {QUICK}", "There is no folder photos/brick/0.jpg; give"
    ),
    "a folder without classes": case(
        {"e/": ""}, f"train e {QUICK}", "e has 0 sub-folders", "sort the images into e/CLASS/"
    ),
    "a class for a folder": case({}, f"train photos/brick {QUICK}", "photos/brick has 0 sub-folders", "with --root"),
    "a folder of one class": case(
        {"e/a/x.png": picture()}, f"train e {QUICK}", "e has 1 sub-folder, but one for each of at least two", "sort"
    ),
    "a class of one image": case(
        {"photos/wood/x.png": picture()}, TRAIN, "The class wood has a single image, but at least two are needed"
    ),
    "a class of no image": case({"photos/wood/": ""}, TRAIN, "photos/wood contains no images", "add some, or leave"),
    "a class that is the folder again": case(
        {"photos/z": Link("../photos/brick")},
        TRAIN,
        "listed twice, as photos/brick/0.jpg and as photos/z/0.jpg; remove",
    ),
    "a bad image among others": case(
        {"photos/brick/z.png": b"\x89PNG"}, TRAIN, "z.png is not a readable image", "skip_bad"
    ),
    "a model for a folder": case({}, f"train model {QUICK}", "model has 0 sub-folders", "sort the images"),
    # --- lists
    "an empty list": case(listed(""), LIST, "images.csv has no column 'path'; it has no header at all"),
    "a header alone": case(listed("path,label\n"), LIST, "images.csv lists no images; add a row for each"),
    "a column that is missing": case(listed("path\nx\n"), LIST, "images.csv has no column 'label'; it has path"),
    "a column twice": case(listed("path,label,label\n" + ROWS), LIST, "two columns 'label'; rename or remove one"),
    "a row twice": case(
        listed(f"path,label\n{ROWS}brick/0.jpg,brick\n"), LIST, "listed twice", "line 2", "line 12); remove one"
    ),
    "a row with two labels": case(
        listed(f"path,label\n{ROWS}brick/0.jpg,grass\n"), LIST, "listed twice", "line 12); remove one"
    ),
    "a list in UTF-16 without a mark": case(
        listed(f"path,label\n{ROWS}".encode("utf-16-le")), LIST, "images.csv", "contains zero bytes; save it as CSV"
    ),
    "a list in Latin-1": case(
        listed(f"path,label\n{ROWS}".replace("grass", "grün").encode("latin-1")),
        LIST,
        "line 7",
        "save it again in UTF-8",
    ),
    "a list with a zero byte": case(
        listed(f"path,label\n{ROWS}a\0,brick\n"), LIST, "images.csv", "zero bytes; save it"
    ),
    "a list of pipes": case(
        listed(f"path,label\n{ROWS}".replace(",", "|")), LIST, "no column 'path'; it has path|label"
    ),
    "a newline in quotes": case(
        listed(f'path,label\n{ROWS}"br\nick/0.jpg",brick\n'),
        LIST,
        r"photos/br\nick/0.jpg does not exist",
        "line 13",
        "remove",
    ),
    "a quote that is not closed": case(
        listed(f'path,label\n{ROWS}"x,brick\n'), LIST, "line 12 has 1 values", "quote values"
    ),
    "a field of a million letters": case(
        listed(f"path,label\n{ROWS}{WORD * 10},brick\n"), LIST, "images.csv cannot be read as a CSV file", "save it"
    ),
    "a path of many letters": case(
        listed(f"path,label\n{ROWS}{WORD},brick\n"), LIST, "xxx[...]xxx", "does not exist", "line 12", "remove it"
    ),
    "a value too few": case(
        listed(f"path,label\n{ROWS}x\n"), LIST, "line 12 has 1 values, but the header has 2; quote"
    ),
    "a value too many": case(listed(f"path,label\n{ROWS}x,y,z\n"), LIST, "line 12 has 3 values, but the header has 2"),
    "a label that is NaN": case(
        listed("path,label\n" + ROWS.replace("grass\n", "NaN\n", 1)), LIST, "line 7 has the label 'NaN'", "fill it in"
    ),
    "a label that is missing": case(
        listed(f"path,label\n{ROWS}x,\n"), LIST, "line 12 has no label; fill it in or remove"
    ),
    "a group that is NaN": case(columns("group", "nan"), LIST, "line 2 has the group 'nan'", "fill it in"),
    "an unknown split": case(
        columns("split", "trian"), LIST, "line 2 has the unknown split 'trian'; write one of train"
    ),
    "no split in a row": case(columns("split", ""), LIST, "line 2 has the unknown split ''; write one of train"),
    "no training images": case(columns("split", "test"), LIST, "folder has no split 'train'; it has test"),
    "an image outside of the root": case(
        listed("path,label\n" + ROWS.replace("brick/0.jpg", "../x.png")),
        LIST,
        "is outside of photos",
        "line 2",
        "move it",
    ),
    "a listed folder": case(
        listed("path,label\n" + ROWS.replace("brick/0.jpg", "brick")),
        LIST,
        "photos/brick does not exist",
        "line 2",
        "remove",
    ),
    "a list that is a folder": case({}, f"{TRAIN} --data.csv brick", "There is no file photos/brick; give --data.csv"),
    "a list that is an image": case(
        {}, f"{TRAIN} --data.csv brick/0.jpg", "0.jpg, line 1 cannot be read as a CSV", "save"
    ),
    "a list that is not there": case({}, LIST, "There is no file photos/images.csv; give --data.csv"),
    "a column that was named and is missing": case(
        listed(f"path,label\n{ROWS}"), f"{LIST} --data.group_column place", "no column 'place'; it has path, label"
    ),
    "a class twice": case(
        listed(f"path,label\n{ROWS}"),
        f"{LIST} --data.classes [brick,grass,brick]",
        "classes has 'brick', but a different name for each class",
    ),
    # --- masks
    "a mask of another size": case(
        masked(np.zeros((41, 50), np.uint8)),
        LIST,
        "mask.png is 50 x 41 pixels, but its image ",
        "0.jpg is 50 x 40",
        "remove",
    ),
    "a mask that is not there": case(
        columns("mask", "gone.png"), LIST, "gone.png does not exist", "line 2", "remove it"
    ),
    "a mask of no rows": case(
        masked(np.zeros((0, 50)), "npy"), LIST, "mask.npy is not a readable mask", "[H, W]", "remove"
    ),
    "a mask of complex numbers": case(
        masked(np.zeros((40, 50), complex), "npy"), LIST, "mask.npy", "holds complex128, but numbers", "remove it"
    ),
    "a mask of objects": case(
        masked(np.zeros((4, 5), object), "npy"), LIST, "mask.npy is not a readable mask", "remove it"
    ),
    "a mask of seven channels": case(masked(np.zeros((40, 50, 7)), "npy"), LIST, "mask.npy", "(40, 50, 7), but [H, W]"),
    # --- settings files
    "a billion laughs": yaml(LAUGHS, "has more than 100,000 values", "correct it"),
    "laughs in a setting": yaml(
        "model:\n  backbone_kwargs:\n" + "".join(f"    {line}\n" for line in LAUGHS.splitlines()),
        "has more than 100,000 values",
        verb="train",
    ),
    "settings that contain themselves": yaml("data: &a {seed: *a}\n", "has more than 100,000 values", verb="train"),
    "brackets in brackets": yaml("[" * 600 + "]" * 600, "nested too deeply", "correct it"),
    "a name of two words": yaml("? [a, b]\n: 3\n", "line 1: a list or settings are given as a name; write one word"),
    "the same setting in two ways": yaml(
        "train.epochs: 1\ntrain: {epochs: 2}\n", "line 1: train.epochs is also set in line 2; remove one", verb="train"
    ),
    "an unknown tag": yaml("seed: !foo 1\n", "cannot be read", "!foo", "line 1"),
    "a word tagged as a number": yaml("seed: !!int x\n", "a number or date in it is not valid; write another"),
    "a word tagged as a date": yaml("seed: !!timestamp x\n", "a number or date in it is not valid; write another"),
    "a date that does not exist": yaml(
        "seed: 2001-13-45\n", "seed in mine.yaml is 2001-13-45, but a whole number from 0"
    ),
    "a number of 5000 digits": yaml(f"seed: {'9' * 5000}\n", "a number or date in it is not valid; write another"),
    "two documents": yaml("---\nseed: 1\n---\nseed: 2\n", "another document", "line 3); correct it"),
    "a zero byte in settings": yaml("seed: \0\n", "not valid YAML (unacceptable character", "correct it"),
    "settings in UTF-16": yaml("seed: 1\n".encode("utf-16"), "is not a text in UTF-8", "save it as one"),
    "settings of random bytes": yaml(bytes(range(128, 256)), "is not a text in UTF-8", "save it as one"),
    "a link to itself for settings": case(
        {"mine.yaml": Link("mine.yaml")}, "train --config mine.yaml", "mine.yaml does not exist; give a YAML file"
    ),
    "an endless device for settings": case(
        {}, "train --config /dev/zero", "/dev/zero does not exist; give a YAML file"
    ),
    "a list for the benchmark": yaml("benchmark: [folder]\n", "benchmark", "is ['folder'], but str", verb="train"),
    "a seed of infinity": yaml("seed: 1e400\n", "seed in mine.yaml is inf, but a whole number from 0"),
    "a seed of nothing": yaml("seed: ''\n", "seed in mine.yaml is empty, but a whole number from 0"),
    "a seed of true": yaml("seed: true\n", "seed in mine.yaml is True, but a whole number from 0"),
    "a method without a name": case(
        {"mine.yaml": f"methods: {{'': {{method: ifam}}}}\n{NINE}"},
        "compare --config mine.yaml",
        "A row of the comparison has no name; write one",
    ),
    "a seed of a row": case(
        {"mine.yaml": f"methods: {{x: {{method: ifam, train: {{seed: 3}}}}}}\n{NINE}"},
        "compare --config mine.yaml",
        "The row 'x' sets train.seed",
        "from --seeds; remove it",
    ),
    "a rate of a row that is NaN": case(
        {"mine.yaml": f"methods: {{x: {{method: ifam, train: {{base_lr: .nan}}}}}}\n{NINE}"},
        "compare --config mine.yaml",
        "train.base_lr is nan, but 0 or a positive number is expected",
    ),
    # --- model folders
    "a model without settings": case({"model/config.json": None}, PREDICT, "model has no config.json; give a folder"),
    "a model without weights": case({"model/model.safetensors": None}, PREDICT, "model has no model.safetensors; give"),
    "pictures for a model": case(
        {}, PREDICT.replace("model --", "photos --"), "photos has no config.json; give a folder"
    ),
    "weights for a model": case(
        {}, PREDICT.replace("model --", "model/model.safetensors --"), "is a file, but a folder", "`ifam.load_official`"
    ),
    "a model that is not there": case({}, PREDICT.replace("model --", "nowhere --"), "no file or folder nowhere; give"),
    **{
        f"an ONNX file for a model, {verb}": case({"m.onnx": ONNX}, command, "m.onnx is a file", NO_MODEL)
        for verb, command in {
            "predict": "predict photos --model m.onnx",
            "evaluate": "evaluate m.onnx",
            "audit": "audit m.onnx",
            "thresholds": "thresholds m.onnx",
            "retrain": "retrain m.onnx",
            "challenge": "challenge m.onnx --root photos",
        }.items()
    },
    **{
        f"audit of any classifier, {what}": case(files, f"audit --any {command}", *says)
        for what, (files, command, *says) in {
            "of no form": ({}, "nonsense --root photos", "--any is 'nonsense'", "timm:NAME"),
            "of no name": ({}, "timm:resnet_50 --root photos", "timm has no model 'resnet_50'", "did you mean"),
            "without images": ({}, "math:sqrt", "--any has no images", "--root"),
            "without masks": ({}, "math:sqrt --root photos", "has no masks", "--selector"),
            "a function that raises": ({}, f"math:sqrt {DRAWN}", "math:sqrt raised ValueError", "[B, 3, H, W]"),
            "a module that is not there": ({}, f"no.such:f {CUT}", "no.such:f cannot be imported", "working directory"),
            "a module that is damaged": (
                {"damaged_any.py": "def f(:"},
                f"damaged_any:f {CUT}",
                "damaged_any:f cannot be imported (SyntaxError",
            ),
            "a damaged ONNX file": ({"m.onnx": ONNX}, f"m.onnx {CUT}", "m.onnx is not a valid ONNX file", "export"),
            "an ONNX file that is not there": ({}, f"m.onnx {CUT}", "There is no file m.onnx", "--any"),
            "weights that are none": (
                {"w.pth": "x"},
                f"timm:resnet18 --checkpoint w.pth {CUT}",
                "w.pth is not a valid checkpoint",
            ),
            "a selector that is not there": (
                {},
                "math:sqrt --root photos --selector nowhere",
                "no file or folder nowhere",
            ),
            "means of one channel": ({}, f"math:sqrt --mean [0.5] {CUT}", "mean is [0.5]"),
            "a negative deviation": ({}, f"math:sqrt --std [1,1,-1] {CUT}", "std is -1", "above 0"),
            "no backgrounds": ({}, f"math:sqrt --backgrounds 0 {CUT}", "backgrounds is 0", "at least 1"),
        }.items()
    },
    "an ONNX file to convert": case(
        {"m.onnx": ONNX}, "convert m.onnx out", "m.onnx is not a valid checkpoint", "safetensors"
    ),
    "an ONNX file to report": case({"m.onnx": ONNX}, "report m.onnx", "m.onnx cannot be read as JSON", "restore it"),
    "an ONNX file that is not there": case({}, "evaluate hub/m.onnx", "There is no file or folder hub/m.onnx; give"),
    "settings of a model cut off": case(
        {"model/config.json": "{"}, PREDICT, "config.json cannot be read as JSON", "restore"
    ),
    "a list of settings": case({"model/config.json": "[]"}, PREDICT, "config.json contains a list", "restore it"),
    "brackets in the settings of a model": case(
        {"model/config.json": "[" * 10**5}, PREDICT, "config.json cannot be", "restore"
    ),
    "a setting of a model twice": case(
        {"model/config.json": '{"ifam_version": "0", "num_parts": 3, "num_parts": 5}'},
        PREDICT,
        "'num_parts' is in it twice",
    ),
    "a folder for settings": case(
        {"model/config.json": None, "model/config.json/": ""}, PREDICT, "config.json", "restore it"
    ),
    "a backbone of a model that is a number": case(
        settings(predictor_backbone=7), PREDICT, "predictor_backbone is 7, but text or nothing", "save the model again"
    ),
    "parts of a model without end": case(
        settings(num_parts=10**30), PREDICT, "config.json", "num_parts is 1", "save the model"
    ),
    "a temperature of a model of 31 digits": case(
        settings(temperature=10**30), PREDICT, "temperature is 1", "save the model"
    ),
    "a dropout of a model of 1": case(
        settings(part_dropout=1.0), PREDICT, "config.json", "part_dropout is 1.0", "save the"
    ),
    "a million blocks": case(
        settings(backbone_kwargs={"depth": 10**6}),
        PREDICT,
        "config.json gives the backbone depth = 1000000",
        "remove it",
    ),
    "a size of a model without end": case(
        settings(image_size=10**6), PREDICT, "image_size is 1000000", "save the model"
    ),
    "a white that is a word": case(
        trained(data={"white": "x"}), PREDICT, "config.json", "{'white': 'x'}", "save the model"
    ),
    "a precision of no name": case(
        trained(precision="8"), "evaluate model", "the invalid precision '8'", "save the model"
    ),
    "thresholds that are a number": case(
        trained(thresholds=7), "thresholds model", "model has thresholds", "--overwrite"
    ),
    "thresholds of nothing": case(
        trained(thresholds=[]), "evaluate model --drop_unsure 0.5", "thresholds", "compute them"
    ),
    "weights cut off": case(
        {"model/model.safetensors": cut}, PREDICT, "model.safetensors is not a valid", "re-download it"
    ),
    "no bytes of weights": case(
        {"model/model.safetensors": b""}, PREDICT, "model.safetensors", "empty", "re-download it"
    ),
    "a tensor too few": case(
        weights(lambda w: {name: one for name, one in w.items() if name != HEAD}),
        PREDICT,
        "model.safetensors",
        f"missing: {HEAD}",
    ),
    "a tensor too many": case(
        weights(lambda w: w.update(x=torch.zeros(2))), PREDICT, "1 key is surplus: x", "damaged or"
    ),
    "a tensor of another shape": case(
        weights(lambda w: w.update({HEAD: torch.zeros(3, 128)})), PREDICT, f"{HEAD} (expected [2, 128], got [3, 128])"
    ),
    "weights that are NaN": case(head(torch.nan), PREDICT, f"1 key is not finite: {HEAD}", "damaged"),
    "weights that are infinite, to evaluate": case(
        head(torch.inf),
        "evaluate model",
        f"1 key is not finite: {HEAD}",
        "damaged",
    ),
    "weights that are NaN, to convert": case(head(torch.nan), "convert model o --to official", f"not finite: {HEAD}"),
    "weights of several types": case(
        weights(lambda w: w.update({HEAD: w[HEAD].half()})),
        PREDICT,
        "several types (torch.float16, torch.float32); save",
    ),
    "weights of 8 bits": case(
        weights(lambda w: {name: one.to(torch.float8_e4m3fn) for name, one in w.items()}),
        PREDICT,
        "cannot hold weights",
    ),
    "weights so large that answers overflow": case(
        weights(lambda w: {name: one * 1e30 for name, one in w.items()}), PREDICT, "answers with NaN", "train it again"
    ),
    "answers that overflow, to evaluate": case(
        weights(lambda w: {name: one * 1e30 for name, one in w.items()}),
        "evaluate model",
        "answers with NaN",
        "train it",
    ),
    # --- the authors' checkpoints
    "a checkpoint that is a text": case(
        {"a.pt": "hello"}, "convert a.pt o", "a.pt is not a valid checkpoint", "is expected"
    ),
    "a checkpoint that is a list": case(
        checkpoint([1]), "convert a.pt o", "a.pt holds a list, but a snapshot", "give one"
    ),
    "a checkpoint of nothing": case(checkpoint({}), "convert a.pt o", "a.pt: This is not a checkpoint of", "give one"),
    "a checkpoint without a state": case(
        checkpoint({"model_state": None}), "convert a.pt o", "a.pt holds a None", "give"
    ),
    "a checkpoint of a sparse tensor": case(
        checkpoint({"x": torch.eye(3).to_sparse()}), "convert a.pt o", "sparse or empty tensor under 'x'; save it again"
    ),
    "a checkpoint of an empty tensor": case(
        checkpoint({"x": torch.empty(3, device="meta")}),
        "convert a.pt o",
        "sparse or empty tensor under 'x'; save it again",
    ),
    "no heads": case({}, "convert model o --num_heads 0", "num_heads is 0, but a whole number of at least 1"),
    "half a conversion": case({}, "convert model", "required", "`ifam convert --help` lists the options"),
    "three paths to convert": case({}, "convert model a b", "b is not expected here; give files one after the other"),
    # --- results
    "a result that is a picture": case({}, "report photos/brick/0.jpg", "0.jpg cannot be read as JSON", "restore it"),
    "no result in a folder": case({}, "report photos", "photos contains neither audit.json", "give a folder that does"),
    "a page over a picture": case(
        {}, "report model --out photos/brick/0.jpg", "model contains neither", "give a folder"
    ),
    "predictions without a record": case(
        {"out.jsonl": "[]\n"}, f"{PREDICT}.jsonl --resume", "out.jsonl already exists; choose another --out"
    ),
    "predictions with a record of something else": case(
        {"out.jsonl": "[]\n", "out.jsonl.run.json": '{"complete": true}'},
        f"{PREDICT}.jsonl --resume",
        "out.jsonl.run.json is not a record of `ifam predict`; start over with --overwrite",
    ),
}

# Odd, and not bad: what the answer says.
GOOD = {
    "an image of one pixel": case({"x.png": picture((1, 1))}, ONE, "x.png"),
    "an image of one row": case({"x.png": picture((5000, 1))}, ONE, "x.png"),
    "a PNG named as a text": case({"x.txt": picture()}, ONE.replace("png", "txt"), "x.txt"),
    "an image of 16 bits": case({"x.png": np.full((9, 9), 65535, np.uint16)}, ONE, "x.png"),
    "a palette": case({"x.png": picture(mode="P")}, ONE, "x.png"),
    "CMYK": case({"x.jpg": picture(mode="CMYK", kind="JPEG")}, ONE.replace("png", "jpg"), "x.jpg"),
    "an animation": case({"x.gif": animation()}, ONE.replace("png", "gif"), "x.gif"),
    "a few values that are NaN": case(
        {"x.tif": np.array([[np.nan, 0.5]] * 9, np.float32)}, ONE.replace("png", "tif"), "x.tif"
    ),
    "a name with spaces and umlauts": case(
        {"größe ß.png": picture()}, ["predict", "größe ß.png", "--model", "model", "--out", "out"], "größe ß.png"
    ),
    "a dash after the path": case({"-x.png": picture()}, ONE.replace("x.png", "./-x.png"), "-x.png"),
    "every part dropped": case({}, f"{PREDICT} --drop_parts [0,1,2]", "nothing"),
    "no part kept": case({}, f"{PREDICT} --keep_parts []", "nothing"),
    "weights of half precision": case(
        weights(lambda w: {name: one.half() for name, one in w.items()}), PREDICT, "brick"
    ),
    "weights of double precision": case(
        weights(lambda w: {name: one.double() for name, one in w.items()}), PREDICT, "brick"
    ),
    "weights of zeros": case(weights(lambda w: {name: one * 0 for name, one in w.items()}), PREDICT, "50.0%"),
    "groups that are negative numbers": case(columns("group", "-1"), "evaluate model --data.csv images.csv", "-1"),
    "a list with a mark": case(listed(b"\xef\xbb\xbf" + f"path,label\n{ROWS}".encode()), f"{LIST}", "new"),
    "a list in UTF-16": case(
        listed(f"path,label\n{ROWS}".encode("utf-16")), "evaluate model --data.csv images.csv", "brick"
    ),
    "a list of semicolons": case(
        listed(f"path,label\n{ROWS}".replace(",", ";")), "evaluate model --data.csv images.csv", "brick"
    ),
    "no resamples": case({}, "evaluate model --num_resamples 0", "brick"),
}
