"""What the tests of several layouts share."""

import pytest

from ifam.data import load_benchmark
from miniatures import MINIATURES


@pytest.fixture
def load(tmp_path):
    """A benchmark from its miniature, which is written the first time."""

    def read(name, **options):
        if not any(tmp_path.iterdir()):
            read.options = MINIATURES[name](tmp_path)
        return load_benchmark(name, tmp_path, {**read.options, **options})

    return read
