"""Lines that are kept at once, and read again."""

import pytest

from ifam.errors import IfamError
from ifam.run_log import RunLog


def test_lines_are_kept_at_once_and_read_again(tmp_path):
    log = RunLog(tmp_path / "new" / "log.jsonl")
    assert log.empty
    for entry in ({"a": "\u2028 ü"}, {"a": [1, None]}):
        log.add(entry)
    assert list(RunLog(log.path).entries()) == [(1, {"a": "\u2028 ü"}), (2, {"a": [1, None]})]


def test_a_line_that_was_not_finished_is_overwritten(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "long": "x')
    log = RunLog(path)
    log.add({"a": 3})
    log.add({"a": 4})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n{"a": 4}\n'


def test_reading_changes_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"')
    RunLog(path)
    assert path.read_bytes() == b'{"a": 1}\n{"a"'


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(IfamError, match=r"log\.jsonl, line 2 is damaged \(.*\); remove the file"):
        list(RunLog(tmp_path / "log.jsonl").entries())


@pytest.mark.parametrize("kind", ["below a file", "a folder", "no text"])
def test_files_that_are_no_log_are_errors(tmp_path, kind):
    (tmp_path / "file").write_bytes(b"\xff\xfe\x00")
    path = {"below a file": tmp_path / "file" / "log", "a folder": tmp_path, "no text": tmp_path / "file"}[kind]
    with pytest.raises(IfamError, match="choose another --out"):
        RunLog(path)
