"""`ifam app`."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ifam.cli.common import resolve_device
from ifam.errors import IfamError
from ifam.io import ensure_writable, local_path, printable

if TYPE_CHECKING:
    from ifam.models.base import Classifier


def app(
    model: str = "runs/ifam",
    plain: str | None = None,
    examples: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    threshold: float = 0.7,
    learn: bool = True,
    out: Path | None = None,
    max_megabytes: float = 20.0,
    max_megapixels: float = 50.0,
    device: str = "auto",
) -> None:
    """Open a page to try a model: hide parts, paint patches in or out, and see the answer change.

    What is painted can become training: corrected models are saved in new folders. Requires the extra `app`.

    Args:
        model: Folder or hub id of a model that masks its input.
        plain: Folder or hub id of a plain ViT of the same classes, whose answer is shown beside.
        examples: Folder of images to begin with; by default, a few drawn birds.
        host: Address to listen at; the default serves this machine alone, and 0.0.0.0 whoever can reach it.
        port: Port to listen at.
        threshold: Confidence below which an answer is called unsure, at first.
        learn: Let visitors save models that were corrected by what they have painted.
        out: Folder for corrected models; by default the one that holds the folder of the model.
        max_megabytes: Largest file that can be uploaded.
        max_megapixels: Largest image that is read, in millions of pixels.
        device: Device to compute on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
    """
    from ifam.app.examples import drawn_examples, examples_in
    from ifam.app.server import check_installed, serving
    from ifam.app.session import Studio
    from ifam.checkpoints import hub
    from ifam.evaluation.conformal import load_calibration
    from ifam.models.ifam import IFAM
    from ifam.pulse import under_way

    check_installed()
    saved = hub.read(model)
    net = hub.load(saved)
    if not isinstance(net, IFAM) or not net.masks_input:
        raise IfamError(
            f"{model} is a model of the method {net.method}, whose answer does not rest on a mask alone; give one of "
            f"the method ifam."
        )
    net.to(resolve_device(device))
    folder = local_path(model)
    corrected = None
    if learn:
        corrected = out or (folder.absolute().parent if folder.is_dir() else Path())
        ensure_writable(corrected, folder=True)
    studio = Studio(
        net,
        source=model,
        corrected=corrected,
        name=(folder.absolute() if folder.is_dir() else folder).name,
        extra=saved.extra,
        calibration=load_calibration(saved.folder, net),
        plain=None if plain is None else _plain(plain, net).to(resolve_device(device)),
        max_megapixels=max_megapixels,
        white=saved.extra.get("data", {}).get("white", 0),
    )
    shown = drawn_examples() if examples is None else examples_in(examples, studio.white)
    with serving(studio, shown, threshold=threshold, host=host, port=port, max_megabytes=max_megabytes) as url:
        print(f"The app is at {printable(url)} (Ctrl-C ends it).", flush=True)
        if corrected is not None:
            print(f"Corrected models are saved in {printable(corrected / studio.name)}-corrected-1, -2, ...")
        # It waits for visitors, which is no work that goes on.
        with under_way(lambda: "serving"):
            threading.Event().wait()


def _plain(source: str, beside: "Classifier") -> "Classifier":
    """A model to compare with, of the same classes."""
    from ifam.checkpoints import hub

    plain = hub.load(source)
    names = (plain.config.num_classes, plain.config.class_names), (beside.config.num_classes, beside.config.class_names)
    if names[0] != names[1]:
        raise IfamError(
            f"{source} has other classes than the model; give a plain ViT that was trained on the same data."
        )
    if plain.needs_masks:
        raise IfamError(f"{source} needs the true mask of each image, which is not known here; give a plain ViT.")
    return plain
