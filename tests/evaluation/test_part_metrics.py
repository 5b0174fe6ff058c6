import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ifam.errors import IfamError
from ifam.evaluation.part_metrics import (
    Keypoints,
    active_parts,
    agreements,
    foreground_pixels,
    keypoint_distances,
    keypoint_tables,
    part_centroids,
    positions,
    region_tables,
)
from ifam.evaluation.part_quality import part_figures
from oracles import agreement, keypoint_agreement


def one_hot(winners, channels):
    """Part maps [N,K+1,H,W] in which `winners` [N,H,W] has probability 1."""
    return F.one_hot(torch.as_tensor(winners), channels).movedim(-1, 1).float()


def pooled(tables):
    """NMI and ARI of a data set, from the tables of its images."""
    return tuple(float(figure) for figure in agreements(tables.sum(dim=0).double()))


def regression_error(fit, evaluation):
    return float(keypoint_distances(positions(fit), positions(evaluation)).nanmean())


def test_agreement_by_hand():
    # Two clusters of two, each holding one of either class: no information at all, and worse than chance.
    assert pooled(torch.tensor([[[1, 1], [1, 1]]])) == pytest.approx((0, -0.5), abs=1e-12)
    # Names do not matter.
    assert pooled(torch.tensor([[[0, 0, 2], [2, 0, 0]]])) == pytest.approx((1, 1))


def test_agreement_of_a_cluster_too_many():
    # H(truth) = ln 2, H(found) = 1.5 ln 2, information = ln 2: nmi = 1 / mean(1, 1.5) = 0.8.
    # Pairs together: 1 of both, 2 of the truth, 1 found, of 6: (1 - 1/3) / (1.5 - 1/3) = 4/7.
    assert pooled(torch.tensor([[[2, 0, 0], [0, 1, 1]]])) == pytest.approx((0.8, 4 / 7))


@pytest.mark.parametrize(("labels", "clusters"), [(3, 5), (1, 4), (4, 1), (1, 1), (7, 7), (60, 60)])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_agreement_is_scikit_learns(labels, clusters, count):
    truth = torch.randint(labels, (count,))
    parts = torch.where(torch.rand(count) < 0.6, truth % clusters, torch.randint(clusters, (count,)))
    if labels == 60:  # every one on its own
        truth, parts = torch.arange(count), torch.arange(count).flip(0)
    table = F.one_hot(truth).T @ F.one_hot(parts)
    assert pooled(table[None]) == pytest.approx(agreement(truth, parts), abs=1e-12)


def test_many_tables_at_once():
    """As many pixels as a data set has; sums of squares are beyond what 64-bit floats hold exactly."""
    tables = torch.randint(10**9, (3, 4, 5)).double()
    tables[2] = 0
    nmi, ari = agreements(tables)
    for i in range(2):
        alone = agreements(tables[i])
        assert (nmi[i], ari[i]) == alone
        small = agreements((tables[i] / 10**6).round())
        assert (float(nmi[i]), float(ari[i])) == pytest.approx([float(x) for x in small], rel=0.03)
    assert nmi[2].isnan()
    assert ari[2].isnan()


def test_keypoints_are_clustered_by_the_part_that_wins_at_their_pixel():
    maps = one_hot([[[0, 1], [2, 2]], [[1, 0], [2, 2]]], 3)
    landmarks = torch.tensor([[[1.0, 2.0], [6.0, 1.0]], [[6.4, 0.6], [0.0, 0.0]]])
    visible = torch.ones(2, 2, dtype=torch.bool)
    assert pooled(keypoint_tables(maps, landmarks, visible, (8, 8))) == pytest.approx((1, 1))
    # (x, y), not (y, x): swapped, landmark 0 of the first image would be on the background.
    assert pooled(keypoint_tables(maps, landmarks.flip(2), visible, (8, 8)))[0] < 1


def test_invisible_keypoints_do_not_count_and_those_outside_are_at_the_border():
    maps = one_hot([[[0, 1], [0, 1]]], 3)
    landmarks = torch.tensor([[[-50.0, 3.0], [99.0, 3.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, True, False]])
    assert keypoint_tables(maps, landmarks, visible, (8, 8)).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]


