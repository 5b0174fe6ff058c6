"""Paths as users write them; files that are complete or absent, and never replaced unasked."""

import json
import os
from pathlib import Path

import pytest

from ifam.errors import IfamError
from ifam.io import (
    check_absent,
    check_replaceable,
    ensure_space,
    ensure_writable,
    local_path,
    printable,
    replacing,
    run_digest,
    write_json,
    write_text,
)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- paths -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home, a variable, and a working directory of their own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PHOTOS", str(tmp_path / "photos"))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "home"),
        ("~/x", "home/x"),
        ("$HOME/x", "home/x"),
        ("${PHOTOS}/x", "photos/x"),
        ("$PHOTOS", "photos"),
        ("../photos/", "here/../photos"),
        ("..\\photos\\x", "here/../photos/x"),
        ("~\\x", "home/x"),
    ],
)
def test_what_a_shell_expands_is_expanded(home, text, path):
    if os.sep == "/":
        assert local_path(text).absolute() == home / path
        assert local_path(Path(text)).absolute() == home / path


@pytest.mark.parametrize("text", ["a$HOME.jpg", "a$UNSET", "a\\b.jpg", "$UNSET.jpg", "~x"])
def test_a_name_that_exists_is_taken_as_it_is_written(home, text):
    Path(text).touch()
    assert local_path(text) == Path(text)


@pytest.mark.parametrize("text", ["", " ", "a\0b", "$UNSET/x", "${UNSET}/x", "~no-such-user/x", "C:\\photos"])
def test_a_path_that_names_nothing_is_refused(home, text):
    with pytest.raises(IfamError, match="The path "):
        local_path(text)


# --- trying to write -------------------------------------------------------------------------------------


def test_trying_leaves_nothing_behind(tmp_path):
    ensure_writable(tmp_path / "a" / "b" / "x.json")
    ensure_writable(tmp_path / "a" / "b", folder=True)
    assert contents(tmp_path) == []
    (tmp_path / "x.json").write_text("old")
    ensure_writable(tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "old"


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("mine")
    for target, folder in [
        (tmp_path / "file" / "x.json", False),
        (tmp_path / "file" / "deeper", True),
        (tmp_path / "file", True),
        (tmp_path, False),
        (tmp_path / ("x" * 300), False),
    ]:
        with pytest.raises(IfamError, match="choose another"):
            ensure_writable(target, folder=folder)
    assert contents(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses files")
def test_a_file_system_that_takes_no_files_is_known_before():
    with pytest.raises(IfamError, match="cannot be written"):
        ensure_writable(Path("/proc/ifam/x.json"))


def test_a_disk_with_too_little_space_is_known_before(tmp_path):
    ensure_space(tmp_path, 1)
    with pytest.raises(IfamError, match=r"MB left, but about 1,000,000,000 MB are needed .* choose another --out"):
        ensure_space(tmp_path, 10**15)
    assert contents(tmp_path) == []


# --- writing ---------------------------------------------------------------------------------------------


def test_a_file_is_complete_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": "ä"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ä"\n}\n'

    def stop():
        with replacing(path) as beside:
            beside.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä"}
    assert contents(tmp_path) == ["new", "new/x.json"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    write_text(Path(os.devnull), "x")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence():
    with pytest.raises(IfamError, match="No space left"):
        write_text(Path("/dev/full"), "x" * 100_000)


def test_names_that_are_not_utf8_come_back_from_json(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "x.json", {"path": name})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["path"] == name
    assert printable(name).encode()
    assert printable("café") == "café"


# --- replacing -------------------------------------------------------------------------------------------


def test_only_the_same_run_replaces_its_file(tmp_path):
    path = tmp_path / "results.json"
    ours, others = run_digest({"a": 1, "b": Path("x")}), run_digest({"a": 2})
    assert ours == run_digest({"b": Path("x"), "a": 1}) != others
    check_replaceable(path, ours, overwrite=False)
    write_json(path, {"conditions": {"run": ours}})
    check_replaceable(path, ours, overwrite=False)
    with pytest.raises(IfamError, match="a result under other conditions; choose another --out"):
        check_replaceable(path, others, overwrite=False)
    check_replaceable(path, others, overwrite=True)
    for text in ("[]", "{}", "no JSON", '{"conditions": {}}', '{"conditions": []}'):
        path.write_text(text)
        with pytest.raises(IfamError, match="is not a result of `ifam`"):
            check_replaceable(path, ours, overwrite=False)
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(IfamError, match="is not a result of `ifam`"):
        check_replaceable(path, ours, overwrite=False)


def test_nothing_is_replaced_unasked(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    check_absent([tmp_path / "a"], overwrite=False)
    with pytest.raises(IfamError, match="b already exists"):
        check_absent([tmp_path / "a", tmp_path / "b"], overwrite=False)
    check_absent([tmp_path / "b"], overwrite=True)


@pytest.mark.parametrize(
    ("option", "advice"), [("--out", "choose another --out, or replace"), ("", "replace")], ids=["--out", "no option"]
)
def test_only_an_option_that_there_is_is_named(tmp_path, option, advice):
    path = tmp_path / "x.json"
    path.touch()
    with pytest.raises(IfamError, match=rf"already exists; {advice} it with --overwrite\.$"):
        check_absent([path], overwrite=False, option=option)
    with pytest.raises(IfamError, match=rf"is not a result of `ifam`; {advice} it with --overwrite\.$"):
        check_replaceable(path, "run", overwrite=False, option=option)
