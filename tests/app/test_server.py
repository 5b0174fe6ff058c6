"""The app as people meet it: in a real browser, by many at once, and on a machine whose network is watched."""

import json
import os
import re
import shlex
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from chromium import chromium, complaints, needs_chromium
from conftest import close_event_loops, wake
from ifam.app import server
from ifam.app.exploration import Exploration
from ifam.app.server import serving
from ifam.app.session import Session, Sessions, Studio
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM

pytest.importorskip("gradio")

# Gradio and its client leave event loops open, and use what pandas will change.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def model():
    """A tiny model whose answers depend on what is visible, with a mask of 8 x 8 cells."""
    torch.manual_seed(0)
    kwargs = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    names = ("duck", "gull", "<tern>", "{{7*7}}", "owl")
    config = ModelConfig("vit_tiny_patch16_224", 64, 3, 5, backbone_kwargs=kwargs, class_names=names, mask_resolution=8)
    return wake(IFAM(config, pretrained=False)).eval()


@pytest.fixture(scope="module")
def app(model, network, tmp_path_factory):
    """The address of a running app, and what it is made of."""
    folder = tmp_path_factory.mktemp("models")
    plain = wake(PlainViT(model.config, pretrained=False)).eval()
    studio = Studio(model, "runs/tiny", folder, "tiny", plain=plain, max_megapixels=1.0)
    sessions = Sessions(lambda: Session(studio))
    examples = [(photo(100 + n), f"example {n}") for n in range(3)]
    with serving(studio, examples, port=None, max_megabytes=1.0, sessions=sessions) as url:
        yield url, studio, sessions
    close_event_loops()


