"""Files of every kind in, rows and pictures out."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data.base import TransformedDataset
from ifam.errors import IfamError
from ifam.inference import display_crop, load_image, predict, preprocess, print_predictions
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, UseMask
from ifam.models.registry import build
from ifam.prediction.row import Prediction
from ifam.pulse import Pulse

PHOTOS = ("astronaut", "chelsea", "coffee")


@pytest.fixture(scope="module")
def model() -> IFAM:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="vit_tiny_patch16_224",
        image_size=96,
        num_parts=3,
        num_classes=7,
        class_names=tuple(f"species {c}" for c in range(7)),
        backbone_kwargs={"depth": 2, "embed_dim": 48, "num_heads": 3},
    )
    return IFAM(config, pretrained=False).eval()


def photo(name: str = "astronaut") -> Image.Image:
    """A photograph of scikit-image, read by Pillow: its own reader needs versions of Pillow that ours may not be."""
    return Image.open(Path(skimage.data.__file__).with_name(f"{name}.png"))


@pytest.mark.slow
def test_photographs_give_rows_tables_and_pictures(model, tmp_path):
    for name in PHOTOS:
        photo(name).save(tmp_path / f"{name}.jpg")
    rows = predict(model, [tmp_path / f"{name}.jpg" for name in PHOTOS], out=tmp_path, overlays=tmp_path / "drawn")
    assert [row.path.stem for row in rows] == list(PHOTOS)
    for row in rows:
        assert row.class_name == f"species {row.label}" == row.top[0][0]
        assert row.probability == row.top[0][1] == max(p for _, p in row.top)
        assert len(row.top) == 5
        assert 0 <= row.visible_fraction <= 1
        assert row.empty == (row.visible_fraction == 0)
        with Image.open(row.overlay) as picture:
            assert picture.width > 3 * 288
    with (tmp_path / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["overlay"] for line in table] == [str(tmp_path / "drawn" / f"{name}.png") for name in PHOTOS]
    assert [float(line["probability"]) for line in table] == [row.probability for row in rows]


@pytest.mark.parametrize(
    ("settings", "unit"),
    [({}, "patches"), ({"selector_image_size": 160}, "patches"), ({"mask_resolution": 2}, "pixels")],
    ids=["patches", "two grids", "pixels"],
)
def test_a_picture_says_what_is_visible(settings, unit, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(
        "ifam.prediction.row.triptych", lambda image, *_, caption, **__: captions.append(caption) or image
    )
    Image.new("RGB", (90, 90), (200, 30, 30)).save(tmp_path / "red.png")
    model = IFAM(ModelConfig(backbone="ifam_tiny", image_size=80, **settings)).eval()
    (row,) = predict(model, tmp_path / "red.png", overlays=tmp_path / "out")
    assert not row.empty
    assert captions == [f"red.png · {row.visible_fraction:.0%} of the {unit} visible"]


def test_same_answer_whatever_the_batch(model, tmp_path):
    for name in PHOTOS:
        photo(name).save(tmp_path / f"{name}.png")
    alone, together = predict(model, tmp_path, batch_size=1), predict(model, str(tmp_path), batch_size=3)
    assert [row.label for row in alone] == [row.label for row in together]
    assert [row.probability for row in alone] == pytest.approx([row.probability for row in together], abs=1e-5)
    assert all(row.overlay is None for row in alone)


def test_preprocessing_is_that_of_evaluation(model):
    class Three:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict:
            return {"image": photo(PHOTOS[index]), "label": 0}

    prepared = TransformedDataset(Three(), model.image_size, model.normalization)
    for index, name in enumerate(PHOTOS):
        assert torch.equal(preprocess(photo(name), model), prepared[index]["image"])


@pytest.mark.parametrize("size", [(500, 20), (20, 500), (1, 1), (3, 4000), (97, 95), (96, 96), (5000, 700)])
def test_any_shape(model, size):
    image = Image.effect_noise(size, 40)
    assert preprocess(image, model).shape == (3, 96, 96)
    shown = display_crop(image, model)
    assert shown.width == shown.height
    assert 96 <= shown.width <= 518
    assert shown.width % 6 == 0


def test_display_shows_the_crop_that_the_model_sees(model):
    image = photo("coffee")
    shown = display_crop(image, model).resize((96, 96), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(v)[:, None, None] for v in model.normalization)
    seen = (preprocess(image, model) * std + mean) * 255
    assert np.abs(np.asarray(shown, dtype=float) - seen.permute(1, 2, 0).numpy()).mean() < 4


def test_grey_palette_cmyk_and_transparent_files(model, tmp_path):
    image = photo()
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.gif")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("1").save(tmp_path / "bits.tif")
    clear = image.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    assert len(predict(model, tmp_path)) == 5
    assert np.asarray(load_image(tmp_path / "clear.png")).min() == 255
    assert (np.asarray(load_image(tmp_path / "grey.png"))[..., 0] == np.asarray(image.convert("L"))).all()
    assert np.abs(np.asarray(load_image(tmp_path / "cmyk.jpg"), float) - np.asarray(image)).mean() < 6


def test_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(tmp_path / "a.png").getpixel((1, 1)) == (0, 255, 0)


def test_sixteen_bits_and_floats_keep_their_contrast(tmp_path):
    grey = np.asarray(photo().convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    assert (np.asarray(load_image(tmp_path / "sixteen.png"))[..., 1] == grey).all()
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert (np.asarray(load_image(tmp_path / "float.tif"))[..., 1] == grey).all()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(IfamError, match=r"nan\.tif is not a readable image \(none of its values is a number\)"):
        load_image(tmp_path / "nan.tif")


@pytest.mark.slow
def test_deep_images_are_read_as_in_training(model, tmp_path):
    twelve = np.asarray(photo().convert("L")).astype(np.uint16) * 16
    Image.fromarray(twelve).save(tmp_path / "deep.png")
    hub.save(model, tmp_path / "model", {"data": {"white": 32767}})
    out = tmp_path / "out.jsonl"
    main(["predict", str(tmp_path / "deep.png"), "--model", str(tmp_path / "model"), "--out", str(out)])
    row = json.loads(out.read_text(encoding="utf-8"))
    (same,) = predict(model, tmp_path / "deep.png", white=32767)
    (other,) = predict(model, tmp_path / "deep.png", white=4095)
    assert row["probability"] == pytest.approx(same.probability)
    assert same.top != other.top


@pytest.mark.parametrize("sixteen", [False, True])
def test_exif_rotation(tmp_path, sixteen):
    image = Image.new("I;16", (40, 20)) if sixteen else Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == (20, 40)


def bad_files(folder: Path) -> None:
    (folder / "text.jpg").write_text("this is no image")
    (folder / "empty.png").write_bytes(b"")
    photo().save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("name", ["text.jpg", "empty.png", "cut.jpg"])
def test_a_file_that_is_no_image_is_named(model, tmp_path, name):
    bad_files(tmp_path)
    with pytest.raises(IfamError, match=rf"{re.escape(name)} is not a readable image.*leave --strict out"):
        predict(model, tmp_path / name, strict=True)


def test_a_bad_file_is_a_row_with_its_error_and_changes_no_other(model, tmp_path):
    bad_files(tmp_path)
    rows = predict(model, tmp_path, out=tmp_path / "out.csv")
    assert [row.path.name for row in rows] == ["cut.jpg", "empty.png", "text.jpg", "whole.jpg"]
    assert "truncated" in rows[0].error
    assert rows[1].error == "the file is empty; copy or download it again"
    assert "cannot identify" in rows[2].error
    assert all(row.label is row.class_name is row.probability is None for row in rows[:3])
    assert rows[3] == predict(model, tmp_path / "whole.jpg")[0]
    with (tmp_path / "out.csv").open() as file:
        assert [line["error"] for line in csv.DictReader(file)] == [row.error or "" for row in rows]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("devices", [(), ("cpu", "cpu")], ids=["one device", "two"])
def test_with_strict_nothing_is_lost_that_stands_before_a_bad_file(model, tmp_path, batch_size, devices):
    for name in "abde":
        photo().resize((50, 50)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_text("no image")
    settings = {"batch_size": batch_size, "out": tmp_path / "out.csv", "devices": devices, "strict": True}
    with pytest.raises(IfamError, match=r"c\.png"):
        predict(model, tmp_path, **settings)
    with (tmp_path / "out.csv").open() as file:
        assert [Path(line["path"]).name for line in csv.DictReader(file)] == ["a.png", "b.png"]
    photo().save(tmp_path / "c.png")
    assert len(predict(model, tmp_path, **settings, resume=True)) == 5


def test_paths_that_lead_nowhere(model, tmp_path):
    with pytest.raises(IfamError, match="missing does not exist"):
        predict(model, tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(IfamError, match="contains no images"):
        predict(model, tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(IfamError, match=r"pipe\.jpg is not a regular file"):
        predict(model, tmp_path / "pipe.jpg")
    with pytest.raises(IfamError, match="No path"):
        predict(model, [])
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(IfamError, match="batch_size is 0"):
        predict(model, tmp_path, batch_size=0)
    with pytest.raises(IfamError, match="workers is -1"):
        predict(model, tmp_path, workers=-1)
    with pytest.raises(IfamError, match="give out, too"):
        predict(model, tmp_path, resume=True)


@pytest.mark.slow
def test_folders_are_searched_and_pictures_never_collide(model, tmp_path):
    for name in ("a/1.png", "b/1.png", "b/1.JPG", ".hidden/1.png", "._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo().resize((100, 80)).save(tmp_path / name)
    out = tmp_path / "out"
    first = predict(model, [tmp_path, tmp_path / "a"], overlays=out)
    assert [row.path.relative_to(tmp_path).as_posix() for row in first] == ["a/1.png", "b/1.JPG", "b/1.png"]
    assert sorted(path.name for path in out.glob("*.png")) == ["a_1.png", "b_1-2.png", "b_1.png"]
    assert len(predict(model, [tmp_path, tmp_path / "a"], overlays=out)) == 3  # our own pictures are no input
    assert len(predict(model, tmp_path, overlays=tmp_path / "again")) == 3  # nor those of an earlier run
    assert len(predict(model, f"{tmp_path}/**/*.*")) == 3
    spelled = [tmp_path / "a" / "1.png", os.path.relpath(tmp_path / "a" / "1.png"), tmp_path / "b" / ".." / "a"]
    assert len(predict(model, spelled)) == 1


def test_interventions_and_empty_masks(model, tmp_path):
    photo().save(tmp_path / "a.png")
    empty = predict(model, tmp_path, interventions=[UseMask(torch.zeros(6, 6, dtype=torch.bool))])
    full = predict(model, tmp_path / "a.png", interventions=[UseMask(torch.ones(6, 6, dtype=torch.bool))])
    assert empty[0].empty
    assert empty[0].visible_fraction == 0
    assert full[0].visible_fraction == 1


def test_the_mode_of_the_model_is_kept(model, tmp_path):
    photo().save(tmp_path / "a.png")
    model.train()
    try:
        first, second = predict(model, tmp_path), predict(model, tmp_path)
        assert model.training
    finally:
        model.eval()
    assert first == second


def test_many_images_show_progress(model, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "ifam")
    monkeypatch.setattr(Pulse, "first", 0.0)
    monkeypatch.setattr(Pulse, "interval", 0.01)
    for number in range(21):
        photo().resize((96, 96)).save(tmp_path / f"{number:02}.png")
    predict(model, tmp_path)
    assert re.search(r"predicting: \d+ of 21, .* left", caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selector", "late_mask", "soft_mask"])
def test_models_whose_mask_hides_nothing_are_drawn_too(name, model, tmp_path, capsys):
    other = build(name, model.config, pretrained=False).eval()
    photo().save(tmp_path / "x.png")
    (row,) = predict(other, tmp_path / "x.png", overlays=tmp_path / "out")
    with torch.no_grad():
        out = other(preprocess(photo(), other)[None])
    assert row.label == int(out.logits.argmax())
    assert row.visible_fraction == pytest.approx(float(out.visible_fraction))
    assert row.overlay.is_file()
    other.save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out.csv")]
    main(["predict", str(tmp_path / "x.png"), *words])
    said = " ".join(capsys.readouterr().out.split())
    assert "hides" in said
    assert "visible" not in said


def test_without_parts_there_is_nothing_to_draw(model, tmp_path):
    photo().save(tmp_path / "x.png")
    for name in ("plain_vit", "given_mask", "trained_crops", "frozen_crops"):
        with pytest.raises(IfamError, match=f"The method {name} has no parts to draw"):
            predict(build(name, model.config, pretrained=False), tmp_path / "x.png", out=tmp_path / "out")
    alone = build("selector", model.config, pretrained=False)
    with pytest.raises(IfamError, match="selector does not support interventions"):
        predict(alone, tmp_path / "x.png", interventions=[DropParts([0])])
    assert not (tmp_path / "out").exists()


def test_many_rows_are_printed_one_by_one(capsys):
    """Each before the next one is asked for; a few are one table."""
    shown = []

    def rows(number):
        for count in range(number):
            shown.append(capsys.readouterr().out)
            flags = ("nothing_visible",) if count == 3 else ()
            row = Prediction(Path(f"{count}.png"), 0, "a bird", 0.75, (("a bird", 0.75),), 0.5, flags=flags)
            yield Prediction(Path("4.png"), error="it is empty") if count == 4 else row

    print_predictions(rows(40))
    assert shown[-1] == "38.png  a bird  75.0%  50%\n"
    assert "image  class  probability  visible\n" in "".join(shown)
    assert "3.png  a bird  75.0%  nothing\n" in "".join(shown)
    assert "4.png  not read: it is empty\n" in "".join(shown)
    shown.clear()
    capsys.readouterr()
    print_predictions(rows(20))
    assert not any(shown)
    assert "┃ image" in capsys.readouterr().out
