"""A page for any number of results (audits, comparisons, evaluations), with pictures and training curves."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from torchvision.transforms.v2.functional import to_pil_image
from yaml import YAMLError

from ifam.auditing.audit_any import RelianceResult
from ifam.auditing.run import AuditResult, ImageRow, PictureFiles
from ifam.auditing.smoothing import Certification
from ifam.data.images import open_image
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Accuracy, Evaluation
from ifam.evaluation.comparisons import ComparisonResult
from ifam.evaluation.coverage import CoverageResult
from ifam.io import check_replaceable, ensure_writable, local_path, run_digest, write_json, write_text
from ifam.provenance import is_stale
from ifam.report.audit_tables import sections, worst_group
from ifam.report.bars import Bar, change_bar, contribution_bars
from ifam.report.certification import certification_section
from ifam.report.comparisons import ComparedImage, comparison_section, curves, history_curves, image_rows
from ifam.report.coverage import coverage_section
from ifam.report.evaluation_tables import evaluation_tables
from ifam.report.html import curve_charts, environment
from ifam.report.overlays import part_colors, part_overlay, predictor_view, save_picture, thumbnail
from ifam.report.reliance import SwapView, write_files
from ifam.report.reliance import sections as reliance_sections
from ifam.report.result_files import Content, Result, read_results, result_files, unreadable
from ifam.report.tables import Section, Table, share
from ifam.report.unfinished import UnfinishedRun, find_unfinished
from ifam.run_files import METRICS, history
from ifam.serialization import flat

PICTURES = "audit_pictures"
# Title of a page about one thing.
_TITLES: Mapping[type, str] = {
    AuditResult: "Audit",
    RelianceResult: "Reliance on the background",
    Certification: "Certificate",
    ComparisonResult: "Comparison",
    CoverageResult: "Calibration",
    UnfinishedRun: "Run",
}


@dataclass(frozen=True)
class AuditView:
    """An audit on the page.

    Attributes:
        name: Its name.
        key: Its number, in links and in the filter of the pictures.
        passed: Whether the model passed.
        verdict: The outcome in a sentence.
        sections: The measurements.
    """

    name: str
    key: str
    passed: bool
    verdict: str
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Case:
    """An image of an audit, with its pictures.

    Attributes:
        row: Its row in the audit.
        audit: Key of the audit.
        side: Width and height of the pictures.
        uris: The pictures.
        bars: A bar for each part.
    """

    row: ImageRow
    audit: str
    side: tuple[int, int]
    uris: tuple[str, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class PictureGroup:
    """Images of a group, with the pictures and answers of each method of a comparison.

    Attributes:
        name: The group.
        images: Its images, with pictures as data URIs.
        colors: Color of each part.
        bars: What the parts contribute to an answer, by name of the method and index of the image.
    """

    name: str
    images: list[ComparedImage]
    colors: Sequence[tuple[int, int, int]]
    bars: dict[tuple[str, int], list[Bar]]


@dataclass
class Page:
    """Content of the template `results.html.j2`.

    Attributes:
        title: Title of the page.
        run: Digest of the paths of its results.
        headline: The outcome in a line.
        summary: A row for each model.
        audits: The audits.
        sections: Runs that are not finished, comparisons of several methods, certifications and calibrations.
        pictures: Images of comparisons.
        cases: Pictures, flagged ones first.
        swaps: Backgrounds that flipped the answer of any classifier, by its name.
        colors: Color of each part.
        tables: Accuracies of each evaluation.
        curves: Charts of each training.
        conditions: Conditions of each result.
        running: Whether a run still runs, so that the page is loaded again every ten seconds.
    """

    title: str
    run: str
    headline: str
    summary: Table
    audits: list[AuditView] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    pictures: list[PictureGroup] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    swaps: list[tuple[str, list[SwapView]]] = field(default_factory=list)
    colors: Sequence[tuple[int, int, int]] = ()
    tables: list[Table] = field(default_factory=list)
    curves: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    conditions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    running: bool = False

    @property
    def choices(self) -> dict[str, list[tuple[str, str]]]:
        """Options of the filters by audit, class and group, as (value, text)."""
        labels = sorted({case.row.label for case in self.cases if case.row.label})
        groups = sorted({case.row.group for case in self.cases if case.row.group})
        return {
            "audit": [(audit.key, audit.name) for audit in self.audits],
            "label": list(zip(labels, labels, strict=True)),
            "group": list(zip(groups, groups, strict=True)),
        }


def write_audit(audit: AuditResult, folder: str | Path) -> tuple[Path, Path]:
    """Write `audit.json`, its pictures, and the page `audit.html`.

    Args:
        audit: Result of `ifam.audit`.
        folder: Output folder; created if needed.

    Returns:
        The paths of the JSON file and of the page.

    Raises:
        IfamError: The folder cannot be written, or the audit was read from a file and has no images.
    """
    if (source := audit.pictures) is None:
        raise IfamError("This audit has no images to draw; give the result of `ifam.audit`, not one read from a file.")
    folder = local_path(folder)
    ensure_writable(folder, folder=True)
    # Remove the result first: while pictures are replaced, it would not match them.
    (folder / "audit.json").unlink(missing_ok=True)
    rows = []
    for i, row in enumerate(audit.images):
        image = thumbnail(to_pil_image(source.images[i]))
        parts, seen = part_overlay(image, source.part_maps[i]), predictor_view(image, source.mask[i])
        files = PictureFiles(*(f"{PICTURES}/{i:05d}-{kind}.webp" for kind in ("input", "parts", "seen")))
        for name, picture in ((files.input, image), (files.parts, parts), (files.seen, seen)):
            save_picture(picture, folder / name)
        rows.append(replace(row, pictures=files, side=image.size))
    write_json(folder / "audit.json", replace(audit, images=tuple(rows)).to_dict(), allow_nan=False)
    return folder / "audit.json", write_report([folder / "audit.json"], folder / "audit.html", overwrite=True)


def write_reliance(result: RelianceResult, folder: str | Path) -> tuple[Path, Path]:
    """Write `reliance.json`, its pictures, and the page `reliance.html`.

    Args:
        result: Result of `ifam.auditing.audit_any.audit_any`.
        folder: Output folder; created if needed.

    Returns:
        The paths of the JSON file and of the page.

    Raises:
        IfamError: The folder cannot be written.
    """
    folder = local_path(folder)
    ensure_writable(folder, folder=True)
    file = write_files(result, folder)
    return file, write_report([file], folder / "reliance.html", overwrite=True)


def write_report(results: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Path:
    """Write one self-contained page for any number of results, and runs that are not finished.

    Args:
        results: Files written by `ifam audit`, `compare`, `evaluate`, `train` or `demo`, or folders that contain one,
            or in which a training or a comparison runs or was stopped.
        out: File of the page.
        overwrite: Replace any existing file; otherwise only a page for the same files and folders is replaced.

    Returns:
        Its path.

    Raises:
        IfamError: There is no result, a file is not a valid result, or the page cannot be written or would replace a
            result or another file.
    """
    out, paths = local_path(out), [local_path(path) for path in results]
    ensure_writable(out)
    if not paths:
        raise IfamError("There is no result to report; give files such as audit.json or results.json.")
    unfinished = unfinished_runs(paths)
    files = [file for path in paths for file in result_files(path, required=str(path) not in unfinished)]
    if out.resolve() in {file.resolve() for file in files}:
        raise IfamError(f"{out} is one of the results of the page; choose another --out.")
    run = run_digest({"results": [str(path.absolute()) for path in paths]})
    check_replaceable(out, run, overwrite)
    read = [result for file in files for result in read_results(file)]
    try:
        page = _page(run, read, list(unfinished.values()))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise unreadable(files, f"{type(error).__name__}: {error}") from error
    text = environment().get_template("results.html.j2").render(page=page)
    write_text(out, text)
    return out


def unfinished_runs(paths: Iterable[str | Path]) -> dict[str, UnfinishedRun]:
    """Runs that are not finished, by their folder.

    Args:
        paths: Files and folders.

    Raises:
        IfamError: The files of one are damaged.
    """
    found = {}
    for path in map(local_path, paths):
        try:
            run = find_unfinished(path) if path.is_dir() else None
        except (KeyError, TypeError, AttributeError, ValueError, YAMLError) as error:
            raise unreadable([path], f"{type(error).__name__}: {error}") from error
        if run is not None:
            found[str(path)] = run
    return found


def _page(run: str, results: Sequence[Result], unfinished: Sequence[UnfinishedRun]) -> Page:
    """The content of the page."""
    named = list(zip(_names(results), results, strict=True))
    audits = [(name, result.file, result.content) for name, result in named if isinstance(result.content, AuditResult)]
    columns = ("", "worst group", "accuracy", "images", "mask IoU", "visible", "hidden pixels", "other background")
    rows = [row for name, result in named for row in _summary(result.content, name)]
    comparisons = [result.content for result in results if isinstance(result.content, ComparisonResult)]
    about_runs = [one.section for one in unfinished] + [comparison_section(comparison) for comparison in comparisons]
    about_runs += [certification_section(one.content) for one in results if isinstance(one.content, Certification)]
    calibrations = [(name, result.content) for name, result in named if isinstance(result.content, CoverageResult)]
    about_runs += [coverage_section(one, name if len(calibrations) > 1 else "") for name, one in calibrations]
    kinds = [type(one) for one in (*unfinished, *(result.content for result in results))]
    alone = len(kinds) == 1
    page = Page(
        run=run,
        title=_TITLES.get(kinds[0], "Results") if alone else "Results",
        headline=about_runs[0].title if alone and about_runs else _headline([one.content for one in results]),
        summary=Table("Worst group first; figures are of the evaluated images", columns, tuple(rows)),
        sections=about_runs,
        running=any(one.running for one in unfinished),
    )
    for one in unfinished:
        page.curves += [(one.name, charts)] if (charts := curve_charts(one.curves)) else []
        page.conditions += [(one.name, _shown(one.settings))] if one.settings else []
    for number, (name, file, audit) in enumerate(audits):
        page.audits.append(AuditView(name, str(number), audit.passed, audit.verdict, sections(audit)))
        page.cases += _cases(file, audit, str(number))
    for name, result in named:
        if isinstance(content := result.content, RelianceResult):
            key, about = f"any{len(page.swaps)}", reliance_sections(content)
            page.audits.append(AuditView(name, key, content.passed, content.verdict, about))
            page.swaps.append((name, _swaps(result.file.parent, content)))
    page.cases.sort(key=lambda case: -len(case.row.flags))
    page.colors = part_colors(max((len(case.bars) for case in page.cases), default=0))
    for name, result in named:
        content = result.content
        if isinstance(content, Evaluation):
            page.tables += evaluation_tables(content, result.gap, name)
        elif isinstance(content, ComparisonResult):
            page.pictures += _pictures(result.file.parent, content)
            if charts := curve_charts(curves(content)):
                page.curves.append((f"seed {content.conditions['seeds'][0]}", charts))
        if epochs := history(result.file.parent / METRICS):
            method = str(result.conditions.get("method", "ifam"))
            page.curves.append((name, curve_charts({method: history_curves(epochs)})))
        page.conditions.append((name, _shown(result.conditions)))
    return page


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say something, on one level; without the command, which has the same ones again."""
    said = {name: value for name, value in settings.items() if name != "command"}
    return {key: value for key, value in flat(said) if value not in (None, "", [], {})}


