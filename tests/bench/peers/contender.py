"""What all who are compared have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

THREADS = 2
PREFILL_TOKENS = 512
# Tokens before the first that is decoded, requests that decode at once, and tokens of each that count.
CONTEXT_TOKENS = 128
DECODE_SIZES = (1, 16, 64)
DECODE_STEPS = 32
WARM_UP_STEPS = 2

# Tokens per second, by what is measured.
Figures = dict[str, float]


class ServedLoad(NamedTuple):
    """What a server is asked.

    Attributes:
        concurrency: Requests under way at once.
        num_requests: Of the bundled lengths.
        scale: Of the lengths.
        temperature: 0 = greedy.
        seed: Which lengths and prompts.
    """

    concurrency: int
    num_requests: int
    scale: float
    temperature: float
    seed: int

    @property
    def name(self) -> str:
        """Of its column."""
        return f"served {self.concurrency}" + (f", temperature {self.temperature:g}" if self.temperature else "")


class Contender(Protocol):
    """One implementation with its weights in one format."""

    @property
    def maker(self) -> str:
        """Whose it is."""
        ...

    @property
    def format(self) -> str:
        """Of the weights."""
        ...

    @property
    def serves(self) -> bool:
        """Whether it has a server."""
        ...

    def computed(self, seed: int) -> Figures:
        """Speeds without a server; prompts depend on the seed."""
        ...

    def served(self, load: ServedLoad) -> Figures:
        """Speeds over HTTP, of one that serves.

        Raises:
            ValueError: An answer has not the length that was asked for, or there is none.
        """
        ...

    def answers(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """So many greedy tokens of each prompt."""
        ...


def name_of(contender: Contender) -> str:
    """Of a row."""
    return f"{contender.maker} {contender.format}"


def prefill_column() -> str:
    """Name of the column of prefill."""
    return f"prefill {PREFILL_TOKENS}"


def decode_column(size: int) -> str:
    """Name of the column of so many requests that decode at once."""
    return f"decode {size}"
