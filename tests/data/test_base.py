"""From examples to batches: sizes, crops, flips, and masks that follow their images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from ifam.data import (
    Benchmark,
    ImageDataset,
    Pondbirds,
    PondbirdsConfig,
    TransformedDataset,
    collate,
    denormalize,
    load_benchmark,
    part_masks,
)
from ifam.data.base import Augmentation, FitAndCrop
from ifam.errors import IfamError
from ifam.inference import preprocess

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SHAPES = [(1, 1), (1, 300), (300, 1), (7, 1000), (999, 1000), (1000, 999), (81, 80), (79, 80), (640, 427), (427, 641)]


class One:
    """One example, again and again."""

    def __init__(self, **example):
        self.example = {"label": 1, **example}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.example


def half_and_half(height, width, left=(255, 0, 0), right=(0, 0, 255)):
    """A picture whose left half is red and whose right half is blue, and the mask of the red."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return Image.fromarray(pixels), torch.from_numpy(pixels[..., 0] > 127)


# --- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(80, 80), (80, 112), (56, 24)])
def test_any_shape_becomes_exactly_the_size(shape, size):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    assert FitAndCrop(size)(tv_tensors.Image(image)).shape == (3, *size)
    assert FitAndCrop(size)(Image.fromarray(image.permute(1, 2, 0).numpy())).size == (size[1], size[0])
    assert FitAndCrop(size)(tv_tensors.Mask(image[0] > 127)).shape == size


def test_an_image_of_the_right_size_is_not_touched():
    image = tv_tensors.Image(torch.rand(3, 80, 80))
    assert FitAndCrop((80, 80))(image) is image


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_the_centre_is_kept_whole_in_the_shorter_direction(scale):
    """A wide image loses its left and right ends, a tall one its top and bottom, nothing else."""
    stripes = torch.arange(3).repeat_interleave(10 * scale).float().expand(3, 10 * scale, -1)  # 3 squares in a row
    wide = FitAndCrop((10, 10))(tv_tensors.Image(stripes))
    tall = FitAndCrop((10, 10))(tv_tensors.Image(stripes.mT))
    # The middle square alone, but for antialiasing at its border.
    torch.testing.assert_close(wide[:, :, 1:-1], torch.ones(3, 10, 8))
    torch.testing.assert_close(tall[:, 1:-1], torch.ones(3, 8, 10))
    torch.testing.assert_close(wide, tall.mT)


def test_training_and_prediction_see_the_same(make_model):
    """What evaluation crops from a photograph is what `ifam predict` crops."""
    model = make_model()
    for shape in [(200, 300), (97, 64), (64, 64), (30, 41)]:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
        evaluated = TransformedDataset(One(image=image), model.image_size, model.normalization)[0]["image"]
        torch.testing.assert_close(evaluated, preprocess(image, model), rtol=0, atol=1e-6)


# --- values ----------------------------------------------------------------------------------------------


def test_pixels_are_scaled_and_normalized():
    mean, std = (0.5, 0.25, 0.125), (0.5, 2.0, 4.0)
    expected = [(1.0 - 0.5) / 0.5, (51 / 255 - 0.25) / 2, (0 - 0.125) / 4]
    pixels = Image.new("RGB", (20, 20), (255, 51, 0))
    tensor = torch.tensor([1.0, 0.2, 0.0])[:, None, None].expand(3, 20, 20)
    for image in (pixels, tensor):
        example = TransformedDataset(One(image=image), (16, 16), (mean, std))[0]
        assert example["image"].dtype == torch.float32
        torch.testing.assert_close(example["image"], torch.tensor(expected)[:, None, None].expand(3, 16, 16))
        back = denormalize(example["image"], (mean, std))
        torch.testing.assert_close(back, torch.tensor([1.0, 0.2, 0.0])[:, None, None].expand(3, 16, 16))


def test_colours_outside_of_what_can_be_shown_are_cut():
    assert denormalize(torch.tensor([-9.0, 0.5, 9.0])[:, None, None], PLAIN).flatten().tolist() == [0, 0.5, 1]


def test_labels_groups_and_masks():
    image, mask = half_and_half(20, 20)
    example = TransformedDataset(One(image=image, group=3, mask=mask), (16, 16), PLAIN)[0]
    assert (example["label"], example["group"]) == (1, 3)
    bare = TransformedDataset(One(image=image), (16, 16), PLAIN)[0]
    assert (bare["label"], bare["group"], bare["mask"]) == (1, 1, None)


