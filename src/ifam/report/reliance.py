"""Text, tables and pictures of the audit of any classifier, for console and page."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

from ifam.auditing.audit_any import Example, RelianceResult, SwapFiles
from ifam.auditing.reliance import FlipRate
from ifam.console import PlainConsole
from ifam.io import write_json
from ifam.report.overlays import save_picture, thumbnail
from ifam.report.tables import Section, Table, print_section, share

RELIANCE, PICTURES = "reliance.json", "reliance_pictures"
# Classes with rows of their own on the console and the page; figures of all are in the file.
_LISTED = 20


@dataclass(frozen=True)
class SwapView:
    """A swap on the page.

    Attributes:
        example: What it did.
        uris: Its pictures: the image, what was cut out of it, the other image, and the object before its background.
    """

    example: Example
    uris: tuple[str, ...]


def sections(result: RelianceResult) -> tuple[Section, ...]:
    """How often answers flip, for which classes, and before which backgrounds."""
    flips = result.flips
    rows = [("another class's background", *_cells(flips.overall))]
    if flips.control is not None:
        rows.append(("another background of its own class", *_cells(flips.control)))
    left_out = ", ".join(f"{count} images ({reason})" for reason, count in result.left_out.items())
    notes = [
        f"Objects were cut out by {result.cut}, {share(result.area)} of the image on average, and put before the other "
        f"images without moving them; the hole that their object leaves is filled smoothly from around it.",
        "The second row is a comparison: where a class goes with its background, other images of the class show what "
        "cutting out and another place of the same kind change by themselves, and what the first row has more is "
        "reliance on the background of the class. Where backgrounds are mixed, the two rows are alike.",
        f"On average the answer becomes {share(flips.drop)} less probable before another class's background.",
        flips.accuracy_note,
    ]
    notes += [f"Left out: {left_out}."] if left_out else []
    if flips.probabilities:
        notes.append("The classifier returns probabilities, which are taken as they are; flips need the largest alone.")
    if flips.accuracy is not None:
        before, after = map(share, flips.accuracy)
        notes.insert(
            0, f"Accuracy is {before} on the images as they are, and {after} before other classes' backgrounds."
        )
    heads = ("the object before", "images", "pictures", "answers that flip", "95 % interval")
    first = Section(
        "How often does the answer flip?", result.verdict, (Table("Flips", heads, tuple(rows), (0,)),), (*notes,)
    )
    pairs = tuple((f"{row.object} before {row.background}", str(row.swaps), share(row.flips)) for row in flips.pairs)
    named = max(flips.by_class, key=lambda name: flips.by_class[name].flips)
    leading = max(flips.by_background, key=lambda name: flips.by_background[name].flips)
    lead = (
        f"Most often for objects of the class {named} ({share(flips.by_class[named].flips)}), and before backgrounds "
        f"of the class {leading} ({share(flips.by_background[leading].flips)})."
    )
    tables = (
        _by_class("Flips by class of the object", "class", flips.by_class),
        _by_class("Flips by class of the image that gave the background", "background", flips.by_background),
        Table("Pairs with the most flips", ("object and background", "pictures", "answers that flip"), pairs),
    )
    return first, Section("For which classes, and before which backgrounds?", lead, tables)


def _by_class(caption: str, head: str, rates: Mapping[str, FlipRate]) -> Table:
    """A row for each class, those with the most flips first."""
    ordered = sorted(rates.items(), key=lambda item: -item[1].flips)
    more = f" (the first {_LISTED} of {len(ordered)})" if len(ordered) > _LISTED else ""
    rows = tuple((name, *_cells(rate)) for name, rate in ordered[:_LISTED])
    return Table(caption + more, (head, "images", "pictures", "answers that flip", "95 % interval"), rows)


def _cells(rate: FlipRate) -> tuple[str, ...]:
    ends = "–" if rate.low is None or rate.high is None else f"{share(rate.low)} to {share(rate.high)}"
    return str(rate.images), str(rate.swaps), share(rate.flips), ends


def print_reliance(result: RelianceResult) -> None:
    """Print the tables and the verdict."""
    console = PlainConsole()
    for section in sections(result):
        print_section(console, section)
    console.print(f"\n{result.verdict}", style="bold")


def write_files(result: RelianceResult, folder: Path) -> Path:
    """Write `reliance.json` and the pictures of its examples.

    Args:
        result: The result, with the pixels of its examples.
        folder: Folder, which exists.

    Returns:
        The path of the JSON file.
    """
    # Remove the result first: while pictures are replaced, it would not match them.
    (folder / RELIANCE).unlink(missing_ok=True)
    examples = []
    for number, (example, pixels) in enumerate(zip(result.examples, result.swaps, strict=True)):
        files = SwapFiles(*(f"{PICTURES}/{number:02d}-{field.name}.webp" for field in fields(SwapFiles)))
        pictures = [thumbnail(to_pil_image(one)) for one in pixels]
        for field, picture in zip(fields(SwapFiles), pictures, strict=True):
            save_picture(picture, folder / getattr(files, field.name))
        examples.append(replace(example, pictures=files, side=pictures[0].size))
    write_json(folder / RELIANCE, replace(result, examples=tuple(examples)).to_dict(), allow_nan=False)
    return folder / RELIANCE
