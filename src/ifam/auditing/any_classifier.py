"""Any classifier by name, for `ifam audit --any`: of timm, of the hub, in an ONNX file, or a function.

Whatever it is, it is a function from normalized images to class scores. What it returns is checked: a flip of an
answer that is none would be counted in silence.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from ifam._typing import Float, Tensor
from ifam.auditing.inputs import Advance, no_progress
from ifam.backbones.timm_classifier import load_timm_classifier
from ifam.backbones.vit import IMAGENET
from ifam.checkpoints.safe_pickle import read_pickle
from ifam.errors import IfamError, first_line
from ifam.importing import import_extra, import_function, names_function, returning
from ifam.io import foreign_content, local_path
from ifam.model_files import read_safetensors
from ifam.ranges import FINITE, POSITIVE, SIDE, check_numbers

# Where neither the classifier nor an option says otherwise.
IMAGE_SIZE = 224
# How far the sum of probabilities may be from 1.
_ROUNDING = 1e-3
_FORMS = "timm:NAME, hf:OWNER/NAME, a file MODEL.onnx, or PACKAGE.MODULE:FUNCTION"


@dataclass(frozen=True)
class AnyClassifier:
    """A classifier of any origin.

    Attributes:
        name: As it was given.
        answer: Normalized images [B, 3, H, W] to class scores [B, C].
        image_size: Height and width of its input.
        mean: Channel means of its input.
        std: Channel standard deviations.
        crop: Share of the resized image's side that it is given; the center is cropped.
        class_names: Name of each class, where known; else empty.
        device: Where its input must be.
    """

    name: str
    answer: Callable[[Tensor], Any]
    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    crop: float = 1.0
    class_names: tuple[str, ...] = ()
    device: torch.device | str = "cpu"

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width that images are resized to before their center is cropped."""
        return int(self.image_size[0] / self.crop), int(self.image_size[1] / self.crop)

    def preprocess(self, images: Float[Tensor, "B 3 R1 R2"]) -> Float[Tensor, "B 3 S1 S2"]:
        """Its input from resized images with values in 0..1."""
        cropped = F.center_crop(images, list(self.image_size))
        normalized: Tensor = F.normalize(cropped, list(self.mean), list(self.std))
        return normalized.to(self.device)


def load_any_classifier(
    name: str,
    *,
    checkpoint: Path | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: torch.device | str = "cpu",
) -> AnyClassifier:
    """A classifier by name; the code of a function is imported and run.

    Args:
        name: `timm:NAME` of timm's registry, `hf:OWNER/NAME` of the hub or `hf:FOLDER`, both in timm's format, a file
            `MODEL.onnx`, or `PACKAGE.MODULE:FUNCTION`, which is found from the working directory, too.
        checkpoint: State dict for `timm:`, as safetensors or from `torch.save`, in the place of timm's weights.
        image_size: Side of the input of an ONNX file that leaves it open, or of a function; 224 where it is None.
        mean: Channel means of the input; those of timm's model, or of ImageNet, where it is None.
        std: Channel standard deviations, likewise.
        device: Where it computes; ONNX files and functions get their images on the CPU.

    Raises:
        IfamError: There is no such classifier, or it cannot be loaded.
    """
    kind, _, rest = name.partition(":")
    if image_size is not None:
        check_numbers(SIDE, image_size=image_size)
    for channel, values, each in (("mean", mean, FINITE), ("std", std, POSITIVE)):
        if values is not None and (len(values) != 3 or not all(value in each for value in values)):
            raise IfamError(f"{channel} is {values}, but {each.expected} is expected for each of 3 channels.")
    if checkpoint is not None and kind != "timm":
        raise IfamError(f"--checkpoint gives weights to a model of timm, but --any is {name!r}; leave it out.")
    if kind in ("timm", "hf") and rest:
        if image_size is not None:
            raise IfamError(f"--image_size is for ONNX files and functions, but {name} states its own; leave it out.")
        known = load_timm_classifier(rest if kind == "timm" else _hub_name(rest), _weights(checkpoint))
        channels = mean or known.mean, std or known.std
        model = known.model.to(device)
        return AnyClassifier(name, model, known.image_size, *channels, known.crop, known.class_names, device)
    if local_path(name).suffix == ".onnx":
        answer, size = _load_onnx(local_path(name), image_size)
    elif names_function(name):
        answer, size = _load_function(name), (image_size or IMAGE_SIZE,) * 2
    else:
        raise IfamError(f"--any is {name!r}, but {_FORMS} is expected.")
    return AnyClassifier(name, answer, size, mean or IMAGENET[0], std or IMAGENET[1])