# --- masks follow their images ---------------------------------------------------------------------------


def agreement(example):
    """Share of pixels that are red exactly where the mask is."""
    return float(((example["image"][0] > 0.5) == example["mask"].bool()).float().mean())


@pytest.mark.parametrize(
    "augmentation", [None, Augmentation(flip=True), Augmentation(crop=0.5), Augmentation(flip=True, crop=0.1)], ids=str
)
@pytest.mark.parametrize("shape", [(80, 80), (50, 200), (200, 90), (31, 33)])
def test_masks_follow_their_images(augmentation, shape):
    image, mask = half_and_half(*shape)
    prepared = TransformedDataset(One(image=image, mask=mask), (64, 64), PLAIN, augmentation)
    for _ in range(12):
        example = prepared[0]
        assert example["mask"].shape == (64, 64)
        assert agreement(example) > 0.97
    # An image and the mask of another would not pass.
    assert agreement({**example, "mask": ~example["mask"].bool()}) < 0.1


def test_without_augmentation_nothing_is_random():
    image, mask = half_and_half(50, 70)
    prepared = TransformedDataset(One(image=image, mask=mask), (64, 64), PLAIN)
    state = torch.get_rng_state()
    first, second = prepared[0], prepared[1]
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(state, torch.get_rng_state())
    assert first["image"][0, :, 0].mean() > 0.9  # red on the left: not flipped


def test_an_augmentation_that_is_off_is_off():
    """Every arrow points where it pointed, and crops are where they were, unless that is asked for."""
    arrow = torch.zeros(3, 80, 80)
    arrow[:, 20:60, 10:40] = 1.0
    plain = TransformedDataset(One(image=arrow), (80, 80), PLAIN)[0]["image"]
    for augmentation in (Augmentation(), Augmentation(flip=False, crop=1.0)):
        prepared = TransformedDataset(One(image=arrow), (80, 80), PLAIN, augmentation)
        assert all(torch.equal(prepared[0]["image"], plain) for _ in range(20))
    cropped = TransformedDataset(One(image=arrow), (80, 80), PLAIN, Augmentation(crop=0.9))
    assert all(cropped[0]["image"][0, 40].argmax() < 30 for _ in range(20))  # cropped, and never mirrored
    said = [str(Augmentation(flip, crop)) for flip in (False, True) for crop in (1.0, 0.8)]
    assert said[0] == "none"
    assert said[3] == "half of the images mirrored, crops of at least 80% of the area"


def test_augmentation_flips_half_of_the_images_and_crops_no_more_than_it_may():
    image, mask = half_and_half(80, 80)
    flips = TransformedDataset(One(image=image, mask=mask), (80, 80), PLAIN, Augmentation(flip=True))
    pixels = [float(flips[0]["image"][0, 0, 0]) for _ in range(200)]
    assert set(pixels) == {0.0, 1.0}
    assert 0.35 < sum(pixels) / 200 < 0.65
    assert {float(flips[0]["mask"].float().mean()) for _ in range(10)} == {0.5}  # flipped, and not cropped
    ramp = torch.arange(80.0).expand(3, 80, 80) / 80
    crops = TransformedDataset(One(image=ramp), (80, 80), PLAIN, Augmentation(crop=0.6))
    spans = [float(x.max() - x.min()) for x in (crops[0]["image"] for _ in range(50))]
    # A crop of 60 % of the area and an aspect of 3/4 spans at least sqrt(0.6 * 3/4) of the width.
    assert min(spans) > 0.64
    assert max(spans) - min(spans) > 0.05


# --- batches ---------------------------------------------------------------------------------------------


def test_collate():
    image, mask = half_and_half(20, 20)
    prepared = TransformedDataset(One(image=image, mask=mask, group=2), (16, 24), PLAIN)
    batch = collate([prepared[i] for i in range(3)])
    assert batch.images.shape == (3, 3, 16, 24)
    assert batch.labels.tolist() == [1, 1, 1]
    assert batch.groups.tolist() == [2, 2, 2]
    assert batch.masks.shape == (3, 16, 24)
    assert batch.masks.dtype == torch.bool
    assert type(batch.images) is type(batch.masks) is torch.Tensor
    moved = batch.to("cpu")
    assert torch.equal(moved.masks, batch.masks)


