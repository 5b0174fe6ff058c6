"""Noise of several processes is that of one with the total batch, and of the right distribution."""

import pytest
import torch
from torch.nn import functional as F

from ifam.models.noise import dropped_parts, gumbel_like, kept_parts
from processes import in_processes


def noise(images):
    """Every kind of noise for a batch, in the order of a step."""
    torch.manual_seed(3)
    # The layout of assignment logits, whose parts are the last in memory.
    logits = torch.zeros(images, 12, 4).mT.unflatten(2, (3, 4))
    return (
        gumbel_like(logits),
        dropped_parts(torch.ones(images, 4, 5), 0.4),
        kept_parts(logits, 0.3),
        gumbel_like(logits),
    )


def _process(rank, folder):
    torch.save(noise(2), folder / f"{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("processes", [2, 3])
def test_the_noise_of_an_image_is_that_of_its_place_in_the_total_batch(processes, tmp_path):
    whole = noise(2 * processes)
    in_processes(processes, _process, tmp_path, tmp_path)
    for rank in range(processes):
        for own, total in zip(torch.load(tmp_path / f"{rank}.pt"), whole, strict=True):
            assert torch.equal(own, total[rank::processes])


def test_dropped_parts_are_those_of_pytorch():
    features = torch.randn(6, 4, 5).mT.contiguous().mT
    torch.manual_seed(0)
    expected = F.dropout1d(features, 0.3)
    torch.manual_seed(0)
    assert torch.equal(dropped_parts(features, 0.3), expected)
    before = torch.get_rng_state()
    assert dropped_parts(features, 0.0) is features
    assert torch.equal(torch.get_rng_state(), before)


def test_kept_parts_have_their_probability():
    kept = kept_parts(torch.empty(2000, 5, 3), 0.3)
    assert kept.shape == (2000, 5)
    assert kept.float().mean() == pytest.approx(0.7, abs=0.02)
