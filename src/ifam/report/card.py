"""Model cards for the Hugging Face hub, from the results that lie beside a model."""

import html
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ifam.auditing.run import AuditResult
from ifam.auditing.smoothing import Certification
from ifam.backbones.vit import backbone_license
from ifam.checkpoints import hub
from ifam.data import BENCHMARKS
from ifam.evaluation.accuracy import Evaluation
from ifam.evaluation.coverage import CoverageResult
from ifam.io import one_line
from ifam.model_files import weights_digest
from ifam.models.registry import METHODS
from ifam.report.audit_tables import sections as audit_sections
from ifam.report.certification import certification_section
from ifam.report.coverage import coverage_section
from ifam.report.evaluation_tables import evaluation_tables
from ifam.report.html import environment
from ifam.report.result_files import Result, read_results, result_files
from ifam.report.tables import Section, Table, share
from ifam.saved_models import SavedModel

_UNKNOWN = "unknown"
_TEMPLATE = "model_card.md.j2"


def model_card(folder: str | Path, repo_id: str | None = None, *, license: str | None = None) -> ModelCard:
    """A model card with the figures of the results beside a model.

    These are the accuracy of each group with its interval, the audit, the calibration and the certificates, as far as
    `ifam evaluate`, `audit`, `calibrate` and `certify` have written them to the folder. Results of other weights are
    left out, and so are folders of data: a card has no path of this machine.

    Args:
        folder: Folder of the model.
        repo_id: Id `owner/name` that the model will have on the hub; by default, the folder's name.
        license: License of the weights, as the hub names it, such as "apache-2.0".

    Raises:
        IfamError: The folder has no model, or a result in it is damaged.
    """
    saved = hub.read(folder)
    model = hub.load(saved)
    name = repo_id or saved.folder.absolute().name
    results = list(_results(saved.folder, weights_digest(model.state_dict())))
    # Accuracy comes first.
    results.sort(key=lambda result: not isinstance(result.content, Evaluation))
    data = ModelCardData(
        model_name=name.rpartition("/")[2],
        license=license,
        library_name="ifam",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "interpretability", "robustness", "ifam"],
        eval_results=[figure for result in results for figure in _figures(result)] or None,
    )
    env = environment().overlay(autoescape=False)
    env.globals |= {"table": _markdown, "text": _text}
    content = env.get_template(_TEMPLATE).render(
        card_data=data.to_yaml(),
        name=data.model_name,
        repo_id=name,
        summary=_summary(saved),
        facts=_facts(saved, model.image_size),
        sections=[section for result in results for section in _sections(result)],
        limits=_limits(saved),
        licenses=_licenses(saved, license),
    )
    return ModelCard(content)


def _results(folder: Path, digest: str) -> Iterator[Result]:
    """The results in a folder that are of weights with this digest."""
    for file in result_files(folder, required=False):
        for result in read_results(file):
            if result.conditions.get("weights") == digest:
                yield result


def _figures(result: Result) -> Iterator[EvalResult]:
    """The figures of an evaluation, as the hub lists them."""
    if not isinstance(evaluation := result.content, Evaluation):
        return
    benchmark, split = str(result.conditions.get("benchmark")), str(result.conditions.get("split"))
    figures = {
        "worst-group accuracy": ("accuracy", evaluation.predictor.worst_group),
        "average accuracy": ("accuracy", evaluation.predictor.average),
        "mask IoU": ("mean_iou", evaluation.mask_iou),
    }
    for name, (kind, value) in figures.items():
        if value is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type=benchmark,
                dataset_name=benchmark,
                dataset_split=split,
                metric_type=kind,
                metric_name=name,
                metric_value=round(value, 4),
            )


def _sections(result: Result) -> Iterator[Section]:
    """What a result says on the card."""
    content, conditions = result.content, result.conditions
    if isinstance(content, Evaluation):
        name = f"{conditions.get('benchmark')}, {conditions.get('split')}"
        lead = f"{content.count} images; the intervals are bootstrap intervals (95 %)."
        tables = (_accuracy(content, name), *evaluation_tables(content, result.gap, name)[1:])
        yield Section(f"Accuracy on {name}", lead, tables)
    elif isinstance(content, AuditResult):
        for section in audit_sections(content)[:3]:
            yield Section(f"Audit: {section.title}", section.lead, section.tables[:1])
    elif isinstance(content, CoverageResult):
        section = coverage_section(content)
        yield Section(section.title, section.lead, section.tables, section.notes[:1])
    elif isinstance(content, Certification):
        section = certification_section(content)
        yield Section(section.title, section.lead, section.tables[:1], section.notes[:1])


