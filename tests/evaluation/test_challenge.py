"""The backgrounds challenge against a loop over all pairs, and stopped at every place."""

import json
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import miniatures
from ifam.checkpoints.hub import load
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data import Benchmark, TransformedDataset, load_benchmark
from ifam.data.benchmarks.imagenet9 import cut_outs
from ifam.data.records import ImageFiles, Record
from ifam.errors import IfamError
from ifam.evaluation.challenge import NONE, name_of, run_challenge
from ifam.evaluation.pairings import PairScheduler
from ifam.models.base import Classifier
from ifam.types import Output

SIZE, OBJECTS, SCENES, CLASSES = 8, 14, 9, 3
LABELS = [i % CLASSES for i in range(OBJECTS)]


class Told(Classifier):
    """Knows object and background by their red, looks its answer up, and remembers what it was shown.

    Args:
        answers: Its answer to each object on each background; -1 for none of the classes.
        stop: At which batch it is interrupted.
    """

    image_size, normalization = (SIZE, SIZE), ((0.0,) * 3, (1.0,) * 3)

    def __init__(self, answers, stop=None):
        super().__init__(ModelConfig(num_classes=CLASSES + 1))
        self.table, self.stop, self.seen, self.batches = nn.Parameter(answers.float()), stop, [], 0

    def forward(self, images, interventions=(), masks=None):
        if self.batches == self.stop:
            raise KeyboardInterrupt
        self.batches += 1
        objects, backgrounds = ((255 * images[:, 0, at, at]).round().long() for at in (SIZE // 2, 0))
        self.seen += list(zip(objects.tolist(), backgrounds.tolist(), strict=True))
        answers = self.table[objects, backgrounds].long()
        return Output(nn.functional.one_hot(torch.where(answers < 0, CLASSES, answers), CLASSES + 1).float())


@pytest.fixture
def answers():
    """Some objects are never fooled, some always, most by some backgrounds."""
    labels = torch.tensor(LABELS)[:, None]
    wrong = torch.rand(OBJECTS, SCENES) < torch.linspace(-0.3, 0.6, OBJECTS)[torch.randperm(OBJECTS)][:, None]
    wrong[5] = True
    table = torch.where(wrong, (labels + 1 + (torch.rand(OBJECTS, SCENES) < 0.4)) % (CLASSES + 1), labels)
    table = torch.where(table == CLASSES, -1, table)
    robust = (table == labels).all(dim=1)
    assert 3 <= robust.sum() <= OBJECTS - 5
    return table


@pytest.fixture
def files(tmp_path):
    """Objects with masks and backgrounds, each with its number as its red."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:-2, 2:-2] = True
    np.save(tmp_path / "mask.npy", mask)

    def write(kind, number, labels, green, size=SIZE):
        records = []
        for i in range(number):
            path = tmp_path / kind / str(labels[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((size, size, 3), (i, green, 7), np.uint8)).save(path)
            records.append(Record(path, labels[i], mask=tmp_path / "mask.npy" if kind == "objects" else None))
        return ImageFiles(records)

    return write("objects", OBJECTS, LABELS, 100), write("scenes", SCENES, [i % CLASSES for i in range(SCENES)], 200)


# A model of four logits for three classes: the last stands for none.
BENCHMARK = Benchmark("told", {}, ("a", "b", "c"), ("a", "b", "c"), class_of_logit=(0, 1, 2, -1))


def run(model, files, folder, settings=None, **more):
    return run_challenge(model, BENCHMARK, *files, folder / "challenge.jsonl", settings, **{"batch_size": 4, **more})


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 4, 14, 15, 64, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_robust_is_whom_no_background_fools(answers, files, tmp_path, batch_size, seed):
    model = Told(answers)
    challenge = run(model, files, tmp_path, batch_size=batch_size, seed=seed)
    right = answers == torch.tensor(LABELS)[:, None]
    robust = right.all(dim=1).nonzero()[:, 0].tolist()
    assert challenge.robust == [name_of(files[0].paths[i]) for i in robust]
    assert challenge.accuracy == len(robust) / OBJECTS
    assert len(challenge.fooled) + len(robust) == challenge.count == OBJECTS
    objects, backgrounds = ({name_of(path): i for i, path in enumerate(kind.paths)} for kind in files)
    for one in challenge.fooled:
        answer = int(answers[objects[one.object], backgrounds[one.background]])
        assert answer != LABELS[objects[one.object]]
        assert one.answer == (NONE if answer < 0 else "abc"[answer])
        assert one.background_class == "abc"[backgrounds[one.background] % CLASSES]
    # No pair is evaluated twice, and robust objects were evaluated on every background.
    assert len(set(model.seen)) == len(model.seen) == challenge.pairs <= challenge.all_pairs == OBJECTS * SCENES
    assert all((i, j) in set(model.seen) for i in robust for j in range(SCENES))
    if batch_size == 1:
        assert challenge.pairs < OBJECTS * SCENES * 0.8
    for label, name in enumerate("abc"):
        mine = [i for i in range(OBJECTS) if LABELS[i] == label]
        assert challenge.classes[name].count == len(mine)
        assert challenge.classes[name].robust == len(set(mine) & set(robust))
    assert sum(challenge.backgrounds.values()) == sum(challenge.answers.values()) == len(challenge.fooled)


def test_backgrounds_that_fooled_come_first(files, tmp_path):
    """One background fools all objects of a class: it is searched for once."""
    labels = torch.tensor(LABELS)[:, None]
    answers = labels.expand(-1, SCENES).clone()
    answers[:, 6] = (labels[:, 0] + 1) % CLASSES
    model = Told(answers)
    challenge = run(model, files, tmp_path, batch_size=1)
    assert challenge.robust == []
    assert challenge.pairs <= CLASSES * SCENES + OBJECTS - CLASSES
    # Batches are full nearly to the end: while one object is left, it meets several backgrounds at once.
    alone = Told(labels.expand(-1, SCENES))
    run(alone, files, tmp_path / "alone", batch_size=5)
    assert alone.batches == -(-OBJECTS * SCENES // 5)


def test_the_interval_is_wilsons(files, tmp_path):
    labels = torch.tensor(LABELS)[:, None]
    answers = labels.expand(-1, SCENES).clone()
    answers[:4, 2] = -1
    challenge = run(Told(answers), files, tmp_path)
    n, p, z = OBJECTS, 10 / OBJECTS, 1.959963985
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert challenge.interval == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))
    assert challenge.answers == {NONE: 4}


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_a_run_goes_on_where_it_was_stopped(answers, files, tmp_path, stop):
    whole = Told(answers)
    expected = run(whole, files, tmp_path / "whole")
    first, second = Told(answers, stop), Told(answers)
    with pytest.raises(KeyboardInterrupt):
        run(first, files, tmp_path)
    assert first.batches == stop < whole.batches
    challenge = run(second, files, tmp_path)
    assert asdict(challenge) == asdict(expected)
    assert first.seen + second.seen == whole.seen
    texts = [(folder / "challenge.jsonl").read_text() for folder in (tmp_path, tmp_path / "whole")]
    assert texts[0] == texts[1]
    # A run that is over looks at nothing.
    idle = Told(answers, stop=0)
    assert asdict(run(idle, files, tmp_path)) == asdict(expected)


class Killed(Told):
    """Ends its process, as a machine does that is switched off."""

    def forward(self, images, interventions=(), masks=None):
        if self.batches == self.stop:
            os._exit(9)
        return super().forward(images)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_what_was_found_before_a_crash_is_kept(answers, files, tmp_path):
    whole, second = Told(answers), Told(answers)
    expected = run(whole, files, tmp_path / "whole")
    child = torch.multiprocessing.get_context("fork").Process(target=run, args=(Killed(answers, 6), files, tmp_path))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert asdict(run(second, files, tmp_path)) == asdict(expected)
    assert second.batches == whole.batches - 6


def test_a_line_that_was_not_finished_is_done_again(answers, files, tmp_path):
    expected = run(Told(answers), files, tmp_path)
    path = tmp_path / "challenge.jsonl"
    text = path.read_text()
    ends = [i for i, c in enumerate(text) if c == "\n"]
    for cut in (10, ends[0] + 1, ends[3] + 4, ends[-1] - 1):
        path.write_text(text[:cut])
        assert asdict(run(Told(answers), files, tmp_path)) == asdict(expected)
        assert path.read_text() == text


def test_another_run_is_not_gone_on_with(answers, files, tmp_path):
    run(Told(answers), files, tmp_path, {"root": "here"})
    other = answers.clone()
    other[0, 0] = 1 - other[0, 0]
    fewer = (ImageFiles(files[0].records[1:]), files[1])
    renamed = (files[0], ImageFiles(files[1].records[::-1]))
    for model, given, more, name in (
        (Told(other), files, {}, "weights"),
        (Told(answers), files, {"batch_size": 5}, "batch_size 4, but now it is 5"),
        (Told(answers), files, {"seed": 3}, "seed 0"),
        (Told(answers), files, {"settings": {"root": "there"}}, "root 'here', but now it is 'there'"),
        (Told(answers), fewer, {}, "objects 14"),
        (Told(answers), renamed, {}, "files"),
    ):
        with pytest.raises(IfamError, match=name):
            run(model, given, tmp_path, **{"settings": {"root": "here"}, **more})
        assert model.batches == 0


@pytest.mark.parametrize(
    "line", ["no json", "[1]", "{}", '{"fooled": [[0, 99, 1]], "robust": []}', '{"fooled": [], "robust": [3]}']
)
def test_a_damaged_journal_is_named(answers, files, tmp_path, line):
    run(Told(answers), files, tmp_path)
    path = tmp_path / "challenge.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(IfamError, match=r"challenge\.jsonl, line 3 (does not fit|is damaged)"):
        run(Told(answers), files, tmp_path)


def test_images_that_do_not_go_together_are_named(answers, files, tmp_path):
    path = files[1].paths[4]
    Image.fromarray(np.zeros((SIZE, SIZE + 1, 3), np.uint8)).save(path)
    with pytest.raises(IfamError, match=f"{path} is 9 x 8 pixels, but .* 8 x 8; give images of one size"):
        run(Told(answers), files, tmp_path)
    path.write_bytes(b"no image")
    with pytest.raises(IfamError, match=f"{path} is not a readable image"):
        run(Told(answers), files, tmp_path)
    with pytest.raises(IfamError, match="batch_size is 0"):
        run(Told(answers), files, tmp_path, batch_size=0)


class Watcher(Told):
    """Takes larger images, and keeps what it was given."""

    image_size, needs_masks = (20, 12), True

    def predict_batch(self, batch):
        self.given = batch
        return Output(torch.eye(CLASSES)[batch.labels])


def test_the_model_sees_the_composite_like_any_image(answers, files, tmp_path):
    """Pasted at the data's resolution, then resized and cropped as `TransformedDataset` does."""
    model = Watcher(answers)
    assert run(model, files, tmp_path, batch_size=1000).accuracy == 1
    pairs = PairScheduler(LABELS, SCENES, 1000).batch()
    assert len(pairs) == len(model.given.images) == OBJECTS * SCENES
    for row, (index, background) in list(enumerate(pairs))[::17]:
        example = files[0][index]
        image = np.where(example["mask"][..., None], np.asarray(example["image"]), files[1][background]["image"])
        one = {"image": Image.fromarray(image), "label": 0, "mask": example["mask"]}
        prepared = TransformedDataset([one], (20, 12), model.normalization)[0]
        assert torch.equal(model.given.images[row], prepared["image"])
        assert torch.equal(model.given.masks[row], prepared["mask"].bool())
        assert int(model.given.labels[row]) == LABELS[index]


# --- on ImageNet-9 ---------------------------------------------------------------------------------------


def test_objects_are_cut_out_by_mask_or_by_what_is_not_black(tmp_path):
    data = load_benchmark("imagenet9", tmp_path, miniatures.imagenet9_challenge(tmp_path))
    objects = cut_outs(data)
    assert len(objects) == 27  # two of each class with a mask, one without
    truth = torch.zeros(miniatures.HEIGHT, miniatures.WIDTH, dtype=torch.bool)
    truth[miniatures.OBJECT] = True
    treatments = [path.parts[-4] for path in objects.paths]
    assert [treatments.count(name) for name in ("original", "only_fg")] == [18, 9]
    assert torch.equal(objects[0]["mask"], truth)
    for index in (2, 26):  # compression blurs the edge of so small an object
        mask = objects[index]["mask"]
        assert mask[truth].all()
        assert mask[~truth].float().mean() < 0.2
    with pytest.raises(IfamError, match="imagenet9 has no objects to paste"):
        cut_outs(Benchmark("imagenet9", {"mixed_rand": data.split("mixed_rand")}, ("a",), ("a",)))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [9, 1000])
def test_the_challenge_on_the_command_line(tmp_path, capsys, make_model, classes):
    miniatures.imagenet9_challenge(tmp_path / "data")
    folder = tmp_path / "model"
    inclined = make_model(num_classes=classes)
    with torch.no_grad():  # towards one class, or nothing would be robust
        inclined.predictor.norm.bias.fill_(1)
        inclined.predictor.head.weight[4] += 0.15
    inclined.save_pretrained(folder)
    words = ["challenge", "--model", str(folder), "--root", str(tmp_path / "data"), "--batch-size", "7"]
    main(words)
    shown = capsys.readouterr().out
    content = json.loads((folder / "challenge" / "challenge.json").read_text())
    data = load_benchmark("imagenet9", tmp_path / "data", {"variant": "only_bg_t"})
    objects, backgrounds, model = cut_outs(data), data.split("only_bg_t"), load(folder)
    robust = []
    for index, path in enumerate(objects.paths):
        example = objects[index]
        composites = [
            {
                "image": Image.fromarray(np.where(example["mask"][..., None], example["image"], background["image"])),
                "label": 0,
            }
            for background in (backgrounds[i] for i in range(len(backgrounds)))
        ]
        prepared = TransformedDataset(composites, model.image_size, model.normalization)
        with torch.no_grad():
            out = model(torch.stack([prepared[i]["image"] for i in range(len(prepared))]))
        if bool((data.answers(out.logits) == example["label"]).all()):
            robust.append(name_of(path))
    assert content["robust"] == robust
    assert 0 < len(robust) < 27
    assert (content["kind"], content["count"], content["all_pairs"]) == ("challenge", 27, 27 * 27)
    assert content["conditions"]["objects"] == "18 objects by fg_mask, 9 by nonblack pixels of only_fg"
    assert f"{content['pairs']:,} of 729" in shown
    assert "robust" in shown
    with Image.open(folder / "challenge" / "fooled.webp") as picture:
        assert picture.width > 3 * miniatures.WIDTH
    before = (folder / "challenge" / "challenge.jsonl").stat().st_mtime_ns
    main([*words, "--limit", "5", "--out", str(tmp_path / "few")])
    assert json.loads((tmp_path / "few" / "challenge.json").read_text())["count"] == 5
    assert (folder / "challenge" / "challenge.jsonl").stat().st_mtime_ns == before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*words[:-1], "8"])
    error = capsys.readouterr().err
    assert "batch_size 7, but now it is 8" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_what_another_has_left_there_is_replaced_when_asked(tmp_path, capsys, make_model):
    miniatures.imagenet9_challenge(tmp_path / "data")
    make_model(num_classes=9).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    words = ["challenge", "--model", str(tmp_path / "model"), "--root", str(tmp_path / "data"), "--limit", "2"]
    for name in ("challenge.json", "fooled.webp"):
        out.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(SystemExit):
            main([*words, "--out", str(out)])
        assert "choose another --out" in capsys.readouterr().err
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "challenge.json").write_text("mine")
    main([*words, "--out", str(out), "--overwrite", "true"])
    main([*words, "--out", str(out)])
    main([*words, "--out", str(out), "--seed", "1", "--overwrite", "true"])
    assert json.loads((out / "challenge.json").read_text())["conditions"]["seed"] == 1


def test_what_the_challenge_lacks_is_said(tmp_path, capsys, make_model):
    miniatures.imagenet9(tmp_path / "data")
    make_model(num_classes=9).save_pretrained(tmp_path / "model")
    words = ["challenge", "--model", str(tmp_path / "model"), "--root", str(tmp_path / "data")]
    for more, says in (([], "only_bg_t"), (["--limit", "0", "--data.variant", "original"], "limit is 0")):
        with pytest.raises(SystemExit):
            main([*words, *more])
        assert says in capsys.readouterr().err
