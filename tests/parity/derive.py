"""Make `data/` from the full set of numbers, which has the weights and images too (README.md).

python tests/parity/derive.py FOLDER
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
# Seeds of the weights and of the images, as far from the seed in the manifest as the maker of the set chose.
WEIGHT_SEED, IMAGE_SEED = 7, 1
# Lists of what is in the file anyway.
LEFT_OUT = {"tensors", "state_dict", "state_dict_tensors"}


def derive(source: Path, target: Path) -> None:
    """Everything of one folder but what `reference.py` draws again."""
    target.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    tensors = load_file(source / "data.safetensors") if (source / "data.safetensors").exists() else {}
    kept = {key: value for key, value in manifest.items() if key not in LEFT_OUT}
    if (source / "state_dict.safetensors").exists():
        state = load_file(source / "state_dict.safetensors")
        # In the order in which they were drawn.
        order = manifest["state_dict"] if "state_dict" in manifest else _trained(manifest)
        kept["drawn"] = {
            "image_seed": manifest["seed"] + IMAGE_SEED,
            "images": list(tensors.pop("input").shape),
            "weight_seed": manifest["seed"] + WEIGHT_SEED,
            "weights": {key: list(state[key].shape) for key in order if key != "stage_2.prefix_attn_mask"},
        }
    (target / "manifest.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, target / "data.safetensors")


def _trained(manifest: dict) -> list[str]:
    return manifest["train"]["train"]["grad_norms_parameter_order"]


if __name__ == "__main__":
    for manifest in sorted(Path(sys.argv[1]).glob("*/manifest.json")):
        derive(manifest.parent, DATA / manifest.parent.name)
