"""What an audit found, in tables: one source for screen and page. Reads what `AuditResult.to_dict` wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from ifam.console import PlainConsole

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: What its figures are.
        columns: Heads; the first column names the rows.
        rows: Cells.
        strong: Rows to stress.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """A question and its answer: one of the five measurements of an audit, or a comparison.

    Attributes:
        title: The question.
        lead: The answer in a sentence or two.
        tables: Its figures.
        notes: What to know about them.
        chart: A picture of them, as SVG.
    """

    title: str
    lead: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    chart: Markup | None = None


def sections(audit: Row) -> tuple[Section, ...]:
    """The five measurements of an audit in words and tables."""
    return (_certificate(audit), _backgrounds(audit), _leakage(audit), _parts(audit), _posthoc(audit))


def print_audit(audit: Row) -> None:
    """Print verdict and tables."""
    console = PlainConsole()
    for section in sections(audit):
        console.print(f"\n{section.title}", style="bold")
        console.print(section.lead)
        for table in section.tables:
            print_table(console, table)
        for note in section.notes:
            console.print(note, style="dim")
    console.print(f"\n{audit['verdict']}", style="bold")


def print_table(console: Console, table: Table) -> None:
    """Print one table."""
    drawn = RichTable(title=table.caption, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Names are not broken within a word where there is room for figures beside them.
    longest = max((len(word) for row in table.rows for word in row[0].split()), default=0)
    width = min(longest, 24) if console.width >= 100 else None
    for number, column in enumerate(table.columns):
        if number == 0:
            drawn.add_column(column, justify="left", overflow="fold", min_width=width)
        else:
            drawn.add_column(column, justify="right", overflow="fold")
    for number, row in enumerate(table.rows):
        drawn.add_row(*row, style="bold" if number in table.strong else None)
    console.print(drawn)


def share(value: float | None, digits: int = 1) -> str:
    """A share in per cent, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def size(value: float | None) -> str:
    """A change; exact where it is nothing."""
    if value is None:
        return "not finite"
    return "exactly 0" if value == 0 else f"{value:.2g}"


def _certificate(audit: Row) -> Section:
    """Hidden pixels, of the model and of the baselines."""
    found = audit["certificate"]
    rows = [_attacked(one) for one in (found, *audit["baselines"])]
    notes = [
        f"{found['hidden_pixels']:,} hidden pixels of {found['certified']} images were replaced, in each of: "
        f"{'; '.join(found['settings'])}.",
        "Extreme values are 1e30, infinity, NaN and a mixture. The baselines have the weights of the plain ViT of "
        "section 5 and the masks of iFAM: the figures tell what each kind of masking lets through.",
    ]
    if found["hides_nothing"]:
        notes.append(f"{found['hides_nothing']} images hide nothing: there is nothing to certify in them.")
    if found["hides_everything"]:
        notes.append(f"{found['hides_everything']} images hide everything: their answer is the model's prior.")
    notes += [f"Not run: {reason}" for reason in found["skipped"]]
    for violation in found["violations"][:10]:
        notes.append(
            f"Image {audit['images'][violation['image']]['index']}: {violation['attack']}, {violation['setting']}, "
            f"change {size(violation['change'])}."
        )
    columns = (
        "",
        "images that fail",
        "noise",
        "another image",
        "adversarial",
        "extreme values",
        "logits",
        "probability",
    )
    caption = (
        "Answers changed by each attack on hidden pixels, and the largest (finite) changes of logits and probability"
    )
    return Section(
        "1. Can a hidden pixel change the answer?",
        audit["verdict"],
        (Table(caption, columns, tuple(rows), (0,)),),
        tuple(notes),
    )


