"""What bodies say alike whose door gives one answer, of text alone."""

from __future__ import annotations

from gateway.flow.search.kinds import Search


class OneAnswer:
    """Mixed into the body of a door that gives one answer of text to all of the prompt."""

    @property
    def n(self) -> int | None:
        """One answer."""
        return None

    @property
    def search(self) -> Search | None:
        """It is drawn."""
        return None

    @property
    def is_rewritten(self) -> bool:
        """It is answered as it is."""
        return False

    @property
    def truncate_prompt_tokens(self) -> int | None:
        """All of the prompt is answered."""
        return None
