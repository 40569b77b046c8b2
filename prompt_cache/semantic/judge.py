"""What says whether two questions ask the same, where the rules are least sure: in the background, and never before an answer.

It is asked of answers that differ from the model's, of which a model that words its answers anew each time makes many, and of entries that a guard
refused. What it says of the first counts as the comparison's result; what it says of the second is counted alone, by guard, and tells an operator
which of them costs true hits. It serves nothing by itself: its own mistakes stay in the counts.
"""

from __future__ import annotations

from typing import Literal, Protocol

Judgement = Literal["same", "different", "unsure", "failed", "dropped"]


class Judge(Protocol):
    """Says whether two questions ask the same."""

    async def compare(self, first: str, second: str) -> Judgement:
        """Its judgement. Never raises for what it asks."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...
