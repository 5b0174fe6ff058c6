"""docs/differences.md: its tests exist, and those differences that no other test shows are shown here."""

import ast
import re
from pathlib import Path

import pytest
import torch

from ifam.config import ModelConfig
from ifam.evaluation.metrics import AccuracyByGroup
from ifam.models.soft_mask import SoftMaskIFAM

ROOT = Path(__file__).parents[1]
ROWS = [
    line
    for line in (ROOT / "docs" / "differences.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ ", line)
]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_row_names_tests_that_exist(row):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    assert named
    for path, test in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_row_is_left_out():
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 10


def test_the_worst_group_is_the_lowest_of_all_groups():
    """Of any number of groups, whatever their order; a group without images is none."""
    accuracy = AccuracyByGroup(6)
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])
    groups = torch.tensor([0, 0, 1, 1, 2, 3, 4, 4])
    right = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0], dtype=torch.bool)
    answers = torch.where(right, labels, 1 - labels)
    accuracy.update(torch.nn.functional.one_hot(answers, 2).float(), labels, groups)
    assert accuracy.worst() == 0.0
    assert accuracy.average() == pytest.approx(5 / 8)


@pytest.fixture
def soft_model():
    torch.manual_seed(0)
    kwargs = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    config = ModelConfig(
        backbone="vit_tiny_patch16_224", image_size=64, num_parts=3, num_classes=5, backbone_kwargs=kwargs
    )
    return SoftMaskIFAM(config, pretrained=False).eval()


def test_a_soft_mask_hides_nothing(soft_model, images):
    """Its answer changes with what its map says is hidden; a hard mask's does not (test_claims.py)."""
    out = soft_model(images)
    hidden = ~out.mask.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)[:, None]
    selection = soft_model.selector(images)
    mask = soft_model.mask(selection)
    changed = soft_model.predictor(torch.where(hidden, -images, images), mask.visible, mask.gate)
    assert hidden.any()
    assert (changed - out.logits).abs().max() > 1e-4


@pytest.mark.slow
def test_a_soft_mask_samples_in_training_and_has_gradient(soft_model, images):
    soft_model.train()
    first, second = soft_model(images), soft_model(images)
    assert not torch.equal(first.logits, second.logits)
    first.logits.sum().backward()
    assert soft_model.selector.prototypes.grad.abs().sum() > 0
    assert soft_model.state_dict().keys() == type(soft_model).__mro__[1](soft_model.config, False).state_dict().keys()
