"""Train on a folder of images, one subfolder for each class: `python examples/own_folder.py photos`.

Without a folder, one is drawn. The embedded backbone needs no network but has never seen a photograph: for an answer
to trust, leave `backbone` and the settings of the training at their defaults, as `ifam train photos` does.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

import ifam
from ifam.training.presets import TINY_LOSS, TINY_TRAIN


def draw(folder: Path) -> Path:
    """Draw birds of two classes, each class into a folder of its own."""
    birds = ifam.load_benchmark("pondbirds", options={"num_train": 40, "num_val": 2, "num_test": 2})
    images = birds.split("train")
    for index in range(len(images)):
        path = folder / birds.class_names[images[index]["label"]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(images[index]["image"]).save(path)
    return folder


with tempfile.TemporaryDirectory() as scratch:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else draw(Path(scratch) / "photos")
    images = ifam.load_benchmark("folder", folder)  # without a folder "val", a fifth of the images is set aside
    classes = images.class_names
    model = ifam.IFAM(ifam.ModelConfig(backbone="ifam_tiny", num_classes=len(classes), class_names=classes))
    ifam.fit(model, images, replace(TINY_TRAIN, epochs=2, batch_size=8), TINY_LOSS)
    print(f"validation accuracy {ifam.evaluate(model, images, 'val').predictor.average:.0%}")
    for row in ifam.predict(model, folder)[:5]:  # overlays="drawn" also draws what the predictor saw
        print(f"{row.path.name}: {row.class_name} ({row.probability:.0%}), {row.visible_fraction:.0%} visible")