def _pictures(folder: Path, comparison: ComparisonResult) -> list[PictureGroup]:
    """The pictures of a comparison, as data URIs."""

    def embedded(row: ComparedImage) -> ComparedImage:
        masked = [(name, _uri(folder, parts), _uri(folder, seen)) for name, parts, seen in row.masked]
        return replace(row, image=_uri(folder, row.image), masked=masked)

    colors, bars = part_colors(comparison.num_parts), contribution_bars(comparison)
    return [
        PictureGroup(name, list(map(embedded, rows)), colors, bars) for name, rows in image_rows(comparison).items()
    ]


def _names(results: Sequence[Result]) -> list[str]:
    """Name of each result: model, benchmark and split, with its file if these are ambiguous."""
    names = []
    for result in results:
        parts = [result.conditions.get(key) for key in ("model", "benchmark", "split")]
        names.append(", ".join(text for text in parts if isinstance(text, str) and text) or str(result.file))
    unique = []
    for result, name in zip(results, names, strict=True):
        full = f"{name} ({result.file})" if names.count(name) > 1 else name
        stale = is_stale(result.file)
        unique.append(f"{full} [weights of the model have changed since]" if stale else full)
    return unique


def _headline(contents: Sequence[Content]) -> str:
    """The outcome in a line."""
    audits, count = [one for one in contents if isinstance(one, AuditResult)], len(contents)
    if count == 1 and isinstance(contents[0], RelianceResult):
        return f"{contents[0].flips.overall.flips:.0%} of the answers flip with the background."
    failed = sum(not audit.passed for audit in audits)
    if not audits:
        return f"{count} result{'s' if count > 1 else ''}"
    if len(audits) == 1:
        return "This model fails the audit." if failed else "No hidden pixel changes the answer."
    return f"{failed} of {len(audits)} models fail the audit." if failed else "No hidden pixel changes any answer."


