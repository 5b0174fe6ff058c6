"""Flips of classifiers whose reliance on the background is known by construction."""

import pytest
import torch

from ifam.auditing.any_classifier import AnyClassifier
from ifam.auditing.reliance import donors, grow, measure_flips, swapped_image

SIDE, EACH = 32, 4
# Backgrounds by class: two are dark, one is bright; the objects have a gray of their own class.
BACKGROUNDS, OBJECTS = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.3, 0.5, 0.7])
NAMES = ("ant", "bee", "cat")


@pytest.fixture
def material():
    """Squares of three classes before the backgrounds of their classes: images, masks, labels."""
    labels = torch.arange(3).repeat(EACH)
    masks = torch.zeros(len(labels), SIDE, SIDE, dtype=torch.bool)
    masks[:, 10:22, 8:20] = True
    gray = torch.where(masks, OBJECTS[labels][:, None, None], BACKGROUNDS[labels][:, None, None])
    return gray[:, None].repeat(1, 3, 1, 1), masks, labels


def classifier(read, probabilities=False):
    """Two or more classes told from a value read from each image."""

    def answer(images):
        scores = read(images)
        return scores.softmax(dim=1) if probabilities else scores

    return AnyClassifier("a test", answer, (SIDE, SIDE), (0.0,) * 3, (1.0,) * 3)


def nearest(values, levels):
    return -((values[:, None] - levels) ** 2) * 100


def corner(images):
    """The class whose background is nearest to the gray of a corner."""
    return nearest(images[:, 0, 0, 0], BACKGROUNDS)


def center(images):
    """The class whose object is nearest to the gray of the center."""
    return nearest(images[:, 0, 16, 14], OBJECTS)


def measure(material, read, probabilities=False, **settings):
    return measure_flips(classifier(read, probabilities), *material, NAMES, **{"backgrounds": 8, **settings})


def test_one_that_reads_a_corner_flips_always_before_other_classes_and_never_before_its_own(material):
    flips = measure(material, corner)
    assert (flips.overall.flips, flips.overall.low, flips.overall.high) == (1, 1, 1)
    assert flips.control.flips == 0
    assert flips.accuracy == (1, 0)
    assert {rate.flips for rate in (*flips.by_class.values(), *flips.by_background.values())} == {1}
    # Every object once, with the certain answers before and after.
    assert sorted(swap.image for swap in flips.worst) == list(range(len(material[0])))
    for swap in flips.worst:
        assert swap.answer == material[2][swap.image]
        assert swap.after == material[2][swap.background]


@pytest.mark.parametrize("read", [center, lambda images: torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1)])
def test_one_that_reads_the_object_or_nothing_never_flips(material, read):
    flips = measure(material, read)
    assert (flips.overall.flips, flips.overall.high, flips.control.flips, flips.drop) == (0, 0, 0, 0)
    assert flips.worst == ()
    assert flips.accuracy[0] == flips.accuracy[1]


def test_the_rate_is_that_of_the_backgrounds_which_differ(material):
    """It tells dark from bright: two classes are dark, so their objects flip before one of the two other classes."""
    flips = measure(material, lambda images: nearest(images[:, 0, 0, 0], torch.tensor([0.15, 0.9])))
    assert {name: rate.flips for name, rate in flips.by_class.items()} == {"ant": 0.5, "bee": 0.5, "cat": 1}
    assert flips.overall.flips == pytest.approx(2 / 3)
    assert flips.overall.low < 2 / 3 < flips.overall.high
    assert flips.by_background["cat"].flips == 1
    assert flips.pairs[-1].flips == 0
    assert {flips.pairs[-1].object, flips.pairs[-1].background} == {"ant", "bee"}
    # The same backgrounds for each object, but as many swaps as were asked for.
    assert flips.overall.swaps == 8 * len(material[0])
    assert flips.accuracy is None
    assert flips.accuracy_note == "Accuracy cannot be told: the classifier has 2 classes and the data 3."


def test_probabilities_are_taken_as_they_are(material):
    """The same model flips as often and drops as much, whether it returns logits or probabilities."""
    logits, probabilities = (measure(material, corner, given) for given in (False, True))
    assert (logits.probabilities, probabilities.probabilities) == (False, True)
    assert probabilities.overall == logits.overall
    assert probabilities.drop == pytest.approx(logits.drop, abs=1e-6)
    assert probabilities.drop > 0.1


def test_classes_of_other_names_have_no_accuracy(material):
    other = AnyClassifier("a test", corner, (SIDE, SIDE), (0.0,) * 3, (1.0,) * 3, class_names=("x", "y", "z"))
    flips = measure_flips(other, *material, NAMES)
    assert flips.accuracy is None
    assert "other names" in flips.accuracy_note


def test_figures_repeat_and_follow_the_seed(material):
    assert measure(material, corner, backgrounds=2) == measure(material, corner, backgrounds=2)
    first, second = (donors(material[2], 2, seed)[0] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_donors_are_of_other_classes_or_of_the_same_and_never_the_image_itself(material):
    labels = material[2]
    others, own = donors(labels, 3)
    assert torch.bincount(others[:, 0]).tolist() == [3] * len(labels)
    assert torch.bincount(own[:, 0]).tolist() == [1] * len(labels)
    assert (labels[others[:, 0]] != labels[others[:, 1]]).all()
    assert (labels[own[:, 0]] == labels[own[:, 1]]).all()
    assert (own[:, 0] != own[:, 1]).all()
    # A class with one image has none of its own.
    assert donors(torch.tensor([0, 1, 1]), 2)[1].tolist() == [[1, 2], [2, 1]]


def test_masks_grow_unless_they_would_cover_everything():
    mask = torch.zeros(2, 20, 20, dtype=torch.bool)
    mask[0, 10, 10] = True
    mask[1, 1:19, 1:19] = True
    grown = grow(mask, 0.1)
    assert int(grown[0].sum()) == 25
    assert torch.equal(grown[1], mask[1])


def test_a_picture_shows_what_was_measured(material):
    images, masks, labels = material
    shown = swapped_image(images, masks, 0, 2)
    assert (labels[0], labels[2]) == (0, 2)
    torch.testing.assert_close(shown[0][masks[0]], OBJECTS[0].expand(int(masks[0].sum())))
    torch.testing.assert_close(shown[0][~masks[0]], BACKGROUNDS[2].expand(int((~masks[0]).sum())))
