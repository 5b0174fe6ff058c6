"""A row shows itself in a notebook, and its picture can be plotted and saved."""

import base64
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ifam.errors import IfamError
from ifam.inference import predict
from ifam.prediction.row import Prediction


@pytest.fixture
def row(tiny_model, tmp_path):
    path = tmp_path / "<b>bold & co.png"
    noise = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    (row,) = predict(tiny_model, path)
    return row


def test_a_notebook_shows_the_answer_with_its_picture(row):
    page = row._repr_html_()
    assert row.class_name in page
    assert f"{row.probability:.1%}" in page
    assert f"{row.selector_class} · {row.selector_probability:.1%}" in page
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', page)[1]
    with Image.open(BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == row.draw().size
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold &amp; co.png" in page


def test_whatever_is_in_a_row_is_escaped(row):
    bad = "<script>alert('x')</script>\x1b[2J"
    page = Prediction(Path(bad), 0, bad, 0.5, ((bad, 0.5), (bad, 0.4)), classes=(bad,), selector_class=bad, scaling=bad)
    failed = Prediction(Path(bad), error=bad)
    for text in (page._repr_html_(), failed._repr_html_()):
        assert "<script>" not in text
        assert "\x1b" not in text
        assert "&lt;script&gt;" in text
        assert "<img" not in text
    assert "not read" in failed._repr_html_()


def test_the_picture_is_plotted_and_saved_as_it_was_drawn(row, tiny_model, tmp_path):
    (drawn,) = predict(tiny_model, row.path, overlays=tmp_path / "drawn")
    overlay = np.asarray(Image.open(drawn.overlay))
    assert np.array_equal(np.asarray(row.draw()), overlay)
    assert row.save(tmp_path / "x" / "y.png") == tmp_path / "x" / "y.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x" / "y.png")), overlay)
    row.save(tmp_path / "y.webp")
    figure = row.plot()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    for name in ("y.txt", "y"):
        with pytest.raises(IfamError, match=f"{name} has no ending of a picture; give one such as"):
            row.save(tmp_path / name)


def test_what_a_row_keeps_is_small(row):
    assert row.maps.parts.nbytes + row.maps.packed.nbytes <= 16 + 2
    assert row.maps.mask.shape == (4, 4)
    assert row.maps.mask.float().mean() == pytest.approx(row.visible_fraction)
    assert "maps" not in repr(row)


def test_a_picture_that_cannot_be_drawn_again_is_a_sentence(row, tiny_model, tmp_path):
    (drawn,) = predict(tiny_model, row.path, overlays=tmp_path / "drawn", out=tmp_path / "out.csv")
    (again,) = predict(tiny_model, row.path, overlays=tmp_path / "drawn", out=tmp_path / "out.csv", resume=True)
    row.path.unlink()
    # What comes from a table has the picture that was drawn.
    assert "<img" in again._repr_html_()
    with pytest.raises(IfamError, match=r"co\.png cannot be read again \(it is missing\); predict once more"):
        row.plot()
    assert "<img" not in row._repr_html_()
    drawn.overlay.unlink()
    with pytest.raises(IfamError, match="draw it again"):
        again.save(tmp_path / "x.png")
    with pytest.raises(IfamError, match="the file could not be read; predict it again"):
        Prediction(row.path, error="it is empty").draw()
