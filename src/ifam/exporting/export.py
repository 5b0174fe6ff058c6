"""Export a model to one file that runs without this package: ONNX, or a program of `torch.export` (docs/export.md)."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ifam._typing import Tensor
from ifam.errors import IfamError, first_line
from ifam.exporting.graph import Graph, check_exportable
from ifam.exporting.verification import Agreement, Runner, verify
from ifam.importing import import_extra
from ifam.io import check_absent, ensure_writable, local_path, replacing
from ifam.models.base import Classifier
from ifam.models.ifam import IFAM
from ifam.version import __version__

if TYPE_CHECKING:
    import onnx

# Key of the metadata in an ONNX file, and its file in a program of `torch.export`.
METADATA, METADATA_FILE = "ifam", "ifam.json"
SUFFIXES = (".onnx", ".pt2")
Quantization = Literal["int8"]
_OPSET = 18
# Protobuf's limit.
_MOST_BYTES = 2**31 - 2**24


def export(
    model: Classifier, path: str | Path, *, quantize: Quantization | None = None, overwrite: bool = False
) -> Agreement:
    """Export a model to one file, which is checked against the model before it is kept.

    Args:
        model: A model of the method ifam or frozen_predictor; a copy in float32 on the CPU is exported.
        path: The file, whose ending decides: `.onnx` for ONNX, `.pt2` for `torch.export`.
        quantize: "int8" to store and compute the predictor's matrices in integers of 8 bits (ONNX only, and not with
            aggregation "sum"); the selector, and so the masks, stay in float32.
        overwrite: Replace an existing file.

    Returns:
        How far the file's answers are from those of the model on a few images.

    Raises:
        IfamError: The model is of another method, or cannot be exported or quantized; the file exists, cannot be
            written, or would not answer as the model does, and is not left behind then.
    """
    path = local_path(path)
    check_target(path, quantize, overwrite)
    graph = exportable(model, quantize)
    if path.suffix == ".onnx":
        with replacing(path) as temporary:
            proto = to_onnx(graph)
            temporary.write_bytes((quantized(proto) if quantize else proto).SerializeToString())
            return verify(path, graph, partial(run_onnx, open_onnx(temporary)), quantize is not None)
    program = _program(graph)
    with replacing(path) as temporary:
        torch.export.save(program, temporary, extra_files={METADATA_FILE: json.dumps(metadata(graph.model))})
        return verify(path, graph, _runner(temporary, graph), False)


def check_target(path: Path, quantize: Quantization | None, overwrite: bool) -> None:
    """Refuse a file that could not be written, before the work on it; arguments are those of `export`.

    Raises:
        IfamError: Its ending is unknown, it exists, its folder is read-only, or what ONNX needs is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise IfamError(f"{path} ends in {path.suffix or 'nothing'!r}, but .onnx or .pt2 is expected; rename it.")
    if quantize not in (None, "int8"):
        raise IfamError(f"quantize is {quantize!r}, but 'int8' or None is expected.")
    if quantize and path.suffix != ".onnx":
        raise IfamError(f"{path} cannot be quantized, only ONNX files can; name it .onnx, or leave quantize away.")
    if path.suffix == ".onnx":
        require_onnx()
    check_absent([path], overwrite)
    ensure_writable(path)


def exportable(model: Classifier, quantize: Quantization | None = None) -> Graph:
    """The graph of a copy of a model.

    Raises:
        IfamError: The model is of a method that is not exported, or cannot be quantized.
    """
    assert check_exportable(model)
    if quantize and model.config.aggregation == "sum":
        # They are computed side by side, and all activations of a matrix product have one scale in int8.
        raise IfamError(
            "In int8, the parts of a model with aggregation 'sum' would change what the others contribute; export it "
            "without quantize, or give a model with aggregation 'joint'."
        )
    return Graph(copy.deepcopy(model).cpu().float().eval()).requires_grad_(False)


