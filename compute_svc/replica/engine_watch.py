"""Tells an engine that hangs from one that computes: a long step uses the processor, a frozen engine or one in a deadlock does not. Pure."""

from __future__ import annotations

# A watcher that was itself stopped for a while must not take that while for the engine's silence.
_LONGEST_LOOK_S = 1.0
# So many times as long may an engine that loads do nothing: it may wait for a disk or a network that does not come.
_LOADING_FACTOR = 10


class EngineWatch:
    """Adds up for how long an engine has been silent, and for how long it has done nothing.

    Args:
        freeze_timeout_s: An engine that is silent and uses no processor time for so long hangs; while it loads, ten times as long.
        step_timeout_s: One that is silent for so long hangs too, whatever it uses: no request waits longer.
    """

    def __init__(self, *, freeze_timeout_s: float, step_timeout_s: float) -> None:
        self._freeze_timeout_s = freeze_timeout_s
        self._step_timeout_s = step_timeout_s
        self._looked_at: float | None = None
        self._used_s: float | None = None
        self._silent_s = 0.0
        self._idle_s = 0.0

    def look(self, now: float, *, is_silent: bool, is_loading: bool, used_s: float | None) -> str | None:
        """What is wrong with the engine, in words that follow "the engine"; None = nothing is known to be.

        Args:
            now: Seconds on any clock that does not fall.
            is_silent: Whether it owes an answer.
            is_loading: Whether it loads its model, which may take as long as it likes.
            used_s: Processor time it has used since its start; None = this system does not say.
        """
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = now
        self._silent_s = self._silent_s + passed_s if is_silent else 0.0
        does_nothing = is_silent and used_s is not None and used_s == self._used_s
        self._idle_s = self._idle_s + passed_s if does_nothing else 0.0
        self._used_s = used_s
        limit_s = self._freeze_timeout_s * (_LOADING_FACTOR if is_loading else 1)
        if self._idle_s >= limit_s:
            return f"has neither answered nor used the processor for {limit_s:g} s"
        if self._silent_s >= self._step_timeout_s and not is_loading:
            return f"has been in one step for {self._step_timeout_s:g} s"
        return None
