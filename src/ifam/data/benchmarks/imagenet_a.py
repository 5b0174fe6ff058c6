"""ImageNet-A: 7,500 photographs of 200 of ImageNet's classes that a ResNet-50 gets wrong.

From https://github.com/hendrycks/natural-adv-examples (Hendrycks et al., arXiv 1907.07174). Licence: MIT for the
repository, the images belong to their owners; see the source.

    imagenet-a/
      n01498041/*.jpg ...    200 folders

There is one split, "test". Labels are those of the 1,000 classes; only the logits of these 200 compete
(`Benchmark.logit_classes`), as in the published figures. Groups are the classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import SubsetConfig, load_subset

SOURCE = "https://github.com/hendrycks/natural-adv-examples"


@dataclass(frozen=True)
class ImagenetAConfig(SubsetConfig):
    """How to read ImageNet-A.

    Attributes:
        partial: Accept a copy without some of the 200 class folders; figures are then not comparable.
        skip_bad: Leave out images that are damaged, with a notice, instead of stopping.
        check: Open every file once at the start, so that a damaged one is found before it stops the evaluation.
    """

    benchmark: ClassVar[str] = "imagenet_a"


def load_imagenet_a(root: Path | None, config: ImagenetAConfig) -> Benchmark:
    """ImageNet-A, from the folder `imagenet-a` or one that holds it."""
    return load_subset("imagenet_a", "A", SOURCE, root, config)
