"""ImageNet-V2: 10,000 new photographs, collected as ImageNet's validation images were.

From https://github.com/modestyachts/ImageNetV2 (Recht et al., arXiv 1902.10811). Licence: MIT for the repository, the
images belong to their owners; see the source.

    imagenetv2-matched-frequency-format-val/
      0/*.jpeg, 1/*.jpeg, ..., 999/*.jpeg

Folders are named by the number of the class and taken by that number: in the order of their names, 10 would come
before 2 and nearly every label would be wrong. There is one split, "test"; groups are the classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import SubsetConfig, class_names, read_wnids
from ifam.data.records import assemble
from ifam.data.source_files import choose, find_root

SOURCE = "https://github.com/modestyachts/ImageNetV2"
VARIANTS = ("matched-frequency", "threshold-0.7", "top-images")


@dataclass(frozen=True)
class ImagenetV2Config(SubsetConfig):
    """How to read ImageNet-V2.

    Attributes:
        variant: Which of its three test sets, where the root holds several: matched-frequency (the usual one),
            threshold-0.7 or top-images.
        partial: Accept a copy without some of the 1,000 class folders; figures are then not comparable.
        skip_bad: Leave out images that are damaged, with a notice, instead of stopping.
        check: Open every file once at the start, so that a damaged one is found before it stops the evaluation.
    """

    benchmark: ClassVar[str] = "imagenet_v2"
    variant: str = "matched-frequency"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("imagenet_v2", "variant", self.variant, VARIANTS)


def load_imagenet_v2(root: Path | None, config: ImagenetV2Config) -> Benchmark:
    """ImageNet-V2, from the folder of a variant or one that holds it."""
    folder = f"imagenetv2-{config.variant}-format-val"
    inner = root / folder if root is not None and (root / folder).is_dir() else root
    images = find_root("imagenet_v2", inner, (), SOURCE)
    names = class_names()
    labels = {str(label): label for label in range(len(names))}
    records = sorted(read_wnids("imagenet_v2", images, labels, config.partial), key=lambda r: (r.label, r.path))
    count = len({record.label for record in records})
    note = "" if count == len(names) else f"only {count} of 1,000 classes are in this copy"
    return assemble(Benchmark("imagenet_v2", {}, names, names, note), {"test": records}, config)