def _attacked(found: Row) -> tuple[str, ...]:
    """How one model stood the attacks."""
    by_name = {figures["attack"]: figures for figures in found["attacks"]}
    named = [by_name.get(name) for name in ("noise", "another image", "adversarial")]
    extreme = [
        by_name[name]["changed_answers"]
        for name in ("1e30", "infinity", "-infinity", "NaN", "mixed")
        if name in by_name
    ]
    logit, probability = (
        max((figures[key] or 0.0 for figures in by_name.values()), default=0.0)
        for key in ("logit_change", "probability_change")
    )
    failing = len(found["failing_images"])
    return (
        found["name"],
        f"{failing} of {found['certified']}",
        *(share(None if figures is None else figures["changed_answers"]) for figures in named),
        share(max(extreme, default=None)),
        size(logit),
        size(probability),
    )


_SOURCES = {
    "benchmark": "Backgrounds were painted anew by the benchmark itself.",
    "ground truth": "Backgrounds come from other images, cut out by the ground truth.",
    "own mask": "Backgrounds come from other images, cut out by the model's own mask, for the truth is not known; "
    "mixed patches cannot be told then.",
}


def _backgrounds(audit: Row) -> Section:
    """Other backgrounds, with the mask held and made anew."""
    found = audit["backgrounds"]
    kinds = {
        "in hidden patches only, mask held": "hidden",
        "everywhere but in mixed patches, mask held": "without_mixed",
        "everywhere, mask held (through pixels)": "fixed",
        "the mask's input only (through the mask)": "through_mask",
        "everywhere, mask made anew (both)": "recomputed",
    }
    rows = [
        (name, share(c["answers"]), share(c["any_bit"]), f"{c['probability']:.3f}", size(c["largest_logit"]))
        for name, c in ((name, found[key]) for name, key in kinds.items())
    ]
    columns = (
        "background swapped",
        "answers changed",
        "images with any change",
        "mean change of probability",
        "largest of a logit",
    )
    tables = [Table("What another background changes", columns, tuple(rows), (2, 3))]
    if found["groups"]:
        worst = [
            (g["name"], str(g["count"]), share(g["before"]), share(g["fixed"]), share(g["recomputed"]))
            for g in found["groups"]
        ]
        heads = ("group before the swap", "images", "as it is", "swapped, mask held", "swapped, mask anew")
        tables.append(Table("Accuracy by group, worst after the swap first", heads, tuple(worst)))
    lead = (
        f"Through pixels, another background changes {share(found['fixed']['answers'])} of the answers; through the "
        f"mask {share(found['through_mask']['answers'])}; both together {share(found['recomputed']['answers'])}. "
        f"The masks before and after overlap with an IoU of {found['mask_iou']:.2f}."
    )
    notes = (
        _SOURCES[found["source"]],
        f"Of the visible patches ({share(found['visible'])} of all), {share(found['mixed'])} are mixed (object and "
        f"background) and {share(found['stray'])} hold background only; with the mask held, background can enter there "
        f"and nowhere else.",
    )
    return Section("2. Where can background still enter?", lead, tuple(tables), notes)


def _leakage(audit: Row) -> Section:
    """What masks and part maps give away."""
    found = audit["leakage"]
    rows, strong, caught = [], [], []
    for number, r in enumerate(found["readings"]):
        above = r["low"] > max(r["chance"], r["shuffled_high"])
        rows.append(
            (
                f"{r['target']} from the {r['source']}",
                share(r["accuracy"]),
                f"{share(r['low'])} to {share(r['high'])}",
                share(r["chance"]),
                share(r["shuffled_high"]),
                "yes" if above else "no",
            )
        )
        if above:
            strong.append(number)
            caught.append(f"the {r['target']} from the {r['source']}")
    said = f"A linear reader finds more than chance in {', '.join(caught)}." if caught else ""
    lead = said or (
        "A linear reader finds nothing above chance." if found["readings"] else "There was nothing to read: see below."
    )
    columns = ("", "accuracy", "95 % interval", "most frequent", "shuffled, at most", "above chance")
    caption = "Cross-validated logistic regression on the shape alone"
    tables = (Table(caption, columns, tuple(rows), tuple(strong)),) if rows else ()
    return Section("3. What does the mask alone give away?", lead, tables, tuple(found["notes"]))


