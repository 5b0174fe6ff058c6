"""From a folder of photographs to a page that a colleague opens: the commands of docs/start.md, run as they stand."""

import csv
import re
import shlex
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from torchvision.transforms.v2.functional import to_pil_image

import ifam
from chromium import chromium, complaints, needs_chromium
from conftest import close_event_loops
from ifam.app import server
from ifam.cli.main import main
from programs import free_port

for name in ("gradio", "onnx", "onnxscript", "onnxruntime", "playwright"):
    pytest.importorskip(name)

PAGE = (Path(__file__).parents[1] / "docs" / "start.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## From your photographs to a page.*?(?=^## )", PAGE, re.DOTALL | re.MULTILINE)[0]
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^ifam .*$", SECTION, re.MULTILINE)]
# What keeps the test short.
FEWER = {
    "train": ["--train.epochs", "2", "--model.num_parts", "2"],
    "audit": ["--limit", "3", "--explain", "1"],
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Visited(BaseException):
    """Ends the app, as Ctrl-C does."""


@pytest.fixture
def photos(monkeypatch, tmp_path):
    """A folder of images for each of two classes, in an otherwise empty directory."""
    monkeypatch.chdir(tmp_path)
    # What `export HF_HUB_OFFLINE=1` does before the library is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    birds = ifam.load_benchmark("pondbirds", options={"num_train": 40, "num_val": 2, "num_test": 2})
    images = birds.split("train")
    for index in range(len(images)):
        path = Path("photos", birds.class_names[images[index]["label"]], f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(images[index]["image"]).save(path)


def visit(monkeypatch, command):
    """Start the app by its command, open its page, and end it."""
    serving, opened, port = server.serving, [], free_port()

    @contextmanager
    def visited(*args, **kwargs):
        with serving(*args, **kwargs) as url, urllib.request.urlopen(url, timeout=60) as answer:
            opened.append((url, answer.status))
            raise Visited
        yield

    monkeypatch.setattr(server, "serving", visited)
    with pytest.raises(Visited):
        main([*command, "--port", str(port)])
    close_event_loops()
    assert opened == [(f"http://127.0.0.1:{port}/", 200)]


@pytest.mark.slow
@needs_chromium
@pytest.mark.usefixtures("photos")
def test_a_folder_of_photographs_becomes_a_page_in_which_a_colleague_unticks_a_part(network, monkeypatch, tmp_path):
    verbs = [command[0] for command in COMMANDS]
    assert verbs == ["train", "train", "predict", "evaluate", "audit", "report", "app", "export"]
    # The first one needs a network, to fetch weights; the second is for those without.
    for command in COMMANDS[1:]:
        if command[0] == "app":
            visit(monkeypatch, command)
        else:
            main([*command, *FEWER.get(command[0], [])])
    assert network == [], "nothing leaves the machine"
    assert {path.name for path in tmp_path.iterdir()} >= {"answers.csv", "drawn", "audit", "report.html", "page.html"}

    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    row = max(rows, key=lambda row: float(row["visible_fraction"]))
    with chromium() as browser:
        page = browser.new_context(offline=True).new_page()
        page.set_default_timeout(60_000)
        said = complaints(page, kinds=())  # ONNX Runtime tells the console what it thinks of processors
        page.goto((tmp_path / "page.html").as_uri())
        page.get_by_text("The model is ready").wait_for()
        page.set_input_files("#file", row["path"])
        page.get_by_text(f"{Path(row['path']).name}: answered").wait_for()
        best = page.inner_text("#answer")
        assert best.startswith(f"{row['class_name']}: ")
        before = page.evaluate("ifam.answer.logits")
        boxes = page.locator("#list input:enabled")
        for index in range(boxes.count()):
            assert not page.is_visible("#empty")
            boxes.nth(index).uncheck()
            page.wait_for_function("!ifam.busy")
        page.get_by_text("with your changes").wait_for()
        assert page.evaluate("ifam.answer.logits") != before
        # Without any part, the page says that the answer rests on nothing.
        assert page.is_visible("#empty")
        assert said == []
