"""A visitor's session: images in, paint remembered, and models learned from it; bounded in number and time."""

import hashlib
import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.app.panel import answer_html, bars_html, pictures_html
from ifam.app.session import Session, Sessions, Studio
from ifam.checkpoints import hub
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration
from ifam.models.baselines import PlainViT


@pytest.fixture
def photos(tmp_path):
    """Three image files."""
    generator, files = np.random.default_rng(0), []
    for number in range(3):
        files.append(tmp_path / f"photo {number} é.png")
        Image.fromarray(generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(files[-1])
    return files


@pytest.fixture
def studio(tiny_model, tmp_path):
    (tmp_path / "models").mkdir()
    return Studio(tiny_model, "runs/tiny", tmp_path / "models", "tiny", extra={"benchmark": "pondbirds"})


@pytest.fixture
def session(studio):
    return Session(studio)


def test_paint_on_several_images_becomes_a_new_model_beside_the_old(session, studio, photos, images):
    weights = {name: weight.clone() for name, weight in studio.model.state_dict().items()}
    for file in photos[:2]:
        session.open_file(file)
        before = session.exploration.answer().mask
        session.exploration.paint([(0, 0), (0, 1)], "not this" if before[0, 0] else "this")
    folder = session.learn()
    assert folder == studio.corrected / "tiny-corrected-1"
    record = json.loads((folder / "corrections.json").read_text(encoding="utf-8"))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in photos[:2]]
    assert record["images"] == [
        {"name": file.name, "sha256": digest} for file, digest in zip(photos, digests, strict=False)
    ]
    # What answers is what was saved, the paint is off, and the mask has followed it by itself.
    assert torch.equal(hub.load(folder)(images).mask, session.model(images).mask)
    assert not session.exploration.edited
    after = session.exploration.answer().mask
    assert not torch.equal(after, before)
    assert after[0, 0] != before[0, 0]
    # The model that was given is as it was, for everybody else.
    assert all(torch.equal(weights[name], weight) for name, weight in studio.model.state_dict().items())
    assert session.learn() == studio.corrected / "tiny-corrected-2"


def test_what_was_taken_back_is_not_learned(session, photos):
    session.open_file(photos[0])
    session.exploration.paint([(0, 0)], "this")
    session.reset()
    session.open_file(photos[1])
    assert session.painted == []
    with pytest.raises(IfamError, match="Nothing is painted"):
        session.learn()


def test_painting_an_image_again_replaces_what_was_painted(session, photos):
    for _ in range(2):
        session.open_file(photos[0])
        session.exploration.paint([(2, 2)], "this")
        session.open_file(photos[1])
    assert len(session.painted) == 1


def test_paint_counts_until_it_is_taken_back(session, photos):
    """After learning it is not shown any more; it is when its image is opened again, to be erased for example."""
    session.open_file(photos[0])
    session.exploration.paint([(0, 0), (0, 1), (0, 2)], "not this")
    session.learn()
    assert not session.exploration.painted
    session.exploration.paint([(0, 2), (3, 3)], "this")
    session.learn()
    (one,) = session.painted
    assert one.hidden.nonzero().tolist() == [[0, 0], [0, 1]]
    assert one.shown.nonzero().tolist() == [[0, 2], [3, 3]]
    session.open_file(photos[1])
    session.open_file(photos[0])
    assert torch.equal(session.exploration.hidden, one.hidden)
    assert torch.equal(session.exploration.shown, one.shown)
    session.exploration.paint([(0, 0), (0, 1), (0, 2), (3, 3)], "as found")
    session.open_file(photos[1])
    assert session.painted == []
    with pytest.raises(IfamError, match="Nothing is painted"):
        session.learn()


def test_images_with_too_little_paint_to_count_are_named(make_model, photos, tmp_path):
    """Of a mask finer than patches, half of a patch must be painted."""
    model = make_model(mask_resolution=8)
    session = Session(Studio(model, corrected=tmp_path))
    cells = model.mask_grid[0] // model.selector.backbone.grid[0]
    assert cells > 1
    for file, side in zip(photos, (cells, 1), strict=False):
        session.open_file(file)
        session.exploration.paint([(row, column) for row in range(side) for column in range(side)], "not this")
    folder = session.learn()
    assert session.learned == (photos[0].name,)
    assert session.left_out == (photos[1].name,)
    record = json.loads((folder / "corrections.json").read_text(encoding="utf-8"))
    assert [image["name"] for image in record["images"]] == [photos[0].name]
    assert record["painted"] == {"object": 0, "background": cells * cells}