@pytest.mark.parametrize("size", [(21, 34), (7, 5)])
def test_sampling_at_a_pixel_is_reading_the_enlarged_map(size):
    generator = torch.manual_seed(0)
    maps = torch.rand(2, 4, 5, 6, generator=generator).softmax(1).bfloat16().float()
    pixels = torch.stack(torch.meshgrid(torch.arange(size[1]), torch.arange(size[0]), indexing="xy"), -1)
    landmarks = pixels.reshape(1, -1, 2).float().expand(2, -1, -1)
    visible = torch.ones(landmarks.shape[:2], dtype=torch.bool)
    tables = keypoint_tables(maps, landmarks, visible, size)
    assert pooled(tables) == pytest.approx(keypoint_agreement(maps, landmarks, visible, size))
    # Half-precision maps are sampled at the same positions.
    assert torch.equal(keypoint_tables(maps.bfloat16(), landmarks, visible, size), tables)


def test_regions_by_hand():
    # One region on the left, another on the right, of which one pixel is not known; the part is on the left.
    maps = one_hot([[[0, 1], [0, 1]]], 2)
    labels = torch.tensor([0, 0, 1, 1]).repeat(1, 4, 1)
    labels[0, 0, 3] = -1
    assert region_tables(maps, labels, 2).tolist() == [[[8, 0], [0, 7]]]
    # A part everywhere tells nothing.
    assert pooled(region_tables(one_hot([[[0, 0], [0, 0]]], 2), labels, 2)) == pytest.approx((0, 0))


def test_foreground_iou_is_pooled_over_images():
    # Image 1: part on 2 of 4 pixels, object on 1 of these. Image 2: part on 1, object on all 4.
    maps = one_hot([[[0, 1], [2, 2]], [[0, 2], [2, 2]]], 3)
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]], dtype=torch.bool)
    rows = foreground_pixels(maps, masks)
    assert rows.tolist() == [[1, 2, 2, 3], [1, 4, 0, 3]]
    figures = part_figures({"parts.foreground": rows}, torch.ones(1, 2, dtype=torch.float64))
    assert figures["parts.foreground_iou"].item() == pytest.approx(2 / 6)  # not the mean of 1/2 and 1/4
    assert figures["parts.background_iou"].item() == pytest.approx(2 / 6)


def test_foreground_iou_of_nothing_is_not_a_number():
    rows = foreground_pixels(one_hot([[[1, 1]]], 2), torch.zeros(1, 1, 2, dtype=torch.bool))
    figures = part_figures({"parts.foreground": rows}, torch.ones(1, 1, dtype=torch.float64))
    assert figures["parts.foreground_iou"].isnan().all()
    assert figures["parts.background_iou"] == 1


