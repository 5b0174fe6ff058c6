"""Sets of classes: coverage as promised, on scores whose answer is known, and as MAPIE has it."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, ClassifierMixin

from ifam.data import Benchmark
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration, calibrate, describe, load_calibration, surprise
from ifam.evaluation.features import LastLayer
from ifam.model_files import CALIBRATION
from ifam.models.timm_interface import features_of, recorded_features

NAMES = ("a", "b", "c")


def problem(count, seed=0, classes=3):
    """Logits that are right more often than not, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    return logits, labels


def calibrated(logits, labels, names=NAMES, **settings):
    scores = surprise(logits).gather(1, labels[:, None])[:, 0]
    return Calibration(scores, labels, names, **settings)


def covered(calibration, logits, labels):
    return calibration.sets(logits).gather(1, labels[:, None])[:, 0].double()


# ------------------------------------------------------------------------------------------------ the promise


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("error", [0.05, 0.2])
def test_sets_miss_their_class_as_rarely_as_promised(error, conditional):
    """On average over calibrations, by at least `1 - error`, and by no more than rounding above it."""
    shares = []
    for seed in range(300):
        logits, labels = problem(600, seed)
        calibration = calibrated(logits[:300], labels[:300], error=error, class_conditional=conditional)
        hits = covered(calibration, logits[300:], labels[300:])
        shares.append([float(hits[labels[300:] == label].mean()) for label in range(3)])
    means, noise = np.mean(shares, axis=0), 4 * np.std(shares, axis=0) / math.sqrt(300)
    if conditional:
        # Of each class, of which there are about a hundred.
        assert (means + noise > 1 - error).all()
        assert (means - noise < 1 - error + 1 / 70).all()
    assert 1 - error - noise.mean() < means.mean() < 1 - error + 1 / 70 + noise.mean()


def test_a_class_that_is_harder_has_a_limit_of_its_own():
    logits, labels = problem(900)
    logits[labels == 2, 2] -= 2
    average, each = (calibrated(logits, labels, error=0.1, class_conditional=by) for by in (False, True))
    hard = labels == 2
    assert covered(average, logits, labels)[hard].mean() < 0.85
    assert covered(each, logits, labels)[hard].mean() >= 0.9
    assert len(set(average.limits().tolist())) == 1
    assert len(set(each.limits().tolist())) == 3


