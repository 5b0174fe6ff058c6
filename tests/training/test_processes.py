"""Training on several processes: it is the one of a single process, and every image is seen once."""

import math
import os
from dataclasses import replace

import pytest
import torch

from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.data.records import ImageFiles
from ifam.models.registry import build
from ifam.training.fit import fit, seed_everything
from processes import in_processes
from shards import samples, write_shard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

MODEL = ModelConfig("ifam_tiny", image_size=40, num_parts=2, backbone_kwargs={"depth": 1, "embed_dim": 32})
RATES = {"prototype_lr_factor": 10.0, "modulation_lr_factor": 10.0, "head_lr_factor": 10.0}
TRAIN = TrainConfig(2, 12, 1e-3, **RATES, crop=0.5, monitor="accuracy", accelerator="cpu")


def birds(train=36, val=8):
    return load_benchmark("pondbirds", options={"num_train": train, "num_val": val, "num_test": 8, "correlation": 0.75})


def train(benchmark, config, folder, method="ifam", model=MODEL, losses=None):
    """Logged values of each epoch, and the weights."""
    seed_everything(0)
    net = build(method, model, pretrained=False)
    history = fit(net, benchmark, config, losses or LossConfig(), folder).history
    return history, net.state_dict()


def _share(rank, folder, benchmark, config, *args):
    history, weights = train(benchmark, config, folder / "run", *args)
    torch.save((history, weights), folder / f"{rank}.pt")


def trained_in(processes, folder, benchmark, config, *args):
    """What each process logs, and its weights."""
    folder.mkdir()
    in_processes(processes, _share, folder, folder, benchmark, config, *args)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize(
    ("processes", "method", "settings"),
    [
        (2, "ifam", {}),
        (3, "ifam", {"group_dro": 0.5, "ema_decay": 0.9}),
        (2, "soft_mask", {"selector_tuning": "none", "selector_epochs": 1, "crop": 1.0}),
        (2, "trained_crops", {"accumulate": 2}),
    ],
)
def test_the_loss_curve_is_that_of_one_process_with_the_same_total_batch(processes, method, settings, tmp_path):
    """Noise, dropped parts, crops, transforms and the presence loss are those of the total batch."""
    data, config = birds(), replace(TRAIN, **settings)
    expected, weights = train(data, config, tmp_path / "one", method)
    share = replace(config, batch_size=config.batch_size // processes)
    for history, own in trained_in(processes, tmp_path / "several", data, share, method):
        for one, other in zip(expected, history, strict=True):
            assert other == pytest.approx(one, abs=1e-5)
        assert expected[0] != expected[1]
        for name, value in weights.items():
            torch.testing.assert_close(own[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("processes", "val"), [(3, 2), (2, 130)])
def test_validation_figures_are_exactly_those_of_one_process(processes, val, tmp_path):
    """With a learning rate of zero both have the same weights; some processes have no image at all."""
    data, config = birds(12, val), replace(TRAIN, epochs=1, base_lr=0.0, batch_size=4)
    (expected,), _ = train(data, config, tmp_path / "one")
    assert {"val/accuracy", "val/loss", "val/mask_iou", "val/visible_fraction", "val/worst_group"} <= expected.keys()
    for (epoch,), _ in trained_in(processes, tmp_path / "several", data, config):
        assert {name: value for name, value in epoch.items() if name.startswith("val/")} == {
            name: value for name, value in expected.items() if name.startswith("val/")
        }


@pytest.mark.parametrize(
    ("losses", "settings"),
    [
        (LossConfig(selector_classification=0.0), {}),
        (LossConfig(equivariance=0.0), {}),
        (LossConfig(), {"epochs": 2, "selector_epochs": 1}),
    ],
)
def test_weights_without_a_gradient_do_not_end_a_training(losses, settings, tmp_path):
    config = replace(TRAIN, **{"epochs": 1, **settings}, batch_size=8)
    for history, _ in trained_in(2, tmp_path / "two", birds(16), config, "ifam", MODEL, losses):
        assert math.isfinite(history[-1]["train/total"])


# --- shards ----------------------------------------------------------------------------------------------


class Watched(ImageFiles):
    """Notes which images are read, by which process."""

    def __init__(self, files, folder):
        super().__init__(files.records, files.reader)
        self.folder = folder

    def __getitem__(self, index):
        with (self.folder / f"read by {os.environ.get('RANK', 'one')}").open("a") as file:
            file.write(f"{self.records[index].path.name}\n")
        return super().__getitem__(index)


def test_every_image_of_shards_of_unequal_size_is_seen_once_in_each_epoch(tmp_path):
    """Seven images, one, and sixteen: two processes with three steps of four images each."""
    for shard, numbers in enumerate((range(7), range(7, 8), range(8, 24))):
        write_shard(tmp_path / "photos" / f"train-{shard:03d}.tar", samples(numbers))
    write_shard(tmp_path / "photos" / "val-000.tar", samples(range(24, 29)))
    data = load_benchmark("folder", tmp_path / "photos")
    data = replace(data, splits={**data.splits, "train": Watched(data.split("train"), tmp_path)})
    config = replace(TRAIN, batch_size=8)
    expected, _ = train(data, config, tmp_path / "one")
    for history, _ in trained_in(2, tmp_path / "two", data, replace(config, batch_size=4)):
        for one, other in zip(expected, history, strict=True):
            assert other == pytest.approx(one, abs=1e-5)
    everything = sorted(f"{number:04d}.jpg" for number in range(24))
    read = {path.name: path.read_text().splitlines() for path in tmp_path.glob("read by *")}
    assert read.keys() == {"read by one", "read by 0", "read by 1"}
    for epoch in (slice(0, 12), slice(12, 24)):
        assert sorted(read["read by 0"][epoch] + read["read by 1"][epoch]) == everything
