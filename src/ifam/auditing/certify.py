"""The certificate: with a fixed mask, hidden pixels must not change a single bit of the answer.

Every attack replaces all hidden pixels and no visible one. A batch is compared with the same batch, so only hidden
pixels differ, and with `torch.equal`, so no tolerance hides a difference.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from ifam._typing import Bool, Float, Tensor
from ifam.auditing.inputs import Advance, chunks, no_progress
from ifam.config import Execution
from ifam.errors import IfamError
from ifam.evaluation.hidden_pixel_attacks import ATTACKS, FILLINGS, ascend, differing, hidden_pixel_mask, replaced

# Maps images and mask (and the gate, if one is given) to class logits.
Answer = Callable[..., Tensor]
EXECUTIONS: tuple[Execution, ...] = ("auto", "padded", "packed", "dense")
# A model that fails usually fails everywhere: keep at most this many violations.
_EXAMPLES = 50


@dataclass(frozen=True)
class Setting:
    """One way to run a predictor.

    Attributes:
        execution: How visible patches are computed; None for callables without this option.
        training: Whether it runs in training mode.
        label: Name used if there is no execution.
        no_gradient: Whether hidden pixels must receive no gradient. They may if the selector runs too: the
            straight-through gradient flows to it even though the mask is fixed.
    """

    execution: Execution | None = None
    training: bool = False
    label: str = "as it is"
    no_gradient: bool = True

    def __str__(self) -> str:
        return f"{self.execution or self.label}, {'training' if self.training else 'evaluation'}"


@dataclass(frozen=True)
class Violation:
    """An image whose answer was changed by hidden pixels.

    Attributes:
        image: Its index.
        attack: What its hidden pixels were replaced by; "gradient" if a hidden pixel received gradient.
        setting: Execution and mode.
        change: Largest change of a logit, infinite if one is no longer finite; for "gradient" its largest value.
    """

    image: int
    attack: str
    setting: str
    change: float

    def __str__(self) -> str:
        return f"image {self.image}, attack {self.attack!r}, {self.setting}: changed by {self.change:.3g}"


@dataclass(frozen=True)
class AttackFigures:
    """Effect of one attack, over all settings.

    Attributes:
        attack: Its name; "gradient" counts images with gradient at a hidden pixel.
        tried: Number of images attacked, once for each setting.
        failing: Share of these with a change in any bit of the logits.
        changed_answers: Share whose answer changed, or is undefined because a logit is not finite.
        not_finite: Share with a logit that is not finite.
        logit_change: Largest finite change of a logit.
        probability_change: Largest change of a class probability.
    """

    attack: str
    tried: int
    failing: float
    changed_answers: float
    not_finite: float
    logit_change: float
    probability_change: float


@dataclass(frozen=True)
class Certificate:
    """Result of the attacks on one model.

    Attributes:
        name: The model.
        images: Number of images.
        certified: Images with at least one hidden pixel.
        hides_nothing: Images whose mask shows every patch; there is nothing to attack.
        hides_everything: Images whose mask shows no patch; their answer is the model's prior.
        hidden_pixels: Hidden pixels replaced by every attack, over all certified images.
        settings: Executions and modes that were run.
        skipped: Settings that the model does not support, with the reason.
        attacks: Figures of each attack.
        failing_images: Images on which any attack succeeded.
        violations: The failures, at most 50.
    """

    name: str
    images: int
    certified: int
    hides_nothing: int
    hides_everything: int
    hidden_pixels: int
    settings: tuple[str, ...]
    skipped: tuple[str, ...]
    attacks: tuple[AttackFigures, ...]
    failing_images: tuple[int, ...]
    violations: tuple[Violation, ...]

    @property
    def passed(self) -> bool:
        """Whether at least one image was certified and no bit changed."""
        return self.certified > 0 and not self.failing_images

    @property
    def failing(self) -> float:
        """Share of the certified images on which any attack succeeded."""
        return len(self.failing_images) / max(1, self.certified)


def certify(
    answer: Answer,
    images: Float[Tensor, "N 3 S1 S2"],
    mask: Bool[Tensor, "N H W"],
    gate: Float[Tensor, "N H2 W2"] | None = None,
    *,
    held: Sequence[Tensor] = (),
    name: str = "model",
    settings: Sequence[Setting] = (Setting(),),
    batch_size: int = 32,
    steps: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    advance: Advance = no_progress,
) -> Certificate:
    """Attack the hidden pixels of every image.

    Args:
        answer: Maps (images, mask) to logits, or (images, mask, gate) if a gate is given. The `execution` and mode of a
            predictor are set according to `settings` and restored afterwards.
        images: Normalized images, finite.
        mask: True for visible patches; fixed.
        gate: The mask as numbers, if `answer` takes it.
        held: What else `answer` takes, after the gate: values of each image, which no attack changes.
        name: Name of the model.
        settings: Ways to run it.
        batch_size: Images at a time.
        steps: Steps of the gradient ascent.
        seed: Seed of the noise and of training mode.
        device: Where to compute.
        advance: Progress callback, called with the number of finished images.

    Raises:
        IfamError: An image is not finite, so a change could not be detected.
    """
    if not images.isfinite().all():
        raise IfamError("An image holds NaN or infinity, so attacks on it prove nothing; give finite images.")
    tally = _Tally()
    hidden_pixels, done, refused = 0, [], []
    for rows in chunks(len(images), batch_size):
        batch, visible = images[rows].to(device), mask[rows].to(device)
        extra = () if gate is None else (gate[rows].to(device),)
        fixed = tuple(values[rows].to(device) for values in held)
        others = images[(torch.arange(rows.start, rows.stop) + 1) % len(images)].to(device)
        hidden = hidden_pixel_mask(visible, batch)
        generator = torch.Generator().manual_seed(seed + rows.start)
        fillings = {filling: replaced(batch, hidden, filling, generator, others) for filling in FILLINGS}
        # Count the values that every attack has really changed.
        hidden_pixels += min(int((hidden & (changed != batch)).sum()) for changed in fillings.values()) // 3
        for setting in settings:
            with _configured(answer, setting):
                run = _Run(answer, visible, extra, fixed, setting, seed)
                try:
                    expected = run(batch)
                except IfamError as error:  # this model does not support the execution
                    refused.append(f"{setting}: {error}")
                    continue
                done.append(str(setting))
                climbed, slope = ascend(run, fillings["noise"], hidden, expected, steps)
                climbed = differing(climbed, batch, hidden)
                if setting.no_gradient:
                    tally.gradient(slope, hidden, rows.start, setting)
                for attack, changed in (*fillings.items(), ("adversarial", climbed)):
                    tally.compare(attack, run(changed), expected, hidden, rows.start, setting)
        advance(len(batch))
    shown = mask.flatten(1).float().mean(dim=1)
    return Certificate(
        name=name,
        images=len(images),
        certified=int((shown < 1).sum()),
        hides_nothing=int((shown == 1).sum()),
        hides_everything=int((shown == 0).sum()),
        hidden_pixels=hidden_pixels,
        settings=tuple(dict.fromkeys(done)),
        skipped=tuple(dict.fromkeys(refused)),
        attacks=tally.figures(),
        failing_images=tuple(sorted(tally.failing)),
        violations=tuple(tally.violations[:_EXAMPLES]),
    )


def merge(name: str, certificates: Sequence[Certificate]) -> Certificate:
    """Combine certificates of the same images and masks under different settings."""
    first = certificates[0]
    every = [figures for certificate in certificates for figures in certificate.attacks]
    return Certificate(
        name,
        first.images,
        first.certified,
        first.hides_nothing,
        first.hides_everything,
        first.hidden_pixels,
        tuple(setting for certificate in certificates for setting in certificate.settings),
        tuple(reason for certificate in certificates for reason in certificate.skipped),
        tuple(_pooled([f for f in every if f.attack == attack]) for attack in dict.fromkeys(f.attack for f in every)),
        tuple(sorted({image for certificate in certificates for image in certificate.failing_images})),
        tuple(v for certificate in certificates for v in certificate.violations)[:_EXAMPLES],
    )


def _pooled(same: Sequence[AttackFigures]) -> AttackFigures:
    """Combine the figures of one attack: shares over all images, and the largest changes."""
    tried = sum(figures.tried for figures in same)

    def share(value: str) -> float:
        return float(sum(getattr(figures, value) * figures.tried for figures in same)) / max(1, tried)

    shares = (share(value) for value in ("failing", "changed_answers", "not_finite"))
    largest = (max(getattr(f, value) for f in same) for value in ("logit_change", "probability_change"))
    return AttackFigures(same[0].attack, tried, *shares, *largest)


def predictor_settings() -> tuple[Setting, ...]:
    """Every execution, in evaluation and in training mode."""
    return tuple(Setting(execution, training) for execution, training in product(EXECUTIONS, (False, True)))


class _Run:
    """One setting on one batch: only the images differ between calls.

    Args:
        answer: The model.
        visible: Its mask.
        extra: The gate, if the model takes one.
        held: What else it takes.
        setting: How it runs.
        seed: Seed of training mode, the same for every call.
    """

    def __init__(
        self,
        answer: Answer,
        visible: Tensor,
        extra: tuple[Tensor, ...],
        held: tuple[Tensor, ...],
        setting: Setting,
        seed: int,
    ) -> None:
        self.answer, self.visible, self.setting, self.seed = answer, visible, setting, seed
        self.extra, self.held = extra, held

    def __call__(self, images: Tensor) -> Tensor:
        if not self.setting.training:
            with torch.set_grad_enabled(images.requires_grad):
                return self.answer(images, self.visible, *self.extra, *self.held)
        # As in training: the gate requires gradient, so the code paths that compute it run.
        extra = [gate.detach().requires_grad_() for gate in self.extra]
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)
            logits = self.answer(images, self.visible, *extra, *self.held)
        return logits if images.requires_grad else logits.detach()


@contextmanager
def _configured(answer: Any, setting: Setting) -> Iterator[None]:
    """Apply a setting to a module, and restore it afterwards."""
    if not isinstance(answer, torch.nn.Module):
        yield
        return
    execution, training = getattr(answer, "execution", None), answer.training
    try:
        answer.train(setting.training)
        if setting.execution is not None:
            setattr(answer, "execution", setting.execution)  # noqa: B010 (a module's attributes are untyped)
        yield
    finally:
        answer.train(training)
        if setting.execution is not None:
            setattr(answer, "execution", execution)  # noqa: B010


@dataclass
class _Tally:
    """Failures so far."""

    counts: dict[str, list[AttackFigures]] = field(default_factory=dict)
    failing: set[int] = field(default_factory=set)
    violations: list[Violation] = field(default_factory=list)

    def compare(
        self, attack: str, logits: Tensor, expected: Tensor, hidden: Tensor, first: int, setting: Setting
    ) -> None:
        """Compare logits after an attack with those before it, bit by bit."""
        rows = hidden.flatten(1).any(dim=1)
        if not rows.any():
            return
        finite = logits.isfinite().all(dim=1)
        # Logits that were not finite before the attack count as changed.
        broken = ~torch.tensor([torch.equal(a, b) for a, b in zip(logits, expected, strict=True)]).to(rows)
        broken |= ~finite | ~expected.isfinite().all(dim=1)
        logit_change = (logits - expected).abs().amax(dim=1)
        probability_change = (logits.softmax(dim=1) - expected.softmax(dim=1)).abs().amax(dim=1)
        different = ~finite | (logits.argmax(dim=1) != expected.argmax(dim=1))
        self._note(attack, rows & broken, torch.where(finite, logit_change, torch.inf), first, setting)
        count, still_finite = int(rows.sum()), rows & finite
        self.counts.setdefault(attack, []).append(
            AttackFigures(
                attack,
                count,
                float((rows & broken).sum()) / count,
                float((rows & different).sum()) / count,
                float((rows & ~finite).sum()) / count,
                float(logit_change[still_finite].max()) if still_finite.any() else 0.0,
                float(probability_change[still_finite].max()) if still_finite.any() else 0.0,
            )
        )

    def gradient(self, slope: Tensor, hidden: Tensor, first: int, setting: Setting) -> None:
        """Hidden pixels must receive a gradient of exactly zero."""
        rows = hidden.flatten(1).any(dim=1)
        if not rows.any():
            return
        largest = slope.flatten(1).amax(dim=1)
        self._note("gradient", largest > 0, largest, first, setting)
        count = int(rows.sum())
        share = float((largest > 0).sum()) / count
        self.counts.setdefault("gradient", []).append(AttackFigures("gradient", count, share, 0.0, 0.0, 0.0, 0.0))

    def figures(self) -> tuple[AttackFigures, ...]:
        """Figures of each attack."""
        return tuple(_pooled(self.counts[attack]) for attack in (*ATTACKS, "gradient") if attack in self.counts)

    def _note(self, attack: str, broken: Tensor, change: Tensor, first: int, setting: Setting) -> None:
        for i in _indices(broken):
            self.failing.add(first + i)
            self.violations.append(Violation(first + i, attack, str(setting), float(change[i])))


def _indices(flags: Tensor) -> Iterable[int]:
    """Indices of the true values."""
    return (int(i) for i in flags.nonzero().flatten())
