"""DICOM images as a viewer would display them."""

import ast
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless

import ifam.data
from ifam.data.dicom import dicom_size, load_dicom, read_dicom
from ifam.errors import IfamError
from miniatures import HEIGHT, WIDTH, draw_dicom

RAMP = np.tile(np.arange(WIDTH), (HEIGHT, 1))


@pytest.mark.parametrize(
    ("pixels", "settings", "expected"),
    [
        (RAMP, {}, RAMP),
        (RAMP, {"inverted": True}, 255 - RAMP),
        (RAMP * 16, {"bits": 12}, (RAMP * 16 / 4095 * 255).round()),
        (RAMP * 256, {"bits": 16}, (RAMP * 256 / 65535 * 255).round()),
    ],
)
def test_values_are_brought_to_eight_bits(tmp_path, pixels, settings, expected):
    path = draw_dicom(tmp_path / "1.2.3.dcm", pixels, **settings)
    image = load_dicom(path)
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    for channel in range(3):
        assert np.array_equal(np.asarray(image)[..., channel], expected)
    assert dicom_size(path) == (WIDTH, HEIGHT)


def test_a_file_that_states_a_huge_picture_is_refused(tmp_path):
    """Before it is decoded: compressed pixels take next to nothing in the file."""
    path = draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 6, jpeg=True)
    file = pydicom.dcmread(path)
    file.Rows = file.Columns = 60_000
    file.save_as(path)
    with pytest.raises(IfamError, match=r"not a readable DICOM .*60,000 x 60,000 pixels, more than 178,956,970"):
        load_dicom(path)
    with pytest.raises(ValueError, match="178,956,970"):
        dicom_size(path)


def test_compressed_files_are_read(tmp_path):
    """Those of the challenge are: no further decoder must be needed."""
    image = load_dicom(draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 6, jpeg=True))
    assert np.abs(np.asarray(image)[..., 0].astype(int) - RAMP * 6).max() < 8


def change(path, **elements):
    """A DICOM file with other elements."""
    file = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(file, name, value)
    file.save_as(path)
    return path


@pytest.mark.parametrize(
    ("elements", "expected", "scaling"),
    [
        ({"WindowCenter": 1024.5, "WindowWidth": 1025}, (RAMP * 64 - 512) / 1024, "window 1024.5 / 1025"),
        ({"WindowCenter": [1024.5, 40], "WindowWidth": [1025, 80]}, (RAMP * 64 - 512) / 1024, "window 1024.5 / 1025"),
        (
            {"WindowCenter": 24.5, "WindowWidth": 1025, "RescaleSlope": 1, "RescaleIntercept": -1000},
            (RAMP * 64 - 512) / 1024,
            "window 24.5 / 1025",
        ),
        (
            {"WindowCenter": 1000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"},
            (RAMP * 64 - 500) / 1000,
            "window 1000 / 1000",
        ),
        ({"RescaleSlope": 2, "RescaleIntercept": -1000}, RAMP * 64 / 4095, "range -1000 to 7190"),
        ({"RescaleSlope": -1, "RescaleIntercept": 0}, 1 - RAMP * 64 / 4095, "range -4095 to 0"),
        ({"WindowCenter": "", "WindowWidth": ""}, RAMP * 64 / 4095, "range 0 to 4095"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 1 - RAMP * 64 / 4095, "range 0 to 4095, inverted"),
    ],
)
def test_black_and_white_are_the_ends_of_the_window_or_of_the_stored_range(tmp_path, elements, expected, scaling):
    path = change(draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 64, bits=12), **elements)
    image, said = read_dicom(path)
    assert said == scaling
    assert np.abs(np.asarray(image)[..., 0] - expected.clip(0, 1) * 255).max() <= 1


def test_signed_values(tmp_path):
    path = draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 64 - 1000, bits=12)
    image, said = read_dicom(change(path, PixelRepresentation=1))
    assert said == "range -2048 to 2047"
    assert np.array_equal(np.asarray(image)[..., 0], ((RAMP * 64 - 1000 + 2048) / 4095 * 255).round())


def test_colors_are_taken_as_they_are(tmp_path):
    path = draw_dicom(tmp_path / "1.2.3.dcm", RAMP)
    colors = np.stack([RAMP, RAMP * 2, RAMP * 3], axis=2).astype(np.uint8)
    elements = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    image, said = read_dicom(change(path, **elements, PixelData=colors.tobytes()))
    assert (said, np.asarray(image).tolist()) == ("", colors.tolist())


def test_frames_and_what_has_no_decoder_are_a_sentence(tmp_path):
    path = draw_dicom(tmp_path / "1.2.3.dcm", RAMP)
    change(path, NumberOfFrames=3, PixelData=np.tile(RAMP, (3, 1)).astype(np.uint8).tobytes())
    with pytest.raises(IfamError, match="it has 3 frames; save each as an image of its own"):
        load_dicom(path)
    path = draw_dicom(tmp_path / "1.2.4.dcm", RAMP, jpeg=True)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = JPEGLSLossless
    file.save_as(path)
    with pytest.raises(IfamError, match=r"compressed as JPEG-LS Lossless .*, for which no decoder is installed; save"):
        load_dicom(path)
    path.write_bytes(b"")
    with pytest.raises(IfamError, match=r"1\.2\.4\.dcm is not a readable DICOM image"):
        load_dicom(path)


@pytest.mark.slow
def test_pydicom_is_imported_only_when_it_is_needed():
    """It is no base dependency: no file may import it at its top."""
    source = Path(ifam.data.__file__).parent
    assert "pydicom" in (source / "dicom.py").read_text()
    for path in source.parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not any(name.split(".")[0] == "pydicom" for name in named), path
