"""Results that were written by audit, certify, calibrate, evaluate, train, compare or demo, read again for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ifam.auditing.audit_any import RelianceResult
from ifam.auditing.run import AuditResult
from ifam.auditing.smoothing import Certification
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Evaluation
from ifam.evaluation.background_gap import Gap, VariantResults
from ifam.evaluation.comparisons import ComparisonResult
from ifam.evaluation.coverage import CoverageResult
from ifam.model_files import read_json
from ifam.serialization import from_json

Content = AuditResult | RelianceResult | Certification | Evaluation | ComparisonResult | CoverageResult

_RESULTS = ("audit.json", "reliance.json", "certify.json", "calibration.json", "compare.json", "results.json")


@dataclass(frozen=True)
class Result:
    """A result read from a file.

    Attributes:
        file: Its file.
        content: What was measured.
        conditions: Its conditions.
        gap: The background gap, for the first of several treatments.
    """

    file: Path
    content: Content
    conditions: Mapping[str, Any]
    gap: Gap | None = None


@dataclass(frozen=True)
class _Header:
    """Fields common to all kinds of files."""

    kind: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)


def result_files(path: Path, *, required: bool = True) -> list[Path]:
    """A file itself, or the results in a folder and in its evaluations.

    Args:
        path: The file or folder.
        required: Whether there must be one.

    Raises:
        IfamError: There is none in the folder.
    """
    if not path.is_dir():
        return [path]
    files = [file for name in _RESULTS if (file := path / name).is_file()]
    files += sorted(path.glob("evaluations/*/results.json"))
    if required and not files:
        raise IfamError(
            f"{path} contains neither {', '.join(_RESULTS[:-1])} nor {_RESULTS[-1]}, nor a training that has begun; "
            f"give a folder that does."
        )
    return files


def read_results(file: Path) -> list[Result]:
    """The results in a file: one, or one for each treatment.

    Raises:
        IfamError: It is missing, or not a valid result.
    """
    content = read_json(file)
    if content is None:
        raise IfamError(f"There is no file {file}; give an audit.json or results.json.")
    try:
        header = from_json(_Header, content)
        if header.kind == "audit":
            return [Result(file, from_json(AuditResult, content), header.conditions)]
        if header.kind == "certification":
            return [Result(file, from_json(Certification, content), header.conditions)]
        if header.kind == "reliance":
            return [Result(file, from_json(RelianceResult, content), header.conditions)]
        if "treatments" in content:
            return _treatments(file, from_json(VariantResults, content), header.conditions)
        if "predictor" in content:
            return [Result(file, from_json(Evaluation, content), header.conditions)]
        if header.kind == "calibration":
            return [Result(file, from_json(CoverageResult, content), header.conditions)]
        if header.kind == "comparison":
            return [Result(file, from_json(ComparisonResult, content), header.conditions)]
    except ValueError as error:
        raise unreadable([file], str(error)) from error
    raise IfamError(
        f"{file} is not a valid result; give a file written by `ifam audit`, `certify`, `calibrate`, `compare`, "
        f"`demo`, `evaluate` or `train`."
    )


def _treatments(file: Path, results: VariantResults, conditions: Mapping[str, Any]) -> list[Result]:
    """A result for each treatment; the first has the gap."""
    treatments = [
        Result(file, evaluation, {**conditions, "split": name}) for name, evaluation in results.treatments.items()
    ]
    return [replace(one, gap=None if number else results.gap) for number, one in enumerate(treatments)]


def unreadable(files: Sequence[Path], reason: str) -> IfamError:
    """The error about files that are not results, or not of this version."""
    named = ", ".join(map(str, files))
    return IfamError(f"{named} cannot be read as results ({reason}); write them again with this version of ifam.")
