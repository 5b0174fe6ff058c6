"""`ifam export`."""

from pathlib import Path
from typing import Literal


def export(
    model: str = "runs/ifam",
    out: Path = Path("model.onnx"),
    quantize: Literal["int8"] | None = None,
    overwrite: bool = False,
) -> None:
    """Export a model to one file that runs without this package, and check it against the model.

    Args:
        model: Folder or hub id of the model.
        out: The file: `.onnx`, or `.pt2` for `torch.export`.
        quantize: "int8" for a smaller ONNX file, whose predictor computes in 8 bits; masks stay the same.
        overwrite: Replace an existing file.
    """
    from ifam.checkpoints import hub
    from ifam.exporting.export import check_target, export

    check_target(out, quantize, overwrite)
    agreement = export(hub.load(hub.read(model)), out, quantize=quantize, overwrite=overwrite)
    print(agreement)
    print(f"The model is in {out} ({out.stat().st_size / 1e6:.1f} MB).")
