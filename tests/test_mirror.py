"""Tests stand as modules do: `src/ifam/x/y.py` is tested by `tests/x/test_y.py`, or shares a file named here.

So are the programs in `tools/`, by `tests/tools/`.
"""

from pathlib import Path

import pytest

ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent
SOURCE = ROOT / "src" / "ifam"

# Modules whose tests stand in the file of another, and why.
SHARED = {
    "app/panel": ("app/test_session", "what a session shows"),
    "app/page": ("app/test_server", "a page is tried where it is served"),
    "app/examples": ("app/test_server", "what the verb begins with"),
    "cli/app": ("app/test_server", "the verb and what it runs"),
    "_typing": ("test_layers", "what it offers without jaxtyping"),
    "auditing/certificates": ("auditing/test_run", "its rows are those of an audit"),
    "auditing/region_attack": ("auditing/test_smoothing", "the attacks of a certification"),
    "auditing/inputs": ("auditing/test_run", "an audit's images and what the model selects in them"),
    "backbones/architecture": ("checkpoints/test_authors", "architectures are told by the tensors of checkpoints"),
    "backbones/mask_gradient": ("backbones/test_gated_attention", "the gradient is that of gated attention"),
    "backbones/masked_pass": ("backbones/test_families", "tested on every family of transformers"),
    "backbones/rotary": ("backbones/test_families", "tested on every family of transformers"),
    "backbones/timm_classifier": ("auditing/test_any_classifier", "classifiers of every origin"),
    "backbones/timm_compat": ("backbones/test_families", "tested on every family of transformers"),
    "backbones/vit": ("backbones/test_families", "tested on every family of transformers"),
    **{
        f"cli/{verb}": ("cli/test_main", "verbs share trained models, which take seconds")
        for verb in ("audit", "common", "convert", "demo", "report", "train")
    },
    "cli/audit_any": ("auditing/test_audit_any", "the verb and what it runs"),
    "cli/push": ("test_publishing", "the verb and what it runs"),
    "cli/prepare": ("data/test_cutouts", "the verb and what it runs"),
    "cli/certify": ("auditing/test_smoothing", "the verb of a certification"),
    "cli/thresholds": ("cli/test_evaluate", "verbs share trained models"),
    "cli/challenge": ("evaluation/test_challenge", "the verb and what it runs"),
    "cli/compare": ("experiments/test_compare", "the verb and what it runs"),
    "cli/retrain": ("training/test_last_layer", "the verb and what it runs"),
    "cli/export": ("exporting/test_export", "the verb and what it runs"),
    **{
        f"exporting/{name}": ("exporting/test_export", "files share exported models")
        for name in ("graph", "verification")
    },
    "importing": ("data/test_from_function", "functions are named as data sets and classifiers"),
    "experiments/comparison": ("experiments/test_compare", "rows are read to be compared"),
    "experiments/pictures": ("experiments/test_compare", "pictures are drawn of a comparison's models"),
    "checkpoints/safe_pickle": ("checkpoints/test_damaged", "files that hold code or are damaged"),
    "commands": ("cli/test_repeat", "what results record of the command that wrote them"),
    "config": ("cli/test_main", "settings are read by the command line"),
    "data/_drawing": ("data/benchmarks/test_pondbirds", "what is drawn"),
    **{
        f"data/benchmarks/{name}": ("data/benchmarks/test_layouts", "data sets of files, in miniature")
        for name in ("cub", "flowers102", "imagenet9", "metashift", "nabirds", "turtles", "waterbirds")
    },
    **{
        f"data/benchmarks/{name}": ("data/benchmarks/test_imagenet", "they have the classes of ImageNet")
        for name in ("imagenet_a", "imagenet_r", "imagenet_v2", "part_imagenet")
    },
    **{
        f"data/{name}": ("data/benchmarks/test_folder", "what a folder of images may hold")
        for name in ("duplicates", "files", "splits")
    },
    "data/composites": ("data/test_cutouts", "images drawn from cut-outs"),
    "data/source_files": ("data/benchmarks/test_all", "what all data sets of files share"),
    "errors": ("cli/test_main", "a class without code"),
    "evaluation/hidden_pixel_attacks": ("claims/test_claims", "what hidden pixels are filled with"),
    "evaluation/pairings": ("evaluation/test_challenge", "the order of a challenge"),
    "logs": ("cli/test_main", "what the command line shows"),
    "model_files": ("checkpoints/test_damaged", "files that are read and refused"),
    "models/base": ("models/test_baselines", "what every method offers"),
    "models/registry": ("models/test_baselines", "every method by name"),
    "models/soft_mask": ("models/test_baselines", "a baseline"),
    "prediction/reading": ("test_inference", "images in, answers out"),
    **{f"prediction/{name}": ("cli/test_predict", "what the verb reads and writes") for name in ("sources", "tables")},
    "provenance": ("cli/test_evaluate", "conditions in results"),
    "pulse": ("test_progress", "both say how far work is"),
    "ranges": ("cli/test_main", "numbers of the command line"),
    "report/audit_tables": ("report/test_results", "tables of the page"),
    "report/reliance": ("auditing/test_audit_any", "tables and pictures of the verb"),
    "report/card": ("test_publishing", "the card that is published"),
    "models/attribution": ("test_explanation", "the methods of heat maps"),
    "report/figures": ("test_explanation", "how maps are drawn"),
    "report/heat_maps": ("test_explanation", "how maps are drawn"),
    "report/challenge_sheet": ("evaluation/test_challenge", "the picture of a challenge"),
    "report/certification": ("auditing/test_smoothing", "the tables of a certification"),
    "report/console": ("cli/test_evaluate", "what the verbs print"),
    "report/evaluation_tables": ("report/test_results", "tables of the page"),
    "report/result_files": ("report/test_results", "what the page is made of"),
    "report/tables": ("report/test_results", "tables of the page"),
    "saved_models": ("checkpoints/test_hub", "saved here, read there"),
    **{
        f"training/{name}": ("training/test_fit", "pieces of the training loop")
        for name in ("batches", "module", "optimization")
    },
    "tools/fuzz_readers": ("tools/test_fuzz", "what is damaged and read"),
    "training/randomness": ("training/test_resume", "random numbers go on with the training"),
    "version": ("test_api", "one string"),
}

