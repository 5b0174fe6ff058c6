"""The second embedded benchmark: people's digits, each in one split only, on backgrounds that agree with the class."""

import pickle
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits as from_sklearn

from ifam.data import Digits, DigitsConfig, Pondbirds, PondbirdsConfig, load_benchmark
from ifam.errors import IfamError

SMALL = DigitsConfig(num_train=120, num_val=40, num_test=60)


@pytest.fixture(scope="module")
def digits():
    return Digits("train", SMALL)


def test_shapes_ranges_and_names(digits):
    assert digits.images.shape == (120, 3, 80, 80)
    assert digits.images.dtype == torch.float32
    assert digits.images.min() >= 0
    assert digits.images.max() <= 1
    assert digits.masks.shape == (120, 80, 80)
    assert digits.class_names == tuple("0123456789")
    assert digits.group_names[:3] == ("0 on water", "0 on forest", "1 on water")
    assert torch.equal(digits.groups, digits.labels * 2 + digits.backgrounds)
    assert torch.equal(digits.images, (digits.images * 255).round() / 255)
    item = digits[-1]
    assert set(item) == {"image", "label", "group", "mask", "index"}
    assert item["index"] == 119


def test_labels_are_those_of_scikit_learn(digits):
    assert torch.equal(torch.from_numpy(from_sklearn().target)[digits.digits], digits.labels)


def test_splits_never_share_a_digit():
    """At the usual sizes, at which every digit is drawn, for several divisions."""
    for seed in (0, 1):
        config = DigitsConfig(image_size=16, content="object", seed=seed)
        sets = [set(Digits(split, config).digits.tolist()) for split in ("train", "val", "test")]
        assert sum(map(len, sets)) == len(set.union(*sets)) == 1797
        for split_digits, share in zip(sets, (0.6, 0.15, 0.25), strict=True):
            assert len(split_digits) == pytest.approx(share * 1797, abs=6)


def test_each_digit_is_shown_before_any_is_shown_again():
    digits = Digits("val", DigitsConfig(num_val=1000, image_size=16, content="object"))
    times = torch.bincount(digits.digits)
    for label in range(10):
        of_class = times[digits.digits[digits.labels == label].unique()]
        assert of_class.max() - of_class.min() <= 1
    assert times.max() > 2


def test_the_same_images_every_time_and_others_with_another_seed(digits):
    again = Digits("train", SMALL)
    assert torch.equal(digits.images, again.images)
    assert torch.equal(digits.groups, again.groups)
    other = Digits("train", replace(SMALL, seed=1))
    assert not torch.equal(digits.images, other.images)
    assert set(digits.digits.tolist()) != set(other.digits.tolist())


@pytest.mark.parametrize(
    ("split", "config", "own", "other"),
    [
        ("train", DigitsConfig(num_train=500), 49, 1),
        ("val", DigitsConfig(num_val=200, correlation=0.9), 18, 2),
        ("test", DigitsConfig(num_test=100), 5, 5),
        ("train", DigitsConfig(num_train=100, correlation=1.0), 10, 0),
    ],
)
def test_group_sizes_are_exact(split, config, own, other):
    digits = Digits(split, replace(config, image_size=16, content="object"))
    sizes = torch.bincount(digits.groups, minlength=20).view(10, 2)
    assert sizes[::2].tolist() == [[own, other]] * 5  # even digits belong on water
    assert sizes[1::2].tolist() == [[other, own]] * 5


def test_about_18_percent_is_digit(digits):
    shares = digits.masks.float().mean(dim=(1, 2))
    assert shares.mean() == pytest.approx(0.18, abs=0.02)
    assert shares.min() > 0.06
    assert shares.max() < 0.35


def test_the_mask_holds_exactly_the_digits_pixels(digits):
    only = Digits("train", replace(SMALL, content="object"))
    empty = Digits("train", replace(SMALL, content="background"))
    inside = digits.masks[:, None].expand_as(digits.images)
    assert torch.equal(only.masks, digits.masks)
    assert torch.equal(only.images[inside], digits.images[inside])
    assert (only.images[~inside] == only.images[~inside][0]).all()
    assert torch.equal(empty.images[~inside], digits.images[~inside])
    assert not empty.masks.any()


@pytest.mark.parametrize("other", ["swapped", "redrawn"])
def test_other_backgrounds_leave_the_digit_bit_for_bit(digits, other):
    changed = getattr(digits, other)()
    inside = digits.masks[:, None].expand_as(digits.images)
    assert torch.equal(changed.masks, digits.masks)
    assert torch.equal(changed.images[inside], digits.images[inside])
    differs = (changed.images != digits.images).any(dim=1)
    assert (differs & ~digits.masks).sum() > 0.95 * (~digits.masks).sum()
    assert torch.equal(changed.backgrounds, 1 - digits.backgrounds if other == "swapped" else digits.backgrounds)
    assert torch.equal(changed.labels, digits.labels)


def test_backgrounds_are_those_of_pondbirds():
    """Pictures of the same seed, split and index, wherever the kind is the same."""
    birds = Pondbirds("val", PondbirdsConfig(num_val=40, content="background"))
    empty = Digits("val", replace(SMALL, content="background"))
    alike = birds.backgrounds == empty.backgrounds
    assert alike.sum() > 5
    assert torch.equal(birds.images[alike], empty.images[alike])


def test_the_shape_tells_the_class_and_the_colour_does_not():
    """From scikit-learn's pixels through all the drawing: nearest neighbours by mask, and by mean color."""
    config = DigitsConfig(num_train=1500, num_test=300, num_val=10, image_size=32, content="object")
    train, test = Digits("train", config), Digits("test", config)

    def accuracy(describe):
        nearest = torch.cdist(describe(test), describe(train)).argmin(dim=1)
        return (train.labels[nearest] == test.labels).float().mean()

    def centered(digits):
        """The mask in the middle of the picture."""
        rows = [
            m.roll((16 - int(m.any(1).nonzero().float().mean()), 16 - int(m.any(0).nonzero().float().mean())), (0, 1))
            for m in digits.masks
        ]
        return torch.nn.functional.avg_pool2d(torch.stack(rows).float(), 2).flatten(1)

    def color(digits):
        inside = digits.masks[:, None]
        return (digits.images * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3))

    assert accuracy(centered) > 0.75
    assert accuracy(color) < 0.15


@pytest.mark.slow
def test_pictures_at_another_size_show_the_same_digits(digits):
    large = Digits("train", replace(SMALL, image_size=160))
    assert large.masks.float().mean() == pytest.approx(digits.masks.float().mean().item(), abs=0.01)
    pooled = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (pooled - digits.images).abs().mean() < 0.05


def test_they_can_be_pickled(digits):
    there = pickle.loads(pickle.dumps(digits))
    assert torch.equal(there[5]["image"], digits[5]["image"])
    assert there.config == digits.config


def test_an_unknown_split_is_named():
    with pytest.raises(IfamError, match="digits: split 'dev' is unknown; choose one of train, val, test"):
        Digits("dev", SMALL)


def test_as_a_benchmark():
    data = load_benchmark("digits", options={"num_train": 10, "num_val": 10, "num_test": 10})
    assert data.class_names == Digits.class_names
    assert data.group_names == Digits.group_names
    assert data.note == "validation: 10 images of other digits, drawn like the training images, seed 0"
