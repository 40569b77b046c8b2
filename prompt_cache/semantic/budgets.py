"""How often each scope was wrong, by all gateways of a Redis together, and which scopes are switched off for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from prompt_cache.guarded_redis import GuardedRedis
from prompt_cache.keys import SCHEMA_VERSION
from prompt_cache.semantic.budget import HitBudget, HitCounts, false_hit_bound

# Of the counts that a process holds; the one used longest ago goes.
_MAX_SCOPES = 4096
_FIELDS = ("served", "checked", "wrong", "since", "off_since")


class ScopeReport(NamedTuple):
    """What is known of a scope.

    Attributes:
        scope: Its name.
        served: Hits that were served.
        checked: Hits of which the model's answer is known.
        wrong: Those that were not as good.
        bound: Upper confidence bound of the share of wrong hits.
        is_off: Whether it is switched off.
    """

    scope: str
    served: int
    checked: int
    wrong: int
    bound: float
    is_off: bool


class Budgets:
    """Counts per scope.

    With a Redis, each check is added to what all gateways have counted, and the sum comes back; a scope that is new to a process is asked
    for in the background. Without one, or while it is left alone, the process goes by its own counts.

    Args:
        budget: The rule.
        guarded: Redis; None = the process alone.
    """

    def __init__(self, budget: HitBudget, guarded: GuardedRedis | None) -> None:
        self._budget = budget
        self._guarded = guarded
        self._counts: OrderedDict[str, HitCounts] = OrderedDict()
        # Hits that were served and that Redis was not told of yet.
        self._untold: dict[str, int] = {}

    def served(self, scope: str, now: float) -> None:
        """Counts a hit."""
        self._put(scope, self._budget.with_hit(self._of(scope), now))
        if self._guarded is not None:
            self._untold[scope] = self._untold.get(scope, 0) + 1

    def checked(self, scope: str, *, is_same: bool, now: float) -> None:
        """Counts a hit that was compared with the model's answer."""
        before = self._of(scope)
        after = self._budget.with_check(before, is_same, now)
        self._put(scope, after)
        if self._guarded is not None:
            begins_anew = after.since_s != before.since_s and before.since_s > 0
            self._guarded.enqueue(lambda: self._share(scope, begins_anew, is_same=is_same, now=now))

    def is_off(self, scope: str, now: float) -> bool:
        """Whether the scope is switched off, as far as is known here."""
        if scope not in self._counts:
            self._put(scope, HitCounts())
            if self._guarded is not None:
                self._guarded.enqueue(lambda: self._fetch(scope))
        return self._budget.is_off(self._of(scope), now)

    def reports(self, now: float) -> list[ScopeReport]:
        """Scopes with hits, those with the most first."""
        reports = [
            ScopeReport(scope, counts.served, counts.checked, counts.wrong, false_hit_bound(counts), self._budget.is_off(counts, now))
            for scope, counts in self._counts.items()
            if counts.served or counts.checked
        ]
        return sorted(reports, key=lambda report: -report.served)

    def _of(self, scope: str) -> HitCounts:
        return self._counts.get(scope, HitCounts())

    def _put(self, scope: str, counts: HitCounts) -> None:
        self._counts[scope] = counts
        self._counts.move_to_end(scope)
        while len(self._counts) > _MAX_SCOPES:
            forgotten, _ = self._counts.popitem(last=False)
            self._untold.pop(forgotten, None)

    async def _share(self, scope: str, begins_anew: bool, *, is_same: bool, now: float) -> None:
        assert self._guarded is not None, "only what is shared is told"
        name, served = _name(scope), self._untold.pop(scope, 0)
        async with self._guarded.redis.pipeline(transaction=True) as pipeline:
            if begins_anew:
                pipeline.delete(name)
            pipeline.hsetnx(name, "since", str(max(1, int(now))))
            pipeline.hincrby(name, "served", served)
            pipeline.hincrby(name, "checked", 1)
            pipeline.hincrby(name, "wrong", int(not is_same))
            pipeline.expire(name, self._budget.period_s)
            pipeline.hmget(name, list(_FIELDS))
            *_, fields = await pipeline.execute()
        counts = _read(fields)
        if counts is None:
            await self._guarded.redis.delete(name)
            return
        if not counts.off_since_s and self._budget.is_exceeded(counts):
            counts = replace(counts, off_since_s=max(1, int(now)))
            await self._guarded.redis.hset(name, "off_since", str(counts.off_since_s))
        self._put(scope, counts)

    async def _fetch(self, scope: str) -> None:
        assert self._guarded is not None, "only what is shared is asked for"
        counts = _read(await self._guarded.redis.hmget(_name(scope), list(_FIELDS)))
        if counts is not None and counts.checked > self._of(scope).checked:
            self._put(scope, counts)


def _name(scope: str) -> str:
    return f"triserve:cache:{SCHEMA_VERSION}:{{{scope}}}:b"


def _read(fields: Sequence[bytes | str | None]) -> HitCounts | None:
    """None where what Redis holds cannot be counts."""
    try:
        return HitCounts.from_ints([int(field or 0) for field in fields])
    except ValueError:
        return None
