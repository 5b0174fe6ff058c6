"""Metrics against hand-computed cases and scikit-learn, in one process and in two."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from ifam.evaluation.metrics import AccuracyByGroup, ExactMean, MaskIoU
from processes import in_two_processes

# Six images: answers 0 1 1 0 2 2.
LOGITS = torch.tensor([[3, 1, 0], [0, 2, 1], [1, 4, 0], [5, 1, 1], [0, 0, 9], [1, 2, 3.0]])
LABELS = torch.tensor([0, 1, 2, 1, 2, 2])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 3])
NAMES = ("a", "b", "c", "d")


def test_by_hand():
    metric = AccuracyByGroup(4)
    metric.update(LOGITS, LABELS, GROUPS)
    assert metric.average() == pytest.approx(4 / 6)
    # Group 0: right, right, wrong; group 1: wrong, right; group 2 has no image; group 3: right.
    torch.testing.assert_close(metric.compute(), torch.tensor([2 / 3, 1 / 2, math.nan, 1.0]), equal_nan=True)
    assert metric.worst() == 0.5
    assert {name: (group.accuracy, group.count) for name, group in metric.by_name(NAMES).items()} == {
        "a": (pytest.approx(2 / 3), 3),
        "b": (0.5, 2),
        "d": (1.0, 1),
    }


def test_the_worst_group_is_the_lowest_of_all_and_not_one_that_is_empty():
    for lowest in range(4):
        metric = AccuracyByGroup(5)  # group 4 stays empty
        groups = torch.arange(4).repeat_interleave(10)
        labels = torch.zeros(40, dtype=torch.long)
        logits = torch.tensor([1.0, 0.0]).repeat(40, 1)
        labels[10 * lowest : 10 * lowest + 7] = 1
        labels[10 * ((lowest + 1) % 4)] = 1
        metric.update(logits, labels, groups)
        assert metric.worst() == pytest.approx(0.3)
        assert metric.compute()[4].isnan()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_like_scikit_learn_whatever_the_batch_size(batch_size):
    logits, labels, groups = torch.randn(50, 4), torch.randint(4, (50,)), torch.randint(3, (50,))
    metric = AccuracyByGroup(3)
    for rows in torch.arange(50).split(batch_size):
        metric.update(logits[rows], labels[rows], groups[rows])
    answers = logits.argmax(dim=1)
    assert metric.average() == pytest.approx(accuracy_score(labels, answers))
    expected = [accuracy_score(labels[groups == g], answers[groups == g]) for g in range(3)]
    assert metric.compute().tolist() == pytest.approx(expected)
    assert metric.worst() == pytest.approx(min(expected))


def test_reset_forgets_everything():
    metric, iou = AccuracyByGroup(4), MaskIoU()
    metric.update(LOGITS, 2 - LABELS, GROUPS)
    iou.update(torch.ones(1, 2, 2).bool(), torch.zeros(1, 2, 2).bool())
    metric.reset()
    iou.reset()
    metric.update(LOGITS, LABELS, GROUPS)
    iou.update(torch.ones(1, 2, 2).bool(), torch.ones(1, 2, 2).bool())
    assert metric.average() == pytest.approx(4 / 6)
    assert iou.compute() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_of_any_precision(dtype):
    metric = AccuracyByGroup(4)
    metric.update(LOGITS.to(dtype), LABELS, GROUPS)
    assert metric.average() == pytest.approx(4 / 6)


def test_counts_are_whole_numbers():
    """Counted as whole numbers, so that millions of images lose nothing to rounding."""
    metric, iou = AccuracyByGroup(2), MaskIoU()
    metric.correct += 2**24
    metric.count += 2**24
    metric.update(LOGITS[:1], LABELS[:1], torch.tensor([1]))
    iou.intersection += 2**24
    iou.update(torch.ones(1, 1, 1).bool(), torch.ones(1, 1, 1).bool())
    assert metric.correct.tolist() == [2**24, 2**24 + 1]
    assert int(iou.intersection) == 2**24 + 1


def test_mask_iou_by_hand():
    mask = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 1]]]).bool()
    truth = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]]]).bool()
    iou = MaskIoU()
    iou.update(mask, truth)
    assert iou.compute() == pytest.approx(1 / 4)  # one patch in common, four in either, over both images


def test_the_mean_is_exact_in_any_order():
    values = torch.rand(1000).mul(20).exp()
    means = set()
    for seed in range(5):
        order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
        mean = ExactMean()
        for part in values[order].split(1 + 7 * seed):
            mean.update(part)
        means.add(mean.mean())
    assert means == {float(sum(map(Fraction, values.tolist())) / 1000)}
    assert math.isnan(ExactMean().mean())
    mean.reset()
    assert math.isnan(mean.mean())


def test_two_empty_masks_agree():
    iou, nothing = MaskIoU(), torch.zeros(2, 3, 3).bool()
    iou.update(nothing, nothing)
    assert iou.compute() == 1
    iou.update(~nothing, nothing)
    assert iou.compute() == 0


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_mask_iou_is_scikit_learns_over_all_patches(batch_size):
    mask, truth = torch.rand(20, 5, 6) > 0.5, torch.rand(20, 5, 6) > 0.7
    iou = MaskIoU()
    for rows in torch.arange(20).split(batch_size):
        iou.update(mask[rows], truth[rows])
    assert float(iou.compute()) == pytest.approx(jaccard_score(truth.flatten(), mask.flatten()))


def _process(rank, folder):
    """One of two devices, with four images or two, writes what it finds."""
    metric, iou = AccuracyByGroup(4), MaskIoU()
    mine = slice(4) if rank == 0 else slice(4, 6)
    metric.update(LOGITS[mine], LABELS[mine], GROUPS[mine])
    iou.update(torch.tensor([[[True, rank == 0]]]), torch.tensor([[[True, True]]]))
    # Masks that one device alone has seen: the other waits for no one.
    lone, mean = MaskIoU(), ExactMean()
    if rank == 0:
        lone.update(torch.tensor([[[True]]]), torch.tensor([[[True]]]))
        mean.update(torch.tensor([1e8, 0.1, -1e8]))
    assert lone.known()
    assert lone.pooled() == 1
    assert mean.mean() == float(torch.tensor(0.1)) / 3
    assert not MaskIoU().known()
    values = [metric.average(), metric.worst(), metric.by_name(NAMES)["a"].count, float(iou.compute())]
    # Asked once more: what is known of the other device must not be counted twice.
    np.savetxt(folder / f"{rank}.txt", [*values, metric.average(), float(metric.count.sum())])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_every_device_sees_the_images_of_all(tmp_path):
    in_two_processes(_process, tmp_path, tmp_path)
    for rank in range(2):
        expected = [4 / 6, 0.5, 3, 3 / 4, 4 / 6, 4 - 2 * rank]
        assert np.loadtxt(tmp_path / f"{rank}.txt").tolist() == pytest.approx(expected)
