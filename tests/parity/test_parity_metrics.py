"""The part metrics against numbers of the authors' public code."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ifam.config import ModelConfig
from ifam.data import Benchmark
from ifam.evaluation import part_metrics
from ifam.evaluation.part_quality import part_figures
from ifam.evaluation.thresholds import compute_thresholds
from ifam.models.base import Classifier
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


def check_agreement(tables, nmi, ari):
    agreements = part_metrics.agreements(tables.sum(dim=0).double())
    assert [100 * float(figure) for figure in agreements] == pytest.approx([nmi, ari], rel=1e-9)


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
    tables = part_metrics.keypoint_tables(given.part_maps, given.landmarks, given.visible, given.image_size)
    check_agreement(tables, results["nmi_keypoints_percent"], results["ari_keypoints_percent"])


def test_part_centroids_and_activity(tensors, manifest):
    given = keypoints(tensors, manifest, "eval")
    centroids = part_metrics.part_centroids(given.part_maps, given.boxes, given.image_size).flatten(1)
    assert_close(centroids.float(), tensors["parts.eval_centers"], atol=1e-6, rtol=1e-6)
    active = part_metrics.active_parts(given.part_maps).repeat_interleave(2, dim=1)
    assert torch.equal(active, tensors["parts.eval_active"].bool())
    assert torch.equal(given.visible.repeat_interleave(2, dim=1), tensors["parts.eval_visibility"].bool())


def test_keypoint_regression(tensors, manifest, results):
    points = [part_metrics.positions(keypoints(tensors, manifest, split)) for split in ("fit", "eval")]
    error = 100 * float(part_metrics.keypoint_distances(*points).nanmean())
    assert error == pytest.approx(results["keypoint_regression_error_percent"], rel=1e-6)


def test_mask_agreement(tensors, results):
    """The first of overlapping masks counts, and pixels in none are a region of their own."""
    masks = tensors["dense.gt_masks"].bool()
    regions = torch.cat([masks, ~masks.any(dim=1, keepdim=True)], dim=1)
    tables = part_metrics.region_tables(tensors["dense.maps"], regions.int().argmax(dim=1), regions.shape[1])
    check_agreement(tables, results["nmi_dense_percent"], results["ari_dense_percent"])


def test_foreground_iou(tensors, results):
    rows = part_metrics.foreground_pixels(tensors["fgbg.maps"], tensors["fgbg.masks"].bool())
    figures = part_figures({"parts.foreground": rows}, torch.ones(1, len(rows), dtype=torch.float64))
    assert 100 * figures["parts.foreground_iou"].item() == pytest.approx(results["fg_iou_percent"], rel=1e-6)
    assert 100 * figures["parts.background_iou"].item() == pytest.approx(results["bg_iou_percent"], rel=1e-6)


class Selecting(Classifier):
    """A model that selects what it was given, image by image."""

    selects_parts, image_size, normalization = True, (8, 8), ((0.0,) * 3, (1.0,) * 3)

    def __init__(self, similarity, maps):
        nn.Module.__init__(self)
        self.similarity, self.maps = nn.Parameter(similarity), maps
        self.config = ModelConfig(num_parts=maps.shape[1] - 1)

    def select(self, images):
        index = images[:, 0, 0, 0].round().long()
        return SimpleNamespace(similarity=self.similarity[index], winners=self.maps[index].argmax(dim=1))


def test_part_thresholds(tensors, results):
    model = Selecting(tensors["thresholds.part_logits"], tensors["thresholds.part_maps"])
    examples = [{"image": torch.full((3, 8, 8), float(i)), "label": 0} for i in range(len(model.maps))]
    expected = {1 - float(key): row for key, row in results["part_logit_thresholds"].items()}
    thresholds = compute_thresholds(
        model, Benchmark("given", {"train": examples}, ("a",), ("a",)), quantiles=[*expected]
    )
    for quantile, row in expected.items():
        wanted = [row[str(part)] for part in range(len(row))]
        assert thresholds.at(quantile) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