def metadata(model: IFAM) -> dict[str, Any]:
    """What whoever runs the file has to know: how images are prepared, what the answers are called."""
    return {
        "ifam_version": __version__,
        "method": model.method,
        "preprocessing": model.preprocessing,
        "class_names": [*model.config.class_labels],
        "num_parts": model.config.num_parts,
    }


def require_onnx() -> None:
    """Raise an error that names the extra, unless what ONNX needs is installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name, "export", "ONNX files need")


def to_onnx(graph: Graph) -> "onnx.ModelProto":
    """The model as an ONNX graph with its metadata; inputs besides the images have a default and may be left out.

    Raises:
        IfamError: The graph cannot be exported, or is too large for a file of ONNX.
    """
    size = sum(weight.nbytes for weight in graph.state_dict().values())
    if size > _MOST_BYTES:
        raise IfamError(
            f"The model has {size / 1e9:.1f} GB of weights, but ONNX files hold up to 2 GB; export it to a .pt2 file."
        )
    program, names = _program(graph), list(graph.input_names)
    with _quietly(graph):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=list(graph.output_names),
        )
    assert exported is not None, "there is no file name, so the program is returned"
    proto: onnx.ModelProto = exported.model_proto
    # Shapes in between would repeat the names of dimensions.
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name != "prior":
            value.type.tensor_type.shape.dim[0].dim_param = "masks" if value.name in names[1:] else "batch"
    _add_defaults(proto, dict(zip(names[1:], graph.own_inputs(), strict=True)))
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata(graph.model))
    return proto


def _program(graph: Graph) -> torch.export.ExportedProgram:
    """The graph for any number of images."""
    batch = torch.export.Dim("batch")
    inputs = (torch.zeros(2, 3, *graph.model.image_size), *graph.own_inputs(2))
    with _quietly(graph), torch.no_grad():
        return torch.export.export(graph, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


@contextmanager
def _quietly(graph: Graph) -> Iterator[None]:
    """Without what exporters tell on the way; any error of theirs is one sentence."""
    try:
        with _without_logs(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # exporters can raise anything for an operation that they do not know
        raise IfamError(
            f"A model with the backbone {graph.model.config.backbone} cannot be exported by PyTorch "
            f"{torch.__version__} ({first_line(error)}); use another version, or another backbone."
        ) from error


@contextmanager
def _without_logs() -> Iterator[None]:
    """Nothing below an error is logged within the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _add_defaults(proto: "onnx.ModelProto", defaults: Mapping[str, Tensor]) -> None:
    """Give inputs a value that holds where nothing is given: an initializer of the same name."""
    from onnx import numpy_helper

    proto.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in defaults.items())


def quantized(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with the predictor's matrices in integers of 8 bits; whatever the mask depends on stays as it is."""
    from tempfile import TemporaryDirectory

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    maker = {name: node for node in proto.graph.node for name in node.output}
    todo, kept = ["mask", "part_maps", "patch_parts", "selector_logits"], set()
    while todo:
        node = maker.get(todo.pop())
        if node is not None and node.name not in kept:
            kept.add(node.name)
            todo += node.input
    with _without_logs(), TemporaryDirectory() as folder:
        target = Path(folder, "model.onnx")
        # In 7 bits, sums of products do not overflow on processors without instructions for them.
        quantize_dynamic(
            proto,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=sorted(kept),
        )
        return onnx.load(target)


def open_onnx(source: Path | bytes) -> Any:
    """A session of ONNX Runtime on the processor, of a file or its bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a session by name."""
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {output.name: torch.from_numpy(value) for output, value in zip(session.get_outputs(), values, strict=True)}


def _runner(path: Path, graph: Graph) -> Runner:
    """Runs a program of `torch.export`, whose inputs have no defaults."""
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images, *_ = inputs.values()
        own = dict(zip(graph.input_names[1:], graph.own_inputs(len(images)), strict=True))
        with torch.no_grad():
            return dict(zip(graph.output_names, module(*{"images": images, **own, **inputs}.values()), strict=True))

    return run
