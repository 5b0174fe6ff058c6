"""Images of every kind: what is white, and which way up."""

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from ifam.data import images, load_benchmark
from ifam.data.images import MAX_PIXELS, load_image, load_rgba
from ifam.data.masks import load_mask, mask_size
from ifam.data.records import image_size
from ifam.errors import IfamError
from ifam.logs import shown

# Every twelve-bit value that is a multiple of 273, from 0 to 4095.
TWELVE = np.arange(16, dtype=np.uint16).reshape(4, 4) * 273
SHOWN = np.arange(16).reshape(4, 4) * 17
COLORS = np.stack([TWELVE, TWELVE.T, TWELVE[::-1]], axis=2)
SHOWN_COLORS = np.stack([SHOWN, SHOWN.T, SHOWN[::-1]], axis=2)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Each test starts without guesses."""
    monkeypatch.setattr(images, "_GUESSES", {})


def write_deep_png(path, values):
    """A PNG of 16 bits and several channels, which Pillow cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    return path


def load_grey(path, **options):
    pixels = np.asarray(load_image(path, **options))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


WRITERS = {
    "png": lambda path, values: Image.fromarray(values).save(path),
    "tif": lambda path, values: tifffile.imwrite(path, values),
    "big-endian.tif": lambda path, values: tifffile.imwrite(path, values, byteorder=">"),
    "signed.tif": lambda path, values: tifffile.imwrite(path, values.astype(np.int16)),
    "32-bit.tif": lambda path, values: tifffile.imwrite(path, values.astype(np.int32)),
    "float.tif": lambda path, values: tifffile.imwrite(path, values.astype(np.float32)),
    "pages.tif": lambda path, values: tifffile.imwrite(path, np.stack([values, values * 0]), photometric="minisblack"),
    "rgb.png": lambda path, values: write_deep_png(path, np.stack([values] * 3, axis=2)),
    "rgb.tif": lambda path, values: tifffile.imwrite(path, np.stack([values] * 3, axis=2), photometric="rgb"),
    "zip.tif": lambda path, values: tifffile.imwrite(
        path, np.stack([values] * 3, axis=2), photometric="rgb", compression="zlib"
    ),
    "rgba.png": lambda path, values: write_deep_png(path, np.stack([values] * 3 + [values * 0 + 4095], axis=2)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_twelve_bits_in_a_deeper_file_are_not_nearly_black(tmp_path, kind):
    WRITERS[kind](tmp_path / f"a.{kind}", TWELVE)
    with pytest.warns(UserWarning, match=r"does not state which value is white; 4,095 is assumed.*--data\.white"):
        pixels = load_grey(tmp_path / f"a.{kind}")
    assert np.array_equal(pixels, SHOWN)
    with warnings.catch_warnings():
        # It is said once.
        warnings.simplefilter("error")
        load_image(tmp_path / f"a.{kind}")


def test_deep_colors(tmp_path):
    with pytest.warns(UserWarning, match="4,095 is assumed"):
        image = load_image(write_deep_png(tmp_path / "a.png", COLORS))
    assert np.array_equal(np.asarray(image), SHOWN_COLORS)
    # The full range is what the format says: no warning.
    image = load_image(write_deep_png(tmp_path / "b.png", COLORS // 273 * 17 * 257))
    assert np.array_equal(np.asarray(image), SHOWN_COLORS)
    tifffile.imwrite(tmp_path / "c.tif", COLORS // 273 * 17 * 257, photometric="rgb")
    assert np.array_equal(np.asarray(load_image(tmp_path / "c.tif")), SHOWN_COLORS)


def test_deep_colors_that_cannot_be_read_are_refused(tmp_path):
    write_deep_png(tmp_path / "a.png", np.stack([TWELVE, TWELVE], axis=2))
    with pytest.raises(IfamError, match=r"a\.png.*16-bit values use the lowest 12 bits only; save it in RGB"):
        load_image(tmp_path / "a.png")
    planes = (COLORS // 273 * 17 * 257).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "b.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(IfamError, match=r"b\.tif.*stored one after another; save it as a 16-bit PNG"):
        load_image(tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("kind", "highest", "white"),
    [(np.uint16, 200, 255), (np.uint16, 900, 1023), (np.uint16, 9000, 16383), (np.float32, 200, 255)],
)
def test_white_is_the_smallest_usual_range(tmp_path, kind, highest, white):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, highest]], kind))
    with pytest.warns(UserWarning, match=f"{white:,} is assumed"):
        assert load_grey(tmp_path / "a.tif").tolist() == [[0, round(highest / white * 255)]]


def test_the_range_of_a_type_needs_no_word(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 20000, 65535]], np.uint16))
    assert load_grey(tmp_path / "a.tif").tolist() == [[0, 78, 255]]
    tifffile.imwrite(tmp_path / "b.tif", np.array([[0, 0.25, 0.5]], np.float32))
    assert load_grey(tmp_path / "b.tif").tolist() == [[0, 64, 128]]
    tifffile.imwrite(tmp_path / "c.tif", np.array([[-0.5, 0, 0.5]], np.float32))
    assert load_grey(tmp_path / "c.tif").tolist() == [[64, 128, 191]]
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((2, 2), np.uint16))
    assert not load_grey(tmp_path / "d.tif").any()
    tifffile.imwrite(tmp_path / "e.tif", np.array([[np.nan, 0.5]], np.float32))
    assert load_grey(tmp_path / "e.tif").tolist() == [[0, 128]]


