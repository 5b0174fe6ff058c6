"""The audit as a whole: its verdict, what it writes, and the verb's exit status."""

import json
from dataclasses import replace

import pytest
import torch

from fakes import LeakingParts, PeekingPredictor
from ifam.auditing.certificates import share_weights
from ifam.auditing.certify import EXECUTIONS
from ifam.auditing.run import OWN_WEIGHTS, AuditResult, audit, load_plain
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.models.baselines import LatePredictor, PlainViT
from ifam.models.ifam import IFAM
from ifam.models.predictor import Predictor
from ifam.serialization import from_json
from ifam.types import Batch

pytestmark = pytest.mark.slow

DATA = {"num_train": 4, "num_val": 4, "num_test": 24}


class Cheating(IFAM):
    """A model whose predictor is faithful, and whose answer is the selector's."""

    def classify(self, images, selection):
        out = super().classify(images, selection)
        return replace(out, predictor_logits=out.logits + 1e-3 * self.selector(images).selector_logits)


@pytest.fixture
def batch(images):
    """A batch with labels and groups: class x one of two backgrounds."""
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[:, 16:48, 16:48] = True
    return Batch(images, torch.arange(4), torch.arange(4), masks)


@pytest.mark.parametrize("resolution", ["patch", 8])
def test_every_part_of_a_sum_is_certified(make_model, batch, resolution):
    model = make_model(aggregation="sum", mask_resolution=resolution)
    result = audit(model, batch, explain=2)
    assert result.passed
    assert result.verdict.endswith("nor did one of any part for pixels outside of it.")
    assert [one.name for one in result.part_certificates] == ["part 0", "part 1", "part 2"]
    # Of a part that is visible nowhere, every pixel is outside.
    assert all(one.certified == 4 and len(one.settings) == 4 for one in result.part_certificates)
    assert all(one.hidden_pixels > result.certificate.hidden_pixels for one in result.part_certificates)
    assert from_json(AuditResult, result.to_dict()).part_certificates == result.part_certificates


@pytest.mark.parametrize("execution", ["packed", None])
def test_a_part_that_reads_another_fails(make_model, batch, execution):
    """The pixels that it reads are visible, so that the certificate of the mask alone finds nothing."""
    model = make_model(aggregation="sum")
    shown = model(batch.images).part_contributions.flatten(2).any(dim=2).sum(dim=0)
    part = int(shown.argmax())
    model.predictor = LeakingParts(model.predictor, part, execution).eval()
    result = audit(model, batch, explain=2)
    assert result.certificate.passed
    assert not result.passed
    assert [bool(one.failing_images) for one in result.part_certificates] == [k == part for k in range(3)]
    assert f"pixels outside of part {part} change what it contributes" in result.verdict
    settings = {violation.setting for violation in result.part_certificates[part].violations}
    assert settings <= {f"{one}, evaluation" for one in ([execution] if execution else EXECUTIONS)}


def test_a_faithful_model_passes(tiny_model, batch):
    tiny_model.train()
    result = audit(tiny_model, batch, explain=2)
    assert result.passed
    assert result.verdict.startswith("PASSED: ")
    # A bit that another background alone changes is a failure too, though no answer changes.
    hidden = replace(result.backgrounds.hidden, any_bit=0.25)
    failed = replace(result, backgrounds=replace(result.backgrounds, hidden=hidden))
    assert hidden.answers == 0
    assert not failed.passed
    assert failed.verdict == "FAILED: another background in hidden patches alone changes bits of an answer."
    assert tiny_model.training
    assert len(result.certificate.settings) == 9
    assert result.certificate.settings[-1] == "whole model, evaluation"
    assert [one.name for one in result.baselines] == ["plain ViT", "late mask", "soft mask"]
    # Every baseline fails, on every image that hides something.
    assert [one.failing for one in result.baselines] == [1, 1, 1]
    assert result.conditions["plain ViT"] == OWN_WEIGHTS
    assert result.backgrounds.hidden.any_bit == 0
    assert result.backgrounds.source == "ground truth"
    for i, row in enumerate(result.images):
        assert (row.index, row.label, row.group) == (i, f"class {i}", f"group {i}")
        assert row.right == (row.answer == row.label)
        assert ("another background changes the answer" in row.flags) == (row.answer != row.answer_after)
        assert row.influence == result.backgrounds.influence[i]
        assert row.leave_one_out == result.parts.leave_one_out[i]
    _fits_into_json(result)
    assert _figures(audit(tiny_model, batch, explain=2)) == _figures(result)


