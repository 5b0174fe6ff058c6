"""Precision of answers outside of training."""

import pytest
import torch

from ifam.models import precision
from ifam.models.precision import computed_in, is_half

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["32-true", "32", "16-mixed", "16"])
def test_a_processor_computes_in_32_bits(name):
    with computed_in(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not is_half(name, CPU)


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("name", ["bf16-mixed", "bf16"])
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, name, has):
    monkeypatch.setattr(precision, "has_bfloat16", lambda kind: has and kind == "cpu")
    with computed_in(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if has else torch.float32)
    assert is_half(name, CPU) == has
