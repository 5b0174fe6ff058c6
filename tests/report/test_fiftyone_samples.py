"""An audit as samples of FiftyOne, where it is installed, and of a stand-in that keeps what it is given."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.auditing.run import audit
from ifam.data.base import denormalize
from ifam.errors import IfamError
from ifam.report.fiftyone_samples import to_fiftyone
from ifam.types import Batch


@pytest.fixture(params=["stand-in", "installed"])
def fiftyone(request, monkeypatch):
    """FiftyOne, or what stands in for it."""
    if request.param == "installed":
        # Its own warnings are not ours.
        monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "1")
        return pytest.importorskip("fiftyone")
    module = ModuleType("fiftyone")
    module.__spec__ = ModuleSpec("fiftyone", None)
    for name in ("Sample", "Classification", "Segmentation"):
        setattr(module, name, type(name, (SimpleNamespace,), {}))
    monkeypatch.setitem(sys.modules, "fiftyone", module)
    return module


@pytest.fixture
def result(tiny_model, images):
    """The audit of a tiny model on four images."""
    return audit(tiny_model, Batch(images, torch.arange(4), torch.tensor([0, 1, 0, 1])), explain=1)


@pytest.mark.filterwarnings("ignore")
def test_every_image_is_a_sample(fiftyone, result, tiny_model, images, tmp_path):
    samples = to_fiftyone(result, tmp_path / "bilder ä")
    assert len(samples) == 4
    out = tiny_model(images)
    for number, (sample, row) in enumerate(zip(samples, result.images, strict=True)):
        assert isinstance(sample, fiftyone.Sample)
        assert Path(sample.filepath) == tmp_path / "bilder ä" / f"{number:06d}.png"
        with Image.open(sample.filepath) as picture:
            shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        wanted = denormalize(images[number : number + 1], tiny_model.normalization)[0]
        assert (shown - wanted.clamp(0, 1)).abs().max() < 1 / 255
        assert (sample.answer.label, sample.answer.confidence) == (row.answer, row.confidence)
        assert (sample.ground_truth.label, sample.group, sample.right) == (row.label, row.group, row.right)
        assert (sample.flips, sample.answer_after.label) == (row.answer_after != row.answer, row.answer_after)
        assert (sample.influence, sample.visible, sample.unstable) == (row.influence, row.visible, row.unstable)
        assert (list(sample.tags), sample.index) == (list(row.flags), row.index)
        assert np.array_equal(sample.mask.mask, out.mask[number].numpy())
        winners = out.part_maps[number].argmax(dim=0).numpy()
        assert np.array_equal(sample.parts.mask, np.where(winners == 3, 0, winners + 1))
    with pytest.raises(IfamError, match="is not empty; give a new folder"):
        to_fiftyone(result, tmp_path / "bilder ä")


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_known_has_no_field(fiftyone, result, tmp_path):
    rows = tuple(replace(row, label=None, group=None, right=None) for row in result.images)
    for sample in to_fiftyone(replace(result, images=rows), tmp_path):
        assert not any(hasattr(sample, name) for name in ("ground_truth", "group", "right"))


def test_what_cannot_be_made_is_said(result, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fiftyone", None)
        with pytest.raises(IfamError, match=r"pip install 'ifam\[fiftyone\]'"):
            to_fiftyone(result, tmp_path)
    monkeypatch.setitem(sys.modules, "fiftyone", ModuleType("fiftyone"))
    with pytest.raises(IfamError, match="was read from a file, which has no images"):
        to_fiftyone(replace(result, pictures=None), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(IfamError, match="file"):
        to_fiftyone(result, tmp_path / "file")
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