def _fits_into_json(result):
    """Everything but the pictures, with no number that JSON does not know."""
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = json.loads(text)
    assert again["kind"] == "audit"
    assert set(again) == {"kind", "passed", "verdict", *vars(result)} - {"pictures"}
    assert from_json(AuditResult, again).to_dict() == result.to_dict()
    changes = [v["change"] for v in again["baselines"][0]["violations"]]
    assert None in changes
    assert all(change is None or change > 0 for change in changes)
    assert again["certificate"]["passed"] is True
    assert len(text) < 60_000


def _figures(result):
    """All that must be the same when an audit is repeated."""
    plain = result.to_dict()
    for row in plain["posthoc"]["rows"]:
        row.pop("seconds")
    plain["conditions"].pop("time")
    return plain


def test_a_predictor_that_looks_at_one_hidden_pixel_fails_and_is_named(tiny_model, batch):
    with torch.no_grad():
        mask = tiny_model(batch.images).mask
    place = int(mask.float().mean(dim=0).flatten().argmin())
    tiny_model.predictor = PeekingPredictor(tiny_model.predictor, divmod(place, 4))
    shown = mask.flatten(1)[:, place]
    result = audit(tiny_model, batch, explain=1)
    assert not result.passed
    assert 0 < len(result.certificate.failing_images) < 4
    assert result.certificate.failing_images == tuple((~shown).nonzero().flatten().tolist())
    image = result.certificate.failing_images[0]
    assert result.verdict.startswith(f"FAILED: in image {image}, ")
    assert "evaluation" in result.verdict
    assert any("hidden pixels change the answer" in flag for flag in result.images[image].flags)
    assert result.to_dict()["passed"] is False


def test_a_model_that_goes_round_its_predictor_fails(make_model, batch):
    """The predictor alone would pass; the whole model is attacked as well."""
    honest = make_model()
    model = Cheating(honest.config, pretrained=False).eval()
    model.load_state_dict(honest.state_dict())
    result = audit(model, batch, explain=1)
    assert not result.passed
    assert {v.setting for v in result.certificate.violations} == {"whole model, evaluation"}
    assert "gradient" not in {v.attack for v in result.certificate.violations}


def test_masks_that_hide_nothing_certify_nothing(tiny_model, batch):
    with torch.no_grad():
        tiny_model.selector.prototypes[-1] = 1e3
    result = audit(tiny_model, batch, explain=1)
    assert result.verdict.startswith("NOT CERTIFIED")
    assert not result.passed
    assert all("everything is visible" in row.flags for row in result.images)


def test_images_alone_are_enough(tiny_model, images):
    """What needs labels or truth is left open, and the rest is there."""
    result = audit(tiny_model, images, limit=3, explain=1)
    assert result.passed
    assert len(result.images) == 3
    assert result.backgrounds.source == "own mask"
    assert result.leakage.readings == ()
    assert result.mask_iou is None
    assert {(row.label, row.group, row.right) for row in result.images} == {(None, None, None)}


@pytest.mark.parametrize("wrong", [{"limit": 1}, {"explain": 0}, {"batch_size": 0}])
def test_impossible_settings_are_refused(tiny_model, images, wrong):
    with pytest.raises(IfamError, match=next(iter(wrong))):
        audit(tiny_model, images, **wrong)


def test_one_image_and_foreign_data_are_refused(tiny_model, images):
    with pytest.raises(IfamError, match="two or more images, but got 1"):
        audit(tiny_model, images[:1])
    with pytest.raises(IfamError, match="pondbirds has 2 classes, but the model has 5"):
        audit(tiny_model, load_benchmark("pondbirds", options=DATA))


