"""One answer as it arrives: its token log, what its reader has not taken yet, and the checks that nothing is lost or doubled.

Pure: fed by the stream of a compute replica, read by one reader, which is told by a callback that there is something to take. A reader
that falls behind finds the deltas merged; what waits for it is bounded by the answer's own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from triserve.rpc.errors import Internal, ServiceError
from triserve.v1 import sampler_pb2

FinishReason: TypeAlias = Literal["stop", "length"]


# Text, token ids and, with the last of them, the finish reason.
Tee: TypeAlias = Callable[[str, tuple[int, ...], FinishReason | None], None]


class Delta(NamedTuple):
    """What came since the reader last took."""

    text: str
    token_ids: list[int]
    # Those of the text, if they were asked for; they may be of tokens that came before.
    logprobs: list[sampler_pb2.TokenLogprobs]
    # None = the answer goes on.
    finish_reason: FinishReason | None
    # Those of the prompt's tokens, if they were asked for: all of them, in the answer's first delta.
    prompt_logprobs: Sequence[sampler_pb2.TokenLogprobs] = ()
    # Those that were asked for, little-endian float32: all of them, in the answer's last delta.
    hidden_states: bytes = b""


class Started(NamedTuple):
    """What the replica said when the first token was computed."""

    cached_tokens: int
    queue_us: int
    prefill_us: int


class Answer:
    """The answer to one choice of a request, over all attempts at it.

    Args:
        index: of the choice in the request.
        notify: called with the answer when there is something for the reader.
        every_delta: whether the reader wants each delta; otherwise it is told of the end alone.
        begun: tokens of the answer that were made and delivered before.
        tee: is given each delta as it comes, beside the reader.
    """

    __slots__ = (
        "_every_delta",
        "_logprobs",
        "_notify",
        "_prompt_logprobs",
        "_taken",
        "_text",
        "_took_finish",
        "blank",
        "error",
        "finish_reason",
        "first_at",
        "hidden",
        "index",
        "last_at",
        "started",
        "tee",
        "token_ids",
        "untouched",
    )

    def __init__(
        self,
        index: int,
        notify: Callable[[Answer], None],
        *,
        every_delta: bool,
        begun: Sequence[int] = (),
        tee: Tee | None = None,
    ) -> None:
        self.index = index
        # Every token so far, taken or not; a resumed attempt goes on from its length.
        self.token_ids: list[int] = list(begun)
        # Whether nothing has come yet, and whether the reader has taken nothing yet.
        self.blank = True
        self.untouched = True
        # When the first and the latest delta came, in seconds of the caller's clock; 0 = not yet.
        self.first_at = 0.0
        self.last_at = 0.0
        self.started: Started | None = None
        self.finish_reason: FinishReason | None = None
        self.error: ServiceError | None = None
        self._notify = notify
        self._every_delta = every_delta
        self._text: list[str] = []
        self._logprobs: list[sampler_pb2.TokenLogprobs] = []
        self._prompt_logprobs: list[sampler_pb2.TokenLogprobs] = []
        # Hidden states that were asked for, little-endian float32.
        self.hidden = bytearray()
        # [0, taken) the reader has · [taken, len(token_ids)) waits for it.
        self._taken = len(self.token_ids)
        self._took_finish = False
        self.tee = tee

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, for a finish reason or an error."""
        return self.finish_reason is not None or self.error is not None

    def push(
        self,
        first_position: int,
        token_ids: Sequence[int],
        text: str,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[sampler_pb2.TokenLogprobs] = (),
        *,
        now: float,
    ) -> None:
        """Takes a delta in. One that was here before is dropped; one that leaves a gap fails the answer; after the end everything is.

        Args:
            first_position: index of the delta's first token.
            token_ids: its tokens; may be empty.
            text: its text; may be empty.
            finish_reason: None = the answer goes on.
            logprobs: those of the text, or none.
            now: seconds of a clock that never falls.
        """
        if self.ended:
            return
        expected = len(self.token_ids)
        if first_position != expected:
            if first_position + len(token_ids) > expected:
                self.fail(Internal("a part of the answer was lost between the stages"))
            return
        if self.blank:
            self.blank = False
            self.first_at = now
        self.last_at = now
        self.token_ids += token_ids
        if text:
            self._text.append(text)
        if logprobs:
            self._logprobs += logprobs
        if self.tee is not None:
            self.tee(text, tuple(token_ids), finish_reason)
        self.finish_reason = finish_reason
        if self._every_delta or finish_reason is not None:
            self._notify(self)

    def tell_prompt(self, first_position: int, logprobs: Sequence[sampler_pb2.TokenLogprobs]) -> None:
        """Takes log-probabilities of the prompt in, which come before its answer and wait for its first delta."""
        if first_position != len(self._prompt_logprobs):
            self.fail(Internal("a part of the prompt's log-probabilities was lost between the stages"))
        elif not self.ended:
            self._prompt_logprobs += logprobs

    def begin(self, started: Started) -> None:
        """Notes that the first token is computed. Of an answer that was resumed the first attempt tells when it began."""
        if self.started is None:
            self.started = started

    def fail(self, error: ServiceError) -> None:
        """Ends the answer with an error, unless it has ended. What came before it can still be taken."""
        if not self.ended:
            self.error = error
            self._notify(self)

    def resume(self, *, anew: bool = False) -> None:
        """Makes a failed answer ready for another attempt, which goes on from its token log. Only right if nothing was taken.

        Args:
            anew: whether the attempt makes the whole answer again: log-probabilities that an attempt held back are lost with it.
        """
        assert self.untouched, "an answer of which something was taken is not resumed"
        self.error = None
        self._prompt_logprobs = []
        self.hidden.clear()
        if anew:
            assert self.tee is None, "what was given to others cannot be made again"
            self.blank = True
            self.token_ids = []
            self._text = []
            self._logprobs = []
        if self.blank:
            self.started = None

    def abandon(self) -> None:
        """Lets go of the reader, who is gone: who is told by what it owns would only be freed by the garbage collector, with all it holds."""
        self._notify = _nobody

    def take(self) -> Delta | None:
        """All that came since the last call, as one delta; None if nothing did."""
        finish = None if self._took_finish else self.finish_reason
        tokens = self.token_ids[self._taken :]
        if not (tokens or self._text or finish):
            return None
        hidden = bytes(self.hidden) if finish is not None else b""
        delta = Delta("".join(self._text), tokens, self._logprobs, finish, tuple(self._prompt_logprobs), hidden)
        self.untouched = False
        self._taken = len(self.token_ids)
        self._text = []
        self._logprobs = []
        self._prompt_logprobs = []
        self._took_finish = finish is not None
        return delta


def _nobody(answer: Answer) -> None:
    """Who is told of an answer that nobody reads."""
