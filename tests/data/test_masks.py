"""Masks in files: which pixels are object, and which way up."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from ifam.data import FolderConfig
from ifam.data.masks import load_mask
from ifam.data.records import ImageFiles, Record, validated
from ifam.errors import IfamError

# An object of an eighth of the image, with no symmetry.
TRUTH = np.zeros((40, 64), bool)
TRUTH[4:20, 6:22] = True
TRUTH[20:24, 6:22] = True
TRUTH[2:4, :] = False


def save(path, values, mode=None, **options):
    image = Image.fromarray(values) if mode is None else Image.fromarray(values).convert(mode)
    image.save(path, **options)
    return path


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# --- which pixels ----------------------------------------------------------------------------------------

GREY = TRUTH.astype(np.uint8) * 255
SOFT = np.asarray(Image.fromarray(GREY).filter(ImageFilter.GaussianBlur(2)))
# What a user takes for the object of a soft mask.
INSIDE = SOFT >= 128


@pytest.mark.parametrize("ending", ["jpg", "webp"])
@pytest.mark.parametrize("quality", [10, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_compression_does_not_let_masks_grow(tmp_path, ending, quality, mode):
    mask = load_mask(save(tmp_path / f"m.{ending}", GREY, mode, quality=quality)).numpy()
    # At most some pixels on the outline; ringing reaches eight pixels away.
    assert (mask != TRUTH).mean() < 0.02


def test_compression_makes_no_object_of_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 30, TRUTH.shape).astype(np.uint8)
    assert not load_mask(save(tmp_path / "m.jpg", noise)).any()
    assert load_mask(save(tmp_path / "m.jpg", 255 - noise)).all()


@pytest.mark.parametrize("kind", ["png", "tif", "16.png", "npy", "float.npy", "255.npy", "pages.tif", "rgb.png"])
def test_soft_edges_are_cut_at_half(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    if kind.endswith("npy"):
        np.save(path, {"npy": SOFT, "float.npy": SOFT / 255, "255.npy": SOFT.astype(np.float32)}[kind])
    elif kind == "16.png":
        save(path, SOFT.astype(np.uint16) * 257)
    elif kind == "pages.tif":
        Image.fromarray(SOFT).save(path, save_all=True, append_images=[Image.fromarray(SOFT * 0)])
    else:
        save(path, SOFT, "RGB" if kind == "rgb.png" else "L")
    assert np.array_equal(load_mask(path).numpy(), INSIDE)


LABELS = np.zeros((40, 64), np.uint8)
LABELS[4:10, 6:22], LABELS[10:20, 6:22], LABELS[20:24, 6:22] = 1, 2, 17
UNCLEAR = LABELS.copy()
UNCLEAR[22:24, 6:22] = 255


@pytest.mark.parametrize("values", [TRUTH.astype(np.uint8), LABELS, UNCLEAR, TRUTH.astype(np.uint8) * 100])
@pytest.mark.parametrize("kind", ["png", "bmp", "gif", "16.png", "npy", "int64.npy", "channel.npy", "first.npy"])
def test_numbers_of_objects_are_objects(tmp_path, values, kind):
    path = tmp_path / f"m.{kind}"
    if kind.endswith("npy"):
        wide = values.astype(np.int64)
        arrays = {"npy": values, "int64.npy": wide, "channel.npy": values[..., None], "first.npy": values[None]}
        np.save(path, arrays[kind])
    elif kind == "gif":
        image = Image.fromarray(values).convert("P")
        image.putpalette([9, 9, 9, *(value % 251 for value in range(3, 768))])
        image.save(path, optimize=False)
    else:
        save(path, values.astype(np.uint16) if kind == "16.png" else values)
    assert np.array_equal(load_mask(path).numpy(), TRUTH)


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("fill", [0, 1])
def test_masks_of_nothing_and_of_everything(tmp_path, white, fill):
    values = np.full((5, 6), fill * white, np.uint8)
    assert load_mask(save(tmp_path / "m.png", values)).float().mean() == fill
    np.save(tmp_path / "m.npy", values.astype(bool))
    assert load_mask(tmp_path / "m.npy").float().mean() == fill


def test_colors_and_transparency(tmp_path):
    colored = np.zeros((40, 64, 3), np.uint8)
    colored[4:20, 6:22], colored[20:24, 6:22] = (70, 0, 0), (0, 255, 130)
    assert np.array_equal(load_mask(save(tmp_path / "a.png", colored)).numpy(), TRUTH)
    # Painted in white, or black, on nothing; what is transparent may have any color.
    for paint, nothing in ((255, 0), (255, 255), (0, 0), (0, 200)):
        grey = np.where(TRUTH, paint, nothing).astype(np.uint8)
        pixels = np.stack([grey, grey, grey, GREY], axis=2)
        if paint == 0 and nothing:
            pixels[..., :3][~TRUTH] = nothing
        assert np.array_equal(load_mask(save(tmp_path / "b.png", pixels)).numpy(), TRUTH), (paint, nothing)
        assert np.array_equal(load_mask(save(tmp_path / "c.png", pixels[..., 2:])).numpy(), TRUTH)


def test_a_black_and_white_palette_is_read_by_its_colors(tmp_path):
    image = Image.fromarray((~TRUTH).astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png").numpy(), TRUTH)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(3), r"its shape is \(3,\), but \[H, W\] is expected"),
        (np.zeros((2, 3, 40, 64)), "its shape is"),
        (np.zeros((0, 3)), "its shape is"),
        (np.full((4, 4), np.nan), "NaN or negative values"),
        (np.full((4, 4), -1.0), "NaN or negative values"),
        (np.array([["a"]]), "numbers or true and false are expected"),
    ],
)
def test_arrays_that_are_not_masks(tmp_path, values, words):
    np.save(tmp_path / "m.npy", values)
    with pytest.raises(IfamError, match=rf"m\.npy is not a readable mask \(.*({words})"):
        load_mask(tmp_path / "m.npy")


def test_damaged_arrays(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((40, 64)))
    whole = buffer.getvalue()
    huge = whole.replace(b"(40, 64)", b"(40000000, 64000)")
    for content in (b"", whole[:7], whole[:40], whole[:500], huge, b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "m.npy").write_bytes(content)
        with pytest.raises(IfamError, match=r"m\.npy is not a readable mask"):
            load_mask(tmp_path / "m.npy")
        with pytest.raises(IfamError, match=r"m\.npy is not a readable mask"):
            validated([Record(save(tmp_path / "i.png", GREY), 0, mask=tmp_path / "m.npy")], FolderConfig())


# --- which way up ----------------------------------------------------------------------------------------


def example_of(tmp_path, image_exif, mask_exif=None, *, upright_mask=False, shape=TRUTH.shape, ending="png"):
    """The example of an image whose white pixels are its object, and of a mask made from it."""
    stored = np.zeros(shape, np.uint8)
    stored[4:20, 6:22], stored[20:24, 6:14] = 255, 255
    options = {} if image_exif is None else {"exif": oriented(image_exif)}
    image = save(tmp_path / "i.png", stored, **options)
    with Image.open(image) as opened:
        made = ImageOps.exif_transpose(opened) if upright_mask else Image.fromarray(stored)
    if ending == "npy":
        np.save(tmp_path / "m.npy", np.asarray(made) > 0)
    else:
        made.save(tmp_path / f"m.{ending}", exif=b"" if mask_exif is None else oriented(mask_exif).tobytes())
    record = Record(image, 0, mask=tmp_path / f"m.{ending}")
    (record,) = validated([record], FolderConfig())
    example = ImageFiles([record])[0]
    shown = torch.from_numpy(np.asarray(example["image"])[..., 0] > 127)
    return example["mask"], shown


@pytest.mark.parametrize("ending", ["png", "npy"])
@pytest.mark.parametrize("number", range(2, 9))
def test_a_mask_of_the_stored_pixels_is_turned_with_its_image(tmp_path, number, ending):
    if number < 5:
        with pytest.warns(UserWarning, match="1 masks are rotated by the EXIF orientation of their images"):
            mask, shown = example_of(tmp_path, number, ending=ending)
    else:
        mask, shown = example_of(tmp_path, number, ending=ending)
    assert torch.equal(mask, shown)


@pytest.mark.parametrize("number", range(2, 9))
def test_a_mask_that_states_its_own_orientation_is_turned_by_that(tmp_path, number):
    mask, shown = example_of(tmp_path, number, number)
    assert torch.equal(mask, shown)
    # Drawn in a viewer, and said to be upright.
    mask, shown = example_of(tmp_path, number, 1, upright_mask=True)
    assert torch.equal(mask, shown)
    mask, shown = example_of(tmp_path, None, None)
    assert torch.equal(mask, shown)


@pytest.mark.parametrize("number", range(5, 9))
def test_a_mask_of_the_upright_size_stays(tmp_path, number):
    mask, shown = example_of(tmp_path, number, upright_mask=True)
    assert torch.equal(mask, shown)


def test_square_images_leave_it_open(tmp_path):
    with pytest.warns(UserWarning, match=r"m\.png.*save these images without EXIF orientation"):
        mask, shown = example_of(tmp_path, 6, shape=(64, 64))
    assert torch.equal(mask, shown)
