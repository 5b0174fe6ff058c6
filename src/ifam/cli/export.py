"""`ifam export`."""

from pathlib import Path
from typing import Literal


def export(
    model: str = "runs/ifam",
    out: Path | None = None,
    html: Path | None = None,
    examples: list[Path] | None = None,
    quantize: Literal["int8"] | None = None,
    overwrite: bool = False,
) -> None:
    """Export a model to one file that runs without this package, or to a web page, and check it against the model.

    Args:
        model: Folder or hub id of the model.
        out: The file: `.onnx`, or `.pt2` for `torch.export`; `model.onnx` if there is no page either.
        html: A page with the model in it, which needs neither a server nor a network.
        examples: Images that the page offers.
        quantize: "int8" for a smaller ONNX file, whose predictor computes in 8 bits; masks stay the same.
        overwrite: Replace an existing file.
    """
    from ifam.checkpoints import hub
    from ifam.errors import IfamError
    from ifam.exporting.export import check_target, export
    from ifam.exporting.page import check_page, export_page, read_examples

    out = Path("model.onnx") if out is None and html is None else out
    if examples and html is None:
        raise IfamError("Examples are for a page; give its name with --html, or leave --examples away.")
    if out is not None:
        check_target(out, quantize, overwrite)
    if html is not None:
        check_page(html, overwrite)
    images = read_examples(examples or [])
    net = hub.load(hub.read(model))
    if out is not None:
        print(export(net, out, quantize=quantize, overwrite=overwrite))
        print(f"The model is in {out} ({out.stat().st_size / 1e6:.1f} MB).")
    if html is not None:
        print(export_page(net, html, examples=images, quantize=quantize, overwrite=overwrite))
        print(f"The page is in {html} ({html.stat().st_size / 1e6:.1f} MB); open it in a browser.")
