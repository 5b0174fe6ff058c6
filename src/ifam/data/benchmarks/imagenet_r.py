"""ImageNet-R: 30,000 renditions (art, cartoons, toys, tattoos, ...) of 200 of ImageNet's classes.

From https://github.com/hendrycks/imagenet-r (Hendrycks et al., arXiv 2006.16241). Licence: MIT for the repository,
the images belong to their owners; see the source.

    imagenet-r/
      n01443537/*.jpg ...    200 folders

There is one split, "test". Labels are those of the 1,000 classes; only the logits of these 200 compete
(`Benchmark.logit_classes`), as in the published figures. Groups are the classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import SubsetConfig, load_subset

SOURCE = "https://github.com/hendrycks/imagenet-r"


@dataclass(frozen=True)
class ImagenetRConfig(SubsetConfig):
    """How to read ImageNet-R.

    Attributes:
        partial: Accept a copy without some of the 200 class folders; figures are then not comparable.
        skip_bad: Leave out images that are damaged, with a notice, instead of stopping.
        check: Open every file once at the start, so that a damaged one is found before it stops the evaluation.
    """

    benchmark: ClassVar[str] = "imagenet_r"


def load_imagenet_r(root: Path | None, config: ImagenetRConfig) -> Benchmark:
    """ImageNet-R, from the folder `imagenet-r` or one that holds it."""
    return load_subset("imagenet_r", "R", SOURCE, root, config)
