"""Results of several methods over several seeds, and their summary."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ifam.evaluation.metrics import GroupAccuracy
from ifam.evaluation.seeds import MeanCI, over_seeds, paired


@dataclass(frozen=True)
class Picture:
    """The answer of a model to one image. Files are relative to the folder of the results.

    Attributes:
        index: Index of the image in its split.
        group: Name of its group.
        label: Name of its class.
        image: File of the image.
        answer: Name of the class that the model predicts.
        confidence: Its probability.
        parts: File of the image with its parts in colors; None for models without a mask.
        seen: File of what the predictor saw; None for models without a mask.
        prior: Logit of the answer without any visible patch; None for models whose parts do not explain the answer.
        contributions: What each part adds to it (`ifam.explain`); the sum is the logit of the answer.
        exact: Whether the model itself adds up its parts; otherwise these are Shapley values.
        classes: Names of the classes in its set (`ifam.evaluation.conformal`); None without a calibration.
    """

    index: int
    group: str
    label: str
    image: str
    answer: str
    confidence: float
    parts: str | None = None
    seen: str | None = None
    prior: float | None = None
    contributions: tuple[float, ...] = ()
    exact: bool = False
    classes: list[str] | None = None


@dataclass(frozen=True)
class Run:
    """One method, trained and evaluated with one seed.

    Attributes:
        row: Name of the method's row in the table.
        seed: Seed of weights and training, and of data that depend on a seed.
        figures: Figures by name.
        groups: Accuracy of each group.
        parameters: Numbers of weights: "trained" and "total".
        best_epoch: Epoch whose weights were kept, from 1.
        elapsed: Duration in seconds.
        settings: Everything that the run depends on except its seed.
        evaluation: The full evaluation.
        history: For each epoch, the logged values by name.
        pictures: Answers to some images.
        provenance: Versions and commit.
        retraining: How the last layer was retrained; None if it was not.
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
        count: Number of images, with the first seed.
    """

    count: int = 0


@dataclass(frozen=True)
class RowSummary:
    """A row of the table: one method over all seeds.

    Attributes:
        name: Name of the row.
        figures: Mean and interval of each figure.
        groups: Mean and interval of the accuracy of each group.
        differences: Mean and interval of the difference from the first row on the same seeds, with keys as in
            `values`.
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
    """Description of a row of the table.

    Attributes:
        name: Name of the row.
        method: Name of its method.
        about: What the method does, in a sentence.
        uses: Supervision beyond class labels: "groups", "masks".
        differs: Settings that differ from the first row.
    """

    name: str
    method: str
    about: str
    uses: list[str]
    differs: dict[str, Any]


@dataclass(frozen=True)
class ComparisonResult:
    """Content of `compare.json`.

    Attributes:
        methods: Description of each row.
        rows: The figures of each row.
        conditions: Settings common to all rows, seeds and versions.
        about: A sentence or two on the data.
        num_parts: Largest number of foreground parts of any row with pictures.
        kind: Distinguishes it from other results.
    """

    methods: list[MethodInfo]
    rows: list[RowSummary]
    conditions: dict[str, Any]
    about: str = ""
    num_parts: int = 0
    kind: str = "comparison"


_GROUP = "group: "


def summarize(runs: Sequence[Run]) -> list[RowSummary]:
    """Summarize several methods over several seeds, in the order of the runs."""
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    by_seed = {name: _by_seed(row_runs) for name, row_runs in by_row.items()}
    first = next(iter(by_row), "")
    rows = []
    for name, row_runs in by_row.items():
        means = {key: over_seeds(list(values.values())) for key, values in by_seed[name].items()}
        reference = by_seed[first] if name != first else {}
        differences = {key: paired(values, reference[key]) for key, values in by_seed[name].items() if key in reference}
        rows.append(
            RowSummary(
                name,
                {key: mean for key, mean in means.items() if not key.startswith(_GROUP)},
                {
                    group: GroupMean(**asdict(means[_GROUP + group]), count=accuracy.count)
                    for group, accuracy in row_runs[0].groups.items()
                },
                {key: difference for key, difference in differences.items() if difference},
                by_seed[name],
                row_runs[0].parameters,
                row_runs[0].history,
                row_runs[0].pictures,
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
