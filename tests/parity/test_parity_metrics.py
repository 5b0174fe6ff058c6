"""The part metrics against numbers of the authors' public code."""

import pytest
import torch
from torch.testing import assert_close

from ifam.evaluation import part_metrics
from parity.reference import read


@pytest.fixture(scope="module")
def tensors():
    return read("metrics")[0]


@pytest.fixture(scope="module")
def manifest():
    return read("metrics")[1]


@pytest.fixture(scope="module")
def results(manifest):
    return manifest["results"]


def keypoints(tensors, manifest, split):
    landmarks = tensors[f"parts.{split}_landmarks"]
    return part_metrics.Keypoints(
        part_maps=tensors[f"parts.{split}_maps"],
        landmarks=landmarks[..., 1:3],
        visible=landmarks[..., 3] > 0.5,
        boxes=tensors[f"parts.{split}_boxes"][:, 1:],
        image_size=tuple(manifest["parts"]["image_size"]),
    )


def test_every_result_of_the_fixtures_has_a_test(results):
    assert set(results) == {
        "nmi_keypoints_percent",
        "ari_keypoints_percent",
        "keypoint_regression_error_percent",
        "nmi_dense_percent",
        "ari_dense_percent",
        "fg_iou_percent",
        "bg_iou_percent",
        "part_logit_thresholds",
    }


def test_keypoint_agreement(tensors, manifest, results):
    given = keypoints(tensors, manifest, "eval")
    found = part_metrics.keypoint_agreement(given.part_maps, given.landmarks, given.visible, given.image_size)
    assert 100 * found.nmi == pytest.approx(results["nmi_keypoints_percent"], rel=1e-9)
    assert 100 * found.ari == pytest.approx(results["ari_keypoints_percent"], rel=1e-9)


def test_part_centroids_and_activity(tensors, manifest):
    given = keypoints(tensors, manifest, "eval")
    centroids = part_metrics.part_centroids(given.part_maps, given.boxes, given.image_size).flatten(1)
    assert_close(centroids.float(), tensors["parts.eval_centers"], atol=1e-6, rtol=1e-6)
    active = part_metrics.active_parts(given.part_maps).repeat_interleave(2, dim=1)
    assert torch.equal(active, tensors["parts.eval_active"].bool())
    assert torch.equal(given.visible.repeat_interleave(2, dim=1), tensors["parts.eval_visibility"].bool())


def test_keypoint_regression(tensors, manifest, results):
    fit, evaluation = (keypoints(tensors, manifest, split) for split in ("fit", "eval"))
    error = 100 * part_metrics.keypoint_regression_error(fit, evaluation)
    assert error == pytest.approx(results["keypoint_regression_error_percent"], rel=1e-6)


def test_mask_agreement(tensors, results):
    found = part_metrics.mask_agreement(tensors["dense.maps"], tensors["dense.gt_masks"].bool())
    assert 100 * found.nmi == pytest.approx(results["nmi_dense_percent"], rel=1e-9)
    assert 100 * found.ari == pytest.approx(results["ari_dense_percent"], rel=1e-9)


def test_foreground_iou(tensors, results):
    found = part_metrics.foreground_iou(tensors["fgbg.maps"], tensors["fgbg.masks"].bool())
    assert 100 * found.foreground == pytest.approx(results["fg_iou_percent"], rel=1e-6)
    assert 100 * found.background == pytest.approx(results["bg_iou_percent"], rel=1e-6)


def test_part_thresholds(tensors, results):
    similarity, maps = tensors["thresholds.part_logits"], tensors["thresholds.part_maps"]
    for key, expected in results["part_logit_thresholds"].items():
        thresholds = part_metrics.part_thresholds(similarity, maps, 1 - float(key))
        wanted = torch.tensor([expected[str(part)] for part in range(len(expected))])
        assert_close(thresholds, wanted, atol=1e-6, rtol=1e-6)
