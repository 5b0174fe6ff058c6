"""A data set of one's own: a function that returns a `Benchmark`. What it returns is checked."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ifam._typing import Tensor
from ifam.data.base import Benchmark, ImageDataset
from ifam.data_config import DataConfig
from ifam.errors import IfamError, first_line
from ifam.importing import import_function, returning


def load_function(name: str, root: Path | None, config: DataConfig) -> Benchmark:
    """The data set that a function returns, which is imported and called: its code is run.

    Args:
        name: `PACKAGE.MODULE:FUNCTION`.
        root: Folder of the files, for the parameter `root` of the function.
        config: Its other parameters.

    Raises:
        IfamError: The function cannot be imported, raises, or does not return a data set.
    """
    function = import_function(name, "--benchmark")
    known = inspect.signature(function).parameters
    arguments = {field.name: getattr(config, field.name) for field in fields(config)}
    if "root" in known and (root is not None or known["root"].default is inspect.Parameter.empty):
        if root is None:
            raise IfamError(f"{name} needs the folder of its files; give --root DIR.")
        arguments["root"] = root
    elif root is not None:
        raise IfamError(f"{name} has no parameter 'root', but --root is {root}; leave it out, or add the parameter.")
    try:
        with returning(name):
            returned = function(**arguments)
    except IfamError:
        raise
    except Exception as error:  # whatever its code raises
        raise IfamError(f"{name} raised {type(error).__name__} ({first_line(error)}); correct the function.") from error
    return _checked(name, returned)


def _checked(name: str, returned: Any) -> Benchmark:
    """What a function has returned, if it is a data set, under the name of the function."""
    if not isinstance(returned, Benchmark):
        kind = type(returned).__name__
        raise IfamError(f"{name} returned a {kind}, but an ifam.data.Benchmark is expected; see docs/data.md.")
    names = tuple(map(str, returned.class_names))
    if len({*names}) < 2 or len({*names}) < len(names):
        raise IfamError(f"{name} returned the classes {list(names)}, but two or more different names are expected.")
    if not isinstance(returned.splits, Mapping) or not returned.splits:
        raise IfamError(
            f"{name} returned no splits, but a dict of 'train', 'val' and, if there is one, 'test' is expected."
        )
    groups = tuple(map(str, returned.group_names)) or names
    splits = {
        str(split): CheckedExamples(examples, f"{name}, split {split!r}", len(names), len(groups))
        for split, examples in returned.splits.items()
    }
    return replace(returned, name=name, class_names=names, group_names=groups, splits=splits)


class CheckedExamples:
    """Examples of a stranger's class, with the attributes that it has; what they hold is checked.

    Args:
        examples: The examples.
        where: What they are, for messages.
        num_classes: Number of classes.
        num_groups: Number of groups.

    Raises:
        IfamError: They are no sequence of examples, or list labels or groups out of range.
    """

    def __init__(self, examples: ImageDataset, where: str, num_classes: int, num_groups: int) -> None:
        if not isinstance(examples, ImageDataset) or isinstance(examples, str | Mapping):
            raise IfamError(f"{where} is a {type(examples).__name__}, but a sequence of examples is expected.")
        if not len(examples):
            raise IfamError(f"{where} has no images; add some, or leave the split out.")
        self.examples, self.where = examples, where
        self.counts = {"label": num_classes, "group": num_groups}
        for kind in self.counts:
            listed: Sequence[Any] | None = getattr(examples, f"{kind}s", None)
            if listed is None:
                continue
            if len(listed) != len(examples):
                raise IfamError(f"{where} lists {len(listed)} {kind}s of {len(examples)} images; list one for each.")
            for index, value in enumerate(listed.tolist() if isinstance(listed, Tensor) else listed):
                self._check_number(kind, index, value)

    def __len__(self) -> int:
        return len(self.examples)

    def __getattr__(self, name: str) -> Any:
        # While a copy for another process is made, there are no examples yet.
        if name.startswith("__") or name == "examples":
            raise AttributeError(name)
        return getattr(self.examples, name)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One example.

        Raises:
            IfamError: It cannot be read, or has no image, or a label or group out of range.
        """
        try:
            with returning(self.where):
                example = self.examples[index]
        except IfamError:
            raise
        except Exception as error:  # whatever its code raises
            raise IfamError(
                f"{self.where}: reading image {index} raised {type(error).__name__} ({first_line(error)}); correct it."
            ) from error
        if not isinstance(example, Mapping) or not {"image", "label"} <= {*example}:
            raise IfamError(f"{self.where}: example {index} is no dict with 'image' and 'label'; return one.")
        for kind in ("label", "group"):
            if kind in example:
                self._check_number(kind, index, example[kind])
        image = example["image"]
        if isinstance(image, Image.Image):
            return {**example, "image": image.convert("RGB")} if image.mode != "RGB" else example
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
            shape = f" of shape {list(image.shape)}" if hasattr(image, "shape") else ""
            raise IfamError(
                f"{self.where}: image {index} is a {type(image).__name__}{shape}, but a PIL image, or a tensor "
                f"[3, H, W] with values in 0..1, is expected."
            )
        return example

    def _check_number(self, kind: str, index: int, value: Any) -> None:
        try:
            number, count = int(value), self.counts[kind]
        except (TypeError, ValueError):
            number, count = -1, self.counts[kind]
        if not 0 <= number < count or number != value:
            raise IfamError(
                f"{self.where}: the {kind} of image {index} is {value!r}, but a whole number from 0 to {count - 1} is "
                f"expected, its place in `{'class' if kind == 'label' else 'group'}_names`."
            )
