"""Why a grammar cannot be held."""

from __future__ import annotations


class CannotHold(Exception):
    """A grammar asks for what cannot be held, or is none.

    Args:
        why: for whoever wrote it.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