def test_what_a_file_states_is_believed(tmp_path):
    Image.fromarray(np.array([[0, 1023]], np.uint16)).save(
        tmp_path / "a.tif", tiffinfo=_tag(TiffImagePlugin.ImageFileDirectory_v2(), 281, 4095)
    )
    with pytest.warns(UserWarning, match="4,095 is assumed"):
        assert load_grey(tmp_path / "a.tif").tolist() == [[0, 64]]
    (tmp_path / "b.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([0, 1023], ">u2").tobytes())
    assert load_grey(tmp_path / "b.pgm").tolist() == [[0, 64]]


def _tag(tags, number, value):
    tags[number] = value
    return tags


def test_white_can_be_said(tmp_path):
    tifffile.imwrite(tmp_path / "dark.tif", np.array([[0, 200]], np.uint16))
    assert load_grey(tmp_path / "dark.tif", white=4095).tolist() == [[0, 12]]
    tifffile.imwrite(tmp_path / "large.tif", np.array([[0, 50_000, 100_000]], np.int32))
    with pytest.raises(IfamError, match=r"large\.tif.*values go up to 100000; .*state which value is white"):
        load_image(tmp_path / "large.tif")
    assert load_grey(tmp_path / "large.tif", white=100_000).tolist() == [[0, 128, 255]]


def test_white_is_a_setting_of_the_data(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            tifffile.imwrite(tmp_path / name / f"{number}.tif", np.array([[0, 200]], np.uint16))
    images = load_benchmark("folder", tmp_path, {"white": 4095}).split("train")
    assert images[0]["image"].getpixel((1, 0)) == (12, 12, 12)


def test_a_second_range_is_named_beside_the_first(tmp_path):
    tifffile.imwrite(tmp_path / "full.tif", np.array([[0, 65535]], np.uint16))
    tifffile.imwrite(tmp_path / "dark.tif", np.array([[0, 4000]], np.uint16))
    load_image(tmp_path / "full.tif")
    with pytest.warns(UserWarning, match=r"dark\.tif.* 4,095 is assumed.* and 65,535 in full\.tif"):
        load_image(tmp_path / "dark.tif")


def test_other_color_spaces(tmp_path):
    for mode in ("CMYK", "YCbCr", "LAB"):
        red = Image.new("RGB", (4, 4), (200, 30, 40))
        color = Image.new("LAB", (4, 4), (107, 180, 160)) if mode == "LAB" else red.convert(mode)
        path = tmp_path / ("a.tif" if mode == "LAB" else "a.jpg")
        color.save(path)
        red, green, blue = load_image(path).getpixel((1, 1))
        assert red > 100 > max(green, blue), mode


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_the_first_picture_of_an_animation(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=100)
    red, _, blue = load_image(tmp_path / f"a.{ending}").getpixel((4, 4))
    assert red > 200 > 50 > blue


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_shapes_of_every_kind(tmp_path, size):
    Image.new("L", size, 7).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page .*download the file again"),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_named(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(IfamError, match=rf"a\.jpg is not a readable image \(.*{words}"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_a_damaged_file_is_an_image_or_a_sentence(tmp_path, ending):
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(tmp_path / f"a.{ending}")
    content = (tmp_path / f"a.{ending}").read_bytes()
    chance = np.random.default_rng(0)
    with warnings.catch_warnings():
        # Pillow warns of some of the damage that it reads over.
        warnings.simplefilter("ignore")
        for _ in range(100):
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[chance.integers(0, min(len(damaged), 200), 3)] = chance.integers(0, 256, 3)
            (tmp_path / f"b.{ending}").write_bytes(damaged[: chance.integers(1, len(damaged) + 1)].tobytes())
            with contextlib.suppress(IfamError):
                assert load_image(tmp_path / f"b.{ending}").mode == "RGB"


# --- sizes that would fill the memory ------------------------------------------------------------------------

# Where each format states width and height, after a picture of 8 x 8 pixels was written: (marker, offset, layout).
STATED = {
    "png": (b"IHDR", 4, ">II"),
    "jpg": (b"\xff\xc0", 5, ">HH"),
    "bmp": (b"BM", 18, "<ii"),
    "gif": (b"GIF", 6, "<HH"),
    "webp": (b"VP8 ", 14, "<HH"),
    "ppm": (b"8 8", 0, None),
    "tif": (b"\x00\x01\x04\x00\x01\x00\x00\x00", 8, None),
}


def write_bomb(path, side=60_000):
    """A picture of a few hundred bytes that says it has far more pixels."""
    kind = path.suffix[1:]
    marker, offset, layout = STATED[kind]
    if kind == "tif":
        tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint8), photometric="rgb")
        with tifffile.TiffFile(path, mode="r+b") as file:
            for tag in ("ImageWidth", "ImageLength"):
                file.pages[0].tags[tag].overwrite(side)
        return path
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, {"jpg": "jpeg"}.get(kind, kind))
    content = bytearray(written.getvalue())
    at = content.index(marker) + offset
    if layout is None:
        content[at : at + len(marker)] = b"%d %d" % (side, side)
    else:
        side = min(side, 16_383) if kind == "webp" else side
        struct.pack_into(layout, content, at, side, side)
    if kind == "png":
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("read", [load_image, load_rgba, load_mask])
@pytest.mark.parametrize("kind", STATED)
def test_a_small_file_that_states_a_huge_picture_is_refused(tmp_path, monkeypatch, kind, read, lifted):
    """By its header; also where another library has lifted Pillow's own limit."""
    if lifted:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = write_bomb(tmp_path / f"bomb.{kind}")
    assert path.stat().st_size < 2000
    tracemalloc.start()
    words = rf"^{path} is not a readable \w+ \(it has .*more than 178,956,970.*\); remove"
    with pytest.raises(IfamError, match=words) as said:
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("measure", [image_size, mask_size])
def test_headers_are_not_trusted_either(tmp_path, measure):
    with pytest.raises(ValueError, match="178,956,970"):
        measure(write_bomb(tmp_path / "bomb.png"))


