"""Settings of data sets: what is not possible is named, from Python too."""

import pytest

from ifam.data import load_benchmark
from ifam.data_config import DATA_CONFIGS, CutConfig, FilesConfig, data_config
from ifam.errors import IfamError

SHARE, CUT = "a share from 0 to 1", "a share from 0 (none) to below 1"
NATURAL = "a whole number of at least 0"


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        ("folder", "skip_bad", "yes", "true or false"),
        ("folder", "check", 1, "true or false"),
        ("folder", "seed", True, NATURAL),
        ("folder", "seed", 1.5, NATURAL),
        ("folder", "seed", -1, NATURAL),
        ("folder", "white", -1, NATURAL),
        ("folder", "val_fraction", "half", CUT),
        ("folder", "val_fraction", True, CUT),
        ("folder", "val_fraction", -0.1, CUT),
        ("folder", "val_fraction", 1.0, CUT),
        ("folder", "val_fraction", float("nan"), CUT),
        ("folder", "csv", 3, "text"),
        ("folder", "classes", ("a", 3), "a list of names"),
        ("folder", "classes", "a", "a list of names"),
        ("pondbirds", "correlation", 1.2, SHARE),
        ("pondbirds", "correlation", float("nan"), SHARE),
        ("pondbirds", "test_correlation", -0.1, SHARE),
        ("pondbirds", "hue_swap", 2, SHARE),
        ("pondbirds", "cue_noise", "much", SHARE),
        ("pondbirds", "hue_spread", -1.0, "0 or a positive number"),
        ("pondbirds", "num_classes", 7, "a whole number from 2 to 6"),
        ("pondbirds", "num_classes", 1, "a whole number from 2 to 6"),
        ("pondbirds", "num_train", 1, "a whole number of at least 2 (one image per class)"),
        ("pondbirds", "num_val", 2.5, "a whole number"),
        ("pondbirds", "image_size", 8, "a whole number of at least 16"),
        ("pondbirds", "object_scale", 3.0, "a number from 0.1 to 1.3 (so that the bird fits)"),
        ("pondbirds", "content", "birds", "'full' or 'background' or 'object'"),
        ("pondbirds", "background", "other", "'as_drawn' or 'swapped' or 'redrawn'"),
        ("digits", "num_train", 9, "a whole number of at least 10 (one image per class)"),
        ("digits", "digit_scale", 2.0, "a number from 0.1 to 1.2 (so that the digit fits)"),
        ("waterbirds", "labels", "genus", "'habitat' or 'species'"),
        ("imagenet_v2", "variant", "new", "'matched-frequency' or 'threshold-0.7' or 'top-images'"),
        ("turtles", "split", "random", "'split_closed' or 'split_closed_random' or 'split_open'"),
    ],
)
def test_impossible_settings_are_named(name, setting, value, expected):
    with pytest.raises(IfamError) as caught:
        data_config(name, {setting: value})
    assert str(caught.value) == f"{name}: {setting} is {value!r}, but {expected} is expected."


def test_the_settings_of_a_data_set():
    assert data_config("cub", {"val_fraction": 0.0}) == DATA_CONFIGS["cub"](val_fraction=0.0)
    assert data_config("folder", {"classes": ["a", "b"]}).classes == ("a", "b")
    # What all data sets of files have is documented in one place.
    for kind in DATA_CONFIGS.values():
        if issubclass(kind, FilesConfig):
            assert not any(f" {name}: " in kind.__doc__ for name in ("skip_bad", "check", "white"))
        if issubclass(kind, CutConfig):
            assert not any(f" {name}: " in kind.__doc__ for name in ("val_fraction", "seed"))


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(IfamError, match=r"no setting 'val_frac' \(did you mean 'val_fraction'\?\); it has skip_bad"):
        load_benchmark("cub", options={"val_frac": 0.1})
    with pytest.raises(IfamError, match=r"no benchmark 'water_birds' \(did you mean 'waterbirds'\?\); choose one of"):
        load_benchmark("water_birds")
