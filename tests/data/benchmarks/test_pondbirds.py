"""The benchmark's promises: the same image every time, groups of the stated sizes, and truth that is true."""

from dataclasses import replace

import pytest
import torch

from ifam.data import load_benchmark, part_masks
from ifam.data.benchmarks.pondbirds import Pondbirds, PondbirdsConfig
from ifam.errors import IfamError

PARTS = ("body", "head", "wing", "tail", "legs")
SMALL = PondbirdsConfig(num_train=60, num_val=40, num_test=40)


@pytest.fixture(scope="module")
def birds():
    return Pondbirds("train", SMALL)


def same_images(first, second):
    """Pairs of equal images, [len(first), len(second)]."""
    return (
        torch.cdist(first.images.flatten(1), second.images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist") == 0
    )


def test_shapes_ranges_and_names(birds):
    assert birds.images.shape == (60, 3, 80, 80)
    assert birds.images.dtype == torch.float32
    assert birds.images.min() >= 0
    assert birds.images.max() <= 1
    assert birds.masks.shape == (60, 80, 80)
    assert birds.parts.shape == (60, 5, 80, 80)
    assert birds.part_names == PARTS
    assert birds.class_names == ("swimmer", "percher")
    assert birds.group_names == (
        "swimmer on water",
        "swimmer on forest",
        "percher on water",
        "percher on forest",
    )
    assert torch.equal(birds.groups, birds.labels * 2 + birds.backgrounds)


def test_items_collate_into_a_batch(birds):
    item = birds[-1]
    assert set(item) == {"image", "label", "group", "mask", "index", "part_labels"}
    assert item["index"] == 59
    batch = next(iter(torch.utils.data.DataLoader(birds, batch_size=4)))
    assert torch.equal(batch["image"], birds.images[:4])
    assert torch.equal(batch["label"], birds.labels[:4])
    assert torch.equal(batch["index"], torch.arange(4))
    with pytest.raises(IndexError):
        birds[60]


def test_the_same_images_every_time(birds):
    again = Pondbirds("train", SMALL)
    assert torch.equal(birds.images, again.images)
    assert torch.equal(birds.parts, again.parts)
    assert torch.equal(birds.groups, again.groups)


def test_an_image_does_not_depend_on_how_many_are_drawn(birds):
    # Class and background are dealt out over the whole split; where they agree, so does the image.
    more = Pondbirds("train", replace(SMALL, num_train=90))
    alike = birds.groups == more.groups[:60]
    assert alike.sum() > 10
    assert torch.equal(birds.images[alike], more.images[:60][alike])


def test_splits_and_seeds_share_no_image(birds):
    others = [Pondbirds("val", SMALL), Pondbirds("test", SMALL), Pondbirds("train", replace(SMALL, seed=1))]
    for other in others:
        assert not same_images(birds, other).any()
    assert same_images(birds, birds).sum() == 60


@pytest.mark.parametrize(
    ("split", "config", "sizes"),
    [
        ("train", PondbirdsConfig(num_train=400), [196, 4, 4, 196]),
        ("val", PondbirdsConfig(num_val=100, correlation=0.95), [47, 3, 3, 47]),  # 2.5 is rounded up
        ("test", PondbirdsConfig(num_test=40), [10, 10, 10, 10]),
        ("test", PondbirdsConfig(num_test=41), [10, 11, 10, 10]),
        ("train", PondbirdsConfig(num_train=100, correlation=0.98), [49, 1, 1, 49]),
        ("train", PondbirdsConfig(num_train=20, correlation=1.0), [10, 0, 0, 10]),
        ("train", PondbirdsConfig(num_train=20, correlation=0.0), [0, 10, 10, 0]),
        ("test", PondbirdsConfig(num_test=20, test_correlation=0.9), [9, 1, 1, 9]),
        ("train", PondbirdsConfig(num_train=60, num_classes=3, correlation=0.9), [18, 2, 2, 18, 18, 2]),
    ],
)
def test_group_sizes_are_exact(split, config, sizes):
    birds = Pondbirds(split, replace(config, image_size=16, content="object"))
    assert torch.bincount(birds.groups, minlength=2 * config.num_classes).tolist() == sizes


def test_parts_are_disjoint_and_make_up_the_bird(birds):
    assert torch.equal(birds.parts.sum(dim=1), birds.masks.long())
    # Almost every bird shows every part; a leg or a tail may be outside the picture.
    assert birds.parts.flatten(2).any(dim=2).float().mean() > 0.97


def test_part_labels_are_the_parts_by_number(birds):
    for index in (0, 7):
        part_labels = birds[index]["part_labels"]
        assert set(part_labels.unique().tolist()) <= set(range(6))
        assert torch.equal(part_masks(part_labels, 5), birds.parts[index])
        assert torch.equal(part_labels > 0, birds.masks[index])
    assert load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 2}).part_names == PARTS


def test_about_18_percent_is_bird(birds):
    assert birds.masks.float().mean() == pytest.approx(0.18, abs=0.015)
    shares = birds.masks.float().mean(dim=(1, 2))
    assert shares.min() > 0.08
    assert shares.max() < 0.32


