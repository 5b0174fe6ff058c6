"""Part quality of whole splits: the same figures as a plain computation gives, however images are shared out."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import miniatures
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data import Benchmark, TransformedDataset, load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate, evaluate_variants
from ifam.evaluation.bootstrap import resamples
from ifam.evaluation.part_metrics import Keypoints
from ifam.evaluation.part_quality import INSIDE, KEYPOINTS, REGIONS
from ifam.models.baselines import PlainViT
from ifam.models.interventions import DropParts
from ifam.report.results import write_report
from oracles import foreground_iou, keypoint_agreement, keypoint_error, region_agreement
from processes import in_two_processes

HEIGHT, WIDTH, SIZE = 80, 100, 64
NAMES = {"keypoint_names": ("bill", "eye", "tail"), "part_names": ("head", "body")}


class Annotated:
    """Random images wider than high; some lack some of the annotations."""

    def __init__(self, number, seed=0, complete=False):
        self.generator, self.complete = torch.Generator().manual_seed(seed), complete
        self.images = torch.rand(number, 3, HEIGHT, WIDTH, generator=self.generator)
        places = torch.rand(number, 3, 2, generator=self.generator) * torch.tensor([WIDTH, HEIGHT])
        seen = torch.rand(number, 3, 1, generator=self.generator) < 0.8
        self.keypoints = torch.cat([places, seen], dim=2)
        low = torch.rand(number, 2, generator=self.generator) * 30
        self.boxes = torch.cat([low, 20 + torch.rand(number, 2, generator=self.generator) * 30], dim=1)
        blocks = torch.randint(3, (number, 4, 5), generator=self.generator, dtype=torch.int8)
        self.part_labels = blocks.repeat_interleave(20, 1).repeat_interleave(20, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        example = {"image": self.images[index], "label": index % 5}
        known = {
            "keypoints": self.keypoints[index],
            "box": self.boxes[index],
            "part_labels": self.part_labels[index],
            "mask": self.part_labels[index] > 0,
        }
        for place, name in enumerate(known):
            if self.complete or index % 5 != place:
                example[name] = known[name]
        return example


def make(number=11, complete=False, train=None, **names):
    classes = tuple("abcde")
    splits = {"test": Annotated(number, complete=complete)} | ({} if train is None else {"train": train})
    return Benchmark("annotated", splits, classes, classes, **({**NAMES, **names}))


@pytest.fixture
def looked(tiny_model):
    """What a model makes of a split, image by image: prepared examples and part maps."""

    def look(examples):
        prepared = TransformedDataset(examples, tiny_model.image_size, tiny_model.normalization)
        prepared_examples = [prepared[i] for i in range(len(prepared))]
        with torch.no_grad():
            return prepared_examples, torch.cat([tiny_model(one["image"][None]).part_maps for one in prepared_examples])

    return look


def keypoints(examples, maps, keep):
    """Maps and annotations of the images to keep."""
    points = torch.stack([examples[i]["keypoints"] for i in keep])
    boxes = torch.stack([examples[i]["box"] for i in keep])
    return Keypoints(maps[keep], points[..., :2], points[..., 2] > 0, boxes, (SIZE, SIZE))


def having(examples, *names):
    return [i for i, one in enumerate(examples) if all(one[name] is not None for name in names)]


def test_figures_are_those_of_a_plain_computation(tiny_model, looked):
    data = make(train=Annotated(16, seed=1))
    parts = evaluate(tiny_model, data, num_resamples=0, batch_size=4, keypoint_regression=True).parts
    examples, maps = looked(data.split("test"))
    trained, trained_maps = looked(data.split("train"))

    given = keypoints(examples, maps, having(examples, "keypoints", "box"))
    pointed = having(examples, "keypoints")
    points = torch.stack([examples[i]["keypoints"] for i in pointed])
    wanted = keypoint_agreement(maps[pointed], points[..., :2], points[..., 2] > 0, (SIZE, SIZE))
    judged = parts.agreement[KEYPOINTS]
    assert (judged.nmi, judged.ari) == pytest.approx((wanted.nmi, wanted.ari))
    assert judged.count == int((points[..., 2] > 0).sum()) < points[..., 2].numel()
    assert judged.images == int((points[..., 2] > 0).any(dim=1).sum()) < 11

    labelled = having(examples, "part_labels")
    labels = torch.stack([examples[i]["part_labels"] for i in labelled])
    wanted = region_agreement(maps[labelled], labels)
    judged = parts.agreement[REGIONS]
    assert (judged.nmi, judged.ari) == pytest.approx((wanted.nmi, wanted.ari))
    assert (judged.images, judged.count) == (len(labelled), labels.numel())
    assert 8 <= len(labelled) < 11
    inside = parts.agreement[INSIDE]
    assert inside.count == int((labels > 0).sum())
    assert inside.nmi != pytest.approx(judged.nmi)

    masked = having(examples, "mask")
    truth = torch.stack([examples[i]["mask"] for i in masked]).bool()
    assert (parts.foreground_iou, parts.background_iou) == pytest.approx(foreground_iou(maps[masked], truth))
    assert parts.foreground_images == len(masked) < 11

    fit = keypoints(trained, trained_maps, having(trained, "keypoints", "box"))
    assert parts.keypoint_error == pytest.approx(keypoint_error(fit, given), rel=1e-5)
    assert parts.keypoint_count == int(given.visible.sum())
    assert parts.conditions["split"] == "test"
    assert parts.conditions["keypoints_fitted_to"] == "train, 16 images"
    assert "64 x 64" in parts.conditions["crop"]
    assert parts.conditions["normalization"]["mean"] == list(tiny_model.normalization[0])


def test_inside_leaves_out_where_no_part_is(tiny_model):
    """One annotated part alone agrees with nothing, once background does not count."""
    data = make(complete=True, part_names=("thing",))
    test = data.split("test")
    test.part_labels = (test.part_labels > 0).to(torch.int8)
    agreement = evaluate(tiny_model, data, num_resamples=0).parts.agreement
    assert agreement[INSIDE].nmi == 0
    assert agreement[REGIONS].nmi > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_nothing(tiny_model, batch_size):
    data = make()
    whole, other = (evaluate(tiny_model, data, num_resamples=20, batch_size=size).parts for size in (11, batch_size))
    assert asdict(other) == asdict(whole)


@pytest.mark.slow
def test_intervals_are_those_of_a_loop(tiny_model, looked):
    """Each resample written out: every image as often as it was drawn."""
    data = make(complete=True, train=Annotated(12, seed=1, complete=True))
    parts = evaluate(tiny_model, data, num_resamples=30, seed=4, keypoint_regression=True).parts
    examples, maps = looked(data.split("test"))
    trained, trained_maps = looked(data.split("train"))
    fit = keypoints(trained, trained_maps, list(range(12)))
    labels = torch.stack([one["part_labels"] for one in examples])
    drawn = {"nmi": [], "keypoints": [], "iou": [], "error": []}
    for weights in torch.cat(list(resamples(11, 30, 4))):
        images = torch.arange(11).repeat_interleave(weights.long())
        given = keypoints(examples, maps, images.tolist())
        drawn["nmi"].append(region_agreement(maps[images], labels[images]).nmi)
        pointed = keypoint_agreement(given.part_maps, given.landmarks, given.visible, given.image_size)
        drawn["keypoints"].append(pointed.ari)
        drawn["iou"].append(foreground_iou(maps[images], labels[images] > 0)[0])
        drawn["error"].append(keypoint_error(fit, given))
    ends = {name: tuple(np.quantile(values, [0.025, 0.975])) for name, values in drawn.items()}
    assert parts.agreement[REGIONS].intervals["nmi"] == pytest.approx(ends["nmi"])
    assert parts.agreement[KEYPOINTS].intervals["ari"] == pytest.approx(ends["keypoints"])
    assert parts.intervals["foreground_iou"] == pytest.approx(ends["iou"])
    assert parts.intervals["keypoint_error"] == pytest.approx(ends["error"], rel=1e-5)


def test_only_the_selectors_own_choice_is_judged(tiny_model):
    data = make()
    evaluations = evaluate_variants(tiny_model, data, "test", {"all": [], "less": [DropParts([0])]}, num_resamples=0)
    assert evaluations["all"].parts is not None
    assert evaluations["less"].parts is None
    complete = make(complete=True)
    assert evaluate(tiny_model, complete, true_masks=True, num_resamples=0).parts is None


def test_what_is_not_annotated_has_no_figure(tiny_model):
    data = make(complete=True, keypoint_names=(), part_names=())
    parts = evaluate(tiny_model, data, num_resamples=10).parts
    assert parts.agreement == {}
    assert set(parts.intervals) == {"foreground_iou", "background_iou"}
    assert (parts.keypoint_error, parts.keypoint_count) == (None, 0)
    bare = replace(data, splits={"test": Bare(11, complete=True)})
    assert evaluate(tiny_model, bare, num_resamples=10).parts is None


class Bare(Annotated):
    """Images and labels alone."""

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 5}


def test_keypoints_cannot_be_predicted_without_keypoints_or_parts(tiny_model):
    plain = PlainViT(ModelConfig("ifam_tiny", num_classes=5, backbone_kwargs={"depth": 1, "embed_dim": 16}), False)
    train = Annotated(6, seed=1)
    assert evaluate(plain, make(train=train), num_resamples=0).parts is None
    for model, data in ((tiny_model, make(train=train, keypoint_names=())), (plain, make(train=train))):
        with pytest.raises(IfamError, match="Keypoint regression needs keypoints and a model with parts"):
            evaluate(model, data, num_resamples=0, keypoint_regression=True)
    train.keypoints[:, 1, 2] = 0
    with pytest.raises(IfamError, match="Landmark 1 is visible in no image of the fit set"):
        evaluate(tiny_model, make(train=train), num_resamples=0, keypoint_regression=True)


def _process(rank, folder, model, data):
    evaluation = evaluate(model, data, batch_size=2, num_resamples=20, keypoint_regression=True)
    (folder / f"{rank}.json").write_text(json.dumps(asdict(evaluation.parts)))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_two_processes_find_exactly_what_one_finds(tiny_model, tmp_path, one_thread):
    data = make(7, train=Annotated(9, seed=1))
    in_two_processes(_process, tmp_path, tmp_path, tiny_model, data)
    measured = evaluate(tiny_model, data, batch_size=2, num_resamples=20, keypoint_regression=True).parts
    expected = json.loads(json.dumps(asdict(measured)))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_parts_of_pondbirds_are_compared_with_the_birds(make_model):
    model = make_model(num_classes=2, image_size=80)
    data = load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 8})
    birds = data.split("test")
    parts = evaluate(model, data, num_resamples=0).parts
    prepared = TransformedDataset(birds, model.image_size, model.normalization)
    with torch.no_grad():
        maps = torch.cat([model(prepared[i]["image"][None]).part_maps for i in range(8)])
    outside = ~birds.parts.any(dim=1, keepdim=True)
    wanted = region_agreement(maps, torch.cat([outside, birds.parts], dim=1).int().argmax(dim=1))
    judged = parts.agreement[REGIONS]
    assert (judged.nmi, judged.ari, judged.images) == pytest.approx((wanted.nmi, wanted.ari, 8))
    assert parts.agreement[INSIDE].count == int(birds.masks.sum())
    assert parts.foreground_iou == pytest.approx(foreground_iou(maps, birds.masks)[0])


def test_keypoints_on_the_command_line(make_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    miniatures.cub(tmp_path / "data")
    data = load_benchmark("cub", tmp_path / "data")
    model = make_model(num_classes=3, class_names=data.class_names)
    model.save_pretrained(tmp_path / "model", {"benchmark": "cub", "root": str(tmp_path / "data"), "data": {}})
    words = ["evaluate", "--model", str(tmp_path / "model"), "--num_resamples", "20"]
    main([*words, "--keypoint-regression", "true"])
    shown = capsys.readouterr().out
    written = json.loads(next((tmp_path / "model").glob("evaluations/cub-*/*.json")).read_text())["parts"]
    wanted = evaluate(model, data, num_resamples=20, keypoint_regression=True).parts
    assert written == json.loads(json.dumps(asdict(wanted)))
    assert written["keypoint_error"] > 0
    judged = wanted.agreement[KEYPOINTS]
    for said in (f"{judged.nmi:.3f}", f"{wanted.keypoint_error:.1%}", "keypoint error", "fitted to train"):
        assert said in shown
    page = write_report([tmp_path / "model"], tmp_path / "report.html").read_text()
    assert f"{judged.nmi:.3f} (" in page
    assert "keypoint error" in page
    main([*words, "--out", str(tmp_path / "without.json")])
    assert "keypoint error" not in capsys.readouterr().out
    assert json.loads((tmp_path / "without.json").read_text())["parts"]["keypoint_error"] is None
