"""`ifam prepare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ifam.cli.common import check_resume
from ifam.errors import IfamError

if TYPE_CHECKING:
    from ifam.data.composites import Composite
    from ifam.data.cutouts import Material

# Images of each group on the sheet of examples.
_EXAMPLES = 4


def prepare(
    kind: Literal["cutouts"],
    objects: Path,
    backgrounds: Path,
    out: Path,
    masks: Path | None = None,
    classes: list[str] | dict[str, Any] | None = None,
    places: list[str] | dict[str, Any] | None = None,
    correlation: float = 0.95,
    count: str | list[str] = "1000,200,800",
    size: int = 224,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Make a benchmark from cut-out objects and backgrounds that agree with the classes in training only.

    `ifam train OUT` trains on it. No object and no part of a background is in two splits. Run again, the command
    continues where it stopped.

    Args:
        kind: "cutouts"; may be given without its name, as in `ifam prepare cutouts`.
        objects: Folder with a sub-folder for each kind of objects: pictures with transparency, or with masks.
        backgrounds: Folder with a sub-folder for each place.
        out: Folder for the images, masks, lists, and a sheet of examples.
        masks: Folder of the objects' masks, with the same names as in `objects`; by default transparency, or a mask
            beside each picture (bird_mask.png, or masks/bird.png).
        classes: Kinds of objects of each class, such as `animal=bird,mammal plant=fruit,flower`; by default each
            sub-folder is a class.
        places: Places of each class, such as `animal=water plant=land`; by default the sub-folders in the order of
            their names. Others are the third place of the test images.
        correlation: Share of each class's training and validation images that show its own place.
        count: Number of training, validation and test images.
        size: Side of the images in pixels.
        seed: Seed of the division into splits and of the drawings.
        overwrite: Replace a benchmark with other settings in `out`.
        resume: Go on where it was stopped, as without this option.
    """
    from ifam.data_config import CutoutsConfig

    check_resume(resume, overwrite)
    config = CutoutsConfig(
        _lists("classes", classes), _lists("places", places), correlation, _numbers(count), size, seed
    )

    from ifam.data.composites import prepare_cutouts
    from ifam.progress import ProgressBar

    with ProgressBar() as bar:
        material, composites = prepare_cutouts(
            *(objects, backgrounds, out, config),
            masks=masks,
            overwrite=overwrite,
            track=lambda items: bar.track(items, description="drawing images"),
        )
    _draw_examples(composites, material, out)
    train, val, test = config.count
    print(
        f"{out} has {train:,} training, {val:,} validation and {test:,} test images, and examples.png to look at; "
        f"`ifam train {out}` trains on them."
    )


def _lists(option: str, given: list[str] | dict[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """Names by name, from words such as "animal=bird,mammal" or from the settings of a file."""
    if isinstance(given, Mapping):
        pairs = [(str(name), names) for name, names in given.items()]
    else:
        for word in given or ():
            if "=" not in word:
                raise IfamError(f"--{option} has {word!r}, but NAME=FOLDER or NAME=FOLDER,FOLDER is expected.")
        pairs = [(word.partition("=")[0].strip(), word.partition("=")[2]) for word in given or ()]
    lists: dict[str, tuple[str, ...]] = {}
    for name, names in pairs:
        several = names.split(",") if isinstance(names, str) else names
        if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
            raise IfamError(f"--{option} has {names!r} for {name}, but names of folders are expected; quote numbers.")
        if not name or name in lists:
            raise IfamError(f"--{option} has {f'{name!r} twice' if name else 'a class without a name'}; correct it.")
        lists[name] = tuple(one.strip() for one in several if one.strip())
    return lists


def _numbers(count: str | list[str]) -> tuple[int, int, int]:
    """The numbers of images of the three splits."""
    words = count.strip("[]() ").split(",") if isinstance(count, str) else [str(one) for one in count]
    numbers = [int(word) for word in words if word.strip().isdecimal()]
    if len(words) != 3 or len(numbers) != 3 or 0 in numbers:
        text = count if isinstance(count, str) else ",".join(words)
        raise IfamError(
            f"count is {text}, but three numbers of at least 1 are expected: training, validation and test images, "
            f"such as 1000,200,800."
        )
    return numbers[0], numbers[1], numbers[2]


def _draw_examples(composites: "list[Composite]", material: "Material", out: Path) -> None:
    """A picture of test images of each group: the image, its mask, and the object on two other backgrounds."""
    from PIL import Image

    from ifam.io import replacing
    from ifam.report.overlays import contact_sheet, enlarge

    rows, captions = [], []
    for label, name in enumerate(material.class_names):
        for place, where in enumerate(material.place_names):
            members = [one for one in composites if (one.split, one.label, one.place) == ("test", label, place)]
            for one in members[:_EXAMPLES]:
                files = [one.files()[column] for column in ("path", "mask", "swapped", "third")]
                rows.append([enlarge(Image.open(out / file), 160) for file in files])
                captions.append(f"{name} on {where}: image, mask, swapped, third")
    with replacing(out / "examples.png") as temporary:
        contact_sheet(rows, captions).save(temporary)
