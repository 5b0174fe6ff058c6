"""Corrections: prototypes that follow what was painted, and models that are saved beside the one before."""

import json

import numpy as np
import pytest
import torch

import ifam
from ifam.checkpoints import hub
from ifam.config import ModelConfig
from ifam.data import TransformedDataset, collate, load_benchmark
from ifam.models.baselines import PlainViT
from ifam.models.masking import patch_mask
from ifam.training.corrections import fit_prototypes, save_corrected

TINY = {"num_train": 20, "num_val": 2, "num_test": 40, "seed": 3}


@pytest.fixture(scope="module")
def birds():
    """Drawn birds with their true masks, on the patches of the embedded backbone."""
    benchmark = load_benchmark("pondbirds", options=TINY)
    mean, std = ifam.IFAM(ModelConfig(backbone="ifam_tiny")).normalization
    splits = {}
    for split in ("train", "test"):
        images = TransformedDataset(benchmark.split(split), (80, 80), (mean, std))
        batch = collate([images[i] for i in range(len(images))])
        splits[split] = batch.images, patch_mask(batch.masks, (10, 10))
    return splits


@pytest.fixture
def untrained():
    """The embedded backbone with random prototypes: parts that know nothing of birds."""
    torch.manual_seed(0)
    return ifam.IFAM(ModelConfig(backbone="ifam_tiny", num_parts=4, num_classes=2)).eval()


def iou(model, images, truth):
    with torch.no_grad():
        mask = model(images).mask
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.slow
def test_masks_of_other_images_follow_what_was_painted(untrained, birds):
    (images, truth), others = birds["train"], birds["test"]
    before = iou(untrained, *others)
    after = ifam.correct(untrained, images, truth, ~truth)
    assert before < 0.4
    assert iou(after, *others) > before + 0.2


def test_only_the_prototypes_move(untrained, birds):
    images, truth = birds["train"]
    start = {name: weight.clone() for name, weight in untrained.state_dict().items()}
    after = ifam.correct(untrained, images, truth, ~truth).state_dict()
    changed = {name for name in start if not torch.equal(start[name], after[name])}
    assert changed == {"selector.prototypes"}
    # The model that was given stays as it was, and what is alike is not kept twice.
    assert all(torch.equal(start[name], weight) for name, weight in untrained.state_dict().items())
    head = "predictor.head.weight"
    assert after[head].data_ptr() == untrained.state_dict()[head].data_ptr()


def test_the_same_paint_gives_the_same_prototypes(untrained, birds):
    images, truth = birds["train"]
    first, second = (ifam.correct(untrained, images[:3], truth[:3], ~truth[:3]).selector.prototypes for _ in range(2))
    assert torch.equal(first, second)


def test_a_stroke_moves_its_patches_and_few_others(tiny_model, images):
    """One patch of one image: it becomes visible, and what was not painted mostly stays."""
    before = tiny_model(images).mask
    row, column = (~before[0]).nonzero()[0].tolist()
    shown = torch.zeros_like(before)
    shown[0, row, column] = True
    after = ifam.correct(tiny_model, images, shown, torch.zeros_like(before))(images).mask
    assert after[0, row, column]
    assert (after != before).sum() <= 5


def test_paint_on_finer_cells_counts_where_it_covers_half_a_patch(tiny_model, images):
    hidden = torch.zeros(4, 16, 16, dtype=torch.bool)
    hidden[0, :4, :2] = True  # half of the first patch
    hidden[1, 0, 0] = True  # a sixteenth
    coarse = torch.zeros(4, 4, 4, dtype=torch.bool)
    coarse[0, 0, 0] = True
    none = torch.zeros_like
    fine = ifam.correct(tiny_model, images, none(hidden), hidden).selector.prototypes
    assert torch.equal(fine, ifam.correct(tiny_model, images, none(coarse), coarse).selector.prototypes)