def test_birds_are_mostly_inside(birds):
    # A bird drawn at half its size in the same pose is never cut, so four times its area is a whole bird.
    whole = 4 * Pondbirds("train", replace(SMALL, object_scale=0.5)).masks.float().mean(dim=(1, 2))
    assert (birds.masks.float().mean(dim=(1, 2)) / whole).min() > 0.8


def test_the_mask_holds_exactly_the_birds_pixels(birds):
    only = Pondbirds("train", replace(SMALL, content="object"))
    empty = Pondbirds("train", replace(SMALL, content="background"))
    inside = birds.masks[:, None].expand_as(birds.images)
    assert torch.equal(only.masks, birds.masks)
    assert torch.equal(only.images[inside], birds.images[inside])
    assert (only.images[~inside] == only.images[0, 0, 0, 0]).all()
    assert torch.equal(empty.images[~inside], birds.images[~inside])
    assert not empty.masks.any()
    assert torch.equal(empty.groups, birds.groups)


@pytest.mark.parametrize("other", ["swapped", "redrawn"])
def test_other_backgrounds_leave_the_bird_bit_for_bit(birds, other):
    changed = getattr(birds, other)()
    inside = birds.masks[:, None].expand_as(birds.images)
    assert torch.equal(changed.masks, birds.masks)
    assert torch.equal(changed.parts, birds.parts)
    assert torch.equal(changed.labels, birds.labels)
    assert torch.equal(changed.images[inside], birds.images[inside])
    differs = (changed.images != birds.images).any(dim=1)
    assert (differs & ~birds.masks).sum() > 0.95 * (~birds.masks).sum()
    expected = 1 - birds.backgrounds if other == "swapped" else birds.backgrounds
    assert torch.equal(changed.backgrounds, expected)
    assert torch.equal(changed.groups, birds.labels * 2 + expected)


def test_swapping_twice_gives_back_the_same_images(birds):
    assert torch.equal(birds.swapped().swapped().images, birds.images)


def test_cues_follow_the_class_up_to_their_noise():
    config = replace(SMALL, num_train=1000, image_size=16, content="object")
    noisy = Pondbirds("train", config)
    agree = (noisy.cues == noisy.labels[:, None].bool()).float().mean(dim=0)
    assert ((agree > 0.86) & (agree < 0.94)).all()
    exact = Pondbirds("train", replace(config, cue_noise=0.0))
    assert torch.equal(exact.cues, exact.labels[:, None].bool().expand(-1, 4))


def test_hues_follow_the_class_up_to_spread_and_swaps():
    config = replace(SMALL, num_train=1000, image_size=16, content="object")

    def away(**changes):
        """Distance of each hue from its class's centre around the wheel, at most half a turn."""
        birds = Pondbirds("train", replace(config, **changes))
        return ((birds.hues - 0.05 - birds.labels / 2 + 0.5) % 1.0 - 0.5).abs()

    assert away(hue_spread=0.1, hue_swap=0.0).square().mean().sqrt() == pytest.approx(0.1, rel=0.1)
    assert away(hue_spread=0.01, hue_swap=0.02).gt(0.25).float().mean() == pytest.approx(0.02, abs=0.012)
    assert away(hue_spread=0.18).gt(0.25).sum() > away(hue_spread=0.12).gt(0.25).sum()


def test_a_difficulty_changes_nothing_but_itself(birds):
    harder = Pondbirds("train", replace(SMALL, hue_spread=0.3, hue_swap=0.2))
    assert torch.equal(harder.parts, birds.parts)
    outside = ~birds.masks[:, None].expand_as(birds.images)
    assert torch.equal(harder.images[outside], birds.images[outside])
    assert not torch.equal(harder.images, birds.images)


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_more_classes(number):
    config = PondbirdsConfig(num_train=10 * number, num_classes=number, hue_spread=0.0, hue_swap=0.0, cue_noise=0.0)
    birds = Pondbirds("train", config)
    assert len(set(birds.class_names)) == number
    assert len(birds.group_names) == 2 * number
    assert torch.bincount(birds.labels).tolist() == [10] * number
    characters = {
        (tuple(cues), round(hue, 4)) for cues, hue in zip(birds.cues.tolist(), birds.hues.tolist(), strict=True)
    }
    assert len(characters) == number
    assert len({cues for cues, _ in characters}) == number


def test_other_image_sizes_show_the_same_birds(birds):
    large = Pondbirds("train", replace(SMALL, image_size=160))
    assert large.images.shape == (60, 3, 160, 160)
    assert large.masks.float().mean() == pytest.approx(birds.masks.float().mean().item(), abs=0.015)
    pooled = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (pooled - birds.images).abs().mean() < 0.05


def test_no_single_threshold_finds_the_bird(birds):
    red, green, blue = birds.images.unbind(dim=1)
    high, low = birds.images.amax(dim=1), birds.images.amin(dim=1)
    for name, plane in {
        "red": red,
        "green": green,
        "blue": blue,
        "value": high,
        "chroma": high - low,
    }.items():
        for threshold in torch.linspace(0.05, 0.95, 19):
            for guess in (plane > threshold, plane <= threshold):
                iou = (guess & birds.masks).sum() / (guess | birds.masks).sum()
                assert iou < 0.4, (name, threshold)


def test_an_unknown_split_is_named():
    with pytest.raises(IfamError, match="'training' is unknown; choose one of train, val, test"):
        Pondbirds("training", SMALL)
