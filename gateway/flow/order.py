"""What is to be made for a call, and the stages that make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.flow.answer_cache import Inquiry
from gateway.flow.call import Call
from gateway.flow.generations.generation import Choice
from gateway.flow.generations.live_generation import Replicas
from gateway.flow.preparation import Tokenizers
from gateway.flow.search.writing import Decoders


class Order(NamedTuple):
    """What is to be made, with all that is known of it."""

    call: Call
    choices: list[Choice]
    stages: Stages
    # None = there is no prompt cache.
    inquiry: Inquiry | None
    # Milliseconds the request has left.
    remaining_ms: Callable[[], int]

    @property
    def prompt_tokens(self) -> int:
        """Of the first prompt."""
        return len(self.choices[0].prompt.token_ids)


class Stages(Replicas, Tokenizers, Decoders, Protocol):
    """Tokenizers and replicas that serve the same."""

    @property
    def is_complete(self) -> bool:
        """Whether there are both."""
