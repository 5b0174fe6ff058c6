"""`ifam predict` on the command line: lists of every kind in, tables of every format out, stopped and gone on with."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pydicom
import pytest
import torch
from PIL import Image

from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.inference import predict
from ifam.models.ifam import IFAM
from miniatures import draw_dicom
from programs import Program, alive_after, descendants

VIT = {"depth": 1, "embed_dim": 48, "num_heads": 3}
DOCS = Path(__file__).parents[2] / "docs"


def build():
    torch.manual_seed(0)
    config = ModelConfig("vit_tiny_patch16_224", image_size=32, num_parts=3, num_classes=7, backbone_kwargs=VIT)
    return IFAM(config, pretrained=False).eval()


@pytest.fixture(scope="module")
def net():
    return build()


@pytest.fixture
def here(tmp_path, monkeypatch, net):
    """A folder with a model and five photographs, of which one is damaged, in which commands run."""
    monkeypatch.chdir(tmp_path)
    net.save_pretrained("runs/ifam")
    for number, name in enumerate(("a", "b", "sub/c", "sub/d")):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"photos/{name}.jpg")
    Path("photos/e.jpg").write_bytes(b"")
    return tmp_path


def run(command):
    main([str(word) for word in (shlex.split(command) if isinstance(command, str) else command)])


def fails(capsys, command):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(command)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def rows_of(table):
    """The rows of a table of JSON lines."""
    return [json.loads(line) for line in Path(table).read_bytes().splitlines()]


def stdin(text):
    return io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")


def paths(table):
    return [row["path"] for row in csv.DictReader(io.StringIO(Path(table).read_text(encoding="utf-8")))]


ALL = ["photos/a.jpg", "photos/b.jpg", "photos/e.jpg", "photos/sub/c.jpg", "photos/sub/d.jpg"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("photos", ALL),
        ("photos/a.jpg photos", ALL),
        ("'photos/*.jpg'", ALL[:3]),
        ("'photos/**/*.jpg'", ALL),
        ("'photos/**/[cd].*' photos/a.jpg", [*ALL[3:], ALL[0]]),
        ("list.csv", ["photos/sub/d.jpg", "photos/a.jpg", "gone.jpg"]),
        ("marked.csv --path_column file", ["photos/b.jpg"]),
        ("-", ["photos/sub/c.jpg", "photos/b.jpg", "photos"]),
    ],
)
def test_images_are_given_in_many_ways(here, given, expected, monkeypatch, caplog):
    Path("list.csv").write_text(
        "path,label\nphotos/sub/d.jpg,x\nphotos/a.jpg,y\nphotos/a.jpg,z\ngone.jpg,z\n", encoding="utf-8"
    )
    Path("marked.csv").write_bytes(b"\xef\xbb\xbfname;file\r\nx;photos/b.jpg\r\n")
    lines = "photos/sub/c.jpg\r\nphotos/b.jpg\n\nphotos/sub/c.jpg\nphotos\n"
    monkeypatch.setattr("sys.stdin", stdin(lines.encode()))
    run(f"predict {given} --out out.csv")
    assert paths("out.csv") == expected
    with open("out.csv", encoding="utf-8") as file:
        errors = {row["path"]: row["error"] for row in csv.DictReader(file)}
    assert errors.get("gone.jpg", "it is missing") == "it is missing"
    assert errors.get("photos", "it is a folder") == "it is a folder"
    assert errors.get("photos/e.jpg", "the file is empty").startswith("the file is empty")
    assert errors.get("photos/a.jpg", "") == errors.get("photos/b.jpg", "") == ""
    assert ("Images that were given again, and have one row each: 1." in caplog.text) == (
        given in ("photos/a.jpg photos", "list.csv", "-")
    )


def test_what_a_list_names_that_is_no_file_is_a_row(here, monkeypatch):
    """Nothing of it is opened: a pipe would wait for a writer."""
    os.mkfifo("pipe.jpg")
    lines = b"pipe.jpg\n/dev/null\n" + b"x" * 300 + b".jpg\na\0b.jpg\n\xff.jpg\nphotos/a.jpg"
    monkeypatch.setattr("sys.stdin", stdin(lines))
    run("predict - --out out.jsonl")
    assert [row["error"] for row in rows_of("out.jsonl")] == [
        *["it is not a regular file"] * 2,
        "File name too long",
        *["it is missing"] * 2,
        None,
    ]


def test_a_csv_file_is_read_as_for_training(here, monkeypatch, capsys):
    """As Windows writes paths, and with the expansions of a shell."""
    monkeypatch.setenv("PICTURES", str(here / "photos"))
    Path("list.csv").write_text("path\r\nphotos\\sub\\c.jpg\r\n$PICTURES/a.jpg\r\n$NOWHERE/b.jpg\r\n", encoding="utf-8")
    run("predict list.csv --out out.csv")
    assert paths("out.csv") == ["photos/sub/c.jpg", str(here / "photos/a.jpg"), "$NOWHERE/b.jpg"]
    assert "Without an answer: 1" in capsys.readouterr().out


def test_a_csv_file_elsewhere_lists_what_lies_beside_it(here):
    Path("photos/list.csv").write_text("path\nsub/c.jpg\n", encoding="utf-8")
    run("predict photos/list.csv --out out.csv")
    assert paths("out.csv") == ["photos/sub/c.jpg"]


def test_tables_of_every_format_have_the_same_rows(here, net):
    for ending in ("csv", "jsonl", "parquet"):
        run(f"predict photos --out out.{ending}")
    rows = rows_of("out.jsonl")
    assert [row["path"] for row in rows] == ALL
    same = predict(net, "photos", out="out.csv", resume=True)
    for row, one in zip(rows, same, strict=True):
        assert row["top"] == [list(pair) for pair in one.top]
        assert (row["class_name"], row["probability"], row["error"]) == (one.class_name, one.probability, one.error)
        assert (row["selector_class"], row["flags"]) == (one.selector_class, list(one.flags))
    table = pyarrow.parquet.read_table("out.parquet").to_pylist()
    for row in table:
        row["top"] = [list(pair.values()) for pair in row["top"]]
    assert table == rows
    assert rows[0]["visible_fraction"] == same[0].visible_fraction
    assert not list(Path().glob("*.png"))


@pytest.mark.slow
def test_rows_are_the_same_for_any_number_of_workers_and_devices(here):
    tables = []
    for options in ("", "--workers 2", "--device cpu,cpu --workers 1", "--device cpu,cpu,cpu"):
        run(f"predict photos --out out.jsonl --overlays drawn --overwrite --batch_size 2 {options}")
        tables.append(Path("out.jsonl").read_text(encoding="utf-8"))
        assert {path.stem for path in Path("drawn").glob("*.png")} == {"a", "b", "sub_c", "sub_d"}
    assert len(tables[0].splitlines()) == 5
    assert set(tables) == {tables[0]}


def test_what_could_not_be_read_is_counted_and_nothing_at_all_is_status_2(here, capsys):
    run("predict photos --out out.csv")
    said = capsys.readouterr().out
    assert "5 rows are in out.csv." in said
    assert "Without an answer: 1, the first is photos/e.jpg." in said
    said = fails(capsys, "predict photos/e.jpg --out bad.csv")
    assert "None of the files is a readable image (the first is photos/e.jpg: the file is empty" in said
    assert paths("bad.csv") == ["photos/e.jpg"]
    said = fails(capsys, "predict photos --strict --batch_size 1 --out strict.csv")
    assert "photos/e.jpg is not a readable image (the file is empty" in said
    assert paths("strict.csv") == ALL[:2]


def test_an_empty_list_is_a_sentence(here, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", stdin(b"\n"))
    assert "No image was given" in fails(capsys, "predict - --out out.csv")
    assert not Path("out.csv").exists()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_odd_names_survive(here, ending):
    names = [
        "new\nline.jpg",
        "return\r.jpg",
        'quo"te,.jpg',
        "größe ß.jpg",
        "\u2028.jpg",
        "=cmd.jpg",
        "a;b\\c.jpg",
        "-.jpg",
    ]
    for name in names:
        os.link("photos/a.jpg", f"photos/sub/{name}")
    Path("photos/folder.jpg").mkdir()
    run(f"predict photos/sub --out out.{ending} --overlays drawn")
    rows = predict(build(), "photos/sub", out=f"out.{ending}", resume=True)
    assert sorted(row.path.name for row in rows) == sorted([*names, "c.jpg", "d.jpg"])
    assert all(row.overlay.is_file() for row in rows)


def test_sixteen_bits_and_dicom_are_scaled_and_it_is_said(here, caplog):
    deep = np.linspace(0, 4095, 2000).astype(np.uint16).reshape(40, 50)
    Image.fromarray(deep).save("photos/sub/deep.png")
    draw_dicom(Path("photos/sub/1.2.3.dcm"), deep, bits=12)
    draw_dicom(Path("photos/sub/1.2.4.dcm"), deep, bits=12)
    run("predict photos/sub --out out.jsonl")
    rows = {Path(row["path"]).name: row for row in rows_of("out.jsonl")}
    assert rows["deep.png"]["scaling"] == "range 0 to 4095 (assumed)"
    assert rows["1.2.3.dcm"]["scaling"] == rows["1.2.4.dcm"]["scaling"] == "range 0 to 4095"
    assert rows["c.jpg"]["scaling"] is None
    assert rows["1.2.3.dcm"]["top"] == rows["deep.png"]["top"]
    assert caplog.text.count("values are brought to 8 bits by range 0 to 4095.") == 1
    assert caplog.text.count("by range 0 to 4095 (assumed).") == 1


def test_what_headers_say_of_people_is_written_nowhere(here):
    """Neither of a DICOM file nor of a photograph (docs/data_protection.md)."""
    scan = draw_dicom(Path("photos/1.dcm"), np.linspace(0, 255, 2000).astype(np.uint16).reshape(40, 50), bits=12)
    file = pydicom.dcmread(scan)
    file.PatientName = file.PatientID = file.InstitutionName = "Secret"
    file.save_as(scan)
    exif = Image.Exif()
    exif[0x013B] = "Secret"  # the artist
    Image.new("RGB", (50, 40)).save("photos/f.jpg", exif=exif)
    run("predict photos --out out.jsonl --overlays drawn")
    assert len(list(Path("drawn").glob("*.png"))) == 6
    written = [path for path in here.rglob("*") if path.is_file() and path.parts[len(here.parts)] != "photos"]
    assert not [path for path in written if b"Secret" in path.read_bytes()]


def test_pictures_of_others_are_not_replaced_by_a_run_that_goes_on(here, capsys):
    Path("mine").mkdir()
    shutil.copy("photos/a.jpg", "mine/a.png")
    before = Path("mine/a.png").read_bytes()
    for out in ("new.csv", "old.csv"):
        if out == "old.csv":
            run(f"predict photos/a.jpg --out {out}")
        assert "choose another --overlays" in fails(
            capsys, f"predict photos/a.jpg photos/b.jpg --out {out} --overlays mine --resume"
        )
    run("predict photos/b.jpg --out theirs.csv --overlays theirs")
    assert "choose another" in fails(capsys, "predict photos/a.jpg --out new.csv --overlays theirs --resume")
    assert [file.name for file in Path("mine").iterdir()] == ["a.png"]
    assert Path("mine/a.png").read_bytes() == before
    # Its own, as often as it goes on, with more images each time.
    for given in ("photos/a.jpg", "photos/a.jpg photos/b.jpg", "photos"):
        run(f"predict {given} --out out.csv --overlays drawn --resume")
    assert sorted(file.name for file in Path("drawn").glob("*.png")) == ["a.png", "b.png", "sub_c.png", "sub_d.png"]


def test_rows_without_a_picture_are_counted(here, capsys):
    run("predict photos --out out.csv")
    run("predict photos --out out.csv --overlays drawn --resume")
    assert "Rows of earlier without a picture, which are not drawn again: 4" in capsys.readouterr().err
    run("predict photos --out new.csv --overlays drawn")
    run("predict photos --out new.csv --overlays drawn --resume")
    assert "without a picture" not in capsys.readouterr().err
    Path("drawn/a.png").unlink()
    run("predict photos --out new.csv --overlays drawn --resume")
    assert "without a picture, which are not drawn again: 1" in capsys.readouterr().err


def test_images_that_were_changed_after_their_row_are_named(here, capsys):
    run("predict photos --out out.csv")
    done = Path("out.csv").read_bytes()
    run("predict photos --out out.csv --resume")
    assert "were changed" not in capsys.readouterr().err
    later = time.time() + 60
    os.utime("photos/sub/c.jpg", (later, later))
    run("predict photos --out out.csv --resume")
    said = capsys.readouterr().err
    assert "Images that were changed after their row was written, which stays as it was: 1, the first is photos" in said
    assert Path("out.csv").read_bytes() == done


def test_a_table_below_the_images_and_pictures_among_them_are_no_images(here):
    for _ in range(2):
        run("predict photos --out photos/out.csv --overlays photos/drawn")
        assert paths("photos/out.csv") == ALL
    run("predict 'photos/**/*' --out other.csv")
    assert paths("other.csv") == ALL


# --- stopped, and gone on with ---------------------------------------------------------------------------


def start(*words, **options):
    """The program itself, in a process that can be stopped."""
    command = [sys.executable, "-W", "ignore", "-m", "ifam.cli", "predict", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def many(count=100):
    for number in range(count):
        os.link("photos/a.jpg", f"photos/sub/{number:03}.jpg")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "number"), [("csv", signal.SIGKILL), ("jsonl", signal.SIGTERM), ("parquet", signal.SIGKILL)]
)
def test_a_stopped_run_goes_on_and_ends_with_the_same_table(here, ending, number):
    many()
    out = Path(f"out.{ending}")
    growing = Path(f"{out}.jsonl") if ending == "parquet" else out
    with Program("predict", "photos", "--out", out, "--batch_size", 2, "--workers", 1, "--device", "cpu") as process:
        while not growing.exists() or growing.stat().st_size < 2000:
            assert process.poll() is None
            time.sleep(0.01)
        loaders = descendants(process.pid)
        process.send_signal(number)
        said = process.communicate()[1]
    assert "Traceback" not in said
    assert loaders
    assert not any(alive_after(loader, 15) for loader in loaders)
    assert process.returncode == (-number if number == signal.SIGKILL else 143)
    if number == signal.SIGTERM:
        assert f"rows of images that were done are kept in {out}, and the same command with --resume" in said
    before = growing.read_bytes()
    kept = before.count(b"photos/sub/")
    assert 0 < kept < 102
    with growing.open("ab") as file:
        file.write(before[-40:-10])
    run(f"predict photos --out {out} --batch_size 2 --resume")
    run(f"predict photos --out whole.{ending} --batch_size 2")
    if ending == "parquet":
        assert pyarrow.parquet.read_table(out).equals(pyarrow.parquet.read_table("whole.parquet"))
    else:
        assert out.read_bytes() == Path(f"whole.{ending}").read_bytes()
        assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert not Path(f"{out}.jsonl").exists() or ending == "jsonl"


@pytest.mark.slow
def test_a_list_is_answered_while_it_is_written_and_a_reader_may_leave(here):
    """As in `find | ifam predict - | head -3`."""
    with start("-", "--out", "out.csv", "--batch_size", 1, "--device", "cpu", stdin=subprocess.PIPE) as process:
        for number in range(21):
            os.link("photos/a.jpg", f"{number}.jpg")
            process.stdin.write(f"{number}.jpg\n")
            process.stdin.flush()
            if number == 0:
                # At once, and not when there are too many for a table.
                assert process.stdout.readline().startswith("image")
                assert process.stdout.readline().startswith("0.jpg")
        process.stdout.close()
        for number in range(60):
            os.link("photos/a.jpg", f"more{number}.jpg")
            try:
                process.stdin.write(f"more{number}.jpg\n")
                process.stdin.flush()
            except BrokenPipeError:
                break
        said = process.stderr.read()
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
    assert process.returncode == 141
    assert re.search(r"^ifam: Stopped by SIGPIPE: rows .* with --resume does the others\.\n\Z", said, re.MULTILINE)
    assert 0 < len(paths("out.csv")) < 81


# --- the guide -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_of_the_guide_run(here, monkeypatch, capsys):
    text = (DOCS / "predict.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (?:.* \| )?(ifam predict .*?)(?=\s*(?:#.*)?$)", text, re.MULTILINE)
    assert len(commands) >= 8
    Path("photos/list.csv").write_text("path\na.jpg\n", encoding="utf-8")
    for command in commands:
        monkeypatch.setattr("sys.stdin", stdin(b"photos/a.jpg\n"))
        command = command.replace("cuda:0,cuda:1", "cpu,cpu")
        run([*shlex.split(command)[1:], *([] if "--resume" in command else ["--overwrite"])])