def test_a_late_mask_is_no_mask(make_model, images, mask):
    """It averages the masked tokens, each of which has seen everything."""
    late = share_weights(make_model().predictor, LatePredictor)
    with torch.no_grad():
        out = late(images, mask)
        tokens = late.backbone(images)[:, 1:]
        for i in (0, 2, 3):
            pooled = tokens[i][mask[i].flatten()].mean(dim=0)
            torch.testing.assert_close(out[i], late.classify(pooled[None])[0])
        changed = images.clone()
        changed[0, :, :16, :16] += 1
        assert not torch.equal(late(changed, mask)[0], out[0])


# --- the verb --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An untrained model and a plain ViT on the embedded backbone."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    config = ModelConfig("ifam_tiny", image_size=80, num_parts=3, class_names=("swimmer", "percher"))
    model, plain = IFAM(config), PlainViT(config)
    with torch.no_grad():
        model.selector.prototypes.normal_(std=0.3)
        model.selector.prototypes[-1] = 0.0
    model.save_pretrained(folder / "ifam", {"benchmark": "pondbirds", "data": DATA})
    hub.save(plain, folder / "plain")
    return folder


def run(saved, out, *words):
    main(["audit", "--model", str(saved / "ifam"), "--out", str(out), "--limit", "6", "--explain", "1", *words])


def test_the_verb_writes_json_pictures_and_page(saved, tmp_path, capsys):
    run(saved, tmp_path, "--plain", str(saved / "plain"))
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["passed"]
    assert len(content["images"]) == 6
    # Evenly spread over the split.
    assert [row["index"] for row in content["images"]] == list(range(0, 24, 4))
    assert content["backgrounds"]["source"] == "benchmark"
    assert content["conditions"]["plain ViT"] == str(saved / "plain")
    for row in content["images"]:
        assert all((tmp_path / name).stat().st_size > 0 for name in row["pictures"].values())
    page = (tmp_path / "audit.html").read_text()
    assert page.count("data:image/webp;base64,") == 18
    said = capsys.readouterr().out
    assert "PASSED" in said
    assert all(f"{n}. " in said for n in range(1, 6))
    assert "audit.html" in said


def test_the_verb_fails_with_status_1(saved, tmp_path, capsys, monkeypatch):
    """And says which image, which attack and which execution."""
    real = Predictor.forward

    def peeking(self, images, mask, gate=None):
        peek = images[:, :1, -1, -1] if self.execution == "dense" else 0.0
        return real(self, images, mask, gate) + peek * torch.arange(1.0, 3.0)

    monkeypatch.setattr(Predictor, "forward", peeking)
    with pytest.raises(SystemExit) as caught:
        run(saved, tmp_path)
    assert caught.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "FAILED: in image 0, " in said
    assert "dense, evaluation" in said
    assert not json.loads((tmp_path / "audit.json").read_text())["passed"]


def test_a_plain_vit_of_another_kind_is_refused(saved, tmp_path, capsys):
    with pytest.raises(IfamError, match="method 'ifam', but one of 'plain_vit' is expected"):
        load_plain(saved / "ifam")
    config = ModelConfig("ifam_tiny", image_size=96, class_names=("swimmer", "percher"))
    hub.save(PlainViT(config, pretrained=False), tmp_path / "other")
    with pytest.raises(SystemExit) as caught:
        run(saved, tmp_path / "out", "--plain", str(tmp_path / "other"))
    assert caught.value.code == 2
    assert "the same backbone and task" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plain_vit_that_is_loaded_is_the_one_that_was_saved(saved, images):
    plain = load_plain(saved / "plain")
    torch.manual_seed(1)
    images = torch.randn(2, 3, 80, 80)
    model = IFAM.from_pretrained(saved / "ifam")
    with torch.no_grad():
        assert plain(images).logits.shape == (2, 2)
        assert not torch.equal(plain(images).logits, model(images).logits)
    assert plain.image_size == (80, 80)