def _summary(content: Content, name: str) -> Iterator[tuple[str, ...]]:
    """Rows of the summary for an audit or an evaluation."""
    if isinstance(content, AuditResult):
        worst = worst_group(content)
        right = [row.right for row in content.images if row.right is not None]
        yield (
            name,
            f"{share(worst[1])} ({worst[0]})" if worst else "–",
            share(sum(right) / len(right)) if right else "–",
            str(len(content.images)),
            _ratio(content.mask_iou),
            share(content.backgrounds.visible),
            "no influence" if content.passed else "FAILED",
            f"{share(content.backgrounds.recomputed.answers)} change",
        )
    elif isinstance(content, RelianceResult):
        before = share(None if content.flips.accuracy is None else content.flips.accuracy[0])
        overall = content.flips.overall
        yield (name, "–", before, str(overall.images), "–", "–", "not audited", f"{share(overall.flips)} flip")
    elif isinstance(content, Evaluation):
        yield _figures(name, content.predictor, content.count, content.mask_iou, content.visible_fraction)
        if content.selector is not None:
            yield _figures(f"{name}: selector alone", content.selector, content.count)


def _figures(
    name: str,
    answers: Accuracy,
    count: int,
    mask_iou: float | None = None,
    visible: float | None = None,
) -> tuple[str, ...]:
    """A row of the summary."""
    worst, average = share(answers.worst_group), share(answers.average)
    return (name, worst, average, str(count), _ratio(mask_iou), share(visible), "not audited", "–")


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _cases(file: Path, audit: AuditResult, key: str) -> Iterator[Case]:
    """The images of an audit that have pictures."""
    largest = max((abs(value) for row in audit.images for value in row.leave_one_out), default=0.0) or 1.0
    for row in audit.images:
        if row.pictures is None or row.side is None:
            continue
        pictures = (row.pictures.input, row.pictures.parts, row.pictures.seen)
        bars = map(change_bar, row.leave_one_out, part_colors(len(row.leave_one_out)), repeat(largest))
        yield Case(row, key, row.side, tuple(_uri(file.parent, name) for name in pictures), tuple(bars))


def _swaps(folder: Path, result: RelianceResult) -> list[SwapView]:
    """The examples that have pictures."""
    shown = [(one, one.pictures) for one in result.examples if one.pictures is not None]
    return [SwapView(one, tuple(_uri(folder, name) for name in vars(files).values())) for one, files in shown]


def _uri(folder: Path, name: str) -> str:
    """A picture below the folder of the results as a data URI; pages are shared, and results may be a stranger's."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise IfamError(f"The picture {path} is outside of {folder}, the folder of the results; write them again.")
    try:
        content = path.read_bytes()
        with open_image(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not a readable image"
        raise IfamError(
            f"The picture {path} cannot be read ({reason}); keep {path.parent.name}/ next to the results as it was "
            f"written, or write them again."
        ) from error
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
