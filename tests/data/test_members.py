"""Members of tar files as files, against the same files in a folder, and tar files that are damaged or hostile."""

import gzip
import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from ifam.data.fingerprints import sample
from ifam.data.images import load_image
from ifam.data.members import file_size, is_file, is_member, open_file, read_headers
from ifam.errors import IfamError
from shards import picture, samples, write_shard


@pytest.fixture
def shard(tmp_path):
    """Files in a tar file, and the same in a folder beside it."""
    members = {
        "a/0.png": picture(0),
        "1.jpg": picture(1, kind="jpg"),
        "2.txt": "two",
        "empty": b"",
        "./3.bin": b"3" * 99999,
    }
    for name, content in members.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return write_shard(tmp_path / "shard.tar", members), tmp_path / "folder"


def test_members_are_as_good_as_files(shard):
    tar, folder = shard
    for path in (path for path in folder.rglob("*") if path.is_file()):
        member = tar / path.relative_to(folder)
        assert is_member(member)
        assert is_file(member)
        assert not is_member(path)
        assert file_size(member) == file_size(path) == path.stat().st_size
        for read in (
            lambda file: file.read(),
            lambda file: file.read(7),
            lambda file: file.seek(-9, 2) and file.read(),
        ):
            if path.stat().st_size > 9:
                with open_file(member) as one, open_file(path) as other:
                    assert read(one) == read(other)
        assert sample(member) == sample(path)
    with open_file(tar / "3.bin") as file:
        assert (file.seek(99990), len(file.read()), file.read(), file.tell()) == (99990, 9, b"", 99999)
    assert np.array_equal(load_image(tar / "a" / "0.png"), load_image(folder / "a" / "0.png"))


def test_images_that_are_read_twice_are_read_from_their_member(tmp_path):
    """Colors of 16 bits, and an orientation that stands behind the pixels."""
    deep = np.random.default_rng(0).integers(0, 65536, (6, 5, 3)).astype(">u2")
    pages = {"deep.tif": io.BytesIO(), "turned.png": io.BytesIO()}
    header = {256: 5, 257: 6, 258: (16, 16, 16), 259: 1, 262: 2, 277: 3, 278: 6, 284: 1}
    _write_tiff(pages["deep.tif"], header, deep.tobytes())
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (5, 6), "red").save(pages["turned.png"], "png", exif=exif)
    tar = write_shard(tmp_path / "shard.tar", {name: file.getvalue() for name, file in pages.items()})
    for name, file in pages.items():
        (tmp_path / name).write_bytes(file.getvalue())
        assert np.array_equal(load_image(tar / name), load_image(tmp_path / name))
    assert load_image(tar / "turned.png").size == (6, 5)


def _write_tiff(file, tags, pixels):
    """A TIFF of one strip, big-endian, whose values of three are written behind the tags."""
    tags = {**tags, 273: 0, 279: len(pixels)}
    behind = 8 + 2 + 12 * len(tags) + 4
    file.write(b"MM\0*" + (8).to_bytes(4, "big") + len(tags).to_bytes(2, "big"))
    extra = b""
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        long = tag in (256, 257, 273, 278, 279)
        if tag == 273:
            values = (behind + 6,)
        content = b"".join(one.to_bytes(4 if long else 2, "big") for one in values)
        if len(content) > 4:
            content, extra = (behind + len(extra)).to_bytes(4, "big"), extra + content
        file.write(tag.to_bytes(2, "big") + (4 if long else 3).to_bytes(2, "big") + len(values).to_bytes(4, "big"))
        file.write(content.ljust(4, b"\0"))
    file.write(bytes(4) + extra + pixels)


def test_a_member_that_is_not_there_is_no_file(shard, tmp_path):
    tar, _ = shard
    assert not is_file(tar / "9.jpg")
    with pytest.raises(FileNotFoundError, match=r"the shard has no member '9.jpg'"):
        open_file(tar / "9.jpg")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "file").write_bytes(b"in a folder")
    assert is_file(tmp_path / "folder.tar" / "file")
    assert not is_member(tmp_path / "folder.tar" / "file")


def test_a_shard_that_is_replaced_is_read_again(tmp_path):
    for content in ("one", "and two"):
        tar = write_shard(tmp_path / "shard.tar", {"first": b"x" * 1000 * len(content), "text": content})
        with open_file(tar / "text") as file:
            assert file.read().decode() == content


def link(kind):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../0.jpg": b"0"}, "has the member '../0.jpg', whose path leads out of it"),
        ({"/0.jpg": b"0"}, "has the member '/0.jpg', whose path leads out of it"),
        ({"a/../../0.jpg": b"0"}, "has the member 'a/../../0.jpg', whose path leads out of it"),
        ({"0.jpg": link(tarfile.SYMTYPE)}, "has the member '0.jpg', which is a link"),
        ({"0.jpg": link(tarfile.LNKTYPE)}, "has the member '0.jpg', which is a link"),
        ({"0.jpg": link(tarfile.FIFOTYPE)}, "has the member '0.jpg', which is no regular file"),
        ({"0.jpg": b"0", "./0.jpg": b"1"}, "has two members './0.jpg'"),
    ],
)
def test_a_member_that_is_not_one_file_below_is_refused_by_name(members, said, tmp_path):
    tar = write_shard(tmp_path / "shard.tar", members)
    with pytest.raises(IfamError, match=re.escape(f"{tar} {said}")):
        read_headers(tar)


def test_damage_is_a_sentence_wherever_it_is(tmp_path):
    """A header that is damaged would end the file for Python's reader, and what follows would be missing in silence."""
    whole = write_shard(tmp_path / "whole.tar", samples(range(4))).read_bytes()
    names = read_headers(tmp_path / "whole.tar")
    second = names["0001.jpg"][0]
    (offset, size) = names["0003.jpg"]
    cases = {
        "cut.tar": (whole[: offset + size // 2], "is cut off within its member '0003.jpg'|is not a whole tar file"),
        "header.tar": (
            whole[: second - 512] + bytes([255] * 9) + whole[second - 503 :],
            "has more after its last readable",
        ),
        "joined.tar": (
            whole + whole,
            "has more after its last readable member, at byte [0-9,]+: a damaged header, or a s",
        ),
        "first.tar": (b"\1" * 512 + whole[512:], "is not a whole tar file"),
        "empty.tar": (b"", "is not a whole tar file"),
        "packed.tar": (gzip.compress(whole), "is compressed, .* unpack it to a plain tar file with `gunzip`"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(IfamError, match=rf"{name} ({said})"):
            read_headers(tmp_path / name)
    # Some writers leave out the end.
    (tmp_path / "short.tar").write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    assert read_headers(tmp_path / "short.tar") == names


def test_every_byte_that_is_cut_off_is_noticed(tmp_path):
    whole = write_shard(tmp_path / "whole.tar", {"0.jpg": b"x" * 600, "1.jpg": b"y" * 700}).read_bytes()
    end = max(offset + size for offset, size in read_headers(tmp_path / "whole.tar").values())
    for length in range(1, end, 97):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        try:
            members = read_headers(tmp_path / "cut.tar")
        except IfamError:
            continue
        # Between two members, a shorter file is whole.
        assert members.keys() == {"0.jpg"}
        assert length % 512 == 0
