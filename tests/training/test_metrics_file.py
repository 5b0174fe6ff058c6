"""The file of logged values only grows, is readable at any moment, and goes on after the rows of a checkpoint."""

import csv
from itertools import pairwise

import pytest

from ifam.errors import IfamError
from ifam.run_files import history, read_metrics
from ifam.training.metrics_file import MetricsFile


def log(metrics, epochs):
    """What a training logs in some epochs: a row of the validation, and one of the training."""
    for epoch in epochs:
        for values in ({"val/accuracy": 0.1 * epoch}, {"train/total": 3.0 - 1e-17 * epoch}):
            metrics.log_metrics({**values, "epoch": epoch}, step=10 * epoch + 9)
            metrics.save()


@pytest.fixture
def metrics(tmp_path):
    (tmp_path / "logs").mkdir()
    return MetricsFile(tmp_path / "logs" / "metrics.csv")


def test_rows_are_added_and_never_written_again(metrics):
    """Of the first two rows, each has values that none before had; after them, the file only grows."""
    log(metrics, range(1))
    start, identity = metrics.path.read_bytes(), metrics.path.stat().st_ino
    sizes = []
    for epoch in range(1, 50):
        log(metrics, [epoch])
        sizes.append(metrics.path.stat().st_size)
    assert metrics.path.stat().st_ino == identity
    assert metrics.path.read_bytes().startswith(start)
    assert max(after - before for before, after in pairwise(sizes)) < 60
    with metrics.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [number // 2 for number in range(100)]
    assert list(rows[0]) == ["epoch", "step", "train/total", "val/accuracy"]
    assert rows[-2] == {"epoch": "49", "step": "499", "train/total": "", "val/accuracy": repr(0.1 * 49)}


def test_a_value_that_is_new_gets_a_column(metrics):
    log(metrics, range(2))
    metrics.log_metrics({"epoch": 2, "train/presence": 0.5}, step=29)
    metrics.save()
    log(metrics, [3])
    rows = list(read_metrics(metrics.path))
    assert [row["train/presence"] for row in rows] == ["", "", "", "", "0.5", "", ""]
    assert [row["step"] for row in rows] == ["9", "9", "19", "19", "29", "39", "39"]


def test_a_training_goes_on_after_the_rows_of_its_checkpoint(metrics, tmp_path):
    """With the bytes of one that was not stopped: later rows are removed, and so is half a row."""
    log(metrics, range(6))
    whole = metrics.path.read_bytes()
    for content in (whole, whole[:-7], whole + b"6,69,,0."):
        metrics.path.write_bytes(content)
        again = MetricsFile(metrics.path)
        again.restore(8)
        assert len(list(again.written())) == 8
        log(again, range(4, 6))
        assert again.path.read_bytes() == whole
        assert again.rows == 12


@pytest.mark.parametrize("lost", [None, b"", b"epoch,st", b"epoch,step,train/total,val/accuracy\n0,9,,0.0\n0,9,3."])
def test_rows_that_were_lost_are_missed_aloud(metrics, lost, caplog):
    log(metrics, range(3))
    metrics.path.unlink() if lost is None else metrics.path.write_bytes(lost)
    again = MetricsFile(metrics.path)
    again.restore(6)
    left = 1 if lost and b"\n" in lost else 0
    assert f"metrics.csv has lost {6 - left} rows" in caplog.text
    log(again, [3])
    assert [row["epoch"] for row in read_metrics(again.path)] == ["0"] * left + ["3", "3"]


def test_the_last_line_may_be_half_written(metrics):
    log(metrics, range(3))
    with metrics.path.open("a") as file:
        file.write("3,39,,0.2999")
    assert [row["epoch"] for row in read_metrics(metrics.path)] == ["0", "0", "1", "1", "2", "2"]


def test_the_history_is_that_of_the_file(metrics):
    """Floats come back as they were."""
    log(metrics, range(3))
    expected = [{"val/accuracy": 0.1 * epoch, "train/total": 3.0 - 1e-17 * epoch} for epoch in range(3)]
    assert history(metrics.path) == expected
    assert history(metrics.path.with_name("missing")) == []


def test_a_file_that_cannot_be_written_is_named(metrics):
    log(metrics, [0])
    metrics.path.unlink()
    metrics.path.mkdir()
    with pytest.raises(IfamError, match=r"metrics\.csv cannot be written \(.*\); choose another place"):
        log(metrics, [1])
