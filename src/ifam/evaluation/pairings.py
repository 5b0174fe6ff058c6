"""Schedules pairs of objects and backgrounds to find robust objects with few evaluations.

An object is decided at the first background that fools the model, or once it was evaluated on all of them. Backgrounds
that fooled objects of the same class come first, which affects the time and not the result. Batches are always full:
while many objects are undecided, each is evaluated on one background at a time, later on several.

The schedule depends on the outcomes only, so a run can be replayed from a list of outcomes.
"""

from collections.abc import Sequence

import numpy as np

# Indices of an object and a background.
Pair = tuple[int, int]
# Indices of an object and a background, and the wrong answer.
Fooled = tuple[int, int, int]


class PairScheduler:
    """The state of a run.

    Args:
        labels: Class of each object.
        num_backgrounds: Number of backgrounds.
        batch_size: Pairs at a time.
        seed: Breaks ties between backgrounds that fooled equally many objects.

    Attributes:
        fooled: Background and answer of each fooled object.
        robust: Objects that were not fooled by any background.
        evaluated: Number of pairs evaluated so far.
    """

    def __init__(self, labels: Sequence[int], num_backgrounds: int, batch_size: int, seed: int = 0) -> None:
        self.labels, self.num_backgrounds, self.batch_size = list(labels), num_backgrounds, batch_size
        self.fooled: dict[int, tuple[int, int]] = {}
        self.robust: list[int] = []
        self.evaluated = 0
        # For each class, how many of its objects each background fooled, plus a random fraction that breaks ties.
        random = np.random.default_rng(seed)
        self._fooling = random.random((max(self.labels, default=0) + 1, num_backgrounds))
        self._pending: dict[int, np.ndarray] = {}
        self._started = 0

    @property
    def decided(self) -> int:
        """Number of pairs whose outcome is known or no longer matters."""
        left = sum(int(pending.sum()) for pending in self._pending.values())
        return self._started * self.num_backgrounds - left

    def batch(self) -> list[Pair]:
        """The next pairs to evaluate; empty once every object is decided."""
        while len(self._pending) < self.batch_size and self._started < len(self.labels):
            self._pending[self._started] = np.ones(self.num_backgrounds, dtype=bool)
            self._started += 1
        share, rest = divmod(self.batch_size, max(len(self._pending), 1))
        return [
            (index, background)
            for place, index in enumerate(self._pending)
            for background in self._next(index, share + (place < rest))
        ]

    def _next(self, index: int, number: int) -> list[int]:
        """The pending backgrounds of an object that fooled most others."""
        pending = self._pending[index]
        scores = np.where(pending, self._fooling[self.labels[index]], -1.0)
        if number == 1:
            return [int(scores.argmax())]
        number = min(number, int(pending.sum()))
        best = np.argpartition(-scores, number - 1)[:number]
        return [int(background) for background in best[np.argsort(-scores[best])]]

    def record(self, pairs: Sequence[Pair], wrong: Sequence[Fooled]) -> tuple[list[Fooled], list[int]]:
        """Record the outcomes of a batch.

        Args:
            pairs: The pairs that `batch` returned.
            wrong: The pairs with a wrong answer, in the same order.

        Returns:
            The first wrong answer for each fooled object, and the objects that turned out robust.
        """
        for index, background in pairs:
            self._pending[index][background] = False
        self.evaluated += len(pairs)
        first: list[Fooled] = []
        for index, background, answer in wrong:
            if index not in self.fooled:
                self.fooled[index] = (background, answer)
                self._fooling[self.labels[index], background] += 1
                del self._pending[index]
                first.append((index, background, answer))
        survivors = [index for index, pending in self._pending.items() if not pending.any()]
        for index in survivors:
            del self._pending[index]
        self.robust += survivors
        return first, survivors
