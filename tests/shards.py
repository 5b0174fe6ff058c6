"""Shards of images, written as WebDataset writes them."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(number, size=(40, 30), kind="png"):
    """The bytes of an image with a color of its own."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, {"jpg": "jpeg"}.get(kind, kind))
    return file.getvalue()


def write_shard(path, members):
    """Write a tar file.

    Args:
        path: The file.
        members: Content by name: bytes, text, or an object for JSON; or a `TarInfo` that is written as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
                continue
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, classes=("duck", "wren"), **fields):
    """Members of images that state their class by turns."""
    members = {}
    for number in numbers:
        members[f"{number:04d}.jpg"] = picture(number, kind="jpg")
        members[f"{number:04d}.json"] = {"label": classes[number % len(classes)], **fields}
    return members
