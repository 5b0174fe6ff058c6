"""Precision of answers outside of training."""

import pytest
import torch

from ifam.models import precision
from ifam.models.precision import computed_in, is_bfloat16_faster, is_half

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["32-true", "32", "16-mixed", "16"])
def test_a_processor_computes_in_32_bits(name):
    with computed_in(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not is_half(name, CPU)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("name", ["bf16-mixed", "bf16"])
def test_bfloat16_is_used_where_it_is_faster(monkeypatch, name, has):
    monkeypatch.setattr(precision, "is_bfloat16_faster", lambda kind: has and kind == "cpu")
    with computed_in(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if has else torch.float32)
    assert is_half(name, CPU) == has


@pytest.mark.parametrize(
    ("avx512", "amx", "amd", "faster"),
    [
        (True, True, False, True),
        (True, False, True, True),
        (True, False, False, False),
        (False, False, True, False),
    ],
)
def test_instructions_for_bfloat16_are_not_faster_on_every_processor(monkeypatch, avx512, amx, amd, faster):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision, "_is_from_amd", lambda: amd)
    assert is_bfloat16_faster("cpu") == faster
