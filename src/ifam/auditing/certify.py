"""The certificate: with the mask held, no hidden pixel may change one bit of the answer.

Every attack replaces every hidden pixel and leaves every visible one. A batch is compared with the same batch, so
that nothing but the hidden pixels differs, and with `torch.equal`, so that no tolerance hides anything.
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
from ifam.evaluation.attacks import ATTACKS, FILLINGS, ascend, differing, hidden_pixel_mask, replaced

# From images and mask (and the gate, where one is given) to class logits.
Answer = Callable[..., Tensor]
EXECUTIONS: tuple[Execution, ...] = ("auto", "padded", "packed", "dense")
# A model that fails fails everywhere; so many examples of it are enough.
_EXAMPLES = 50


@dataclass(frozen=True)
class Setting:
    """One way to run a predictor.

    Attributes:
        execution: How visible patches are computed; None for callables that know no executions.
        training: Whether it runs in training mode.
        label: What it is called where there is no execution.
        no_gradient: Whether hidden pixels must receive no gradient. Where the mask is made on the way they may: its
            straight-through gradient tells how the mask would change, while the mask is held.
    """

    execution: Execution | None = None
    training: bool = False
    label: str = "as it is"
    no_gradient: bool = True

    def __str__(self) -> str:
        return f"{self.execution or self.label}, {'training' if self.training else 'evaluation'}"


@dataclass(frozen=True)
class Violation:
    """One image whose answer hidden pixels have changed.

    Attributes:
        image: Which one, counted from 0.
        attack: What its hidden pixels were replaced by; "gradient" where a hidden pixel received gradient.
        setting: Execution and mode in which that happened.
        change: Largest change of a logit, infinite where one is no longer finite; for "gradient" its largest value.
    """

    image: int
    attack: str
    setting: str
    change: float

    def __str__(self) -> str:
        return f"image {self.image}, attack {self.attack!r}, {self.setting}: changed by {self.change:.3g}"


@dataclass(frozen=True)
class AttackFigures:
    """What one attack achieved, over all settings.

    Attributes:
        attack: Its name; "gradient" counts images of which a hidden pixel received gradient.
        tried: Images that it was tried on, once for each setting.
        failing: Share of these whose logits changed by any bit.
        changed_answers: Share whose answer is another one, or none because a logit is no longer finite.
        not_finite: Share with a logit that is no longer finite.
        logit_change: Largest finite change of a logit.
        probability_change: Largest change of a class's probability.
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
    """What the attacks on one model found.

    Attributes:
        name: The model.
        images: Images looked at.
        certified: Images with at least one hidden pixel, on which the attacks prove something.
        hides_nothing: Images whose mask shows every patch: nothing can be certified there.
        hides_everything: Images whose mask shows no patch: their answer is the model's prior.
        hidden_pixels: Hidden pixels that every attack replaced, over all certified images.
        settings: Executions and modes that were run.
        skipped: Settings that the model refuses, with its reason.
        attacks: Figures of each attack.
        failing_images: Images on which any attack succeeded.
        violations: At most 50 of the failures.
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
        """Whether something was certified and every bit held."""
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
        answer: From (images, mask) to logits, or from (images, mask, gate) where a gate is given. A predictor's
            `execution` and mode are set as `settings` say, and set back afterwards.
        images: Normalized images, finite.
        mask: True for visible patches; it is held.
        gate: The mask as numbers, for answers that want it.
        name: What the model is called.
        settings: Ways to run it.
        batch_size: Images at a time.
        steps: Steps of the gradient ascent.
        seed: Seed of the noise, and of what is random in training mode.
        device: Where to compute.
        advance: Progress callback, called with the number of finished images.

    Raises:
        IfamError: An image is not finite, so that a change could not be told from none.
    """
    if not images.isfinite().all():
        raise IfamError("An image holds NaN or infinity, so attacks on it prove nothing; give finite images.")
    tally = _Tally()
    hidden_pixels, done, refused = 0, [], []
    for rows in chunks(len(images), batch_size):
        batch, visible = images[rows].to(device), mask[rows].to(device)
        extra = () if gate is None else (gate[rows].to(device),)
        others = images[(torch.arange(rows.start, rows.stop) + 1) % len(images)].to(device)
        hidden = hidden_pixel_mask(visible, batch)
        generator = torch.Generator().manual_seed(seed + rows.start)
        fillings = {filling: replaced(batch, hidden, filling, generator, others) for filling in FILLINGS}
        # As many as every attack has changed, not as many as it meant to.
        hidden_pixels += min(int((hidden & (changed != batch)).sum()) for changed in fillings.values()) // 3
        for setting in settings:
            with _set(answer, setting):
                run = _Run(answer, visible, extra, setting, seed)
                try:
                    expected = run(batch)
                except IfamError as error:  # an execution that this model cannot do, as the user would be told
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
    """Certificates of the same images and masks, taken in several ways, as one."""
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
    """One attack in several certificates: shares over all tries, and the largest changes."""
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
    """One setting on one batch: nothing but the images can differ between calls.

    Args:
        answer: The model.
        visible: Its mask.
        extra: The gate, where the model takes one.
        setting: How it runs.
        seed: Seed of what is random in training mode, the same for every call.
    """

    def __init__(self, answer: Answer, visible: Tensor, extra: tuple[Tensor, ...], setting: Setting, seed: int) -> None:
        self.answer, self.visible, self.setting, self.seed = answer, visible, setting, seed
        self.extra = extra

    def __call__(self, images: Tensor) -> Tensor:
        if not self.setting.training:
            with torch.set_grad_enabled(images.requires_grad):
                return self.answer(images, self.visible, *self.extra)
        # As in training: the gate wants gradient, so the paths that compute it run.
        extra = [gate.detach().requires_grad_() for gate in self.extra]
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)
            logits = self.answer(images, self.visible, *extra)
        return logits if images.requires_grad else logits.detach()