# Test files that are about no single module.
ALONE = {
    "backbones/test_families",
    "checkpoints/test_damaged",
    "checkpoints/test_saved_before",
    "claims/test_claims",
    "claims/test_costs",
    "claims/test_photographs",
    "cli/test_bad_input",
    "test_properties",
    "data/benchmarks/test_all",
    "data/benchmarks/test_layouts",
    "models/test_grids",
    "parity/test_parity_losses",
    "parity/test_parity_metrics",
    "parity/test_parity_models",
    "parity/test_parity_training",
    "training/test_processes",
    "test_api",
    "test_benchmarks",
    "test_dependencies",
    "test_differences",
    "test_ecosystem",
    "test_docs",
    "test_examples",
    "test_ifam_runtime",
    "test_layers",
    "test_mirror",
    "test_readme",
    "test_trust",
    "test_walkthrough",
    "test_wheel",
}

MODULES = sorted(
    path.relative_to(base).with_suffix("").as_posix()
    for base, folder in ((SOURCE, SOURCE), (ROOT, ROOT / "tools"))
    for path in folder.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def _own(module):
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name}".removeprefix("/")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_tests(module):
    own = (TESTS / f"{_own(module)}.py").exists()
    assert own != (module in SHARED), f"{module} needs {_own(module)}.py, or a line in SHARED, and not both"
    if not own:
        file, reason = SHARED[module]
        assert (TESTS / f"{file}.py").exists()
        assert reason


def test_every_test_file_is_of_a_module_or_named():
    files = {path.relative_to(TESTS).with_suffix("").as_posix() for path in TESTS.rglob("test_*.py")}
    assert files - {_own(module) for module in MODULES} == ALONE
    assert not set(SHARED) - set(MODULES)