def test_centroids_are_relative_to_the_box():
    maps = torch.zeros(1, 3, 2, 4)
    maps[0, 0, 1, 2] = 0.5  # one cell: column 2, row 1, that is x = 20, y = 10 of the 20 x 40 image
    maps[0, 1, 0, 1], maps[0, 1, 0, 3] = 0.3, 0.1  # column (0.3 * 1 + 0.1 * 3) / 0.4 = 1.5, row 0
    centroids = part_centroids(maps, torch.tensor([[10.0, 5.0, 20.0, 10.0]]), (20, 40))
    assert_close(centroids, torch.tensor([[[0.5, 0.5], [0.25, -0.5]]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_part_without_probability_has_a_finite_centroid_and_is_inactive():
    maps = one_hot([[[1, 1], [1, 1]]], 2)
    assert part_centroids(maps, torch.tensor([[0.0, 0.0, 8.0, 8.0]]), (8, 8)).isfinite().all()
    assert not active_parts(maps).any()


def test_a_part_is_active_above_the_threshold_and_the_background_does_not_count():
    maps = torch.tensor([[0.5, 0.1], [0.3, 0.2], [0.2, 0.7]]).reshape(1, 3, 1, 2)
    assert active_parts(maps).tolist() == [[False, False]]
    assert active_parts(maps, 0.4).tolist() == [[True, False]]


def keypoints(n, *, shift=0.0, seed=0):
    """One sure part in one cell of an 8 x 8 map, and a landmark at a fixed offset from it."""
    generator = torch.manual_seed(seed)
    cells = torch.randint(0, 8, (n, 2), generator=generator)
    winners = torch.ones(n, 8, 8, dtype=torch.long)
    winners[torch.arange(n), cells[:, 1], cells[:, 0]] = 0
    landmarks = (cells[:, None] * 6 + torch.tensor([3.0, -2.0])) + torch.tensor([shift, 0.0])
    boxes = torch.tensor([4.0, 4.0, 40.0, 20.0]).expand(n, 4)
    return Keypoints(one_hot(winners, 2), landmarks, torch.ones(n, 1, dtype=torch.bool), boxes, (48, 48))


def test_landmarks_at_a_fixed_offset_from_a_part_are_predicted_exactly():
    assert regression_error(keypoints(20), keypoints(10, seed=1)) == pytest.approx(0, abs=1e-6)


def test_the_error_is_in_units_of_the_box():
    # Every landmark of the evaluation set is 10 pixels off, in boxes 40 pixels wide.
    error = regression_error(keypoints(20), keypoints(10, shift=10.0, seed=1))
    assert error == pytest.approx(0.25, abs=1e-6)


def test_without_an_active_part_the_mean_landmark_is_predicted():
    fit, evaluation = keypoints(20), keypoints(10, seed=1)
    nothing = Keypoints(
        one_hot(torch.ones(10, 8, 8, dtype=torch.long), 2),
        evaluation.landmarks,
        evaluation.visible,
        evaluation.boxes,
        evaluation.image_size,
    )
    offset = (evaluation.landmarks[:, 0] - fit.landmarks[:, 0].mean(0)) / torch.tensor([40.0, 20.0])
    assert regression_error(fit, nothing) == pytest.approx(offset.norm(dim=1).mean().item(), abs=1e-6)


def test_inactive_parts_teach_nothing():
    # The first and second image of the fit set have each other's maps, too faint to be active. They move no
    # mean and no variance, and must not move the regression either.
    fit, evaluation = keypoints(20), keypoints(10, seed=1)
    maps = fit.part_maps.clone()
    maps[:2] = 0.5 * maps[:2].flip(0)
    misled = Keypoints(maps, fit.landmarks, fit.visible, fit.boxes, fit.image_size)
    assert regression_error(misled, evaluation) == pytest.approx(0, abs=1e-6)


def test_landmarks_that_are_not_visible_teach_nothing():
    fit, evaluation = keypoints(20), keypoints(10, seed=1)
    landmarks, visible = fit.landmarks.clone(), fit.visible.clone()
    landmarks[:3], visible[:3] = 1e4, False
    partial = Keypoints(fit.part_maps, landmarks, visible, fit.boxes, fit.image_size)
    assert regression_error(partial, evaluation) == pytest.approx(0, abs=1e-6)


def test_regression_needs_landmarks_that_are_visible_in_the_fit_set():
    fit, evaluation = keypoints(5), keypoints(5, seed=1)
    hidden = Keypoints(fit.part_maps, fit.landmarks, torch.zeros_like(fit.visible), fit.boxes, fit.image_size)
    assert keypoint_distances(positions(fit), positions(hidden)).isnan().all()
    with pytest.raises(IfamError, match="fit set"):
        regression_error(hidden, evaluation)


def test_an_empty_box_is_an_error():
    with pytest.raises(IfamError, match="box"):
        part_centroids(torch.rand(1, 2, 2, 2), torch.tensor([[0.0, 0.0, 0.0, 3.0]]), (4, 4))


def test_half_precision_maps_give_the_same_answers():
    maps = one_hot([[[0, 1], [2, 2]]], 3).bfloat16()
    landmarks = torch.tensor([[[100.0, 200.0], [350.0, 10.0]]])
    visible = torch.ones(1, 2, dtype=torch.bool)
    assert pooled(keypoint_tables(maps, landmarks, visible, (517, 517)))[0] == pytest.approx(1)
    assert foreground_pixels(maps, torch.tensor([[[True, True], [False, False]]])).tolist() == [[2, 2, 2, 2]]
