import pytest
import torch
from torch.testing import assert_close

from ifam.errors import IfamError
from ifam.training.affine import Affine, inverse_transform, sample_affine, transform


def picture(height=4, width=4):
    return torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)


def test_the_default_changes_nothing():
    image = picture(3, 5)
    assert_close(transform(image, Affine()), image)
    assert torch.equal(inverse_transform(image, Affine()), image)


def test_a_positive_angle_turns_clockwise():
    turned = transform(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), Affine(angle=90.0))
    assert_close(turned, torch.tensor([[[[3.0, 1.0], [4.0, 2.0]]]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(41, 81), (81, 41)])
def test_pixels_turn_about_the_centre_of_an_image_that_is_no_square(height, width):
    """A quarter turn carries a step to the right into a step down of as many pixels, not of the same share."""
    image = torch.zeros(1, 1, height, width)
    image[0, 0, height // 2, width // 2 + 15] = 1
    turned = transform(image, Affine(angle=90.0))
    assert (turned == turned.max()).nonzero().tolist() == [[0, 0, height // 2 + 15, width // 2]]


@pytest.mark.parametrize("affine", [Affine(50.0, (9.0, -6.0), 1.2), Affine(-80.0, (-12.0, 0.0), 0.9)])
def test_maps_of_images_that_are_no_squares_come_back_to_where_the_images_were(affine):
    """Maps of 4 x 4 pixel patches: what the turned image shows lies, brought back, where the image shows it."""
    maps = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 9), size=(36, 54), mode="bicubic")
    image = torch.nn.functional.interpolate(maps, scale_factor=4, mode="bilinear") + 1
    seen = torch.nn.functional.avg_pool2d(transform(image, affine), 4)
    back = inverse_transform(seen, affine, image_size=(144, 216))
    inside = inverse_transform(transform(torch.ones_like(image), affine)[:, :, ::4, ::4], affine, (144, 216)) > 0.99
    assert inside.float().mean() > 0.4
    error = (back - maps - 1)[inside].abs().mean()
    assert error < 0.3 * (maps.flip(3) - maps)[inside].abs().mean()  # a cell is rounded twice
    wrong = inverse_transform(seen.mT, affine, image_size=(216, 144)).mT  # as if the axes were exchanged
    assert error < 0.5 * (wrong - maps - 1)[inside].abs().mean()


def test_a_shift_goes_right_and_down_and_leaves_zeros():
    shifted = transform(picture(2, 3), Affine(translate=(1.0, 0.0)))
    assert_close(shifted, torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 3.0, 4.0]]]]), atol=1e-5, rtol=0)
    shifted = transform(picture(2, 3), Affine(translate=(0.0, 1.0)))
    assert_close(shifted, torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]]]]), atol=1e-5, rtol=0)


def test_a_scale_above_one_enlarges_about_the_centre():
    image = torch.zeros(1, 1, 8, 8)
    image[:, :, 3:5, 3:5] = 1
    enlarged = transform(image, Affine(scale=2.0))
    assert enlarged[0, 0, 4, 4] == 1
    assert 3.5 * image.sum() < enlarged.sum() < 4.5 * image.sum()


@pytest.mark.parametrize(
    "affine", [Affine(90.0, (1.0, 0.0)), Affine(-90.0, (0.0, -1.0)), Affine(180.0), Affine(0.0, (1.0, 1.0))]
)
def test_exact_transforms_are_undone_exactly_wherever_nothing_was_lost(affine):
    image = picture() + 1
    back = inverse_transform(transform(image, affine), affine)
    kept = back != 0
    assert kept.sum() >= 9
    assert_close(back[kept], image[kept], atol=1e-4, rtol=0)


def test_the_shift_is_given_in_pixels_of_the_image_and_applied_in_cells_of_the_map():
    maps = picture(2, 4)
    back = inverse_transform(maps, Affine(translate=(14.0, 0.0)), image_size=(28, 56))
    assert torch.equal(back, torch.tensor([[[[1.0, 2.0, 3.0, 0.0], [5.0, 6.0, 7.0, 0.0]]]]))


def test_only_the_shift_is_resized_each_axis_by_its_own_factor():
    assert Affine(10.0, (4.0, 6.0), 1.5).resized((60, 40), (20, 10)) == Affine(10.0, (1.0, 2.0), 1.5)


def test_the_way_back_moves_values_and_invents_none():
    maps = torch.rand(2, 3, 6, 5, generator=torch.manual_seed(0))
    back = inverse_transform(maps, Affine(33.0, (0.7, -1.2), 1.2))
    for b in range(2):
        for k in range(3):
            assert set(back[b, k].flatten().tolist()) <= {*maps[b, k].flatten().tolist(), 0.0}


def test_every_image_of_the_batch_goes_through_the_same_transform():
    images = torch.rand(3, 2, 6, 6, generator=torch.manual_seed(0))
    affine = Affine(20.0, (1.0, -1.0), 0.9)
    assert_close(transform(images, affine)[1:2], transform(images[1:2], affine))


def test_gradients_of_both_ways():
    images = torch.rand(1, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    affine = Affine(37.0, (0.5, -0.3), 1.1)
    assert torch.autograd.gradcheck(lambda x: transform(x, affine), images)
    assert torch.autograd.gradcheck(lambda x: inverse_transform(x, affine), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_only_the_values_not_the_positions(dtype):
    images = torch.rand(1, 1, 64, 64, generator=torch.manual_seed(0)).to(dtype)
    affine = Affine(41.0, (7.0, -5.0), 1.2)
    expected = inverse_transform(images.float(), affine)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(inverse_transform(images, affine).float(), expected)
        assert torch.equal(inverse_transform(images.float(), affine), expected)
        assert transform(images, affine).dtype == dtype
        assert_close(transform(images.float(), affine), transform(images, affine).float(), atol=4e-3, rtol=0)


def test_samples_are_within_their_ranges_and_reproducible():
    draws = [sample_affine((100, 200), generator=torch.Generator().manual_seed(i)) for i in range(200)]
    assert draws[7] == sample_affine((100, 200), generator=torch.Generator().manual_seed(7))
    assert all(-90 <= a.angle <= 90 and 0.8 <= a.scale <= 1.4 for a in draws)
    xs, ys = zip(*(a.translate for a in draws), strict=True)
    assert 11 < max(map(abs, xs)) <= 22  # of the width
    assert 5 < max(map(abs, ys)) <= 11  # of the height
    assert all(v == round(v) for v in xs + ys)


def test_samples_without_a_generator_follow_the_seed_of_torch():
    torch.manual_seed(3)
    first = sample_affine((32, 32))
    assert first != sample_affine((32, 32))
    torch.manual_seed(3)
    assert first == sample_affine((32, 32))


def test_ranges_of_no_width_give_the_identity():
    assert sample_affine((8, 8), degrees=(0.0, 0.0), translate=(0.0, 0.0), scale=(1.0, 1.0)) == Affine()


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(IfamError, match="scale"):
        Affine(scale=scale)
