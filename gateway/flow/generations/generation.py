"""A request's answers as a door reads them: what is to be made, what comes of it, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from gateway.flow.generations.answer import Delta
from gateway.tools.answer_parser import AnswerForm
from triserve.v1 import common_pb2

CacheStatus: TypeAlias = Literal["hit-exact", "hit-semantic", "miss", "bypass"]


class CacheReport(NamedTuple):
    """What the prompt cache did for a request."""

    status: CacheStatus
    # Seconds since the answer was made; None = it is made now.
    age_s: int | None = None
    # Cosine between the question and the one whose answer this is; None = it is this one's.
    similarity: float | None = None


class Piece(NamedTuple):
    """A delta of one of a request's choices."""

    choice: int
    delta: Delta


class Usage(NamedTuple):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Timeline(NamedTuple):
    """Where a request's time went, in milliseconds; of several choices, the slowest at each stage."""

    tokenize_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float


class EncodedPrompt(NamedTuple):
    """A prompt as compute gets it."""

    token_ids: Sequence[int]
    # Leading ids that belong to the system prompt.
    system_tokens: int
    # Time in the tokenizer; 0 for prompts that came as ids.
    encode_us: int
    # Its last characters, where the chat template wrote them.
    end: str = ""


class Choice(NamedTuple):
    """One answer to be made, with nothing left to default."""

    number: int
    prompt: EncodedPrompt
    # Index of the prompt in the request.
    prompt_index: int
    sampling: common_pb2.SamplingParams
    stopping: common_pb2.StoppingParams


class Writer(Protocol):
    """Where deltas go as they come, past the reader."""

    @property
    def is_free(self) -> bool:
        """Whether what is written now need not wait."""

    def write(self, piece: Piece) -> None:
        """Takes a piece. Only while it is free."""


class Generation(Protocol):
    """What a door reads a request's answers from."""

    cache: CacheReport
    # Seconds it took to make the answer, where it was made before.
    saved_s: float
    # Of the model whose answers these are; set by the pipeline before anybody reads.
    system_fingerprint: str
    # How they are taken apart; None = not at all. Set with it.
    form: AnswerForm | None

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason and was taken."""

    async def next(self) -> list[Piece]:
        """Waits for more; an empty list after a long time without any. For a reader that does not stream: waits for ends alone.

        Raises:
            ServiceError: a choice failed. What came before it was returned by earlier calls.
        """

    def usage(self) -> Usage:
        """What the request has cost so far."""

    def timeline(self) -> Timeline:
        """Where its time has gone so far."""

    def prompt_token_ids(self, choice: int) -> Sequence[int]:
        """The prompt that a choice answers."""

    def write_to(self, writer: Writer) -> None:
        """Lets deltas go to a writer as they come, without waking who waits in `next`, which returns what the writer is not free for."""

    def wake(self) -> None:
        """Has `next` return, with nothing if there is nothing."""

    def close(self) -> None:
        """Lets go of everything; aborts what has not ended."""
