"""Text and tables of an audit, for console and page."""

import math
from collections.abc import Sequence

from ifam.auditing.background_swap import Backgrounds
from ifam.auditing.certify import Certificate
from ifam.auditing.mask_alone import MaskAlone
from ifam.auditing.posthoc import PostHoc
from ifam.auditing.run import AuditResult
from ifam.auditing.sufficiency import Parts, Step
from ifam.console import PlainConsole
from ifam.report.tables import Section, Table, print_section, share, size


def sections(audit: AuditResult) -> tuple[Section, ...]:
    """Text and tables of the five measurements."""
    return (
        _certificate(audit),
        _backgrounds(audit.backgrounds),
        _leakage(audit),
        _parts(audit.parts),
        _posthoc(audit.posthoc),
    )


def print_audit(audit: AuditResult) -> None:
    """Print the tables and the verdict."""
    console = PlainConsole()
    for section in sections(audit):
        print_section(console, section)
    console.print(f"\n{audit.verdict}", style="bold")


def _certificate(audit: AuditResult) -> Section:
    """Certificates of the model and the baselines."""
    certificate = audit.certificate
    rows = [_attacked(one) for one in (certificate, *audit.baselines)]
    notes = [
        f"{certificate.hidden_pixels:,} hidden pixels of {certificate.certified} images were replaced, in each of: "
        f"{'; '.join(certificate.settings)}.",
        "Extreme values are 1e30, infinity, NaN and a mixture. The baselines have the weights of the plain ViT of "
        "section 5 and the masks of iFAM: the figures show what each kind of masking lets through.",
    ]
    if certificate.hides_nothing:
        notes.append(f"{certificate.hides_nothing} images have no hidden pixel, so there is nothing to certify.")
    if certificate.hides_everything:
        notes.append(f"{certificate.hides_everything} images have no visible patch: their answer is the model's prior.")
    notes += [f"Not run: {reason}" for reason in certificate.skipped]
    for violation in certificate.violations[:10]:
        notes.append(
            f"Image {audit.images[violation.image].index}: {violation.attack}, {violation.setting}, "
            f"change {size(violation.change)}."
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
    tables = [Table(caption, columns, tuple(rows), (0,))]
    if audit.part_certificates:
        of_parts = "The same for what each part contributes, attacked everywhere outside of its own visible patches"
        tables.append(Table(of_parts, columns, tuple(map(_attacked, audit.part_certificates))))
        notes.append(
            "The answer is the sum of what the parts contribute, each computed from its own patches alone; for these "
            "figures, which patches belong to which part stays the same."
        )
    return Section("1. Can a hidden pixel change the answer?", audit.verdict, tuple(tables), tuple(notes))


def _attacked(certificate: Certificate) -> tuple[str, ...]:
    """The row of one model."""
    by_name = {figures.attack: figures for figures in certificate.attacks}
    named = [by_name.get(name) for name in ("noise", "another image", "adversarial")]
    extreme = [
        by_name[name].changed_answers for name in ("1e30", "infinity", "-infinity", "NaN", "mixed") if name in by_name
    ]
    changes = [(figures.logit_change, figures.probability_change) for figures in by_name.values()]
    logit, probability = (
        max(filter(math.isfinite, values), default=0.0) for values in zip(*(changes or [(0.0, 0.0)]), strict=True)
    )
    return (
        certificate.name,
        f"{len(certificate.failing_images)} of {certificate.certified}",
        *(share(None if figures is None else figures.changed_answers) for figures in named),
        share(max(extreme, default=None)),
        size(logit),
        size(probability),
    )


_SOURCES = {
    "benchmark": "Backgrounds were rendered by the benchmark.",
    "ground truth": "Backgrounds come from other images, cut out with the ground truth.",
    "own mask": "Backgrounds come from other images, cut out with the model's mask, since the truth is unknown; "
    "mixed patches cannot be determined.",
}


def _backgrounds(backgrounds: Backgrounds) -> Section:
    """Background swaps with fixed and with recomputed mask."""
    changes = {
        "in hidden patches only, mask fixed": backgrounds.hidden,
        "everywhere except in mixed patches, mask fixed": backgrounds.without_mixed,
        "everywhere, mask fixed (through pixels)": backgrounds.fixed,
        "the mask's input only (through the mask)": backgrounds.through_mask,
        "everywhere, mask recomputed (both)": backgrounds.recomputed,
    }
    rows = [
        (name, share(change.answers), share(change.any_bit), f"{change.probability:.3f}", size(change.largest_logit))
        for name, change in changes.items()
    ]
    columns = (
        "background swapped",
        "answers changed",
        "images with any change",
        "mean change of probability",
        "largest of a logit",
    )
    tables = [Table("What another background changes", columns, tuple(rows), (2, 3))]
    if backgrounds.groups:
        worst = [
            (g.name, str(g.count), share(g.before), share(g.fixed), share(g.recomputed)) for g in backgrounds.groups
        ]
        heads = ("group before the swap", "images", "original", "swapped, mask fixed", "swapped, mask recomputed")
        tables.append(Table("Accuracy by group, worst after the swap first", heads, tuple(worst)))
    lead = (
        f"Through pixels, another background changes {share(backgrounds.fixed.answers)} of the answers; through the "
        f"mask {share(backgrounds.through_mask.answers)}; both together {share(backgrounds.recomputed.answers)}. "
        f"The masks before and after overlap with an IoU of {backgrounds.mask_iou:.2f}."
    )
    notes = (
        _SOURCES[backgrounds.source],
        f"Of the visible patches ({share(backgrounds.visible)} of all), {share(backgrounds.mixed)} are mixed (object "
        f"and background) and {share(backgrounds.stray)} hold background only; with a fixed mask, background can "
        f"enter only there.",
    )
    return Section("2. Where can background still enter?", lead, tuple(tables), notes)


def _leakage(audit: AuditResult) -> Section:
    """What masks and part maps reveal, to a probe and to the predictor."""
    leakage = audit.leakage
    rows = [
        (
            f"{r.target} from the {r.source}",
            share(r.accuracy),
            f"{share(r.low)} to {share(r.high)}",
            share(r.chance),
            share(r.shuffled_high),
            "yes" if r.above_chance else "no",
        )
        for r in leakage.readings
    ]
    strong = [number for number, r in enumerate(leakage.readings) if r.above_chance]
    leaks = [f"the {r.target} from the {r.source}" for r in leakage.readings if r.above_chance]
    if leaks:
        lead = f"A linear probe is above chance for {', '.join(leaks)}."
    elif leakage.readings:
        lead = "A linear probe finds nothing above chance."
    else:
        lead = "Nothing could be probed: see below."
    columns = ("", "accuracy", "95 % interval", "most frequent", "shuffled, at most", "above chance")
    caption = "Cross-validated logistic regression on the shape"
    tables = [Table(caption, columns, tuple(rows), tuple(strong))] if rows else []
    if audit.mask_alone:
        own = audit.mask_alone[0]
        how = "more than" if own.above_chance else "no more than"
        lead += (
            f" With one color in the place of the object, the predictor is right for {share(own.constant)} of the "
            f"images, {how} chance explains; with another object in the mask it answers that for {share(own.followed)}."
        )
        tables.append(_mask_alone(audit.mask_alone))
    notes = (*leakage.notes, *(_ENCODING if audit.mask_alone else ()))
    return Section("3. What does the mask alone reveal?", lead, tuple(tables), notes)


# What the second table of question 3 is about, with its sources.
_ENCODING = (
    "A selector may write the answer into the mask, and the predictor read it there, though no hidden pixel is seen: "
    "Jethani et al., 2021 (REAL-X, arXiv 2103.01890), EPITE (arXiv 2310.17945), Oosterhuis et al., 2024 (SUWR, arXiv "
    "2407.11778). The excess is what the mask without its pixels tells above the most frequent class.",
    "Some of it is the object's outline, which is no fault; an excess that a dilated or box-shaped mask takes away "
    "while the pixels are answered as well was not needed. Fewer parts leave less to write with: compare the audit of "
    "a model that was trained with --model.num_parts 1.",
)


def _mask_alone(results: Sequence[MaskAlone]) -> Table:
    """Accuracy with the object in the mask, with one color, and with another object."""
    rows = [
        (
            one.mask,
            share(one.visible),
            share(one.pixels),
            share(one.constant),
            f"{share(one.low)} to {share(one.high)}",
            _points(one.excess),
            share(one.other),
            share(one.followed),
        )
        for one in results
    ]
    columns = ("mask", "visible", "its pixels", "one color", "95 % interval", "excess", "another object", "follows it")
    caption = (
        f"Accuracy of the predictor by what is in the mask, over {results[0].images} images; most frequent class "
        f"{share(results[0].chance)}"
    )
    return Table(caption, columns, tuple(rows), tuple(n for n, one in enumerate(results) if one.above_chance))


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _parts(parts: Parts) -> Section:
    """Insertion, deletion and leave-one-out of parts; erosion and dilation."""
    insertion, deletion = parts.insertion, parts.deletion
    steps = [
        (str(n), share(inserted.visible), *_agreement(inserted), share(inserted.accuracy), *_agreement(deleted))
        for n, (inserted, deleted) in enumerate(zip(insertion, deletion, strict=True))
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
            f"part {p.part}",
            str(p.images),
            f"{p.patches:.1f}",
            share(p.changed_answers),
            _signed(p.logit_change),
        )
        for p in parts.parts
    ]
    outline = [
        (name, share(s.visible), share(s.agreement), f"{s.probability:.3f}", share(s.accuracy))
        for name, s in (("original", insertion[-1]), ("eroded", parts.eroded), ("dilated", parts.dilated))
    ]
    alone, without = insertion[min(1, len(insertion) - 1)], deletion[min(1, len(deletion) - 1)]
    lead = (
        f"The best part alone keeps {share(alone.agreement)} of the answers; without it "
        f"{share(without.agreement)} remain. Area under insertion {parts.insertion_area:.3f} (high: few parts "
        f"are enough), under deletion {parts.deletion_area:.3f} (low: they are needed)."
    )
    tables = (
        Table("Keeping or dropping the n best parts (ranked by their effect on the logit)", heads, tuple(steps)),
        Table(
            "Dropping each part, over the images that show it",
            ("", "images", "patches", "answers changed", "change of the logit"),
            tuple(each),
        ),
        Table(
            "Mask eroded or dilated by one patch",
            ("mask", "visible", "same answer", "probability", "accuracy"),
            tuple(outline),
        ),
    )
    return Section("4. Are the visible parts sufficient and necessary?", lead, tables)