@contextmanager
def _set(answer: Any, setting: Setting) -> Iterator[None]:
    """Put a module into a setting for a while."""
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
        self, attack: str, found: Tensor, expected: Tensor, hidden: Tensor, first: int, setting: Setting
    ) -> None:
        """Compare logits after an attack with those before it, bit by bit."""
        rows = hidden.flatten(1).any(dim=1)
        if not rows.any():
            return
        finite = found.isfinite().all(dim=1)
        # A logit that was not finite before, is no answer that anything could keep.
        broken = ~torch.tensor([torch.equal(a, b) for a, b in zip(found, expected, strict=True)]).to(rows)
        broken |= ~finite | ~expected.isfinite().all(dim=1)
        change = (found - expected).abs().amax(dim=1)
        moved = (found.softmax(dim=1) - expected.softmax(dim=1)).abs().amax(dim=1)
        other = ~finite | (found.argmax(dim=1) != expected.argmax(dim=1))
        self._note(attack, rows & broken, torch.where(finite, change, torch.inf), first, setting)
        at, seen = int(rows.sum()), rows & finite
        self.counts.setdefault(attack, []).append(
            AttackFigures(
                attack,
                at,
                float((rows & broken).sum()) / at,
                float((rows & other).sum()) / at,
                float((rows & ~finite).sum()) / at,
                float(change[seen].max()) if seen.any() else 0.0,
                float(moved[seen].max()) if seen.any() else 0.0,
            )
        )

    def gradient(self, slope: Tensor, hidden: Tensor, first: int, setting: Setting) -> None:
        """Hidden pixels must receive a gradient of exactly zero."""
        rows = hidden.flatten(1).any(dim=1)
        if not rows.any():
            return
        largest = slope.flatten(1).amax(dim=1)
        self._note("gradient", largest > 0, largest, first, setting)
        at = int(rows.sum())
        share = float((largest > 0).sum()) / at
        self.counts.setdefault("gradient", []).append(AttackFigures("gradient", at, share, 0.0, 0.0, 0.0, 0.0))

    def figures(self) -> tuple[AttackFigures, ...]:
        """One row an attack."""
        return tuple(_pooled(self.counts[attack]) for attack in (*ATTACKS, "gradient") if attack in self.counts)

    def _note(self, attack: str, broken: Tensor, change: Tensor, first: int, setting: Setting) -> None:
        for i in _true(broken):
            self.failing.add(first + i)
            self.violations.append(Violation(first + i, attack, str(setting), float(change[i])))


def _true(flags: Tensor) -> Iterable[int]:
    """Indices of the true ones."""
    return (int(i) for i in flags.nonzero().flatten())