@pytest.mark.parametrize("whole", [False, True])
def test_an_array_that_states_a_huge_mask_is_refused(tmp_path, whole):
    """Cut off, or with holes that take no room on the disk."""
    path = tmp_path / "m.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(20_000, 10_000))
    if not whole:
        path.write_bytes(path.read_bytes()[:1000])
    tracemalloc.start()
    with pytest.raises(IfamError, match=rf"not a readable mask \(.*{'178,956,970' if whole else ''}"):
        load_mask(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_listed_bomb_is_left_out_or_named(tmp_path, caplog):
    for i in range(4):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    write_bomb(tmp_path / "a" / "bomb.png")
    with pytest.raises(IfamError, match=r"bomb\.png is not a readable image .*178,956,970"):
        load_benchmark("folder", tmp_path)
    data = load_benchmark("folder", tmp_path, {"skip_bad": True})
    assert sum(map(len, data.splits.values())) == 4
    assert "bomb.png" in caplog.text


@pytest.mark.slow
def test_a_photograph_of_a_hundred_megapixels_is_read_in_silence(tmp_path, caplog):
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "large.png")
    assert MAX_PIXELS > 10_000**2
    with shown():
        assert load_image(tmp_path / "large.png").size == (10_000, 10_000)
    assert caplog.text == ""


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_values_do_not_take_many_times_their_memory(tmp_path, channels):
    write_deep_png(tmp_path / "deep.png", np.zeros((1000, 4000, channels), np.uint16))
    tracemalloc.start()
    load_image(tmp_path / "deep.png")
    assert tracemalloc.get_traced_memory()[1] < 4e6 * channels * 8 + 1e8
    tracemalloc.stop()
