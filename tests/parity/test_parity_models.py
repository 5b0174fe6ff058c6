"""Whole models against numbers of the authors' public code (README.md); all noise is off."""

import copy
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ifam.checkpoints import hub
from ifam.checkpoints.authors import from_official, to_official
from ifam.config import LossConfig, ModelConfig
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, DropUnsure
from ifam.models.soft_mask import SoftMaskIFAM
from ifam.training import losses
from ifam.training.affine import Affine, transform
from parity import reference
from parity.reference import DATA, TOLERANCE

# The full set, from which `derive.py` made the numbers here.
FULL = Path(__file__).parents[3] / "shared" / "parity"
TIMM = ("tiny_reg4", "tiny_noreg")
ALL = (*TIMM, "tiny_hf")
REMOVALS = {"eval_remove1": [1], "eval_remove02": [0, 2], "eval_remove_all": [0, 1, 2]}
PRESCRIBED = ("all", "none", "random_varied_counts", "one_sample_empty")
# Tensors of a scenario that no intervention and no kind of mask changes.
SELECTOR_OUTPUTS = ("features_mod", "part_logits", "stage1_scores")


class Case:
    """One fixture: its numbers, and models with its weights."""

    def __init__(self, name):
        self.name = name
        self.layout = "transformers" if name == "tiny_hf" else "timm"
        self.data, self.manifest = reference.read(name)
        self.images, self.weights = reference.images(name), reference.weights(name)
        self.model = from_official(self.weights, num_heads=2)

    def build(self, kind=IFAM, **fields):
        """A model with these weights and other settings, in evaluation mode."""
        model = kind(replace(self.model.config, **fields), pretrained=False)
        model.load_state_dict(self.model.state_dict())
        return model.eval()

    def noiseless(self, kind=IFAM):
        """A model to train as the fixtures were made: no noise, no dropout, no gradient through the mask."""
        off = {"gumbel_noise": False, "part_dropout": 0.0, "mask_part_dropout": 0.0, "mask_gradient": "none"}
        return self.build(kind, **off).train()

    def winners(self):
        """Index of the most probable part, from the reference's own maps."""
        return self.data["eval.part_maps"].argmax(dim=1)

    def check_selection(self, out, scenario):
        """Everything the selector says, in the scenario's names and axes."""
        outputs = {
            "part_maps": out.part_maps,
            "features_mod": out.part_features.mT,
            "stage1_scores": out.part_scores.permute(0, 2, 1),
            "part_logits": out.similarity,
        }
        with_maps = "remove" not in scenario and "threshold" not in scenario
        for name in (*SELECTOR_OUTPUTS, *(["part_maps"] if with_maps else [])):
            assert_close(outputs[name], self.data[f"{scenario}.{name}"], **TOLERANCE)
        assert_close(out.selector_logits, self.data[f"{scenario}.stage1_scores"].mean(dim=2), **TOLERANCE)

    def check_mask(self, mask, scenario):
        """Exactly the scenario's hard mask, of foreground and of background."""
        hard = self.data[f"{scenario}.mask_hard"] > 0.5
        assert torch.equal(mask, hard[:, 0])
        assert torch.equal(~mask, hard[:, 1])


@pytest.fixture(scope="module", params=ALL)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module", params=TIMM)
def timm_case(request):
    return Case(request.param)


@pytest.fixture(autouse=True)
def _no_gradients(request):
    with torch.set_grad_enabled("training" in request.node.name):
        yield


