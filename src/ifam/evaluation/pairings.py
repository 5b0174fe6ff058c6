"""Which object meets which background next, so that few meetings find out who is never fooled.

An object leaves at the first background that fools it; one that no background fools has met them all. Those that have
fooled objects of its class come first, which changes how long it takes and not who is left. Batches are always full:
while many objects are left each of them meets one background at a time, later several.

All of this follows from the outcomes, so that a run can be repeated from a list of these.
"""

from collections.abc import Sequence

import numpy as np

# An object and a background, by number.
Pair = tuple[int, int]
# A pair, and the wrong answer.
Fooled = tuple[int, int, int]


class PairScheduler:
    """The state of a run.

    Args:
        labels: Class of each object.
        num_backgrounds: How many backgrounds each object may meet.
        batch_size: Pairs at a time.
        seed: Decides between backgrounds that have fooled equally many.

    Attributes:
        fooled: Background and answer of each object that was fooled.
        robust: Objects that met every background and were not.
        met: Pairs so far.
    """

    def __init__(self, labels: Sequence[int], num_backgrounds: int, batch_size: int, seed: int = 0) -> None:
        self.labels, self.num_backgrounds, self.batch_size = list(labels), num_backgrounds, batch_size
        self.fooled: dict[int, tuple[int, int]] = {}
        self.robust: list[int] = []
        self.met = 0
        # For each class, how many of its objects a background has fooled, and a fraction that tells ties apart.
        chance = np.random.default_rng(seed)
        self._fooling = chance.random((max(self.labels, default=0) + 1, num_backgrounds))
        self._unmet: dict[int, np.ndarray] = {}
        self._started = 0

    @property
    def decided(self) -> int:
        """Pairs whose outcome no longer matters, or is known, of all objects and backgrounds."""
        left = sum(int(unmet.sum()) for unmet in self._unmet.values())
        return self._started * self.num_backgrounds - left

    def batch(self) -> list[Pair]:
        """The pairs to look at now; none once every object is decided."""
        while len(self._unmet) < self.batch_size and self._started < len(self.labels):
            self._unmet[self._started] = np.ones(self.num_backgrounds, dtype=bool)
            self._started += 1
        share, rest = divmod(self.batch_size, max(len(self._unmet), 1))
        return [
            (thing, background)
            for place, thing in enumerate(self._unmet)
            for background in self._next(thing, share + (place < rest))
        ]

    def _next(self, thing: int, number: int) -> list[int]:
        """The backgrounds that it has not met, most fooling first."""
        unmet = self._unmet[thing]
        scores = np.where(unmet, self._fooling[self.labels[thing]], -1.0)
        if number == 1:
            return [int(scores.argmax())]
        number = min(number, int(unmet.sum()))
        best = np.argpartition(-scores, number - 1)[:number]
        return [int(background) for background in best[np.argsort(-scores[best])]]

    def settle(self, pairs: Sequence[Pair], wrong: Sequence[Fooled]) -> tuple[list[Fooled], list[int]]:
        """Take note of the outcomes of a batch.

        Args:
            pairs: What `batch` gave.
            wrong: The pairs with a wrong answer, in the same order.

        Returns:
            The first wrong answer of each object that had one, and the objects that have met every background.
        """
        for thing, background in pairs:
            self._unmet[thing][background] = False
        self.met += len(pairs)
        first: list[Fooled] = []
        for thing, background, answer in wrong:
            if thing not in self.fooled:
                self.fooled[thing] = (background, answer)
                self._fooling[self.labels[thing], background] += 1
                del self._unmet[thing]
                first.append((thing, background, answer))
        through = [thing for thing, unmet in self._unmet.items() if not unmet.any()]
        for thing in through:
            del self._unmet[thing]
        self.robust += through
        return first, through