@torch.inference_mode()
def compute_scores(
    classifier: AnyClassifier, batches: Iterable[Tensor], advance: Advance = no_progress
) -> Float[Tensor, "N C"]:
    """Class scores of resized images with values in 0..1, on the CPU in float32.

    Args:
        classifier: The classifier.
        batches: The images, by batches [B, 3, R1, R2].
        advance: Progress callback, called with the number of finished images.

    Raises:
        IfamError: It raises, or what it returns is not a row of finite scores for each image, of the same classes.
    """
    scores: list[Tensor] = []
    for images in batches:
        classes = scores[0].shape[1] if scores else len(classifier.class_names) or None
        scores.append(_checked(classifier, classifier.preprocess(images), classes))
        advance(len(images))
    return torch.cat(scores)


def are_probabilities(scores: Float[Tensor, "N C"]) -> bool:
    """Whether all rows are probabilities already: none negative, with a sum of 1."""
    return bool((scores >= 0).all()) and bool(((scores.sum(dim=1) - 1).abs() < _ROUNDING).all())


def _checked(classifier: AnyClassifier, inputs: Tensor, classes: int | None) -> Float[Tensor, "B C"]:
    """What the classifier returns for a batch, if it is what it should be."""
    name, count = classifier.name, len(inputs)
    with returning(name):
        try:
            returned = classifier.answer(inputs)
        except Exception as error:  # whatever it is, it is not ours
            raise IfamError(
                f"{name} raised {type(error).__name__} for images of shape {list(inputs.shape)} ({first_line(error)}); "
                f"see that it takes normalized images [B, 3, H, W] of any number."
            ) from error
    expected = f"a tensor of {count} rows of class scores"
    try:
        # A copy: the classifier may write its next answers to the same memory.
        scores = torch.as_tensor(returned).detach().to("cpu", torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise IfamError(f"{name} returned a {type(returned).__name__}, but {expected} is expected.") from None
    shape = list(scores.shape)
    if scores.ndim != 2 or len(scores) != count:
        raise IfamError(f"{name} returned a tensor of shape {shape} for {count} images, but {expected} is expected.")
    if scores.shape[1] < 2:
        raise IfamError(
            f"{name} returned {shape[1]} score for each image, but one for each of two or more classes is "
            f"expected; return two columns for a binary answer."
        )
    if classes not in (None, shape[1]):
        raise IfamError(f"{name} returned scores of {shape[1]} classes, but {classes} are expected, always the same.")
    if not bool(scores.isfinite().all()):
        raise IfamError(f"{name} returned NaN or infinity, whose largest would be no answer; return finite scores.")
    return scores


def _weights(path: Path | None) -> Mapping[str, Tensor] | None:
    """A state dict in a file."""
    if path is None:
        return None
    if not path.is_file():
        raise IfamError(f"There is no file {path}; give a state dict with --checkpoint.")
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise IfamError(f"{path} is no state dict of tensors by name; save `model.state_dict()`.")
    return content


def _hub_name(name: str) -> str:
    """The name of a model of the hub, or in a local folder, as timm spells it."""
    folder = local_path(name)
    return f"local-dir:{folder}" if folder.is_dir() else f"hf-hub:{name}"


def _load_onnx(path: Path, image_size: int | None) -> tuple[Callable[[Tensor], Any], tuple[int, int]]:
    """What an ONNX file computes, and the height and width of its images."""
    if not path.is_file():
        raise IfamError(f"There is no file {path}; give an ONNX file with --any.")
    onnxruntime = import_extra("onnxruntime", "onnx", "ONNX files need")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        reason = foreign_content(path) or first_line(error)
        raise IfamError(f"{path} is not a valid ONNX file ({reason}); export the model again.") from error
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    if (
        len(shape) != 4
        or inputs[0].type != "tensor(float)"
        or (shape[1] not in (3, None) and isinstance(shape[1], int))
    ):
        stated = ", ".join(f"{one.type} {one.shape}" for one in inputs)
        raise IfamError(f"{path} takes {stated}, but one input of float images [B, 3, H, W] is expected.")
    batch, _, *sides = shape
    fixed = [side for side in sides if isinstance(side, int)]
    if fixed and image_size not in (None, *fixed):
        raise IfamError(f"{path} takes images of {sides[0]} x {sides[1]} pixels, but --image_size is {image_size}.")
    height, width = (side if isinstance(side, int) else image_size or IMAGE_SIZE for side in sides)

    def run(images: Tensor) -> Tensor:
        return torch.as_tensor(session.run(None, {inputs[0].name: images.numpy()})[0])

    def answer(images: Tensor) -> Any:
        if not isinstance(batch, int):
            return run(images)
        # The file states how many images it takes at a time; the last of them fill up what is missing.
        filled = torch.cat([images, images[-1:].expand(-len(images) % batch, -1, -1, -1)])
        return torch.cat([run(part) for part in filled.split(batch)])[: len(images)]

    return answer, (height, width)


def _load_function(name: str) -> Callable[[Tensor], Any]:
    """A function from images to class scores, or a model; its module is imported."""
    found: Callable[[Tensor], Any] = import_function(name, "--any")
    return found.eval() if isinstance(found, nn.Module) else found