def test_patches_without_paint_can_be_left_out(tiny_model, images):
    """With a weight of 0, what other patches are changes nothing but the scale of the prior."""
    with torch.no_grad():
        patches = tiny_model.selector.patches(images)
    shown = torch.zeros(4, 4, 4, dtype=torch.bool)
    shown[:, 0] = True
    found = fit_prototypes(tiny_model.selector, patches, shown, ~shown & (torch.arange(4) < 2), keep=0.0)
    kept = fit_prototypes(tiny_model.selector, patches, shown, ~shown & (torch.arange(4) < 2))
    assert not torch.equal(found, kept)


PAINT = torch.zeros(4, 4, 4, dtype=torch.bool)
SOME = PAINT.clone()
SOME[0, 0, 0] = True


@pytest.mark.parametrize(
    ("shown", "hidden", "keep", "message"),
    [
        (PAINT, PAINT, 1.0, "Nothing is painted"),
        (SOME, SOME, 1.0, "both as object and as background"),
        (SOME.float(), PAINT, 1.0, "torch.bool"),
        (SOME[:2], PAINT[:2], 1.0, r"\[4, 4, 4\] or a finer grid"),
        (SOME[:, :3], PAINT[:, :3], 1.0, "finer grid"),
        (SOME, torch.zeros(4, 8, 8, dtype=torch.bool), 1.0, "give both alike"),
        (SOME, PAINT, float("nan"), "keep is nan"),
        (SOME, PAINT, -1.0, "keep is -1"),
    ],
)
def test_what_cannot_be_learned_from_is_a_sentence(tiny_model, images, shown, hidden, keep, message):
    with pytest.raises(ifam.IfamError, match=message):
        ifam.correct(tiny_model, images, shown, hidden, keep=keep)


def test_images_that_are_no_numbers_are_a_sentence(tiny_model, images):
    images[1] = torch.nan
    with pytest.raises(ifam.IfamError, match="NaN or infinite"):
        ifam.correct(tiny_model, images, SOME, PAINT)
    with pytest.raises(ifam.IfamError, match="no image"):
        ifam.correct(tiny_model, images[:0], SOME[:0], PAINT[:0])


def test_models_without_parts_are_refused(images):
    plain = PlainViT(ModelConfig(backbone="ifam_tiny"), pretrained=False)
    with pytest.raises(ifam.IfamError, match="has none"):
        ifam.correct(plain, images, SOME, PAINT)


def test_a_corrected_model_is_saved_with_what_was_painted(tiny_model, images, tmp_path):
    after = ifam.correct(tiny_model, images, SOME, PAINT)
    named = [{"name": f"{n} é.png", "sha256": "0"} for n in range(4)]
    extra = {"benchmark": "pondbirds", "thresholds": {"of": "old parts"}}
    folder = save_corrected(
        after, tmp_path / "new", SOME, PAINT, named, before=tiny_model, source="runs/ifam", extra=extra
    )
    saved = hub.read(folder)
    assert torch.equal(hub.load(saved)(images).mask, after(images).mask)
    assert saved.extra == {"benchmark": "pondbirds", "corrected": {"model": "runs/ifam", "images": 4}}
    record = json.loads((folder / "corrections.json").read_text(encoding="utf-8"))
    assert record["images"] == named
    assert record["painted"] == {"object": 1, "background": 0}
    with np.load(folder / "corrections.npz") as paint:
        assert np.array_equal(paint["shown"], SOME.numpy())
        assert not paint["hidden"].any()


def test_nothing_is_ever_replaced(tiny_model, tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ifam.IfamError, match="replaces nothing"):
        save_corrected(tiny_model, tmp_path / "old", SOME, PAINT, [], before=tiny_model)
    (tmp_path / "file").write_text("")
    with pytest.raises(ifam.IfamError, match=r"could not be written|cannot be written"):
        save_corrected(tiny_model, tmp_path / "file" / "new", SOME, PAINT, [], before=tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old"]
    assert not list((tmp_path / "old").iterdir())
