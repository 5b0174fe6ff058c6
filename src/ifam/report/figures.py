"""Pictures as figures in notebooks, and as files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ifam.errors import IfamError
from ifam.io import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dots per inch of a figure.
_DPI = 150


def as_figure(picture: Image.Image) -> "Figure":
    """A picture as a figure of matplotlib, which pyplot does not manage."""
    # pyplot lets notebooks show figures; one that it managed would be shown twice.
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(picture.width / _DPI, picture.height / _DPI), dpi=_DPI)
    plt.close(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.asarray(picture))
    axes.set_axis_off()
    return figure


def picture_path(path: str | Path) -> Path:
    """The path of a picture that is to be written.

    Raises:
        IfamError: It does not end as a picture's.
    """
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise IfamError(f"{path} has no ending of a picture; give one such as .png, .jpg or .webp.")
    return path


def write_picture(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture to a file, in the format of its ending; replaced if it is there.

    Raises:
        IfamError: It has no such ending, or cannot be written.
    """
    path = picture_path(path)
    with replacing(path) as temporary:
        picture.save(temporary)
    return path
