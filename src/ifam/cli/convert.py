"""`ifam convert`."""

from pathlib import Path
from typing import Literal


def convert(
    source: str,
    folder: Path,
    to: Literal["ifam", "official"] = "ifam",
    layout: Literal["timm", "transformers"] = "timm",
    num_heads: int | None = None,
    overwrite: bool = False,
) -> None:
    """Convert the authors' checkpoints to models of this package, or back.

    Args:
        source: File, folder or hub id of a checkpoint.
        folder: Output folder.
        to: "ifam", or "official" for the authors' names.
        layout: Which of the authors' two layouts to write.
        num_heads: Number of attention heads, if the checkpoint does not contain it.
        overwrite: Replace an existing model in the folder.
    """
    from ifam.checkpoints import hub

    print(hub.convert(source, folder, to=to, layout=layout, num_heads=num_heads, overwrite=overwrite))
