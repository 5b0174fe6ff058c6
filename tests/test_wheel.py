"""The wheel: built twice it has the same bytes, and installed somewhere else it runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "src")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is not installed"),
]


def run(*command, cwd, **env):
    """Run a program that knows nothing of this repository; its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(folder):
    """The wheel of a copy of the sources in a folder, built as `make wheel` does."""
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel")
    run(*command, cwd=folder, SOURCE_DATE_EPOCH="1700000000", PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    (wheel,) = (folder / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sources"))


def test_two_builds_have_the_same_bytes(wheel, tmp_path):
    """Elsewhere, at another time, with other rights of files."""
    before = os.umask(0o077)
    try:
        again = build(tmp_path)
    finally:
        os.umask(before)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"ifam", "ifam_runtime.py"}
    for needed in ("py.typed", "assets/tiny_vit.safetensors", "report/templates/base.html.j2", "__init__.pyi"):
        assert f"ifam/{needed}" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_wheel_runs_the_demo_and_answers(wheel, tmp_path):
    """In an environment of its own, which borrows the dependencies alone; in an empty folder."""
    home, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip())
    # A line in a `.pth` file adds a folder without the `.pth` files in it, which would add these sources.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    run(*command, cwd=empty, PIP_DISABLE_PIP_VERSION_CHECK="1")
    where = run(python, "-c", "import ifam; print(ifam.__file__)", cwd=empty).strip()
    assert Path(where).is_relative_to(packages)
    run(home / "bin" / "ifam", "demo", "--quick", "true", "--threads", "1", "--out", "out", cwd=empty)
    assert (empty / "out" / "report.html").stat().st_size > 10_000
    Image.new("RGB", (90, 80), (20, 90, 160)).save(empty / "bird.png")
    (model,) = (empty / "out" / "models").glob("ifam*")
    said = run(home / "bin" / "ifam", "predict", "bird.png", "--model", model, "--out", "answers", cwd=empty)
    assert "bird.png" in said
    assert (empty / "answers" / "predictions.csv").read_text().count("\n") == 2