def _parts(audit: Row) -> Section:
    """Parts taken away and put back."""
    found = audit["parts"]
    insertion, deletion = found["insertion"], found["deletion"]
    steps = [
        (str(n), share(kept["visible"]), *_held(kept), share(kept["accuracy"]), *_held(gone))
        for n, (kept, gone) in enumerate(zip(insertion, deletion, strict=True))
    ]
    heads = (
        "n best parts",
        "visible",
        "kept: same answer",
        "probability",
        "accuracy",
        "dropped: same answer",
        "probability",
    )
    each = [
        (
            f"part {p['part']}",
            str(p["images"]),
            f"{p['patches']:.1f}",
            share(p["changed_answers"]),
            _signed(p["logit_change"]),
        )
        for p in found["parts"]
    ]
    outline = [
        (name, share(s["visible"]), share(s["agreement"]), f"{s['probability']:.3f}", share(s["accuracy"]))
        for name, s in (("as it is", insertion[-1]), ("eroded", found["eroded"]), ("dilated", found["dilated"]))
    ]
    alone, without = insertion[min(1, len(insertion) - 1)], deletion[min(1, len(deletion) - 1)]
    lead = (
        f"The best part alone keeps {share(alone['agreement'])} of the answers; without it "
        f"{share(without['agreement'])} remain. Area under insertion {found['insertion_area']:.3f} (high: few parts "
        f"are enough), under deletion {found['deletion_area']:.3f} (low: they are needed)."
    )
    tables = (
        Table("Keeping or dropping the n best parts (ranked by the logit they are worth)", heads, tuple(steps)),
        Table(
            "Dropping each part, over the images that show it",
            ("", "images", "patches", "answers changed", "change of the logit"),
            tuple(each),
        ),
        Table(
            "One patch less or more all round",
            ("mask", "visible", "same answer", "probability", "accuracy"),
            tuple(outline),
        ),
    )
    return Section("4. Is what it shows enough, and needed?", lead, tables)


def _held(step: Row) -> tuple[str, str]:
    return share(step["agreement"]), f"{step['probability']:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _posthoc(audit: Row) -> Section:
    """The mask beside explanations after the fact."""
    found = audit["posthoc"]
    rows = [
        (
            f"{r['model']}: {r['name']}",
            share(r["agreement_removed"]),
            f"{r['drop_removed']:+.3f}",
            share(r["agreement_grey"]),
            f"{r['drop_grey']:+.3f}",
            share(r["pointing"]),
            share(r["energy"]),
            share(r["energy_kept"]),
            f"{1000 * r['seconds']:.0f} ms",
        )
        for r in found["rows"]
    ]
    columns = (
        "",
        "rest removed: same answer",
        "drop",
        "rest grey: same answer",
        "drop",
        "pointing game",
        "heat on the object",
        "kept on the object",
        "per image",
    )
    others = [r["agreement_removed"] for r in found["rows"][1:]]
    own = found["rows"][0]["agreement_removed"]
    lead = (
        f"When all that they leave out is removed, {share(own)} of iFAM's answers stand; of the plain ViT's, "
        f"{share(min(others))} to {share(max(others))}, by the explanation."
    )
    kept = share(found["rows"][0]["kept"])
    notes = (
        f"Every map is cut to as many patches as iFAM's mask shows ({kept} on average). Plain ViT: {found['plain']}.",
    )
    return Section(
        "5. Beside explanations after the fact",
        lead,
        (Table("Explanations cut to the same visible share", columns, tuple(rows), (0,)),),
        (*notes, *found["notes"]),
    )


def worst_group(audit: Row) -> tuple[str, float] | None:
    """Name and accuracy of the worst group before any swap."""
    groups: Sequence[Row] = audit["backgrounds"]["groups"]
    worst = min(groups, key=lambda g: g["before"], default=None)
    return None if worst is None else (worst["name"], worst["before"])
