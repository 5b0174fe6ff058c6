"""Settings of each data set. Imports no torch, so that they are shown and checked without delay."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from ifam.errors import IfamError, suggestion
from ifam.importing import names_function, parameters_of
from ifam.ranges import NATURAL, NOT_NEGATIVE, SEED, SHARE, Range, check_ranges, check_types

Content = Literal["full", "background", "object"]
Background = Literal["as_drawn", "swapped", "redrawn"]
Treatment = Literal["original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t"]
TurtleSplit = Literal["split_closed", "split_closed_random", "split_open"]


@dataclass(frozen=True)
class DataConfig:
    """Settings of a data set, whose types and ranges are checked."""

    benchmark: ClassVar[str] = ""
    # Shown by `--help`; `--help-all` shows all.
    common: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Range]] = {}

    def __post_init__(self) -> None:
        check_types(type(self), vars(self), f"{self.benchmark}: ")
        check_ranges(vars(self), self.ranges, f"{self.benchmark}: ")


@dataclass(frozen=True)
class DrawnConfig(DataConfig):
    """Settings of data sets that are drawn.

    Attributes:
        num_train: Number of training images, at least one per class, as for the other splits.
        num_val: Number of validation images; their backgrounds agree with the class as often as in training.
        num_test: Number of test images.
        image_size: Side of the images in pixels; the drawing is scaled to it.
        correlation: Share of each class's training and validation images that show the background of the class.
        test_correlation: The same share for the test images.
        content: "full" images, "background" without the object, or "object": the object on plain gray.
        background: "as_drawn", "swapped" (the same objects on the other kind of background), or "redrawn" (the same
            objects on another picture of the same kind).
        seed: Seed of the drawings and of the division into splits; different seeds share no image.
    """

    common: ClassVar[tuple[str, ...]] = ("num_train", "num_val", "num_test", "correlation", "seed")
    ranges: ClassVar[dict[str, Range]] = {
        "image_size": Range("a whole number of at least 16", low=16),
        "correlation": SHARE,
        "test_correlation": SHARE,
        "seed": NATURAL,
    }
    num_train: int = 2000
    num_val: int = 500
    num_test: int = 2000
    image_size: int = 80
    correlation: float = 0.98
    test_correlation: float = 0.5
    content: Content = "full"
    background: Background = "as_drawn"
    seed: int = 0

    def _check_numbers(self, classes: int) -> None:
        expected = Range(f"a whole number of at least {classes} (one image per class)", low=classes)
        check_ranges(vars(self), dict.fromkeys(("num_train", "num_val", "num_test"), expected), f"{self.benchmark}: ")


@dataclass(frozen=True)
class PondbirdsConfig(DrawnConfig):
    """Settings of pondbirds.

    The fields from `hue_spread` to `object_scale`, and the correlation, set the difficulty.

    Attributes:
        num_classes: Number of classes, two to six. Hues are spread evenly over the wheel, starting at 0.05; the
            background of even classes is water, that of odd ones forest.
        hue_spread: Standard deviation of a bird's hue around that of its class, in turns of the color wheel.
        hue_swap: Probability that a bird's hue is drawn around that of another class.
        cue_noise: Probability, for plumage, bill, tail and legs each, that the bird shows the other form.
        object_scale: Factor on the lengths of the birds; at 1.0 about 18 % of the image is bird, at 0.5 about 4.5 %.
    """

    benchmark = "pondbirds"
    common: ClassVar[tuple[str, ...]] = (*DrawnConfig.common, "num_classes")
    ranges: ClassVar[dict[str, Range]] = {
        **DrawnConfig.ranges,
        "num_classes": Range("a whole number from 2 to 6", low=2, high=6),
        "hue_spread": NOT_NEGATIVE,
        "hue_swap": SHARE,
        "cue_noise": SHARE,
        "object_scale": Range("a number from 0.1 to 1.3 (so that the bird fits)", low=0.1, high=1.3),
    }
    num_classes: int = 2
    hue_spread: float = 0.12
    hue_swap: float = 0.02
    cue_noise: float = 0.1
    object_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(self.num_classes)


@dataclass(frozen=True)
class DigitsConfig(DrawnConfig):
    """Settings of digits.

    Attributes:
        digit_scale: Factor on the size of the digits; at 1.0 about 18 % of the image is digit.
    """

    benchmark = "digits"
    ranges: ClassVar[dict[str, Range]] = {
        **DrawnConfig.ranges,
        "digit_scale": Range("a number from 0.1 to 1.2 (so that the digit fits)", low=0.1, high=1.2),
    }
    digit_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(10)


@dataclass(frozen=True)
class FilesConfig(DataConfig):
    """Settings of data sets on disk.

    Attributes:
        skip_bad: Leave out files that are missing, damaged or not images, with a warning, instead of stopping; reads
            every file.
        check: Open every file once at the start, to detect damaged files before the training.
        white: The white value in images of more than 8 bits; 0 to take it from the format or the image
            (docs/data.md).
    """

    common: ClassVar[tuple[str, ...]] = ("skip_bad", "check")
    ranges: ClassVar[dict[str, Range]] = {"white": NATURAL}
    skip_bad: bool = False
    check: bool = True
    white: int = 0


@dataclass(frozen=True)
class CutConfig(FilesConfig):
    """Settings of data sets whose validation images may be split from the training images.

    Attributes:
        val_fraction: Share of the training images set aside for validation, the same for each class (and group), if the
            data have no validation images; 0 for none, for evaluation only.
        seed: Seed of this split.
    """

    common: ClassVar[tuple[str, ...]] = (*FilesConfig.common, "val_fraction", "seed")
    ranges: ClassVar[dict[str, Range]] = {
        **FilesConfig.ranges,
        "val_fraction": Range("a share from 0 (none) to below 1", high=1, open_high=True),
        "seed": NATURAL,
    }
    val_fraction: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class ListedConfig(CutConfig):
    """Settings of data sets whose images are listed in a file.

    Attributes:
        allow_outside: Read listed files outside of the root, where `..`, an absolute path or a link leads to them. Not
            taken from a model's settings.
    """

    allow_outside: bool = False


@dataclass(frozen=True)
class FolderConfig(ListedConfig):
    """Settings of a folder of images.

    Attributes:
        csv: CSV file that lists the images, relative to the root or absolute; empty for `images.csv` in the root if
            there is one, or else for class folders.
        path_column: Column of the image's path.
        label_column: Column of the image's class.
        group_column: Column of the image's group; optional under its default name.
        split_column: Column of the image's split; optional under its default name.
        mask_column: Column of the path of the object's mask; optional under its default name.
        given_mask_column: Column of the path of another mask, such as that of a segmentation model, for methods and
            commands that are given one; figures of masks are still of `mask_column`. Empty to give that one.
        swapped_column: Column of the path of the same object on another background; optional under its default name.
        third_column: Column of the path of the same object on a third background; optional under its default name.
        classes: Names of the classes of a model, in the order of their index; images of other classes are refused,
            and classes may have no images. Empty to take the classes of the data.
    """

    benchmark = "folder"
    common: ClassVar[tuple[str, ...]] = (*CutConfig.common, "csv", "label_column", "group_column")
    val_fraction: float = 0.2
    csv: str = ""
    path_column: str = "path"
    label_column: str = "label"
    group_column: str = "group"
    split_column: str = "split"
    mask_column: str = "mask"
    given_mask_column: str = ""
    swapped_column: str = "swapped"
    third_column: str = "third"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [name for name in self.classes if not name.strip() or self.classes.count(name) > 1]:
            raise IfamError(f"folder: classes has {wrong[0]!r}, but a different name for each class is expected.")


@dataclass(frozen=True)
class CutoutsConfig:
    """Settings of a benchmark that `ifam prepare cutouts` draws.

    Attributes:
        classes: The kinds of objects of each class; empty if each kind is a class.
        places: The places of each class; empty to assign the places in the order of their names.
        correlation: Share of each class's training and validation images that show a place of the class.
        count: Number of training, validation and test images.
        size: Side of the images in pixels.
        seed: Seed of the division into splits and of the drawings.
    """

    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    correlation: float = 0.95
    count: tuple[int, int, int] = (1000, 200, 800)
    size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "correlation": SHARE,
            "seed": SEED,
            "size": Range("a whole number from 32 to 4096", low=32, high=4096),
        }
        check_types(type(self), vars(self))
        check_ranges(vars(self), ranges)


class CubConfig(ListedConfig):
    """Settings of CUB."""

    benchmark = "cub"


class NabirdsConfig(ListedConfig):
    """Settings of NABirds."""

    benchmark = "nabirds"


@dataclass(frozen=True)
class WaterbirdsConfig(ListedConfig):
    """Settings of Waterbirds.

    Attributes:
        labels: "habitat" for the two classes landbird and waterbird, "species" for the 200 classes of CUB, with a
            validation split.
    """

    benchmark = "waterbirds"
    common: ClassVar[tuple[str, ...]] = (*CutConfig.common, "labels")
    labels: Literal["habitat", "species"] = "habitat"


class MetashiftConfig(CutConfig):
    """Settings of MetaShift."""

    benchmark = "metashift"


class SiimAcrConfig(CutConfig):
    """Settings of SIIM-ACR."""

    benchmark = "siim_acr"


@dataclass(frozen=True)
class SubsetConfig(FilesConfig):
    """Settings of images of ImageNet's classes.

    Attributes:
        partial: Accept a copy without some of the class folders; its results are not comparable.
    """

    common: ClassVar[tuple[str, ...]] = (*FilesConfig.common, "partial")
    partial: bool = False


@dataclass(frozen=True)
class ImagenetConfig(CutConfig, SubsetConfig):
    """Settings of ImageNet."""

    benchmark = "imagenet"
    common: ClassVar[tuple[str, ...]] = (*CutConfig.common, "partial")
    val_fraction: float = 0.02
    check: bool = False


class ImagenetAConfig(SubsetConfig):
    """Settings of ImageNet-A."""

    benchmark = "imagenet_a"


class ImagenetRConfig(SubsetConfig):
    """Settings of ImageNet-R."""

    benchmark = "imagenet_r"


@dataclass(frozen=True)
class ImagenetV2Config(SubsetConfig):
    """Settings of ImageNet-V2.

    Attributes:
        variant: Which of its three test sets, if the root contains several.
    """

    benchmark = "imagenet_v2"
    common: ClassVar[tuple[str, ...]] = (*SubsetConfig.common, "variant")
    variant: Literal["matched-frequency", "threshold-0.7", "top-images"] = "matched-frequency"


@dataclass(frozen=True)
class Imagenet9Config(FilesConfig):
    """Settings of ImageNet-9.

    Attributes:
        variant: The treatment that is the split "test"; all other existing ones are splits by their names.
        mapping: JSON file of ImageNet's 1,000 classes to the nine, relative to the root or absolute.
    """

    benchmark = "imagenet9"
    common: ClassVar[tuple[str, ...]] = (*FilesConfig.common, "variant")
    variant: Treatment = "original"
    mapping: str = "in_to_in9.json"


@dataclass(frozen=True)
class PartImagenetConfig(ListedConfig):
    """Settings of PartImageNet.

    Attributes:
        split_list: List that divides train.json into training and test images, relative to the root or absolute;
            empty to take train.json, val.json and test.json as the splits.
    """

    benchmark = "part_imagenet"
    common: ClassVar[tuple[str, ...]] = (*CutConfig.common, "split_list")
    split_list: str = ""


class Flowers102Config(FilesConfig):
    """Settings of Oxford Flowers 102."""

    benchmark = "flowers102"


@dataclass(frozen=True)
class TurtlesConfig(ListedConfig):
    """Settings of SeaTurtleID2022.

    Attributes:
        split: Column of the splits.
    """

    benchmark = "turtles"
    common: ClassVar[tuple[str, ...]] = (*CutConfig.common, "split")
    split: TurtleSplit = "split_closed"


_KINDS: tuple[type[DataConfig], ...] = (
    *(PondbirdsConfig, DigitsConfig, FolderConfig, CubConfig, NabirdsConfig, WaterbirdsConfig, MetashiftConfig),
    *(SiimAcrConfig, ImagenetConfig, ImagenetAConfig, ImagenetRConfig, ImagenetV2Config, Imagenet9Config),
    *(PartImagenetConfig, Flowers102Config, TurtlesConfig),
)
DATA_CONFIGS: dict[str, type[DataConfig]] = {kind.benchmark: kind for kind in _KINDS}


@cache
def any_config() -> type[DataConfig]:
    """Settings of all data sets, unchecked, for commands that get the name of the data set from a model."""
    doc = """Settings of the data set that differ from those of the training.

    Attributes:
        variant: Which test set of imagenet_v2, or which treatment of imagenet9 is the split "test".
        split: Column of the splits of turtles.
    """
    namespace = {"benchmark": "", "common": FilesConfig.common, "__post_init__": lambda self: None, "__doc__": doc}
    differing = [("variant", str, ""), ("split", str, "")]
    return make_dataclass("AnyDataConfig", differing, bases=_KINDS, frozen=True, namespace=namespace)


def config_type(benchmark: str) -> type[DataConfig]:
    """The type of the settings of a data set; a function that is named is imported.

    Raises:
        IfamError: There is no such data set.
    """
    if names_function(benchmark):
        return _function_config(benchmark)
    if benchmark not in DATA_CONFIGS:
        hint = suggestion(benchmark, DATA_CONFIGS)
        raise IfamError(
            f"There is no benchmark {benchmark!r}{hint}; choose one of {', '.join(DATA_CONFIGS)}, or name a function "
            f"PACKAGE.MODULE:FUNCTION."
        )
    return DATA_CONFIGS[benchmark]


def refuse_function(name: str, where: str, option: str = "benchmark") -> None:
    """Refuse a function that a file names, which may be a stranger's: its code would run.

    Args:
        name: Name of a data set, or of what the option takes.
        where: What names it, for the message.
        option: The option of the command line that it is given with.

    Raises:
        IfamError: It is the name of a function.
    """
    if names_function(name):
        raise IfamError(
            f"{where} names the function {name!r} for --{option}, whose code is run; name it with --{option} {name} on "
            f"the command line if you trust it."
        )


def _function_config(name: str) -> type[DataConfig]:
    """Settings of the data set that a function returns: its parameters other than `root`."""
    settings = parameters_of(name, "--benchmark", reserved={"root", *vars(DataConfig)}, skipped="root")
    names = tuple(setting for setting, _, _ in settings)
    namespace = {"benchmark": name, "common": names, "__doc__": f"Settings of the data set of {name}."}
    return make_dataclass("FunctionConfig", settings, bases=(DataConfig,), frozen=True, namespace=namespace)


def check_names(kind: type[DataConfig], names: Iterable[str]) -> None:
    """Refuse names that are not settings of a data set.

    Raises:
        IfamError: A name is unknown.
    """
    known = [one.name for one in fields(kind)]
    for name in names:
        if name not in known:
            without = f"{kind.benchmark} has no" if kind.benchmark else "No data set has a"
            listed = f"{'it has' if kind.benchmark else 'there are'} {', '.join(known)}"
            raise IfamError(f"{without} setting {name!r}{suggestion(name, known)}; {listed}.")


def data_config(benchmark: str, options: Mapping[str, Any] | None = None) -> DataConfig:
    """The settings of a data set, checked.

    Args:
        benchmark: Name of the data set.
        options: Settings that are not the defaults, by name.

    Raises:
        IfamError: The data set or a setting is unknown, or a value is of another type or out of its range.
    """
    kind = config_type(benchmark)
    check_names(kind, options or {})
    # JSON and YAML have lists instead of tuples.
    return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in (options or {}).items()})
