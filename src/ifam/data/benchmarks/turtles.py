"""SeaTurtleID2022: 8,729 photographs of 438 sea turtles taken over 13 years, to be identified.

From https://www.kaggle.com/datasets/wildlifedatasets/seaturtleid2022 (Adam et al., WACV 2024, arXiv 2211.10307).
License: see the source.

    data/
      metadata_base.csv    file_name, identity, split_closed, split_closed_random, split_open, ...; or the same
                           under the name metadata_splits.csv
      images/t001/*.JPG    paths in file_name are relative to this folder or to the root

Splits are a column: `split_closed` (all turtles are known, training is older than test), `split_closed_random`, or
`split_open` (some turtles occur in the test set only, and cannot be identified). Where the column has no validation
images, they are split from training. Classes and groups are the identities.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.records import Record, assemble
from ifam.data.source_files import find_root, number_labels, read_csv
from ifam.data.splits import SPLIT_NAMES
from ifam.data_config import TurtlesConfig
from ifam.errors import IfamError

SOURCE = "https://www.kaggle.com/datasets/wildlifedatasets/seaturtleid2022"
TABLES = ("metadata_base.csv", "metadata_splits.csv")


def load_turtles(root: Path | None, config: TurtlesConfig) -> Benchmark:
    """SeaTurtleID2022, from the folder of its metadata."""
    table = (
        TABLES[1] if root is not None and not (root / TABLES[0]).exists() and (root / TABLES[1]).exists() else TABLES[0]
    )
    root = find_root("turtles", root, (table, "images"), SOURCE)
    rows = read_csv(root / table, ("file_name", "identity", config.split))
    numbers = number_labels(row["identity"] for _, row in rows)
    # The published table has "images/" in its paths, copies may not.
    folder = root if rows and (root / rows[0][1]["file_name"]).exists() else root / "images"
    splits: dict[str, list[Record]] = {"train": []}
    for line, row in rows:
        where = f"{root / table}, line {line}"
        name = row[config.split]
        if not name:
            continue  # not part of this split
        if name not in SPLIT_NAMES:
            raise IfamError(f"{where} has the unknown split {name!r}; one of train, valid, test is expected.")
        record = Record(folder / row["file_name"], numbers[row["identity"]], line=where)
        splits.setdefault(SPLIT_NAMES[name], []).append(record)
    known = {record.label for record in splits["train"]}
    unknown = [record for record in splits.get("test", []) if record.label not in known]
    notes: list[str] = [f"validation images as published ({config.split})"] if "val" in splits else [config.split]
    if unknown:
        notes.append(f"{len(unknown)} test images show turtles that are not in training")
    classes = tuple(numbers)
    empty = Benchmark("turtles", {}, classes, classes, "; ".join(notes))
    return assemble(empty, splits, config, roots=[root], every_class=False)
