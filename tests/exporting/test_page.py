"""A page with a model in it, driven in a Chromium without a network as a person would use it."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ifam
from chromium import chromium, needs_chromium
from conftest import wake
from ifam.cli.main import main
from ifam.data.images import load_image
from ifam.errors import IfamError
from ifam.exporting.page import check_page, export_page
from ifam.inference import preprocess
from miniatures import write_deep_png

pytest.importorskip("playwright.sync_api")
for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name)

# Exporters trace with symbols in the place of numbers, which the check of shapes would take for numbers.
pytestmark = pytest.mark.shapes_unchecked


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model that adds up its parts, its page, and photos."""
    folder = tmp_path_factory.mktemp("page")
    kwargs = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    config = ifam.ModelConfig(
        "ifam_tiny", 80, 3, 2, backbone_kwargs=kwargs, aggregation="sum", class_names=("duck", "<i>Möwe</i> & co")
    )
    model = wake(ifam.IFAM(config, pretrained=False)).eval()
    model.save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(0, 256, (150, 211, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "wide.png")
    Image.fromarray(noise[:80, :80]).save(folder / "exact.png")
    (folder / "text.jpg").write_text("hello", encoding="utf-8")
    words = ["--html", str(folder / "page.html"), "--examples", str(folder / "exact.png")]
    main(["export", "--model", str(folder / "model"), *words])
    return model, folder


@pytest.fixture
def page(made):
    """The page in a browser without a network; every complaint and every request but that for the page is an error."""
    noted = []
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 390, "height": 844}, offline=True)
        opened = context.new_page()
        opened.on("pageerror", lambda error: noted.append(str(error)))
        opened.on("request", lambda request: noted.append(request.url))
        opened.goto((made[1] / "page.html").as_uri())
        opened.get_by_text("The model is ready").wait_for()
        yield opened
    assert noted == [(made[1] / "page.html").as_uri()]


def state(page):
    """The answer, once all changes are answered."""
    mask = mask_of(page)
    found = page.evaluate("[ifam.answer.logits, Array.from(ifam.photo.pixels.data)]")
    return mask, np.array(found[0]), np.array(found[1]).reshape(80, 80, 4)[..., :3]


def mask_of(page):
    """The mask, once all changes are answered."""
    until = time.monotonic() + 20
    while page.evaluate("!globalThis.ifam.photo || globalThis.ifam.busy") and time.monotonic() < until:
        time.sleep(0.05)
    mask = np.array(page.evaluate("ifam.answer.mask"), bool)
    return mask.reshape(math.isqrt(mask.size), -1)


def choose(page, path):
    page.set_input_files("#file", path)
    page.get_by_text(f"{path.name}: answered").wait_for()
    return state(page)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide.png", "exact.png"])
def test_the_page_answers_as_the_model(made, page, name):
    model, folder = made
    mask, logits, pixels = choose(page, folder / name)
    with Image.open(folder / name) as image:
        given = preprocess(image, model)
    mean, std = (np.array(values)[:, None, None] for values in model.normalization)
    assert np.array_equal(pixels, np.rint((given.numpy() * std + mean) * 255).transpose(1, 2, 0))
    with torch.no_grad():
        out = model(given[None])
    assert np.array_equal(mask, out.mask[0].numpy())
    np.testing.assert_allclose(logits, out.logits[0], atol=1e-4)
    best = model.config.class_names[int(out.logits.argmax())]
    assert page.inner_text("#answer").startswith(f"{best}: ")


@needs_chromium
@pytest.mark.slow
def test_photos_are_turned_as_their_exif_says(made, page, tmp_path):
    """In WebP, too, where Chromium does not."""
    model, noise = made[0], np.random.default_rng(1).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    mean, std = (np.array(values)[:, None, None] for values in model.normalization)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = tmp_path / f"turned{orientation}.webp"
        Image.fromarray(noise).save(path, lossless=True, exif=exif)
        pixels = choose(page, path)[2]
        given = preprocess(load_image(path), model).numpy()
        assert np.array_equal(pixels, np.rint((given * std + mean) * 255).transpose(1, 2, 0)), orientation


@needs_chromium
@pytest.mark.slow
def test_what_a_browser_would_read_otherwise_is_refused(made, page, tmp_path):
    Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(tmp_path / "gray.png")
    write_deep_png(tmp_path / "colors.png", np.full((9, 9, 3), 4095))
    Image.new("RGB", (70_000, 1)).save(tmp_path / "long.png")
    choose(page, made[1] / "exact.png")
    for name, said in (
        ("gray.png", "16 bits a channel"),
        ("colors.png", "16 bits"),
        ("long.png", "more than this browser"),
    ):
        page.set_input_files("#file", tmp_path / name)
        page.get_by_text(f"{name} has ").wait_for()
        assert said in page.inner_text("#status")
        assert page.evaluate("ifam.photo.name") == "exact.png"


@needs_chromium
@pytest.mark.slow
def test_the_photo_that_was_chosen_last_is_answered(made, page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)).save(
        tmp_path / "huge.jpg"
    )
    page.set_input_files("#file", tmp_path / "huge.jpg")
    page.set_input_files("#file", made[1] / "exact.png")
    page.get_by_text("exact.png: answered").wait_for()
    time.sleep(1.5)
    assert page.evaluate("ifam.photo.name") == "exact.png"
    assert "exact.png: answered" in page.inner_text("#status")


