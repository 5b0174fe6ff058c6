import math

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch.nn import functional as F
from torch.testing import assert_close

from ifam.errors import IfamError
from ifam.evaluation.part_metrics import (
    Keypoints,
    active_parts,
    agreement,
    agreements,
    foreground_iou,
    keypoint_agreement,
    keypoint_regression_error,
    mask_agreement,
    part_centroids,
    part_thresholds,
)


def one_hot(winners, channels):
    """Part maps [N,K+1,H,W] in which `winners` [N,H,W] has probability 1."""
    return F.one_hot(torch.as_tensor(winners), channels).movedim(-1, 1).float()


def test_agreement_by_hand():
    # Two clusters of two, each holding one of either class: no information at all, and worse than chance.
    result = agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    assert result.nmi == pytest.approx(0, abs=1e-12)
    assert result.ari == pytest.approx(-0.5)
    # Names do not matter.
    result = agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    assert (result.nmi, result.ari) == pytest.approx((1, 1))


def test_agreement_of_a_cluster_too_many():
    # H(truth) = ln 2, H(found) = 1.5 ln 2, information = ln 2: nmi = 1 / mean(1, 1.5) = 0.8.
    # Pairs together: 1 of both, 2 of the truth, 1 found, of 6: (1 - 1/3) / (1.5 - 1/3) = 4/7.
    result = agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2]))
    assert (result.nmi, result.ari) == pytest.approx((0.8, 4 / 7))


@pytest.mark.parametrize(("labels", "clusters"), [(3, 5), (1, 4), (4, 1), (1, 1), (7, 7), (60, 60)])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_agreement_is_scikit_learns(labels, clusters, count):
    truth = torch.randint(labels, (count,))
    found = torch.where(torch.rand(count) < 0.6, truth % clusters, torch.randint(clusters, (count,)))
    if labels == 60:  # every one on its own
        truth, found = torch.arange(count), torch.arange(count).flip(0)
    result = agreement(truth, found)
    assert result.nmi == pytest.approx(normalized_mutual_info_score(truth, found), abs=1e-12)
    assert result.ari == pytest.approx(adjusted_rand_score(truth, found), abs=1e-12)


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


def test_agreement_needs_points():
    empty = torch.zeros(0, dtype=torch.long)
    with pytest.raises(IfamError, match="at least one"):
        agreement(empty, empty)


def test_keypoints_are_clustered_by_the_part_that_wins_at_their_pixel():
    maps = one_hot([[[0, 1], [2, 2]], [[1, 0], [2, 2]]], 3)
    landmarks = torch.tensor([[[1.0, 2.0], [6.0, 1.0]], [[6.4, 0.6], [0.0, 0.0]]])
    visible = torch.ones(2, 2, dtype=torch.bool)
    result = keypoint_agreement(maps, landmarks, visible, (8, 8))
    assert (result.nmi, result.ari) == pytest.approx((1, 1))
    # (x, y), not (y, x): swapped, landmark 0 of the first image would be on the background.
    swapped = keypoint_agreement(maps, landmarks.flip(2), visible, (8, 8))
    assert swapped.nmi < 1


def test_invisible_keypoints_do_not_count_and_those_outside_are_at_the_border():
    maps = one_hot([[[0, 1], [0, 1]]], 3)
    landmarks = torch.tensor([[[-50.0, 3.0], [99.0, 3.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, True, False]])
    assert keypoint_agreement(maps, landmarks, visible, (8, 8)).nmi == pytest.approx(1)
    with pytest.raises(IfamError, match="visible"):
        keypoint_agreement(maps, landmarks, torch.zeros_like(visible), (8, 8))


@pytest.mark.parametrize("size", [(21, 34), (7, 5)])
def test_sampling_at_a_pixel_is_reading_the_enlarged_map(size):
    generator = torch.manual_seed(0)
    maps = torch.rand(2, 4, 5, 6, generator=generator).softmax(1).bfloat16().float()
    pixels = torch.stack(torch.meshgrid(torch.arange(size[1]), torch.arange(size[0]), indexing="xy"), -1)
    landmarks = pixels.reshape(1, -1, 2).float().expand(2, -1, -1)
    enlarged = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(1).flatten()
    truth = torch.arange(landmarks.shape[1]).expand(2, -1).flatten()
    visible = torch.ones(landmarks.shape[:2], dtype=torch.bool)
    expected = agreement(truth, enlarged)
    assert keypoint_agreement(maps, landmarks, visible, size) == expected
    # Half-precision maps are sampled at the same positions.
    assert keypoint_agreement(maps.bfloat16(), landmarks, visible, size) == expected


def test_masks_by_hand():
    # One mask on the left, nothing on the right; the part is on the left, background elsewhere.
    maps = one_hot([[[0, 1], [0, 1]]], 2)
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2] = True
    assert mask_agreement(maps, masks).ari == pytest.approx(1)
    # The first mask of several that overlap gives the label: a second, equal one changes nothing.
    assert mask_agreement(maps, masks.repeat(1, 2, 1, 1)).ari == pytest.approx(1)
    # A part everywhere tells nothing.
    result = mask_agreement(one_hot([[[0, 0], [0, 0]]], 2), masks)
    assert (result.nmi, result.ari) == pytest.approx((0, 0))


