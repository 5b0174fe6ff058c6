"""ImageNet-A: 7,500 photographs of 200 of ImageNet's classes that a ResNet-50 gets wrong.

From https://github.com/hendrycks/natural-adv-examples (Hendrycks et al., arXiv 1907.07174). License: MIT for the
repository, the images belong to their owners; see the source.

    imagenet-a/
      n01498041/*.jpg ...    200 folders

There is one split, "test". Labels are those of the 1,000 classes; predictions are restricted to these 200
(`Benchmark.logit_classes`), as in the published figures. Groups are the classes.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import load_subset
from ifam.data_config import ImagenetAConfig

SOURCE = "https://github.com/hendrycks/natural-adv-examples"


def load_imagenet_a(root: Path | None, config: ImagenetAConfig) -> Benchmark:
    """ImageNet-A, from the folder `imagenet-a` or its parent."""
    return load_subset("imagenet_a", "A", SOURCE, root, config)