@needs_chromium
@pytest.mark.slow
def test_a_person_unticks_paints_and_takes_back(made, page):
    model, folder = made
    page.get_by_role("button", name="Example: exact.png").click()
    page.get_by_text("exact.png: answered").wait_for()
    own, logits, _ = state(page)
    with Image.open(folder / "exact.png") as image:
        given = preprocess(image, model)[None]
    with torch.no_grad():
        part = int(model(given).selection.winners[0][torch.from_numpy(own)].mode().values)
        expected = model(given, [ifam.DropParts([part])])
    # Unticked with the keyboard, a part is hidden as by `DropParts`.
    page.locator("#list input").nth(part).focus()
    page.keyboard.press(" ")
    mask, without, _ = state(page)
    assert np.array_equal(mask, expected.mask[0].numpy())
    np.testing.assert_allclose(without, expected.logits[0], atol=1e-4)
    assert not np.allclose(without, logits)
    page.get_by_role("button", name="Undo").click()
    assert np.array_equal(state(page)[0], own)
    # Painted with the mouse, in one stroke across a row.
    row = int(own.any(axis=1).argmax())
    page.get_by_role("radio", name="hides").check()
    page.locator("#parts").scroll_into_view_if_needed()
    box = page.locator("#parts").bounding_box()
    y = box["y"] + box["height"] * (row + 0.5) / 10
    page.mouse.move(box["x"] + 3, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, y, steps=20)
    page.mouse.up()
    mask, painted, _ = state(page)
    assert not mask[row].any()
    assert np.array_equal(np.delete(mask, row, 0), np.delete(own, row, 0))
    assert not np.allclose(painted, logits)
    # Shown with the keyboard: the second place of the second row.
    page.locator("#parts").focus()
    for key in ("ArrowRight", "ArrowDown", " "):
        page.keyboard.press(key)
    assert state(page)[0][1, 1] != mask[1, 1]


@needs_chromium
@pytest.mark.slow
def test_a_stroke_where_four_hidden_patches_meet_is_seen(made, tmp_path):
    """With a mask finer than patches, of which an eighth must be shown for any of it to be."""
    model, folder = made
    fine = wake(ifam.IFAM(replace(model.config, aggregation="joint", mask_resolution=2), pretrained=False)).eval()
    fine.save_pretrained(tmp_path / "model")
    words = ["--html", str(tmp_path / "page.html"), "--examples", str(folder / "exact.png")]
    main(["export", "--model", str(tmp_path / "model"), *words])
    with chromium() as browser:
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.get_by_role("button", name="Example: exact.png").click()
        page.get_by_text("exact.png: answered").wait_for()
        for part in page.locator("#list input").all():
            part.uncheck()
        assert not mask_of(page).any()
        page.get_by_role("radio", name="shows").check()
        page.locator("#parts").scroll_into_view_if_needed()
        box = page.locator("#parts").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        shown = mask_of(page)
    assert shown.any()
    assert shown[:18].sum() + shown[22:].sum() == 0


@needs_chromium
@pytest.mark.slow
def test_strokes_have_no_holes_and_belong_to_the_photo_that_is_seen(made, page, tmp_path):
    choose(page, made[1] / "exact.png")
    page.get_by_role("radio", name="shows").check()
    page.locator("#parts").scroll_into_view_if_needed()
    box = page.locator("#parts").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + box["height"] - 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3, steps=2)
    page.mouse.up()
    painted = mask_of(page)
    assert painted[9].all()
    # Two presses of a key before the first is answered take back each other.
    page.locator("#parts").focus()
    page.keyboard.press("ArrowRight")
    page.evaluate("""for (let i = 0; i < 2; i++)
        document.getElementById("parts").dispatchEvent(new KeyboardEvent("keydown", { key: " ", bubbles: true }))""")
    assert np.array_equal(mask_of(page), painted)
    # The next photo is as it is found, whatever is painted while it is read and answered, by a slow model.
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)).save(
        tmp_path / "huge.jpg"
    )
    page.evaluate("""() => {
        const model = ort.InferenceSession.prototype, { run } = model;
        model.run = async function (...given) {
            await new Promise((done) => setTimeout(done, 300));
            return run.apply(this, given);
        };
    }""")
    page.set_input_files("#file", tmp_path / "huge.jpg")
    page.mouse.down()
    until = time.monotonic() + 60
    while "huge.jpg: answered" not in page.inner_text("#status"):
        assert time.monotonic() < until
        for share in (0.2, 0.8):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
    page.mouse.up()
    assert "with your changes" not in page.inner_text("#status")
    mask_of(page)
    assert page.evaluate("ifam.answer.mask.join() === ifam.photo.own.mask.join()")


@needs_chromium
@pytest.mark.slow
def test_the_page_fits_a_phone_and_says_what_is_no_image(made, page):
    page.set_input_files("#file", made[1] / "text.jpg")
    page.get_by_text("text.jpg is not an image that this browser can read").wait_for()
    choose(page, made[1] / "wide.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#list .bar").count() == 3


@pytest.mark.slow
def test_the_page_forbids_requests_and_keeps_the_license(made):
    text = (made[1] / "page.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'wasm-unsafe-eval' 'sha256-")
    assert "http" not in policy
    assert "Copyright (c) Microsoft Corporation" in text
    assert "<i>Möwe" not in text
    about = json.loads(re.search(r'id="about">(.*?)</script>', text)[1])
    assert about["class_names"] == ["duck", "<i>Möwe</i> & co"]


def test_what_cannot_be_a_page_is_one_sentence(tmp_path, made_small):
    (tmp_path / "page.html").write_text("mine", encoding="utf-8")
    with pytest.raises(IfamError, match="already exists"):
        check_page(tmp_path / "page.html", overwrite=False)
    with pytest.raises(IfamError, match=r"but \.html is expected"):
        export_page(made_small, tmp_path / "page.txt")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["page.html"]


@pytest.fixture
def made_small():
    config = ifam.ModelConfig("ifam_tiny", 80, backbone_kwargs={"depth": 1}, num_parts=1)
    return ifam.IFAM(config, pretrained=False)