def test_masks_are_all_there_or_not_at_all():
    image, mask = half_and_half(16, 16)
    with_mask = TransformedDataset(One(image=image, mask=mask), (16, 16), PLAIN)[0]
    without = TransformedDataset(One(image=image), (16, 16), PLAIN)[0]
    assert collate([with_mask, without]).masks is None


def test_pondbirds_are_examples():
    birds = Pondbirds("val", PondbirdsConfig(num_train=2, num_val=4, num_test=2))
    assert isinstance(birds, ImageDataset)
    prepared = TransformedDataset(birds, (80, 80), PLAIN)
    assert len(prepared) == 4
    batch = collate([prepared[i] for i in range(4)])
    assert torch.equal(batch.images, birds.images)
    assert torch.equal(batch.masks, birds.masks)
    assert torch.equal(batch.groups, birds.groups)
    assert torch.equal(batch.labels, birds.labels)


def test_an_unknown_split_lists_what_there_is():
    benchmark = Benchmark("mine", {"train": One(), "val": One()}, ("a", "b"), ("a", "b"))
    assert len(benchmark.split("val")) == 3
    with pytest.raises(IfamError, match="mine has no split 'test'; it has train, val"):
        benchmark.split("test")


# --- keypoints, boxes and parts follow their images ------------------------------------------------------

SPOTS = torch.tensor([[10.0, 8.0, 1.0], [50.0, 30.0, 1.0], [30.0, 20.0, 0.0]])


def spotted(height=40, width=60):
    """A dark picture with a bright square of five pixels around each of two keypoints, and a third that is hidden."""
    image = torch.zeros(3, height, width)
    labels = torch.zeros(height, width, dtype=torch.int16)
    for part, (x, y) in enumerate(SPOTS[:2, :2].int().tolist(), 1):
        image[:, y - 2 : y + 3, x - 2 : x + 3] = 1
        labels[y - 2 : y + 3, x - 2 : x + 3] = part
    return {"image": image, "keypoints": SPOTS, "box": torch.tensor([8.0, 6.0, 44.0, 26.0]), "part_labels": labels}


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True), Augmentation(flip=True, crop=0.5)], ids=str)
@pytest.mark.parametrize("size", [(40, 60), (80, 120), (64, 64), (48, 96)])
def test_keypoints_boxes_and_parts_follow_their_images(augmentation, size):
    prepared = TransformedDataset(One(**spotted()), size, PLAIN, augmentation)
    seen = 0
    for _ in range(12):
        example = prepared[0]
        points = example["keypoints"]
        assert points.shape == (3, 3)
        assert points[2, 2] == 0  # never visible
        for part, (x, y, visible) in enumerate(points[:2].tolist(), 1):
            row, column = round(y), round(x)
            if not visible or not (0 <= row < size[0] and 0 <= column < size[1]):
                continue
            seen += 1
            assert example["image"][0, row, column] > 0.6
            assert example["part_labels"][row, column] == part
        x, y, width, height = example["box"].tolist()
        assert width > 0
        assert height > 0
        for px, py, visible in points[:2].tolist():
            if visible:
                assert x <= px <= x + width
                assert y <= py <= y + height
    assert seen > 8


def test_keypoints_in_numbers():
    """Twice as large and cut: 60 x 40 becomes 120 x 80, of which the middle 80 columns stay."""
    example = TransformedDataset(One(**spotted()), (80, 80), PLAIN)[0]
    # At 2 * 10 - 20 = 0 the first is on the border; the second is at 80, on the other.
    assert example["keypoints"].tolist() == [[0, 16, 1], [80, 60, 1], [40, 40, 0]]
    assert example["box"].tolist() == [-4, 12, 88, 52]
    further = {**spotted(), "keypoints": torch.tensor([[9.0, 8.0, 1.0], [51.0, 8.0, 1.0], [30.0, 41.0, 1.0]])}
    assert TransformedDataset(One(**further), (80, 80), PLAIN)[0]["keypoints"][:, 2].tolist() == [0, 0, 0]


def test_annotations_that_are_not_there_are_none():
    bare = TransformedDataset(One(image=torch.zeros(3, 20, 20)), (16, 16), PLAIN)[0]
    assert (bare["mask"], bare["keypoints"], bare["box"], bare["part_labels"]) == (None, None, None, None)
    box = TransformedDataset(One(image=torch.zeros(3, 20, 20), box=torch.tensor([1.0, 2, 3, 4])), (20, 20), PLAIN)[0]
    assert box["keypoints"] is None
    assert box["box"].tolist() == [1, 2, 3, 4]