def _accuracy(evaluation: Evaluation, name: str) -> Table:
    """Worst group, average, and each group."""
    accuracy = evaluation.predictor
    rows = [
        (title, str(evaluation.count), share(value), _ends(accuracy.intervals.get(key)))
        for title, key, value in (
            ("worst group", "worst_group", accuracy.worst_group),
            ("average", "average", accuracy.average),
        )
    ]
    rows += [
        (group, str(one.count), share(one.accuracy), _ends((one.low, one.high)))
        for group, one in accuracy.groups.items()
    ]
    return Table(f"{name}: accuracy", ("", "images", "accuracy", "interval"), tuple(rows))


def _ends(interval: Sequence[float | None] | None) -> str:
    """An interval in words."""
    low, high = interval or (None, None)
    return "–" if low is None or high is None else f"{share(low)} to {share(high)}"


def _summary(saved: SavedModel) -> str:
    """What the model is, in a sentence or two."""
    method, config = METHODS[saved.method], saved.config
    classes = ", ".join(config.class_names or ()) or f"{config.num_classes} classes"
    summary = f"An image classifier of the method `{saved.method}` ({method.about}) for {_cell(classes)}."
    if method.build.masks_input and method.build.selects_parts:
        summary += (
            f" The selector turns {config.num_parts} parts of the object into a binary mask, and the predictor sees "
            f"only what the mask shows: given the mask, hidden pixels have no influence on the answer, bit by bit."
        )
    return summary


def _facts(saved: SavedModel, image_size: tuple[int, int]) -> Table:
    """Input, output and training data."""
    config, data = saved.config, saved.extra
    height, width = image_size
    rows = [
        ("images", f"shorter side resized, center-cropped to {height} x {width} pixels"),
        ("classes", ", ".join(config.class_names or ()) or str(config.num_classes)),
        ("parts", str(config.num_parts) if METHODS[saved.method].build.selects_parts else "none"),
        ("backbone", config.backbone),
        ("trained on", str(data.get("benchmark") or _UNKNOWN)),
    ]
    return Table("", ("", "this model"), tuple(rows))


def _limits(saved: SavedModel) -> list[str]:
    """What the model does not promise."""
    limits = ["It knows these classes only; images of anything else are told apart only as far as it is calibrated."]
    method = METHODS[saved.method].build
    if method.masks_input and method.selects_parts:
        limits = [
            "The selector has seen the whole image: background can speak through the shape of the mask, and through "
            "visible patches that hold some.",
            "Parts are clusters of features, not anatomy.",
            *limits,
        ]
    return [*limits, "Figures hold for images like those they were measured on."]


def _licenses(saved: SavedModel, license: str | None) -> Table:
    """Licenses of what the model was made of, as far as they are known."""
    benchmark = saved.extra.get("benchmark")
    rows = (
        ("these weights", license or "not stated"),
        (f"backbone {saved.config.backbone}", backbone_license(saved.config.backbone) or _UNKNOWN),
        (f"training data {benchmark or ''}".strip(), _data_license(benchmark) or _UNKNOWN),
    )
    return Table("", ("", "license"), rows)


def _data_license(benchmark: Any) -> str | None:
    """What the module of a benchmark says of its license."""
    if benchmark not in BENCHMARKS:
        return None
    said = re.search(r"License: (.+?)\.\n", import_module(f"ifam.data.benchmarks.{benchmark}").__doc__ or "", re.DOTALL)
    return one_line(said[1]) if said else None


def _markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text that is neither markup nor the end of a cell."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", _text(text))


def _text(text: str) -> str:
    """Text on one line that is no HTML."""
    return html.escape(one_line(text), quote=False)


__all__ = ["model_card"]
