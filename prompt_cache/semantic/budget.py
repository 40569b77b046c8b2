"""A scope's budget of false hits: how many of its hits were checked against the model and were wrong, and whether it must pause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

# Of the published upper bound: the true rate is above it once in twenty scopes.
PUBLISHED_CONFIDENCE = 0.95
# Of the evidence that switches a scope off. It is asked after every check, hence the higher one.
EVIDENCE_CONFIDENCE = 0.99
# One wrong hit is no evidence, however few were checked.
MIN_WRONG = 2


@dataclass(frozen=True, kw_only=True)
class HitCounts:
    """What is known of a scope's hits. The first three may be added up across gateways.

    Attributes:
        served: Hits that were served.
        checked: Hits that were compared with the model's answer, served or not.
        wrong: Those of them that were wrong.
        since_s: When counting began, seconds of any clock the gateways share; 0 for never.
        off_since_s: When the scope was switched off; 0 while it is on.
    """

    served: int = 0
    checked: int = 0
    wrong: int = 0
    since_s: int = 0
    off_since_s: int = 0

    def __post_init__(self) -> None:
        if min(self.as_ints()) < 0 or self.wrong > self.checked:
            raise ValueError(f"counts must not be negative, nor more wrong than checked: {self.as_ints()}")

    def as_ints(self) -> tuple[int, int, int, int, int]:
        """For a store; `from_ints` reads it."""
        return self.served, self.checked, self.wrong, self.since_s, self.off_since_s

    @classmethod
    def from_ints(cls, ints: Sequence[int]) -> HitCounts:
        """The counts a store kept.

        Raises:
            ValueError: they are not five, or cannot be.
        """
        if len(ints) != 5:
            raise ValueError(f"counts are five numbers, got {len(ints)}")
        served, checked, wrong, since_s, off_since_s = ints
        return cls(served=served, checked=checked, wrong=wrong, since_s=since_s, off_since_s=off_since_s)


@dataclass(frozen=True, kw_only=True)
class HitBudget:
    """The rule by which a scope is switched off.

    A scope is off from the moment when at least `MIN_WRONG` of its checked hits were wrong and, with `EVIDENCE_CONFIDENCE`, more than the
    budget of all its hits are: the exact (Clopper-Pearson) lower bound of the rate exceeds the budget. With 1 %: 2 wrong of the first 15,
    3 of 44, 5 of 129, 10 of 415. It comes back when its entries are purged or after `pause_s`, and starts counting anew. Counts are also
    forgotten after `period_s`, so that a long good past does not hide a bad present.

    Attributes:
        limit: Largest share of wrong hits, in (0, 1).
        pause_s: How long a scope stays off.
        period_s: How long counts are kept.
    """

    limit: float = 0.01
    pause_s: int = 6 * 3600
    period_s: int = 7 * 24 * 3600

    def __post_init__(self) -> None:
        if not 0.0 < self.limit < 1.0:
            raise ValueError(f"limit is {self.limit}, it must be in (0, 1)")
        if self.pause_s < 1 or self.period_s < 1:
            raise ValueError(f"pause_s and period_s must be at least 1, they are {self.pause_s} and {self.period_s}")

    def is_exceeded(self, counts: HitCounts) -> bool:
        """Whether there is evidence that more than the budget of the hits are wrong."""
        return counts.wrong >= MIN_WRONG and lower_bound(counts.wrong, counts.checked, EVIDENCE_CONFIDENCE) > self.limit

    def is_off(self, counts: HitCounts, now_s: float) -> bool:
        """Whether the scope serves nothing near for now."""
        return counts.off_since_s > 0 and now_s < counts.off_since_s + self.pause_s

    def with_hit(self, counts: HitCounts, now_s: float) -> HitCounts:
        """After a hit was served."""
        current = self._current(counts, now_s)
        return replace(current, served=current.served + 1)

    def with_check(self, counts: HitCounts, is_same: bool, now_s: float) -> HitCounts:
        """After a hit was compared with the model's answer; switches the scope off when the budget is exceeded."""
        current = self._current(counts, now_s)
        checked = replace(current, checked=current.checked + 1, wrong=current.wrong + (not is_same))
        if not checked.off_since_s and self.is_exceeded(checked):
            return replace(checked, off_since_s=_whole(now_s))
        return checked

    def _current(self, counts: HitCounts, now_s: float) -> HitCounts:
        """The counts, or new ones where they are too old, or the scope's pause is over."""
        over = counts.off_since_s > 0 and not self.is_off(counts, now_s)
        if not counts.since_s or over or (not counts.off_since_s and now_s >= counts.since_s + self.period_s):
            return HitCounts(since_s=_whole(now_s))
        return counts


def false_hit_bound(counts: HitCounts) -> float:
    """The share of wrong hits that is published: its upper bound with `PUBLISHED_CONFIDENCE`; 1 while nothing was checked."""
    return upper_bound(counts.wrong, counts.checked, PUBLISHED_CONFIDENCE)


def upper_bound(wrong: int, checked: int, confidence: float) -> float:
    """Exact one-sided upper bound of a rate (Clopper-Pearson).

    Args:
        wrong: In [0, checked].
        confidence: In (0, 1).
    """
    if wrong >= checked:
        return 1.0
    return _beta_quantile(confidence, wrong + 1, checked - wrong)


def lower_bound(wrong: int, checked: int, confidence: float) -> float:
    """Exact one-sided lower bound of a rate (Clopper-Pearson). Arguments as for `upper_bound`."""
    if wrong == 0:
        return 0.0
    return _beta_quantile(1.0 - confidence, wrong, checked - wrong + 1)


def _whole(now_s: float) -> int:
    """Whole seconds, never 0, which says "never"."""
    return max(1, math.floor(now_s))


def _beta_quantile(probability: float, a: int, b: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _beta_distribution(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_distribution(x: float, a: int, b: int) -> float:
    """Regularised incomplete beta function, by its continued fraction (modified Lentz)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta_distribution(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for numerator in (even, odd):
            d = 1.0 / (1.0 + numerator * d or tiny)
            c = 1.0 + numerator / c or tiny
            step = c * d
            fraction *= step
        if abs(step - 1.0) < 1e-14:
            break
    return math.exp(log_front) * fraction / a
