"""Hold the figures of the demo, of its own seed, against bounds (docs/pondbirds.md)."""

import json
import sys
from pathlib import Path

PLAIN_AT_MOST = 0.45
WORST_GROUP_AT_LEAST = 0.82
AVERAGE_AT_LEAST = 0.89
MASK_IOU_AT_LEAST = 0.65


def failures(rows: dict, seed: str) -> list[str]:
    """Every bound that the runs of a seed break, as a sentence."""
    plain, ifam = ({name: values[seed] for name, values in rows[row].items()} for row in ("plain_vit", "ifam"))
    checks = [
        (plain["worst_group"] <= PLAIN_AT_MOST, f"plain ViT worst group {plain['worst_group']:.3f}"),
        (ifam["worst_group"] >= WORST_GROUP_AT_LEAST, f"iFAM worst group {ifam['worst_group']:.3f}"),
        (ifam["average"] >= AVERAGE_AT_LEAST, f"iFAM average {ifam['average']:.3f}"),
        (ifam["mask_iou"] >= MASK_IOU_AT_LEAST, f"mask IoU {ifam['mask_iou']:.3f}"),
        (ifam["hidden_influence"] == 0.0, f"hidden influence {ifam['hidden_influence']}"),
    ]
    return [f"seed {seed}: {what} is out of bounds" for held, what in checks if not held]


if __name__ == "__main__":
    rows = {row["name"]: row["values"] for row in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["rows"]}
    seeds = list(rows["ifam"]["average"]) if rows else []
    broken = [sentence for seed in seeds for sentence in failures(rows, seed)]
    if not seeds:
        broken = ["The demo left no run to check."]
    print("\n".join(broken) if broken else f"The demo holds its bounds ({len(seeds)} run).")
    sys.exit(1 if broken else 0)
