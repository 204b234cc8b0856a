"""Divides clips into parts: each part gets its share of each label, and no group is in two parts.

`hold_out` sets a share of the clips aside, and `deal_folds` divides all clips into folds. A clip
may have any number of labels. The units that are divided are single clips or, with groups, whole
groups.

First the units are dealt to the parts in turn, in the order of their rarest label. If each clip has
one label and there are no groups, each part then has its share of each label, rounded down or up,
as with scikit-learn's StratifiedKFold. With several labels, with groups, or with labels of very few
clips this is only a start: units are then moved from part to part as long as that lowers a cost.
The first aim is that a label which two or more units have is in every part, the second that the
counts are near the wanted ones. The order by the rarest label follows Sechidis, Tsoumakas and
Vlahavas 2011, "On the Stratification of Multi-Label Data"; their method has no groups and may leave
a label of few clips out of a part.

The same clips in the same order are divided in the same way in every run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

# Fixed, so that runs can be compared and resumed.
SEED = 5
# Costs of a part without a label that it could have, and of holding out the only clip of a label,
# which then cannot be learned. Each is larger than the cost of all deviating counts together.
LACKING = 1e9
UNLEARNED = 1e5
# Groups differ in size, so the best of several random starts is taken, unless there are too many.
STARTS = 30
MANY_GROUPS = 500
# The search ends when at most this share of the clips or groups was moved.
FEW_MOVES = 1e-3
# Tolerance for rounding errors in shares of whole numbers.
EPSILON = 1e-9


def hold_out(
    labels: Sequence[Sequence[Hashable]],
    share: float,
    groups: Sequence[Hashable] | None = None,
    seed: int = SEED,
) -> np.ndarray:
    """Which clips are held out.

    Args:
        labels: The labels of each clip, none, one or several.
        share: Share of the clips to hold out, between 0 and 1; their number is rounded up, as
            scikit-learn does. More are held out if many labels have so few clips that each label
            must give one.
        groups: The group of each clip; no group is on both sides.
        seed: Seed of the choice between equally good units.
    Returns:
        (clips,), bool; neither side is empty.
    Raises:
        ValueError: There are fewer than two clips, or groups.
    """
    return divide(labels, (1 - share, share), groups, seed, round_up=True) == 1


def deal_folds(
    labels: Sequence[Sequence[Hashable]],
    num_folds: int,
    groups: Sequence[Hashable] | None = None,
    seed: int = SEED,
) -> np.ndarray:
    """The fold of each clip (clips,), from 1 to `num_folds`; see `hold_out`.

    Raises:
        ValueError: There are fewer clips, or groups, than folds.
    """
    if num_folds > len(labels):
        raise ValueError(f"{len(labels)} clips cannot be divided into {num_folds} parts")
    return divide(labels, [1 / num_folds] * num_folds, groups, seed) + 1


def divide(
    labels: Sequence[Sequence[Hashable]],
    shares: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    seed: int = SEED,
    round_up: bool = False,
) -> np.ndarray:
    """The part of each clip (clips,), from 0, for any shares of the parts; see `hold_out`.

    Args:
        round_up: Whether the number of clips in the last part is rounded up.
    Raises:
        ValueError: There are fewer clips, or groups, than parts.
    """
    numbers: dict[Hashable, int] = {}
    unit_of = [
        numbers.setdefault(group, len(numbers))
        for group in (range(len(labels)) if groups is None else groups)
    ]
    if len(numbers) < len(shares):
        kind = "clips" if groups is None else "groups"
        raise ValueError(f"{len(numbers)} {kind} cannot be divided into {len(shares)} parts")
    units = [Counter[Hashable]() for _ in numbers]
    for unit, names in zip(unit_of, labels):
        # NONE and EVERY act as labels: each part gets its share of the clips without a label, and
        # of all clips. Not a set, because its order differs from run to run.
        units[unit].update(list(dict.fromkeys((EVERY, *(names or (NONE,))))))
    starts = STARTS if groups is not None and len(units) <= MANY_GROUPS else 1
    generator = np.random.default_rng(seed)
    last = None
    if round_up:  # no part is empty
        last = min(max(math.ceil(shares[-1] * len(labels) - EPSILON), 1), len(labels) - 1)
    best = min((Division(units, shares, generator, last) for _ in range(starts)), key=Division.cost)
    return np.array(best.parts)[unit_of]


class _Mark:
    """A label that differs from all labels of the data."""


EVERY, NONE = _Mark(), _Mark()


class Wanted(NamedTuple):
    """The number of clips with a label that a part should have."""

    clips: float
    low: int  # clips, rounded down
    high: int  # clips, rounded up
    weight: float  # weight of deviations in the cost
    without: float  # cost if the part has no such clip


class Division:
    """A division of units (clips or groups) into parts, and its cost.

    Args:
        units: For each unit, how many of its clips have each label.
        shares: Shares of the parts; their sum is 1.
        generator: Chooses between equally good units.
        last: Number of clips that the last of two parts should have; by default its share.
    """

    def __init__(
        self,
        units: Sequence[Counter[Hashable]],
        shares: Sequence[float],
        generator: np.random.Generator,
        last: int | None = None,
    ):
        self.units = units
        self.totals: Counter[Hashable] = Counter()
        holders: Counter[Hashable] = Counter()  # units with the label
        for unit in units:
            self.totals.update(unit)
            holders.update(unit.keys())
        self.shares = shares
        self.wanted = [
            {label: self._wanted(label, share, holders[label]) for label in self.totals}
            for share in shares
        ]
        if last is not None:
            for wanted, size in zip(self.wanted, (self.totals[EVERY] - last, last)):
                wanted[EVERY] = wanted[EVERY]._replace(clips=size, low=size, high=size)
        self.counts = [dict.fromkeys(self.totals, 0) for _ in shares]
        self.parts = [0] * len(units)
        order = generator.permutation(len(units)).tolist()
        self._deal(order)
        self._improve(order)

    def _wanted(self, label: Hashable, share: float, holders: int) -> Wanted:
        count = share * self.totals[label]
        return Wanted(
            count,
            math.floor(count + EPSILON),
            math.ceil(count - EPSILON),
            # The size of a part counts as much as all labels together.
            len(self.totals) if label is EVERY else 1,
            LACKING if holders > 1 else UNLEARNED * share,
        )

    def cost(self) -> float:
        """How far the division is from the wanted one."""
        return sum(
            self._cost(part, label, counts[label])
            for part, counts in enumerate(self.counts)
            for label in counts
        )

    def _cost(self, part: int, label: Hashable, count: int) -> float:
        """The cost of a part that has `count` clips with a label."""
        wanted = self.wanted[part][label]
        cost = 0.0 if count else wanted.without
        if wanted.low <= count <= wanted.high:
            return cost
        off = max(wanted.low - count, count - wanted.high)
        return cost + wanted.weight * off**2 / wanted.clips

    def _deal(self, order: Sequence[int]) -> None:
        """Puts each unit, those of rare labels first, into the part that lacks most clips."""
        first = {label: place for place, label in enumerate(sorted_by_count(self.totals))}
        dealt = 0
        for unit in sorted(order, key=lambda unit: min(map(first.__getitem__, self.units[unit]))):
            dealt += self.units[unit][EVERY]
            missing = [
                share * dealt - counts[EVERY] for share, counts in zip(self.shares, self.counts)
            ]
            # Rounded, so that parts with equal lacks take turns in spite of rounding errors.
            part = max(range(len(missing)), key=lambda part: round(missing[part], 6))
            self.parts[unit] = part
            self._add(unit, part, 1)

    def _add(self, unit: int, part: int, sign: int) -> None:
        for label, count in self.units[unit].items():
            self.counts[part][label] += sign * count

    def _improve(self, order: Sequence[int]) -> None:
        """Moves units to other parts while that lowers the cost, the best moves first."""
        num_moved = len(self.units)
        while num_moved > FEW_MOVES * len(self.units):
            costly = {
                label
                for label in self.totals
                if any(self._cost(part, label, c[label]) for part, c in enumerate(self.counts))
            }
            moves = [
                (gain, unit, part)
                for unit in order
                if not costly.isdisjoint(self.units[unit])
                for part in range(len(self.shares))
                if (gain := self._gain(unit, part)) > EPSILON
            ]
            num_moved = 0
            for _, unit, part in sorted(moves, key=lambda move: -move[0]):
                # Earlier moves of this pass may have changed the gain.
                if self._gain(unit, part) > EPSILON:
                    self._add(unit, self.parts[unit], -1)
                    self._add(unit, part, 1)
                    self.parts[unit] = part
                    num_moved += 1

    def _gain(self, unit: int, part: int) -> float:
        """How much a move to a part lowers the cost."""
        own = self.parts[unit]
        if own == part:
            return 0.0
        gain = 0.0
        for label, count in self.units[unit].items():
            here, there = self.counts[own][label], self.counts[part][label]
            gain += self._cost(own, label, here) - self._cost(own, label, here - count)
            gain += self._cost(part, label, there) - self._cost(part, label, there + count)
        return gain


def sorted_by_count(totals: Counter[Hashable]) -> list[Hashable]:
    """The labels, the rarest first; equals in the order in which they were seen."""
    return sorted(totals, key=totals.__getitem__)


__all__ = ["SEED", "deal_folds", "divide", "hold_out"]
