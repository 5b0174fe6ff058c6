"""Several methods over several seeds: a run of each, and the table that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ifam.evaluation.metrics import GroupAccuracy
from ifam.evaluation.seeds import MeanCI, over_seeds, paired


@dataclass(frozen=True)
class Picture:
    """What a model answers to one image. Files are named relative to the folder of the results.

    Attributes:
        index: Place of the image in its split.
        group: Name of its group.
        label: Name of its class.
        image: File of the image.
        answer: Name of the class that the model predicts.
        confidence: Its probability.
        parts: File of the image with its parts in colors; None for models without a mask.
        seen: File of what the predictor saw; None for models without a mask.
    """

    index: int
    group: str
    label: str
    image: str
    answer: str
    confidence: float
    parts: str | None = None
    seen: str | None = None


@dataclass(frozen=True)
class Run:
    """One method, trained and evaluated with one seed.

    Attributes:
        row: Name of the method's row in the table.
        seed: Seed of weights and training, and of the data where these are drawn.
        figures: Figures by name.
        groups: Accuracy of each group.
        parameters: Numbers of weights: "trained" and "total".
        best_epoch: Epoch whose weights were kept, from 1.
        elapsed: Seconds for all of it.
        settings: All that the run depends on but its seed.
        evaluation: The whole evaluation.
        history: For each epoch, the logged values by name.
        pictures: Answers to some images.
        provenance: Versions and commit.
        retraining: How the last layer was fitted again; None where it was not.
    """

    row: str
    seed: int
    figures: dict[str, float]
    groups: dict[str, GroupAccuracy]
    parameters: dict[str, int]
    best_epoch: int = 0
    elapsed: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    retraining: dict[str, Any] | None = None


@dataclass(frozen=True)
class GroupMean(MeanCI):
    """Accuracy of a group over several seeds.

    Attributes:
        count: Its images, with the first seed.
    """

    count: int = 0


@dataclass(frozen=True)
class RowSummary:
    """A row of the table: one method over all seeds.

    Attributes:
        name: Name of the row.
        figures: Mean and interval of each figure.
        groups: Mean and interval of the accuracy of each group.
        differences: Mean and interval of the difference to the first row on the same seeds, by figure or "group: NAME".
        values: Each figure and the accuracy of each group ("group: NAME") by seed.
        parameters: Numbers of weights: "trained" and "total".
        history: Logged values of each epoch, with the first seed.
        pictures: Answers to some images, with the first seed.
    """

    name: str
    figures: dict[str, MeanCI]
    groups: dict[str, GroupMean]
    differences: dict[str, MeanCI]
    values: dict[str, dict[int, float]]
    parameters: dict[str, int]
    history: list[dict[str, float]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class MethodInfo:
    """What a row of the table is.

    Attributes:
        name: Name of the row.
        method: Name of its method.
        about: What the method does, in a sentence.
        uses: What it uses beside images and classes: "groups", "masks".
        differs: Settings that are not those of the first row.
    """

    name: str
    method: str
    about: str
    uses: list[str]
    differs: dict[str, Any]


@dataclass(frozen=True)
class ComparisonResult:
    """What `compare.json` holds.

    Attributes:
        methods: What each row is.
        rows: The figures of each row.
        conditions: Settings common to all rows, seeds and versions.
        about: A sentence or two on the data.
        num_parts: Most foreground parts of any row that has pictures.
        kind: Tells it from other results.
    """

    methods: list[MethodInfo]
    rows: list[RowSummary]
    conditions: dict[str, Any]
    about: str = ""
    num_parts: int = 0
    kind: str = "comparison"


_GROUP = "group: "


def summarize(runs: Sequence[Run]) -> list[RowSummary]:
    """A table of several methods over several seeds, rows in the order of the runs."""
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    by_seed = {name: _by_seed(own) for name, own in by_row.items()}
    first = next(iter(by_row), "")
    rows = []
    for name, own in by_row.items():
        means = {key: over_seeds(list(values.values())) for key, values in by_seed[name].items()}
        other = by_seed[first] if name != first else {}
        differences = {key: paired(values, other[key]) for key, values in by_seed[name].items() if key in other}
        rows.append(
            RowSummary(
                name,
                {key: mean for key, mean in means.items() if not key.startswith(_GROUP)},
                {
                    group: GroupMean(**asdict(means[_GROUP + group]), count=accuracy.count)
                    for group, accuracy in own[0].groups.items()
                },
                {key: difference for key, difference in differences.items() if difference},
                by_seed[name],
                own[0].parameters,
                own[0].history,
                own[0].pictures,
            )
        )
    return rows


def _by_seed(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """Each figure, and the accuracy of each group, by seed."""
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        groups: Mapping[str, float] = {_GROUP + name: group.accuracy for name, group in run.groups.items()}
        for key, value in {**run.figures, **groups}.items():
            values.setdefault(key, {})[run.seed] = value
    return values