@pytest.mark.skipif(not FULL.is_dir(), reason=f"the full set is not at {FULL}")
@pytest.mark.parametrize("folder", sorted(path.name for path in DATA.iterdir()))
def test_the_numbers_here_are_those_of_the_full_set(folder):
    """Bit by bit; weights and images, which are drawn again here, to the precision in which they were drawn."""
    source, (tensors, manifest) = FULL / folder, reference.read(folder)
    full = load_file(source / "data.safetensors") if tensors else {}
    if "drawn" in manifest:
        drawn, expected = reference.weights(folder), load_file(source / "state_dict.safetensors")
        assert set(drawn) == set(expected)
        for name, tensor in expected.items():
            assert_close(drawn[name], tensor, atol=1e-6, rtol=0)
        assert_close(reference.images(folder), full.pop("input"), atol=2e-6, rtol=0)
    assert set(full) == set(tensors)
    assert all(torch.equal(full[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(not FULL.is_dir(), reason=f"the full set is not at {FULL}")
def test_nothing_of_the_full_set_is_left_out():
    assert {path.parent.name for path in FULL.glob("*/manifest.json")} == {path.name for path in DATA.iterdir()}


@pytest.mark.parametrize("document", ["docs/checkpoints.md", "docs/differences.md"])
def test_the_documents_state_the_tolerance_that_is_checked(document):
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    stated = re.findall(r"within\s+(\S+) \(absolute plus relative\)", text)
    assert [float(number) for number in stated] == [TOLERANCE["atol"]] == [TOLERANCE["rtol"]]


def test_the_numbers_are_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 1e6


def test_every_scenario_of_the_fixtures_has_a_test(case):
    tested = {"eval", "eval_single", "eval_soft", "eval_soft_remove1", "eval_temp0p5", "stage2_only"}
    tested |= {
        *REMOVALS,
        "eval_threshold",
        "eval_threshold_remove1",
        "stage2_only_softmask",
        "train",
        "train_soft",
    }
    assert {name.split(".")[0] for name in case.data} <= tested
    prescribed = {name.split(".")[1] for name in case.data if name.startswith("stage2_only.")}
    assert prescribed <= {*PRESCRIBED, "without_part1"}


def test_plain_inference(case):
    out = case.model(case.images)
    case.check_selection(out, "eval")
    case.check_mask(out.mask, "eval")
    assert_close(out.logits, case.data["eval.stage2_logits"], **TOLERANCE)
    soft = case.data["eval.mask_soft"]
    assert_close(out.part_maps[:, :-1].amax(dim=1), soft[:, 0], **TOLERANCE)
    assert_close(out.part_maps[:, -1], soft[:, 1], **TOLERANCE)


def test_intermediate_tokens(case):
    """Tight enough to tell the epsilon of the norms: another one changes them by 2e-5 at least."""
    tight = {"atol": 1.5 * reference.PARITY, "rtol": 0}
    tokens = case.model.selector.backbone(case.images)
    assert_close(tokens, case.data["eval.stage1_tokens_after_norm"], **tight)
    visible = case.model(case.images).mask.flatten(1)
    tokens = case.model.predictor.backbone(case.images, visible)
    assert_close(tokens[:, 0], case.data["eval.stage2_cls_after_norm"], **tight)
    assert_close(case.model(case.images).logits, case.data["eval.stage2_logits"], **tight)


def test_epsilon_of_every_norm(case):
    for name, module in case.model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps == (1e-6 if ".vit." in name else 1e-5), name


def test_one_image_alone(timm_case):
    out = timm_case.model(timm_case.images[1:2])
    assert_close(out.logits, timm_case.data["eval_single.stage2_logits"], **TOLERANCE)


@pytest.mark.parametrize("scenario", REMOVALS)
def test_removal_of_parts(timm_case, scenario):
    out = timm_case.model(timm_case.images, [DropParts(REMOVALS[scenario])])
    timm_case.check_selection(out, scenario)
    timm_case.check_mask(out.mask, scenario)
    assert_close(out.logits, timm_case.data[f"{scenario}.stage2_logits"], **TOLERANCE)


def test_removal_of_a_part_in_the_transformers_variant():
    case = Case("tiny_hf")
    out = case.model(case.images, [DropParts([1])])
    assert torch.equal(out.mask.flatten(1), case.data["stage2_only.without_part1.mask"] > 0.5)
    assert_close(out.logits, case.data["stage2_only.without_part1.logits"], **TOLERANCE)


@pytest.mark.parametrize("name", PRESCRIBED)
def test_prescribed_masks(case, name):
    mask = case.data[f"stage2_only.{name}.mask"] > 0.5
    logits = case.model.predictor(case.images, mask)
    assert_close(logits, case.data[f"stage2_only.{name}.logits"], **TOLERANCE)


def test_temperature(timm_case):
    out = timm_case.build(temperature=0.5)(timm_case.images)
    timm_case.check_selection(out, "eval_temp0p5")
    timm_case.check_mask(out.mask, "eval_temp0p5")
    assert_close(out.logits, timm_case.data["eval_temp0p5.stage2_logits"], **TOLERANCE)


def test_soft_mask(timm_case):
    model = timm_case.build(SoftMaskIFAM)
    out = model(timm_case.images)
    timm_case.check_selection(out, "eval_soft")
    timm_case.check_mask(out.mask, "eval_soft")
    assert_close(out.logits, timm_case.data["eval_soft.stage2_logits"], **TOLERANCE)
    foreground = model.foreground(model.selector(timm_case.images))
    assert_close(foreground, timm_case.data["eval_soft.mask_soft"][:, 0], **TOLERANCE)


def fade(selection):
    """Zero the probability of part 1 without renormalizing, as the authors' code does under a soft mask."""
    gone = (torch.arange(selection.part_maps.shape[1]) == 1)[:, None, None]
    return replace(
        selection,
        assignment_logits=selection.assignment_logits.masked_fill(gone, -torch.inf),
        part_maps=selection.part_maps.masked_fill(gone, 0.0),
    )


def test_soft_mask_with_a_part_removed(timm_case):
    model = timm_case.build(SoftMaskIFAM)
    out = model(timm_case.images, [fade])
    timm_case.check_selection(out, "eval_soft_remove1")
    assert_close(out.logits, timm_case.data["eval_soft_remove1.stage2_logits"], **TOLERANCE)
    foreground = model.foreground(fade(model.selector(timm_case.images)))
    assert_close(foreground, timm_case.data["eval_soft_remove1.mask_soft"][:, 0], **TOLERANCE)
    # The hard mask of this scenario is that of a hard removal.
    dropped = model(timm_case.images, [DropParts([1])])
    timm_case.check_mask(dropped.mask, "eval_soft_remove1")
    assert (dropped.logits - out.logits).abs().max() > 0.5


def test_soft_prescribed_masks(timm_case):
    weights = timm_case.data["stage2_only_softmask.mask"]
    logits = timm_case.build(SoftMaskIFAM).predictor(timm_case.images, weights > 0.5, weights)
    assert_close(logits, timm_case.data["stage2_only_softmask.logits"], **TOLERANCE)


@pytest.mark.parametrize("removed", [[], [1]])
def test_thresholds_by_our_definition_and_by_theirs(timm_case, removed):
    """Ours hides what is below its winner's threshold; theirs also takes dot products for distances."""
    scenario = "eval_threshold_remove1" if removed else "eval_threshold"
    thresholds = timm_case.data["eval_threshold.thresholds"]
    out = timm_case.model(timm_case.images, [DropUnsure(thresholds), DropParts(removed)])
    similarity, winners = timm_case.data["eval.part_logits"], timm_case.winners()

    ours = torch.zeros_like(out.mask)
    for b, row, column in torch.cartesian_prod(*map(torch.arange, ours.shape)):
        part = winners[b, row, column]
        if part < len(thresholds) and part not in removed:
            ours[b, row, column] = similarity[b, part, row, column] >= thresholds[part]
    assert torch.equal(out.mask, ours)
    assert_close(out.logits, timm_case.model.predictor(timm_case.images, ours))

    certain = similarity[:, :-1].masked_fill(similarity[:, :-1] < thresholds[:, None, None], -torch.inf)
    maps = torch.cat([certain, similarity[:, -1:]], dim=1).softmax(dim=1)
    best = maps.argmax(dim=1)
    theirs = (best < len(thresholds)) & ~torch.isin(best, torch.tensor(removed))
    timm_case.check_mask(theirs, scenario)
    if not removed:
        assert_close(maps, timm_case.data[f"{scenario}.part_maps"], **TOLERANCE)
    assert (out.part_maps - maps).abs().max() > 0.1
    if timm_case.name == "tiny_reg4" or removed:
        assert not torch.equal(ours, theirs)


# --- training --------------------------------------------------------------------------------------------

LOSS_NAMES = {
    "classification_stage2": "classification",
    "classification_stage1": "selector_classification",
    "presence": "presence",
    "enforced_presence": "enforced_presence",
    "total_variation": "total_variation",
    "pixel_wise_entropy": "entropy",
    "equivariance": "equivariance",
    "concentration": "concentration",
}


def objective(case, model, orthogonality):
    """The terms and their sum, with one of the two definitions of orthogonality."""
    settings = case.manifest["affine"]
    x, y = settings["translate_pixels"]
    affine = Affine(settings["angle"], (float(x), float(y)), settings["scale"])
    out = model(case.images)
    moved = model.selector(transform(case.images, affine)).part_maps
    terms = losses.all_terms(
        out.part_maps,
        out.part_features,
        out.logits,
        out.selector_logits,
        case.data["train.labels"],
        equivariant_maps=moved,
        affine=affine,
        image_size=model.image_size,
    )
    if orthogonality == "features":
        terms["orthogonality"] = losses.orthogonality(out.part_features.mT)
    return out, moved, terms, losses.weighted_sum(terms, asdict(LossConfig()))


def official_gradients(model):
    """Gradient of every parameter, under the authors' names; zero where there is none."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
            parameter.copy_(torch.zeros_like(original) if original.grad is None else original.grad)
    return to_official(copied)


@pytest.mark.parametrize(("scenario", "kind"), [("train", IFAM), ("train_soft", SoftMaskIFAM)])
def test_training_objective(timm_case, scenario, kind):
    data = timm_case.data
    model = timm_case.noiseless(kind)
    out, moved, terms, total = objective(timm_case, model, "features")
    timm_case.check_selection(out, scenario)
    timm_case.check_mask(out.mask, scenario)
    assert_close(out.logits, data[f"{scenario}.stage2_logits"], **TOLERANCE)
    assert_close(out.selector_logits, data[f"{scenario}.stage1_logits_mean"], **TOLERANCE)
    assert_close(moved, data[f"{scenario}.equiv_part_maps"], **TOLERANCE)
    for theirs, ours in LOSS_NAMES.items():
        assert_close(terms[ours], data[f"{scenario}.loss.{theirs}"], **TOLERANCE)
    assert_close(terms["orthogonality"], data[f"{scenario}.loss.orthogonality_as_in_reference_training"], **TOLERANCE)
    assert_close(total, data[f"{scenario}.total"], **TOLERANCE)

    _, _, terms, total = objective(timm_case, model, "parts")
    assert_close(terms["orthogonality"], data[f"{scenario}.loss.orthogonality_between_parts"], **TOLERANCE)
    assert_close(total, data[f"{scenario}.total_with_orthogonality_between_parts"], **TOLERANCE)


@pytest.mark.parametrize(("scenario", "kind"), [("train", IFAM), ("train_soft", SoftMaskIFAM)])
@pytest.mark.parametrize("name", ["total", "total_with_orthogonality_between_parts", "classification_stage2"])
def test_training_gradients_of_every_parameter(timm_case, scenario, kind, name):
    data = timm_case.data
    model = timm_case.noiseless(kind)
    orthogonality = "parts" if name.endswith("between_parts") else "features"
    _, _, terms, total = objective(timm_case, model, orthogonality)
    (terms["classification"] if name == "classification_stage2" else total).backward()
    gradients = official_gradients(model)

    order = timm_case.manifest["train"][scenario]["grad_norms_parameter_order"]
    assert {*order, "stage_2.prefix_attn_mask"} == set(gradients)
    norms = torch.stack([gradients[parameter].norm() for parameter in order])
    assert_close(norms, data[f"{scenario}.grad_norms.{name}"], **TOLERANCE)
    assert_close(norms.norm(), data[f"{scenario}.grad_total_norm.{name}"], **TOLERANCE)
    full = {key: value for key, value in data.items() if key.startswith(f"{scenario}.grad.{name}.")}
    assert full or name.endswith("between_parts")
    for key, value in full.items():
        assert_close(gradients[key.removeprefix(f"{scenario}.grad.{name}.")], value, **TOLERANCE)


def test_training_without_mask_gradient_leaves_the_selector_alone_and_with_it_does_not(timm_case):
    """The authors' code cuts the gradient at the mask; here that is one of three settings."""
    without = timm_case.manifest["train"]["train"]["parameters_without_gradient_from_stage2_classification"]
    for mode in ("none", "visible", "full"):
        model = timm_case.noiseless()
        model.predictor.mask_gradient = mode
        objective(timm_case, model, "features")[2]["classification"].backward()
        gradients = official_gradients(model)
        silent = {name for name in without if not gradients[name].any()}
        reached = {"stage_1.fc_landmarks.weight", "stage_1.cls_token", "stage_1.norm.weight"}
        assert silent == set(without) if mode == "none" else not reached & silent


# --- checkpoints -----------------------------------------------------------------------------------------


def test_the_way_back_gives_the_very_file(case):
    official = to_official(case.model, case.layout)
    assert set(official) == set(case.weights)
    for name, tensor in case.weights.items():
        assert official[name].shape == tensor.shape
        assert torch.equal(official[name], tensor)


def test_there_and_back_keeps_every_bit_of_the_logits(case, tmp_path):
    expected = case.model(case.images).logits

    def logits(model):
        return model(case.images).logits

    hub.save(case.model, tmp_path / "saved")
    assert torch.equal(logits(hub.load(tmp_path / "saved")), expected)
    hub.convert(tmp_path / "saved", tmp_path / "theirs", to="official", layout=case.layout)
    assert torch.equal(logits(hub.load_official(tmp_path / "theirs")), expected)
    hub.convert(tmp_path / "theirs", tmp_path / "ours")
    assert torch.equal(logits(IFAM.from_pretrained(tmp_path / "ours")), expected)
    save_file(case.weights, tmp_path / "weights.safetensors")
    hub.convert(tmp_path / "weights.safetensors", tmp_path / "direct", num_heads=2)
    assert torch.equal(logits(IFAM.from_pretrained(tmp_path / "direct")), expected)


@pytest.mark.parametrize(
    ("backbone", "size", "parts", "layout", "values"),
    [
        ("vit_base_patch14_reg4_dinov2.lvd142m", 224, 2, "timm", 171_465_989),
        ("vit_base_patch14_reg4_dinov2.lvd142m", 224, 1, "timm", 171_463_685),
        # The shape of RAD-DINO.
        ("vit_base_patch14_dinov2.lvd142m", 518, 8, "transformers", 173_184_769),
    ],
)
def test_size_of_the_published_models(backbone, size, parts, layout, values):
    config = ModelConfig(backbone=backbone, image_size=size, num_parts=parts, num_classes=2)
    with torch.device("meta"):
        official = to_official(IFAM(config, pretrained=False), layout)
    assert sum(tensor.numel() for tensor in official.values()) == values
    assert len(official) == (452 if layout == "transformers" else 358)