def test_where_nothing_can_be_saved_nothing_is_lost(tiny_model, photos, tmp_path):
    (tmp_path / "file").write_text("")
    session = Session(Studio(tiny_model, corrected=tmp_path / "file"))
    session.open_file(photos[0])
    session.exploration.paint([(0, 0)], "this")
    with pytest.raises(IfamError, match="another folder"):
        session.learn()
    assert session.model is tiny_model
    assert session.exploration.painted
    with pytest.raises(IfamError, match="switched off"):
        Session(Studio(tiny_model)).learn()


def test_files_that_are_no_images_are_a_sentence(session, photos, tmp_path, monkeypatch):
    session.open_file(photos[0])
    files = {
        "note.txt": b"hello",
        "empty.png": b"",
        "cut.png": photos[1].read_bytes()[:200],
        "page.jpg": b"<!doctype html><p>404",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(IfamError, match=f"{name} is not a readable image"):
            session.open_file(tmp_path / name)
        # The image before stays on the table.
        assert session.name == photos[0].name
    with pytest.raises(IfamError, match=r"missing\.png is not a readable image"):
        session.open_file(tmp_path / "missing.png")


def test_images_with_too_many_pixels_are_not_decoded(tiny_model, tmp_path):
    Image.new("L", (2000, 1001)).save(tmp_path / "large.png")
    session = Session(Studio(tiny_model, max_megapixels=2.0))
    with pytest.raises(IfamError, match=r"2,000 x 1,001 pixels, but up to 2 million"):
        session.open_file(tmp_path / "large.png")
    # A bomb: small as a file, and larger than Pillow's own limit.
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(IfamError, match=r"bomb\.png"):
        session.open_file(tmp_path / "bomb.png")


def test_sessions_are_bounded_in_number_and_time(studio, monkeypatch):
    sessions = Sessions(lambda: Session(studio), most=3, idle=100.0)
    kept = [sessions.get(key) for key in "abc"]
    assert sessions.get("a") is kept[0]
    sessions.get("d")  # closes b, which was not used for longest
    assert sessions.get("a") is kept[0]
    assert sessions.get("b") is not kept[1]
    assert len(sessions) == 3
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 101)
    sessions.get("z")
    assert len(sessions) == 1
    sessions.close("z")
    sessions.close("never there")
    assert len(sessions) == 0


def test_the_panel_says_what_the_answer_is(tiny_model, photos):
    names = ("<b>", "{{7*7}}", "${1}", "d", "e")
    tiny_model.config = tiny_model.config.__class__(**{**vars(tiny_model.config), "class_names": names})
    plain = PlainViT(tiny_model.config, pretrained=False).eval()
    calibration = Calibration(torch.linspace(0, 3, 100).double(), torch.arange(100) % 5, names)
    session = Session(Studio(tiny_model, calibration=calibration, plain=plain))
    session.open_file(photos[0])
    answer = session.exploration.answer()
    sure, unsure = (answer_html(session, answer, threshold) for threshold in (0.0, 1.0))
    assert "Unsure:" not in sure
    assert "Unsure:" in unsure
    assert "Set at" in sure
    assert "Plain ViT" in sure
    assert f"{round(1000 * answer.seconds)} ms" in sure
    # Names are text, whatever is in them: for the browser, and for the templates that the page knows.
    bars = bars_html(session, answer, session.exploration.contributions(answer))
    for page in (sure, bars, pictures_html(session, answer)):
        assert "<b>" not in page
        assert "{" not in page
        assert "$" not in page
    assert bars.count("ifam-track") == 5  # the prior, three parts, and their sum
    session.exploration.drop([0, 1, 2])
    answer = session.exploration.answer()
    edited = answer_html(session, answer, 0.0)
    assert "Nothing is visible" in edited
    assert "edited here" in edited


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_a_sentence(studio, photos):
    session = Session(studio)
    session.open_file(photos[0])
    session.exploration.paint([(0, 0)], "this")
    studio.corrected.chmod(0o500)
    with pytest.raises(IfamError, match="choose another folder"):
        session.learn()