def _agreement(step: Step) -> tuple[str, str]:
    return share(step.agreement), f"{step.probability:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _posthoc(posthoc: PostHoc) -> Section:
    """The mask compared with post-hoc attribution."""
    rows = [
        (
            f"{r.model}: {r.name}",
            share(r.agreement_removed),
            f"{r.drop_removed:+.3f}",
            share(r.agreement_grey),
            f"{r.drop_grey:+.3f}",
            share(r.pointing),
            share(r.energy),
            share(r.energy_kept),
            f"{1000 * r.seconds:.0f} ms",
        )
        for r in posthoc.rows
    ]
    columns = (
        "",
        "rest removed: same answer",
        "drop",
        "rest gray: same answer",
        "drop",
        "pointing game",
        "heat on the object",
        "kept on the object",
        "per image",
    )
    ifam, *others = (r.agreement_removed for r in posthoc.rows)
    lead = (
        f"When all other patches are removed, iFAM keeps {share(ifam)} of its answers, the plain ViT "
        f"{share(min(others))} to {share(max(others))}, depending on the explanation."
    )
    kept = share(posthoc.rows[0].kept)
    notes = (
        f"Maps are reduced to as many patches as iFAM's mask shows ({kept} on average). Plain ViT: {posthoc.plain}.",
    )
    return Section(
        "5. Comparison with post-hoc attribution",
        lead,
        (Table("Explanations reduced to the same visible share", columns, tuple(rows), (0,)),),
        (*notes, *posthoc.notes),
    )


def worst_group(audit: AuditResult) -> tuple[str, float] | None:
    """Name and accuracy of the worst group before any swap."""
    worst = min(audit.backgrounds.groups, key=lambda group: group.before, default=None)
    return None if worst is None else (worst.name, worst.before)