def photo(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twenty images."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        photo(number).save(folder / f"photo{number}.png")
    return sorted(folder.iterdir())


def told(model, exploration):
    """What the page says of an answer: class and confidence."""
    answer = exploration.answer()
    return model.config.class_names[answer.prediction], f"{100 * answer.confidence:.1f}\u202f%"


def says(html, expected):
    name, confidence = expected
    escaped = name.replace("<", "&lt;").replace(">", "&gt;").replace("{", "&#123;").replace("}", "&#125;")
    return f'<p class="ifam-class">{escaped} <span>{confidence}</span>' in html


@pytest.mark.slow
def test_twenty_at_once_get_the_answers_to_their_own_images(app, model, files, network):
    """Each opens an image and paints on it: none is wrong, none waits for ever, and all are forgotten."""
    from gradio_client import Client, handle_file

    url, _, sessions = app
    barrier = threading.Barrier(len(files))

    def visit(number):
        client = Client(url, verbose=False, analytics_enabled=False)
        barrier.wait(timeout=120)
        opened = client.predict(handle_file(str(files[number])), 70, api_name="/open")
        painted = client.predict(json.dumps([[number % 4, number // 5]]), "this", "small", 70, api_name="/paint")
        client.close()
        return opened[3], painted[3]

    with ThreadPoolExecutor(len(files)) as visitors:
        answers = list(visitors.map(visit, range(len(files)), timeout=180))
    for number, (opened, painted) in enumerate(answers):
        with Image.open(files[number]) as image:
            exploration = Exploration(model, image)
        assert says(opened, told(model, exploration))
        exploration.paint([(number % 4, number // 5)], "this")
        assert says(painted, told(model, exploration))
    assert len({opened for opened, _ in answers}) == len(files)
    assert network == []
    assert len(sessions) <= 100


def test_bad_requests_are_a_sentence_and_fetch_nothing(app, files, network, tmp_path):
    from gradio_client import Client, handle_file

    url = app[0]
    client = Client(url, verbose=False, analytics_enabled=False)
    # Before there is an image; a threshold is no mistake then.
    client.predict(70, api_name="/unsure")
    assert "drop one first" in client.predict("[[0, 0]]", "this", "small", 70, api_name="/paint")[0]
    (tmp_path / "note.txt").write_text("no image")
    answer = client.predict(handle_file(str(tmp_path / "note.txt")), 70, api_name="/open")
    assert "note.txt is not a readable image" in answer[0]
    Image.new("L", (1200, 1000)).save(tmp_path / "large.png")
    answer = client.predict(handle_file(str(tmp_path / "large.png")), 70, api_name="/open")
    assert "1,200 x 1,000 pixels, but up to 1 million" in answer[0]
    client.predict(handle_file(str(files[0])), 70, api_name="/open")
    for stroke in ('"x"', "[[1]]", "[1, 2]", "{", '[["a", "b"]]', "[[1e999, 0]]"):
        assert "not a list of rows" in client.predict(stroke, "this", "small", 70, api_name="/paint")[0]
    assert "Nothing is painted" in client.predict(70, api_name="/learn")[0]
    # What was done to an image that another has replaced; this one is the second.
    client.predict(handle_file(str(files[1])), 70, api_name="/open")
    late, current = (json.dumps({"image": number, "cells": [[0, 0]]}) for number in (1, 2))
    assert "came too late" in client.predict(late, "this", "small", 70, api_name="/paint")[0]
    assert "came too late" in client.predict([], 70, late, api_name="/parts")[0]
    assert client.predict(current, "this", "small", 70, api_name="/paint")[0] == ""
    # A file that is somewhere else is not fetched, and one of the machine is not read.
    for place in ("https://example.com/bird.png", str(Path(__file__))):
        given = {"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}
        call = httpx.post(f"{url}gradio_api/call/open", json={"data": [given, 70]}).json()
        told_back = httpx.get(f"{url}gradio_api/call/open/{call['event_id']}", timeout=30).text
        assert "event: error" in told_back, told_back
    assert network == []
    with pytest.raises(Exception, match=r"413|size|large"):
        httpx.post(f"{url}gradio_api/upload", files={"files": ("big.png", bytes(2_000_000))}).raise_for_status()
    client.close()


def test_those_who_open_the_same_image_at_once_all_get_an_answer(app, model, files):
    """They share a file, and wait for their turn."""
    from gradio_client import Client, handle_file

    barrier = threading.Barrier(6)

    def visit(_):
        client = Client(app[0], verbose=False, analytics_enabled=False)
        barrier.wait(timeout=60)
        opened = client.predict(handle_file(str(files[3])), 70, api_name="/open")
        client.close()
        return opened[3]

    with ThreadPoolExecutor(6) as visitors:
        answers = list(visitors.map(visit, range(6), timeout=60))
    with Image.open(files[3]) as image:
        expected = told(model, Exploration(model, image))
    assert all(says(answer, expected) for answer in answers)


def test_an_upload_leaves_nothing_but_itself(app, tmp_path):
    from gradio_client import Client, handle_file

    # An image of its own: Gradio keeps one file for all who upload the same.
    photo(50).save(tmp_path / "own.png")

    def kept():
        return {path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()}

    before = kept()
    client = Client(app[0], verbose=False, analytics_enabled=False)
    client.predict(handle_file(str(tmp_path / "own.png")), 70, api_name="/open")
    client.close()
    assert [path.name for path in kept() - before] == ["own.png"]


def test_old_uploads_are_removed_and_pictures_of_examples_stay(model, tmp_path, monkeypatch):
    """Also those that come while others are removed, which ends what Gradio has for it."""
    from gradio_client import Client, handle_file

    monkeypatch.setattr(server, "UPLOAD_SECONDS", 1.0)
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.01)
    studio = Studio(model, "runs/tiny", tmp_path, "tiny", max_megapixels=1.0)
    for number in range(12):
        photo(60 + number).save(tmp_path / f"own{number}.png")
    with serving(studio, [(photo(100), "example")], port=None) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        examples = {path for path in folder.rglob("*") if path.is_file()}

        def visit(number):
            client = Client(url, verbose=False, analytics_enabled=False)
            for image in range(number, 12, 4):
                client.predict(handle_file(str(tmp_path / f"own{image}.png")), 70, api_name="/open")
            client.close()

        with ThreadPoolExecutor(4) as visitors:
            list(visitors.map(visit, range(4), timeout=60))
        deadline = time.monotonic() + 30
        while (kept := {path for path in folder.rglob("*") if path.is_file()}) != examples:
            assert time.monotonic() < deadline, kept - examples
            time.sleep(0.1)
    assert examples
    close_event_loops()


def seen(page):
    return page.get_attribute(".ifam-pictures figure:nth-child(2) img", "src")


def changed(page, before):
    page.wait_for_function(
        "before => document.querySelector('.ifam-pictures figure:nth-child(2) img').src !== before", arg=before
    )


@pytest.mark.slow
@needs_chromium
def test_a_person_tries_it(app, model, files, network, tmp_path):
    """Clicks an example, uploads, unticks, paints, moves the threshold and learns, at two widths; reads each answer."""
    url, studio, sessions = app
    with Image.open(files[5]) as image:
        exploration = Exploration(model, image)
    part, cells = next(iter(exploration.parts)), exploration.grid[0]
    visitors = len(sessions)
    with chromium() as browser:
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(30_000)
            said = complaints(page, (url, "data:", "blob:"), kinds=("error", "assert"))
            exploration = Exploration(model, image)
            page.goto(url)
            page.locator("#examples").get_by_role("button").nth(1).click()
            page.wait_for_selector(".ifam-class")
            assert page.inner_text(".ifam-class") == " ".join(told(model, Exploration(model, photo(101))))

            before = seen(page)
            page.set_input_files("#upload input[type=file]", files[5])
            changed(page, before)
            assert page.inner_text(".ifam-class") == " ".join(told(model, exploration))
            assert "Plain ViT" in page.inner_text("#answer")
            page.wait_for_selector(".ifam-rows")

            before = seen(page)
            page.get_by_label(f"part {part}").uncheck()
            changed(page, before)
            exploration.drop([part])
            assert page.inner_text(".ifam-class") == " ".join(told(model, exploration))

            before = seen(page)
            page.get_by_label("this", exact=True).check()
            page.get_by_label("this", exact=True).evaluate("e => e.blur()")
            page.locator("#painter canvas").scroll_into_view_if_needed()
            box = page.locator("#painter canvas").bounding_box()
            row = int(exploration.answer().mask.sum(dim=1).argmin())  # the one that shows least
            height = box["y"] + (row + 0.4) / cells * box["height"]
            page.mouse.move(box["x"] + 0.1 * box["width"], height)
            page.mouse.down()
            page.mouse.move(box["x"] + 0.9 * box["width"], height, steps=2)
            page.mouse.up()
            changed(page, before)
            exploration.paint([(row, column) for column in range(cells)], "this")
            assert page.inner_text(".ifam-class") == " ".join(told(model, exploration))
            assert page.evaluate("document.documentElement.scrollWidth") <= width

            page.get_by_label("not this", exact=True).check()
            page.locator("#painter canvas").focus()
            before = seen(page)
            middle = cells // 2
            moves = ["ArrowUp" if row < middle else "ArrowDown"] * abs(row - middle)
            for key in (*["ArrowLeft"] * middle, *moves, "Space"):
                page.keyboard.press(key)
            changed(page, before)
            exploration.paint([(row, 0)], "not this")
            assert page.inner_text(".ifam-class") == " ".join(told(model, exploration))

            # Whatever is typed: nothing is the threshold of the start, and 250 is 100.
            number = page.locator("#unsure input[type=number]")
            for typed in ("", "250"):
                number.fill(typed)
                number.press("Enter")
            page.wait_for_selector(".ifam-unsure")
            assert page.get_by_text("Error", exact=True).count() == 0

            page.get_by_role("button", name="Learn").click()
            # It trains, which takes its time on a machine that has other work.
            page.wait_for_selector(".ifam-good", timeout=120_000)
            # Another threshold leaves what is said of the training.
            number.fill("0")
            number.press("Enter")
            page.wait_for_selector(".ifam-unsure", state="detached")
            assert "is saved in" in page.inner_text(".ifam-good")
            page.screenshot(path=tmp_path / f"app-{width}.png", full_page=True)
            page.set_input_files("#upload input[type=file]", __file__)
            page.get_by_text("is not a readable image").wait_for()
            assert said == []
            page.close()
        until = time.monotonic() + 30
        while len(sessions) > visitors and time.monotonic() < until:
            time.sleep(0.1)
        assert len(sessions) <= visitors, "who has closed the page is forgotten"
    assert network == []
    assert [path.name for path in sorted(studio.corrected.iterdir())] == ["tiny-corrected-1", "tiny-corrected-2"]
    for folder in studio.corrected.iterdir():
        with np.load(folder / "corrections.npz") as paint:
            assert paint["shown"][0, row, 1:].all()
            assert paint["hidden"][0, row, 0]


@pytest.mark.slow
@needs_chromium
def test_no_edit_is_lost_that_comes_while_another_is_answered(app, files):
    """Cells by the keyboard, and boxes, as fast as a machine can press them."""
    url, _, sessions = app
    with chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        page.set_input_files("#upload input[type=file]", files[6])
        page.wait_for_selector(".ifam-rows")
        session = next(reversed(sessions._all.values()))[0]
        page.locator("#painter canvas").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Space")
        for part in range(2):
            page.get_by_label(f"part {part}").uncheck()
        until = time.monotonic() + 30
        while session.exploration.hidden.sum() < 3 or len(session.exploration.dropped) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        page.wait_for_timeout(500)  # boxes must not be ticked again by answers that are late
        assert [page.get_by_label(f"part {part}").is_checked() for part in range(3)] == [False, False, True]


def test_a_taken_port_is_a_sentence(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(IfamError, match="the port is taken"), serving(Studio(model), port=taken.getsockname()[1]):
            pass


def test_closed_visitors_are_forgotten(app, files):
    from gradio_client import Client, handle_file

    url, _, sessions = app
    client = Client(url, verbose=False, analytics_enabled=False)
    client.predict(handle_file(str(files[4])), 70, api_name="/open")
    assert sessions.get(client.session_hash).exploration is not None
    sessions.close(client.session_hash)
    assert "drop one first" in client.predict("[[0, 0]]", "this", "small", 70, api_name="/paint")[0]
    client.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nothing/here"], "nothing/here"),
        (["--port", "70000"], "port is 70000"),
        (["--threshold", "nan"], "threshold is nan"),
        (["--max_megabytes", "0"], "max_megabytes is 0"),
    ],
)
def test_what_the_command_cannot_use_is_a_sentence(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["app", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


class Served(BaseException):
    """Ends the verb where it would serve."""


@pytest.fixture
def served(monkeypatch):
    """What the verb would serve: nothing is."""
    known = {}

    def stand_in(studio, examples, **settings):
        known.update(studio=studio, examples=examples, **settings)
        raise Served

    monkeypatch.setattr("ifam.app.server.serving", stand_in)
    return known


def test_the_commands_of_the_documentation_serve(model, served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("runs/ifam")
    PlainViT(model.config, pretrained=False).save_pretrained("runs/plain_vit")
    Path("photos").mkdir()
    photo(0).save("photos/a.png")
    text = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")
    plain, ports = [], []
    for line in re.findall(r"^    (ifam app .*)$", text, re.MULTILINE):
        with pytest.raises(Served):
            main(shlex.split(line, comments=True)[1:])
        plain.append(served["studio"].plain is not None)
        ports.append(served["port"])
    assert (plain, ports) == ([False, True, False], [7860, 7860, 8000])
    assert [name for _, name in served["examples"]] == ["a.png"]


def test_the_command_serves_a_model(model, served, tmp_path, capsys):
    """From its folder, with a plain ViT beside, and a folder of examples; what does not fit is said before."""
    model.save_pretrained(tmp_path / "ifam")
    PlainViT(model.config, pretrained=False).save_pretrained(tmp_path / "plain")
    photo(0).save(tmp_path / "a.png")
    words = ["app", str(tmp_path / "ifam"), "--plain", str(tmp_path / "plain"), "--device", "cpu"]
    with pytest.raises(Served):
        main([*words, "--examples", str(tmp_path)])
    studio = served["studio"]
    assert (served["host"], served["port"]) == ("127.0.0.1", 7860)
    assert [name for _, name in served["examples"]] == ["a.png"]
    assert (studio.corrected, studio.name) == (tmp_path, "ifam")
    assert studio.plain.method == "plain_vit"
    with pytest.raises(Served):
        main([*words, "--learn", "false"])
    assert served["studio"].corrected is None
    assert len(served["examples"]) == 4
    (tmp_path / "none").mkdir()
    for wrong, message in (
        ([str(tmp_path / "plain")], "give one of the method ifam"),
        ([str(tmp_path / "ifam"), "--plain", str(tmp_path / "gone")], "gone"),
        ([str(tmp_path / "ifam"), "--examples", str(tmp_path / "none")], "none"),
        ([str(tmp_path / "ifam"), "--out", str(tmp_path / "a.png")], "a folder is expected"),
    ):
        with pytest.raises(SystemExit):
            main(["app", *wrong])
        assert message in capsys.readouterr().err