class Given(ClassifierMixin, BaseEstimator):
    """A classifier for MAPIE, whose input is its output."""

    def __init__(self):
        self.classes_, self.is_fitted_ = np.arange(3), True

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("error", [0.02, 0.1, 0.37])
def test_the_sets_are_those_of_mapie(error):
    logits, labels = problem(400)
    probabilities = logits.double().softmax(dim=1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = SplitConformalClassifier(Given(), confidence_level=1 - error, conformity_score="lac")
        oracle.conformalize(probabilities[:200], labels[:200].numpy())
        _, sets = oracle.predict_set(probabilities[200:])
    ours = calibrated(logits[:200], labels[:200], error=error).sets(logits[200:])
    assert (ours.numpy() == sets[:, :, 0].astype(bool)).all()
    assert len({int(size) for size in ours.sum(dim=1)}) > 1


# ---------------------------------------------------------------------------------------------- known answers


def test_a_model_that_knows_nothing_names_every_class():
    calibration = calibrated(torch.zeros(60, 3), torch.arange(60) % 3, error=0.1)
    assert bool(calibration.sets(torch.zeros(5, 3)).all())


def test_a_model_that_is_sure_and_right_names_one_class_and_none_where_it_is_unsure():
    labels = torch.arange(60) % 3
    calibration = calibrated(100 * torch.nn.functional.one_hot(labels, 3).float(), labels, error=0.1)
    sets = calibration.sets(torch.tensor([[0.0, 100.0, 0.0], [1.0, 1.0, 1.0]]))
    assert sets.tolist() == [[False, True, False], [False, False, False]]


def test_scores_do_not_saturate():
    """Probabilities of 1 in float32 still differ in their surprise at the other classes."""
    far = surprise(torch.tensor([[200.0, 0.0], [400.0, 0.0]]))[:, 1]
    assert far.tolist() == [200.0, 400.0]


def features(count, seed, shift=0.0):
    """Features of three classes, which differ in their first direction; the last one is always the same."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    vectors = torch.randn(count, 6, generator=generator)
    vectors[:, 0] += 20 * labels
    vectors[:, 1] += shift
    vectors[:, 5] = 3.0
    logits = 20.0 * torch.nn.functional.one_hot(labels, 3)
    return LastLayer(vectors, logits, labels, labels)


def familiar(error=0.05, count=3000, **settings):
    """A calibration that knows what images are like."""
    training, held_out = describe(features(600, 1)), features(count, 2)
    scores = surprise(held_out.logits).gather(1, held_out.labels[:, None])[:, 0]
    distances = training.distances(held_out.features)
    return Calibration(scores, held_out.labels, NAMES, error=error, training=training, distances=distances, **settings)


def test_an_image_that_is_unlike_all_classes_has_no_class():
    calibration, near, far = familiar(), features(3000, 3), features(300, 4, shift=8.0)
    assert calibration.tells_unfamiliar
    sets = calibration.sets(near.logits, calibration.familiarity(near.features))
    # A fifth of the error is spent on it.
    assert float((sets.sum(dim=1) == 0).double().mean()) == pytest.approx(0.01, abs=0.006)
    none = calibration.sets(far.logits, calibration.familiarity(far.features))
    assert float((none.sum(dim=1) == 0).double().mean()) > 0.95
    # By the classes alone, each of them is as sure as ever.
    assert bool((calibration.sets(far.logits).sum(dim=1) == 1).all())


def test_familiarity_is_a_rank_among_held_out_images():
    calibration = familiar(count=999)
    shares = calibration.familiarity(features(3000, 5).features)
    assert float(shares.min()) >= 1 / 1000
    assert float(shares.max()) <= 1
    # Evenly spread over images that come from where the held-out ones do.
    assert float((shares <= 0.1).double().mean()) == pytest.approx(0.1, abs=0.04)
    assert calibration.familiarity(torch.full((1, 6), 1e6)).tolist() == [[1 / 1000] * 3]


def test_a_class_that_varies_more_is_no_less_familiar_where_sets_are_class_conditional():
    """Its images are compared with held-out ones of its own."""

    def varied(count, seed):
        images = features(count, seed)
        images.features[images.labels == 2, 1:5] *= 3
        return images

    missed = {}
    for conditional in (False, True):
        training, held_out, new = describe(varied(600, 1)), varied(6000, 2), varied(6000, 3)
        scores = surprise(held_out.logits).gather(1, held_out.labels[:, None])[:, 0]
        distances = training.distances(held_out.features)
        calibration = Calibration(
            scores, held_out.labels, NAMES, class_conditional=conditional, training=training, distances=distances
        )
        sets = calibration.sets(new.logits, calibration.familiarity(new.features))
        hits = sets.gather(1, new.labels[:, None])[:, 0].double()
        missed[conditional] = float(1 - hits[new.labels == 2].mean())
    # A hundredth of all images, most of them of the class that varies more.
    assert missed[False] > 0.018
    assert missed[True] == pytest.approx(0.01, abs=0.006)


def test_distances_are_those_of_mahalanobis():
    images = features(300, 1)
    described = describe(images)
    few = features(9, 2).features.double()
    residuals = images.features.double() - described.means[images.labels]
    # Of the directions in which features vary; the estimate is shrunk, so it differs a little.
    precision = torch.linalg.inv(residuals[:, :5].T @ residuals[:, :5] / 300)
    to_class = [((few - mean)[:, :5] @ precision * (few - mean)[:, :5]).sum(dim=1).sqrt() for mean in described.means]
    torch.testing.assert_close(described.distances(few), torch.stack(to_class).amin(dim=0), rtol=0.1, atol=0)


def test_too_few_held_out_images_tell_nothing_unfamiliar():
    calibration, far = familiar(count=90), features(9, 4, shift=50.0)
    assert not calibration.tells_unfamiliar
    assert bool((calibration.sets(far.logits, calibration.familiarity(far.features)).sum(dim=1) == 1).all())
    # One of a hundred images is a hundredth.
    assert familiar(count=99).tells_unfamiliar
    assert not familiar(count=99, class_conditional=True, error=0.04).tells_unfamiliar
    assert not familiar(count=9000).at(0.0005).tells_unfamiliar


# -------------------------------------------------------------------------------------------- models and files


class Pictures:
    """Random images of five classes."""

    def __init__(self, count, first=0):
        self.count, self.first = count, first
        self.labels = [index % 5 for index in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(self.first + index)
        return {"image": torch.rand(3, 64, 64, generator=generator), "label": self.labels[index]}


@pytest.fixture
def pictures():
    splits = {"train": Pictures(40), "val": Pictures(60, 1000), "test": Pictures(10, 2000)}
    return Benchmark("noise", splits, tuple("abcde"), tuple("abcde"), "cut at random")


def test_a_calibration_goes_with_its_model(tiny_model, pictures, tmp_path):
    calibration = calibrate(tiny_model, pictures, error=0.1, class_conditional=True, batch_size=7)
    tiny_model.save_pretrained(tmp_path)
    assert calibration.save(tmp_path) == tmp_path / CALIBRATION
    assert (tmp_path / CALIBRATION).stat().st_mode == (tmp_path / "config.json").stat().st_mode
    again = load_calibration(tmp_path, type(tiny_model).from_pretrained(tmp_path))
    images = torch.rand(6, 3, 64, 64)
    with torch.no_grad(), recorded_features(tiny_model) as inputs:
        logits = tiny_model(images).logits
    shares = [one.familiarity(features_of(tiny_model, inputs, 6)) for one in (calibration, again)]
    assert torch.equal(*shares)
    assert torch.equal(*(one.sets(logits, shares[0]) for one in (calibration, again)))
    assert (again.error, again.class_conditional, again.class_names) == (0.1, True, tuple("abcde"))
    assert (again.source["split"], again.source["note"]) == ("val", "cut at random")


def test_a_calibration_of_other_weights_is_refused(tiny_model, make_model, pictures, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    calibrate(tiny_model, pictures, error=0.1).save(tmp_path)
    assert load_calibration(tmp_path).error == 0.1
    with torch.no_grad():
        tiny_model.predictor.head.weight[0, 0] += 1e-3
    with pytest.raises(IfamError, match=r"belongs to another model.*ifam calibrate --overwrite"):
        load_calibration(tmp_path, tiny_model)
    with pytest.raises(IfamError, match="belongs to another model"):
        load_calibration(tmp_path, make_model(mask_resolution=4))


def test_a_digest_tells_calibrations_apart(tiny_model, pictures):
    calibration = calibrate(tiny_model, pictures, error=0.1)
    other = replace(calibration, scores=calibration.scores * 2)
    assert len({one.digest for one in (calibration, calibration.at(0.2), other)}) == 3
    assert calibration.digest == calibrate(tiny_model, pictures, error=0.1).digest


def test_it_takes_the_place_of_an_earlier_one_and_its_coverage(tiny_model, pictures, tmp_path):
    with pytest.raises(IfamError, match="is not the folder of a model; save the model first"):
        calibrate(tiny_model, pictures, error=0.1).save(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "calibration.json").write_text("the coverage of an earlier one")
    calibrate(tiny_model, pictures, error=0.1).save(tmp_path)
    assert not (tmp_path / "calibration.json").exists()


def test_data_of_other_classes_are_refused(make_model, pictures):
    with pytest.raises(IfamError, match=r"noise has the classes a, b, c, d, e \(5\), but the model has 3; give data"):
        calibrate(make_model(num_classes=3), pictures, error=0.1)
    with pytest.raises(IfamError, match="but the model has e, d, c, b, a; give data of its classes, in their order"):
        calibrate(make_model(class_names=tuple("edcba")), pictures, error=0.1)


def test_there_may_be_no_calibration(tmp_path):
    assert load_calibration(tmp_path) is None


def _scores_alone(path):
    save_file({"scores": torch.zeros(3)}, path, metadata={"calibration": "{}"})


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x04K\x01." * 40),
        lambda path: save_file({"scores": torch.zeros(3)}, path),
        _scores_alone,
        lambda path: save_file({"scores": torch.zeros(3)}, path, metadata={"calibration": "{nothing"}),
    ],
)
def test_a_damaged_calibration_is_a_sentence(write, tmp_path):
    write(tmp_path / CALIBRATION)
    with pytest.raises(IfamError, match=r"is not a valid calibration .*; write it again with `ifam calibrate`\."):
        load_calibration(tmp_path)


def test_without_training_images_nothing_is_known_of_what_is_usual(tiny_model, pictures):
    held_out = Benchmark("noise", {"val": pictures.split("val")}, pictures.class_names, pictures.class_names)
    calibration = calibrate(tiny_model, held_out, error=0.1)
    assert not calibration.tells_unfamiliar
    assert calibration.familiarity(torch.zeros(2, 48)) is None


@pytest.mark.shapes_unchecked
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "train"}, "was trained on the split 'train'"),
        ({"split": "held out"}, "has no split 'held out'"),
        ({"error": 0.05}, "at least 20 held-out images of each class, but 'a' has 12; add some, or give a larger"),
        ({"error": 0.0}, "error is 0.0, but a share between 0 and 1"),
        ({"error": 1.0}, "error is 1.0, but"),
        ({"error": math.nan}, "error is nan, but"),
        ({"error": "0.1"}, "error is '0.1', but"),
        ({"batch_size": 0}, "batch_size is 0, but"),
    ],
)
def test_what_cannot_be_calibrated_is_said_before_images_are_read(tiny_model, pictures, settings, message, monkeypatch):
    monkeypatch.setattr(Pictures, "__getitem__", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(IfamError, match=message):
        calibrate(tiny_model, pictures, **settings)


@pytest.mark.shapes_unchecked
def test_logits_of_other_classes_have_no_sets():
    calibration = calibrated(torch.zeros(60, 3), torch.arange(60) % 3, error=0.05)
    with pytest.raises(IfamError, match=r"The logits have shape \[2, 2\], but \[B, 3\] is expected"):
        calibration.sets(torch.zeros(2, 2))
    with pytest.raises(IfamError, match="error is None, but a share"):
        calibration.at(None)


def test_the_least_number_of_images_is_one_by_the_error():
    logits, labels = torch.zeros(60, 3), torch.arange(60) % 3
    assert calibrated(logits, labels, error=0.05).error == 0.05
    with pytest.raises(IfamError, match="'c' has 19"):
        calibrated(logits[:59], labels[:59], error=0.05)
    with pytest.raises(IfamError, match="at least 100 held-out images"):
        calibrated(logits, labels, error=0.05).at(0.01)


def test_a_class_without_a_held_out_image_is_named():
    with pytest.raises(IfamError, match="'c' has 0"):
        calibrated(torch.zeros(60, 3), torch.arange(60) % 2, error=0.1)
