"""ImageNet-R: 30,000 renditions (art, cartoons, toys, tattoos, ...) of 200 of ImageNet's classes.

From https://github.com/hendrycks/imagenet-r (Hendrycks et al., arXiv 2006.16241). License: MIT for the repository,
the images belong to their owners; see the source.

    imagenet-r/
      n01443537/*.jpg ...    200 folders

There is one split, "test". Labels are those of the 1,000 classes; predictions are restricted to these 200
(`Benchmark.logit_classes`), as in the published figures. Groups are the classes.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import load_subset
from ifam.data_config import ImagenetRConfig

SOURCE = "https://github.com/hendrycks/imagenet-r"


def load_imagenet_r(root: Path | None, config: ImagenetRConfig) -> Benchmark:
    """ImageNet-R, from the folder `imagenet-r` or its parent."""
    return load_subset("imagenet_r", "R", SOURCE, root, config)
