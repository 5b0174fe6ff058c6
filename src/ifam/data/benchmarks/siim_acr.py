"""SIIM-ACR Pneumothorax: chest X-rays with and without a collapsed lung, which correlates with a chest tube.

Images and `train-rle.csv` from the Kaggle challenge
https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation (a copy:
https://www.kaggle.com/datasets/jesperdramsch/siim-acr-pneumothorax-segmentation-data); the tube annotations
`cxr_tube_dict.pkl` from https://github.com/khaledsaab/spatial_specificity (Saab et al., MLHC 2022). License: that of
the challenge, see the source.

The loader reads the output of `python -m tools.prepare_siim_acr`, run in a clone of the repository, in the layout of
the paper's code:

    root/
      train_set/0/*.dcm, train_set/1/*.dcm          no tube annotation; 1 is pneumothorax
      full_test_set/0/*.dcm, full_test_set/1/*.dcm  all X-rays with a tube annotation
      robust_test_set/0, /1                         those with a misleading tube (tube and healthy, no tube and ill)
      non_robust_test_set/0, /1                     those with a helpful tube (tube and ill, no tube and healthy)
      all_masks/*.png                               the pneumothorax; black for the healthy

Splits: "train", "val" (split from training, class by class), "test" (the full test set), "robust" and "non_robust".
Groups of test images are class and tube; of training images, where tubes are not annotated, the class. DICOM files
are read by pydicom (`pip install 'ifam[medical]'`), see `ifam.data.dicom`.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.dicom import dicom_size, load_dicom, require_pydicom
from ifam.data.files import image_files
from ifam.data.records import Reader, Record, assemble
from ifam.data.source_files import find_root
from ifam.data_config import SiimAcrConfig

SOURCE = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation, prepared by tools/prepare_siim_acr.py"
CLASSES = ("no pneumothorax", "pneumothorax")
GROUPS = (*CLASSES, *(f"{name} {tube} tube" for name in CLASSES for tube in ("without", "with")))
SETS = {
    "train": "train_set",
    "test": "full_test_set",
    "robust": "robust_test_set",
    "non_robust": "non_robust_test_set",
}
MASKS = "all_masks"


def load_siim_acr(root: Path | None, config: SiimAcrConfig) -> Benchmark:
    """SIIM-ACR, from the folder that tools/prepare_siim_acr.py filled."""
    root = find_root("siim_acr", root, [f"{name}/{label}" for name in SETS.values() for label in "01"], SOURCE)
    require_pydicom()
    # On the robust set, tubes mislead: they are with healthy lungs, and absent with collapsed ones.
    tubes = {
        path.name: (label == 1) == helps
        for name, helps in ((SETS["robust"], False), (SETS["non_robust"], True))
        for label in (0, 1)
        for path in image_files(root / name / str(label), {".dcm"})
    }
    masks = (root / MASKS).is_dir()
    splits: dict[str, list[Record]] = {}
    for split, name in SETS.items():
        splits[split] = []
        for label in (0, 1):
            for path in image_files(root / name / str(label), {".dcm"}):
                known = split != "train" and path.name in tubes
                group = 2 + 2 * label + int(tubes[path.name]) if known else None
                # The names are dotted numbers, which `with_suffix` would shorten.
                mask = root / MASKS / f"{path.name[: -len('.dcm')]}.png" if masks else None
                splits[split].append(Record(path, label, group, mask))
    return assemble(Benchmark("siim_acr", {}, CLASSES, GROUPS, mirrored=False), splits, config, reader=DICOM)


DICOM = Reader(load_dicom, dicom_size)