def test_foreground_iou_is_pooled_over_images():
    # Image 1: part on 2 of 4 pixels, object on 1 of these. Image 2: part on 1, object on all 4.
    maps = one_hot([[[0, 1], [2, 2]], [[0, 2], [2, 2]]], 3)
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]], dtype=torch.bool)
    result = foreground_iou(maps, masks)
    assert result.foreground == pytest.approx(2 / 6)  # not the mean of 1/2 and 1/4
    assert result.background == pytest.approx(2 / 6)


def test_foreground_iou_of_nothing_is_not_a_number():
    result = foreground_iou(one_hot([[[1, 1]]], 2), torch.zeros(1, 1, 2, dtype=torch.bool))
    assert math.isnan(result.foreground)
    assert result.background == 1


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
    assert keypoint_regression_error(keypoints(20), keypoints(10, seed=1)) == pytest.approx(0, abs=1e-6)


def test_the_error_is_in_units_of_the_box():
    # Every landmark of the evaluation set is 10 pixels off, in boxes 40 pixels wide.
    error = keypoint_regression_error(keypoints(20), keypoints(10, shift=10.0, seed=1))
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
    assert keypoint_regression_error(fit, nothing) == pytest.approx(offset.norm(dim=1).mean().item(), abs=1e-6)


def test_inactive_parts_teach_nothing():
    # The first and second image of the fit set have each other's maps, too faint to be active. They move no
    # mean and no variance, and must not move the regression either.
    fit, evaluation = keypoints(20), keypoints(10, seed=1)
    maps = fit.part_maps.clone()
    maps[:2] = 0.5 * maps[:2].flip(0)
    misled = Keypoints(maps, fit.landmarks, fit.visible, fit.boxes, fit.image_size)
    assert keypoint_regression_error(misled, evaluation) == pytest.approx(0, abs=1e-6)


def test_landmarks_that_are_not_visible_teach_nothing():
    fit, evaluation = keypoints(20), keypoints(10, seed=1)
    landmarks, visible = fit.landmarks.clone(), fit.visible.clone()
    landmarks[:3], visible[:3] = 1e4, False
    partial = Keypoints(fit.part_maps, landmarks, visible, fit.boxes, fit.image_size)
    assert keypoint_regression_error(partial, evaluation) == pytest.approx(0, abs=1e-6)


def test_regression_needs_visible_landmarks_in_both_sets():
    fit, evaluation = keypoints(5), keypoints(5, seed=1)
    hidden = Keypoints(fit.part_maps, fit.landmarks, torch.zeros_like(fit.visible), fit.boxes, fit.image_size)
    with pytest.raises(IfamError, match="evaluation set"):
        keypoint_regression_error(fit, hidden)
    with pytest.raises(IfamError, match="fit set"):
        keypoint_regression_error(hidden, evaluation)


def test_an_empty_box_is_an_error():
    with pytest.raises(IfamError, match="box"):
        part_centroids(torch.rand(1, 2, 2, 2), torch.tensor([[0.0, 0.0, 0.0, 3.0]]), (4, 4))


def test_thresholds_by_hand():
    # Part 0 wins three patches, of similarities 1, 2 and 4; part 1 none; background the last patch.
    maps = one_hot([[[0, 0], [0, 2]]], 3)
    similarity = torch.tensor([[1.0, 2.0, 4.0, 100.0], [9.0] * 4, [0.0] * 4]).reshape(1, 3, 2, 2)
    assert_close(part_thresholds(similarity, maps, 0.5), torch.tensor([2.0, -torch.inf]))
    assert_close(part_thresholds(similarity, maps, 0.25), torch.tensor([1.5, -torch.inf]))
    assert_close(part_thresholds(similarity, maps, 1.0), torch.tensor([4.0, -torch.inf]))


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan")])
def test_a_quantile_is_between_0_and_1(quantile):
    with pytest.raises(IfamError, match="between 0 and 1"):
        part_thresholds(torch.rand(1, 2, 2, 2), torch.rand(1, 2, 2, 2), quantile)


def test_half_precision_maps_give_the_same_answers():
    maps = one_hot([[[0, 1], [2, 2]]], 3).bfloat16()
    landmarks = torch.tensor([[[100.0, 200.0], [350.0, 10.0]]])
    visible = torch.ones(1, 2, dtype=torch.bool)
    assert keypoint_agreement(maps, landmarks, visible, (517, 517)).nmi == pytest.approx(1)
    assert foreground_iou(maps, torch.tensor([[[True, True], [False, False]]])).foreground == 1