def test_keypoints_change_no_random_number():
    """What is drawn at random for an image does not depend on what is known of it."""
    torch.manual_seed(3)
    with_points = TransformedDataset(One(**spotted()), (32, 32), PLAIN, Augmentation(crop=0.3))[0]["image"]
    torch.manual_seed(3)
    without = TransformedDataset(One(image=spotted()["image"]), (32, 32), PLAIN, Augmentation(crop=0.3))[0]["image"]
    assert torch.equal(with_points, without)


def test_annotated_examples_collate():
    example = TransformedDataset(One(**spotted()), (32, 32), PLAIN)[0]
    assert collate([example, example]).images.shape == (2, 3, 32, 32)


def test_part_masks():
    labels = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [0, 3]]])
    masks = part_masks(labels, 3)
    assert masks.shape == (2, 3, 2, 2)
    assert masks.dtype == torch.bool
    assert masks[0].int().tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]]
    assert masks[1].sum() == 1


# --- strips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 30_000)])
def test_strips_do_not_fill_the_memory(shape, monkeypatch):
    """Covering 518 pixels with a strip of 1 x 20,000 would take an image of 518 x 10,360,000."""
    largest = []
    resize = v2.functional.resize

    def watched(image, size, **settings):
        largest.append(size[0] * size[1])
        return resize(image, size, **settings)

    monkeypatch.setattr(v2.functional, "resize", watched)
    strip = tv_tensors.Image(torch.randint(0, 256, (3, *shape), dtype=torch.uint8))
    assert FitAndCrop((518, 518))(strip).shape == (3, 518, 518)
    assert max(largest) <= 518 * 518 * 12


@pytest.mark.parametrize("ratio", [2, 7, 9, 40, 100])
def test_of_a_strip_the_middle_is_kept(ratio):
    """However long, and with its mask and points."""
    height = 10
    width = height * ratio
    ramp = torch.arange(width, dtype=torch.float32).expand(3, height, width) / width
    points = torch.tensor([[width / 2, 5.0, 1.0], [0.0, 5.0, 1.0]])
    example = {"image": ramp, "mask": ramp[0] >= 0.5, "keypoints": points}
    prepared = TransformedDataset(One(**example), (40, 40), PLAIN)[0]
    shown = prepared["image"][0, 20]
    assert shown[20] == pytest.approx(0.5, abs=1.5 / width)
    assert shown[-1] - shown[0] == pytest.approx(height / width, rel=0.1)
    assert prepared["keypoints"][0].tolist() == pytest.approx([20, 20, 1], abs=2.1)
    assert prepared["keypoints"][1, 2] == 0
    assert prepared["mask"].float().mean() == pytest.approx(0.5, abs=0.06)


# --- answers ---------------------------------------------------------------------------------------------


def test_answers_are_the_best_logit_of_those_that_compete():
    logits = torch.tensor([[1.0, 5.0, 2.0], [3.0, 1.0, 2.0]])
    plain = Benchmark("mine", {}, ("a", "b", "c"), ("a", "b", "c"))
    assert plain.answers(logits).tolist() == [1, 0]
    assert plain.restrict(logits) is logits
    part = Benchmark("mine", {}, ("a", "b", "c"), ("a", "b", "c"), logit_classes=(0, 2))
    assert part.answers(logits).tolist() == [2, 0]
    assert part.restrict(logits).tolist() == [[1, float("-inf"), 2], [3, float("-inf"), 2]]
    assert logits[0, 1] == 5
    coarse = Benchmark("mine", {}, ("x", "y"), ("x", "y"), class_of_logit=(1, -1, 0))
    assert coarse.answers(logits).tolist() == [-1, 1]
    assert coarse.answers(torch.tensor([[0.0, 1.0]])).tolist() == [1]
    with pytest.raises(IfamError, match="mine needs a model of 3 classes, but this one has 2; give"):
        plain.answers(logits[:, :2])


def test_a_split_says_what_it_is():
    drawn = load_benchmark("pondbirds", options={"num_train": 6, "num_val": 4, "num_test": 12})
    assert drawn.describe("test") == "12 images of 2 classes, split test"
    assert drawn.describe("val").startswith("4 images of 2 classes, split val (validation: 4 images drawn like")
    with pytest.raises(IfamError, match="pondbirds has no split 'all'; it has train, val, test"):
        drawn.describe("all")
