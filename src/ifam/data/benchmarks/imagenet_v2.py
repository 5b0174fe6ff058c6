"""ImageNet-V2: 10,000 new photographs, collected as ImageNet's validation images were.

From https://github.com/modestyachts/ImageNetV2 (Recht et al., arXiv 1902.10811). License: MIT for the repository, the
images belong to their owners; see the source.

    imagenetv2-matched-frequency-format-val/
      0/*.jpeg, 1/*.jpeg, ..., 999/*.jpeg

Folders are named by the number of the class and sorted by it: sorted by name, 10 would come before 2, and nearly
every label would be wrong. There is one split, "test"; groups are the classes.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import class_names, read_wnids
from ifam.data.records import assemble
from ifam.data.source_files import find_root
from ifam.data_config import ImagenetV2Config

SOURCE = "https://github.com/modestyachts/ImageNetV2"


def load_imagenet_v2(root: Path | None, config: ImagenetV2Config) -> Benchmark:
    """ImageNet-V2, from the folder of a variant or its parent."""
    folder = f"imagenetv2-{config.variant}-format-val"
    inner = root / folder if root is not None and (root / folder).is_dir() else root
    images = find_root("imagenet_v2", inner, (), SOURCE)
    names = class_names()
    labels = {str(label): label for label in range(len(names))}
    records = sorted(read_wnids("imagenet_v2", images, labels, config.partial), key=lambda r: (r.label, r.path))
    count = len({record.label for record in records})
    note = "" if count == len(names) else f"only {count} of 1,000 classes are in this copy"
    return assemble(Benchmark("imagenet_v2", {}, names, names, note), {"test": records}, config)
