"""A model as one web page that answers by itself: drop a photo, untick a part, paint, and see the answer change.

ONNX Runtime Web and the model are in the page; its policy (CSP) forbids every request.
"""

import base64
import gzip
import hashlib
import io
import json
import re
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from PIL import Image

from ifam.data.images import load_image
from ifam.errors import IfamError
from ifam.exporting.export import (
    Quantization,
    exportable,
    metadata,
    open_onnx,
    quantized,
    require_onnx,
    run_onnx,
    to_onnx,
)
from ifam.exporting.verification import Agreement, verify
from ifam.io import check_absent, ensure_writable, local_path, write_text
from ifam.models.base import Classifier
from ifam.report.html import environment
from ifam.report.overlays import part_colors

if TYPE_CHECKING:
    import onnx

# Weights of a model in a page, in bytes: browsers do not open much larger ones.
MOST_BYTES = 200_000_000
# Longer side in pixels of an example in the page.
_EXAMPLE = 640


def export_page(
    model: Classifier,
    path: str | Path,
    *,
    examples: Sequence[tuple[str, Image.Image]] = (),
    quantize: Quantization | None = None,
    overwrite: bool = False,
) -> Agreement:
    """Write a page with a model in it, which is checked as by `ifam.export`.

    Args:
        model: As for `ifam.export`.
        path: The page, an .html file.
        examples: Names and images that the page offers.
        quantize: As for `ifam.export`.
        overwrite: Replace an existing file.

    Raises:
        IfamError: As `ifam.export`, or the model is too large for a page.
    """
    path = local_path(path)
    check_page(path, overwrite)
    graph = exportable(model, quantize)
    size = sum(weight.nbytes for weight in graph.state_dict().values())
    if size > MOST_BYTES:
        raise IfamError(
            f"The model has {size / 1e6:.0f} MB of weights, but a page holds up to {MOST_BYTES / 1e6:.0f}; export it "
            f"with --out model.onnx, or train a smaller backbone."
        )
    proto = to_onnx(graph)
    proto = quantized(proto) if quantize else proto
    agreement = verify(path, graph, partial(run_onnx, open_onnx(proto.SerializeToString())), quantize is not None)
    about = metadata(graph.model) | {
        "mask_grid": graph.model.mask_grid,
        "patch_grid": graph.model.predictor.backbone.grid,
        "adds_parts": graph.adds_parts,
        "part_colors": part_colors(graph.model.config.num_parts),
        "examples": [_example(name, image) for name, image in examples],
    }
    write_text(path, _page(proto, about))
    return agreement


def check_page(path: Path, overwrite: bool) -> None:
    """Refuse a page that could not be written, before the work on it; arguments are those of `export_page`.

    Raises:
        IfamError: It is not named .html, exists, cannot be written, or what ONNX needs is not installed.
    """
    if path.suffix not in (".html", ".htm"):
        raise IfamError(f"{path} ends in {path.suffix or 'nothing'!r}, but .html is expected; rename it.")
    require_onnx()
    check_absent([path], overwrite)
    ensure_writable(path)


def read_examples(paths: Sequence[str | Path]) -> list[tuple[str, Image.Image]]:
    """Names and images of files.

    Raises:
        IfamError: A file is not an image.
    """
    return [(local_path(path).name, load_image(local_path(path))) for path in paths]


def _page(proto: "onnx.ModelProto", about: dict[str, Any]) -> str:
    """The page of a model."""
    # Browsers have no inputs with defaults: the page always gives them.
    names = {value.name for value in proto.graph.input}
    kept = [one for one in proto.graph.initializer if one.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    assets = resources.files("ifam") / "assets" / "onnxruntime_web"
    here = resources.files("ifam") / "exporting" / "templates"
    style, program = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    runtime = _as_global((assets / "ort.wasm.bundle.min.mjs").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; script-src 'wasm-unsafe-eval' {_hash(runtime)} {_hash(program)}; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    model = gzip.compress(proto.SerializeToString(), mtime=0)
    template = environment("exporting/templates").get_template("page.html.j2")
    return template.render(
        title=f"{' or '.join(about['class_names'])}?" if len(about["class_names"]) <= 4 else "What is in the photo?",
        version=about["ifam_version"],
        policy=Markup(policy),
        style=Markup(style),
        runtime=Markup(runtime),
        program=Markup(program),
        license=(assets / "LICENSE").read_text(encoding="utf-8"),
        # Nothing in a text can end the script.
        about=Markup(json.dumps(about).replace("<", "\\u003c")),
        model=Markup(base64.b64encode(model).decode()),
        wasm=Markup(base64.b64encode((assets / "ort-wasm-simd-threaded.wasm.gz").read_bytes()).decode()),
    )


def _as_global(module: str) -> str:
    """A module whose exports are properties of a global object, since a module within a page cannot be imported."""
    body, _, tail = module.rpartition("export{")
    pairs = re.findall(r"(\w+) as (\w+)", tail.partition("}")[0])
    return f"{body}globalThis.ort={{{','.join(f'{theirs}:{own}' for own, theirs in pairs)}}};\n"


def _hash(text: str) -> str:
    """The entry of a policy that allows a script or a style sheet."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _example(name: str, image: Image.Image) -> dict[str, str]:
    """An image as text, small ones without loss."""
    small = image.convert("RGB")
    small.thumbnail((_EXAMPLE, _EXAMPLE))
    file, kind = io.BytesIO(), "PNG" if max(small.size) <= 160 else "WEBP"
    small.save(file, kind, quality=90)
    return {"name": name, "type": f"image/{kind.lower()}", "data": base64.b64encode(file.getvalue()).decode()}
