"""What a row says of an image besides its class, and batches that are dealt to several devices."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration
from ifam.inference import predict, preprocess
from ifam.models.contributions import explain_parts
from ifam.models.interventions import UseMask
from ifam.prediction.classification import dealt, replicas


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_row_has_what_the_selector_alone_answers(tiny_model, photo):
    (row,) = predict(tiny_model, photo)
    with Image.open(photo) as image, torch.no_grad():
        out = tiny_model(preprocess(image, tiny_model)[None])
    shares = out.selector_logits.softmax(dim=1)[0]
    assert row.selector_class == f"class {int(shares.argmax())}"
    assert row.selector_probability == pytest.approx(float(shares.max()))
    assert ("selector_disagrees" in row.flags) == (row.selector_class != row.class_name)
    assert (row.prior, row.contributions) == (None, None)


def test_contributions_add_up_to_the_logit_of_the_answer(make_model, photo):
    model = make_model(aggregation="sum")
    (row,) = predict(model, photo)
    with Image.open(photo) as image:
        found = explain_parts(model, preprocess(image, model)[None])
    assert (row.prior, list(row.contributions)) == found.bars(0)
    assert np.float32(row.prior) + sum(map(np.float32, row.contributions)) == pytest.approx(
        float(found.logits[0, row.label])
    )


def test_the_picture_of_a_sum_shows_what_each_part_adds(make_model, photo):
    (joint,), (row,) = predict(make_model(), photo), predict(make_model(aggregation="sum"), photo)
    assert (row.draw().width - joint.draw().width) * 3 == pytest.approx(joint.draw().width, rel=0.1)


def test_flags(tiny_model, photo):
    def flags(mask, **settings):
        (row,) = predict(tiny_model, photo, interventions=[UseMask(mask)], **settings)
        return set(row.flags) - {"selector_disagrees"}

    mask = torch.zeros(4, 4, dtype=torch.bool)
    assert flags(mask) == {"nothing_visible"}
    mask[0] = True
    assert flags(mask) == set()
    assert flags(~torch.zeros_like(mask)) == {"nearly_everything_visible"}
    # Every held-out image was surer than this one can be, so that no class is in its set.
    names = tuple(f"class {c}" for c in range(5))
    calibration = Calibration(torch.zeros(50).double(), torch.arange(50) % 5, names, error=0.2)
    (row,) = predict(tiny_model, photo, calibration=calibration)
    assert row.classes == ()
    assert "no_class_in_set" in row.flags


@pytest.mark.parametrize(("classes", "source"), [(5, {"model": "of another model"}), (3, {})])
def test_the_calibration_of_another_model_is_refused(tiny_model, photo, classes, source):
    names = tuple(f"class {c}" for c in range(classes))
    scores, labels = torch.zeros(10 * classes).double(), torch.arange(10 * classes) % classes
    with pytest.raises(IfamError, match="calibration belongs to another model, or to other weights"):
        predict(tiny_model, photo, calibration=Calibration(scores, labels, names, error=0.2, source=source))


def test_batches_are_dealt_to_models_and_results_are_in_order():
    seen = []

    def work(model, batch):
        seen.append((model, batch, threading.get_ident(), torch.get_num_threads()))
        return batch * 10

    threads = torch.get_num_threads()
    assert list(dealt(iter(range(7)), ["first", "second"], work)) == [0, 10, 20, 30, 40, 50, 60]
    assert sorted(batch for model, batch, *_ in seen if model == "second") == [1, 3, 5]
    assert len({(model, thread) for model, _, thread, _ in seen}) == 2
    assert {number for *_, number in seen} == {threads}

    def fail(model, batch):
        raise IfamError("It is broken.")

    with pytest.raises(IfamError, match="broken"):
        list(dealt(iter(range(3)), ["first", "second"], fail))


def test_a_device_that_is_not_there_is_a_sentence(tiny_model):
    assert replicas(tiny_model, ()) == replicas(tiny_model, ["cpu"]) == [tiny_model]
    first, second = replicas(tiny_model, ["cpu", "cpu"])
    assert first is tiny_model is not second
    assert next(first.parameters()) is next(second.parameters())
    assert first.predictor is not second.predictor
    for devices in (["nowhere"], ["cpu", "cuda:99"]):
        with pytest.raises(IfamError, match=f"cannot be copied to the devices {', '.join(devices)} .*; name others"):
            replicas(tiny_model, devices)
