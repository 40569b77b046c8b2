"""One request in the sampler: everything of it can be built again from its parameters, its prompt and its tokens so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sampler_svc.detokenizer import open_detokenizer
from sampler_svc.errors import Disagreement
from sampler_svc.logprobs import TokenLogprob
from sampler_svc.params import Finish, Sampling, Stopping, check_ids
from sampler_svc.penalties import Penalties
from sampler_svc.stop_matcher import StopMatcher, StopPatterns
from sampler_svc.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest

# Above any context.
MAX_TOKENS = 1 << 20
# Tokens that are replayed in one go: some milliseconds.
REPLAY_PIECE_TOKENS = 1024


class Opening(NamedTuple):
    """A request as compute opens it, not checked yet."""

    request: int
    gateway: int
    gateway_request: int
    epoch: int
    request_id: str
    prompt_token_ids: Sequence[int]
    generated_token_ids: Sequence[int]
    sampling: Sampling
    stopping: Stopping


@dataclass(slots=True)
class Delta:
    """What is new of one request for its gateway."""

    gateway: int
    gateway_request: int
    epoch: int
    first_position: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.tokens and not self.text and self.finish is None


class RequestState:
    """Penalties, text and end of one request. Nothing may be done with it before `replay` has ended.

    Args:
        opening: checked here.
        vocabulary: of the tokenizer.
        logits_width: every id is below it.

    Raises:
        InvalidRequest: naming the field that is wrong.
    """

    __slots__ = (
        "_detokenizer",
        "_generated",
        "_matcher",
        "_max_tokens",
        "_min_tokens",
        "_stop_token_ids",
        "epoch",
        "gateway",
        "gateway_request",
        "penalties",
        "position",
        "request_id",
        "sampling",
    )

    def __init__(self, opening: Opening, vocabulary: Vocabulary, logits_width: int) -> None:
        sampling, stopping = opening.sampling, opening.stopping
        sampling.check(logits_width)
        stopping.check(logits_width)
        assert stopping.max_tokens is not None, "checked"
        num_tokens = len(opening.prompt_token_ids) + len(opening.generated_token_ids)
        if num_tokens > MAX_TOKENS:
            raise InvalidRequest(f"prompt and answer have {num_tokens} tokens, the limit is {MAX_TOKENS}", field="prompt_token_ids")
        if len(opening.generated_token_ids) >= stopping.max_tokens:
            raise _has_ended()
        check_ids("prompt_token_ids", opening.prompt_token_ids, logits_width)
        check_ids("generated_token_ids", opening.generated_token_ids, logits_width)
        self.gateway = opening.gateway
        self.gateway_request = opening.gateway_request
        self.epoch = opening.epoch
        self.request_id = opening.request_id
        self.sampling = sampling
        self.penalties = Penalties(sampling, stopping, opening.prompt_token_ids)
        self.position = 0
        """Index of the next token of the answer."""
        self._max_tokens = stopping.max_tokens
        self._min_tokens = stopping.min_tokens
        self._stop_token_ids = stopping.stop_token_ids
        self._detokenizer = open_detokenizer(vocabulary, opening.prompt_token_ids)
        self._matcher = StopMatcher(StopPatterns(stopping.stop_strings)) if stopping.stop_strings else None
        self._generated = opening.generated_token_ids

    def delta(self) -> Delta:
        """An empty delta that begins here."""
        return Delta(self.gateway, self.gateway_request, self.epoch, self.position)

    def advance(self, token: int, delta: Delta) -> None:
        """The answer goes on with a token. Where several reasons end it at once, a stop id goes before a stop string before the length.

        Args:
            token: below the logits width.
            delta: receives the token, the text that is certain now, and the end if this is it.

        Raises:
            Disagreement: a stop id came before min_tokens.
        """
        count = self.position + 1
        stops = token in self._stop_token_ids
        if stops and count <= self._min_tokens:
            raise Disagreement(f"stop id {token} came at position {self.position}, min_tokens is {self._min_tokens}")
        self.position = count
        self.penalties.count(token)
        delta.tokens.append(token)
        if stops:
            delta.finish = Finish.STOP
            delta.text += self._held_back()
            return
        text = self._detokenizer.feed(token)
        last = count >= self._max_tokens
        if last:
            text += self._detokenizer.flush()
        if self._matcher is not None:
            text, stop = self._matcher.feed(text, armed=count >= self._min_tokens)
            if stop is not None:
                delta.text += text
                delta.finish = Finish.STOP
                return
            if last:
                text += self._matcher.flush()
        delta.text += text
        if last:
            delta.finish = Finish.LENGTH

    def _held_back(self) -> str:
        rest = self._detokenizer.flush()
        return self._matcher.flush() + rest if self._matcher is not None else rest

    def replay(self) -> Iterator[None]:
        """Advances over what an earlier attempt has delivered; in pieces, because an answer may have a million tokens.

        Raises:
            InvalidRequest: the answer has ended, or a stop id came too early.
        """
        generated, self._generated = self._generated, ()
        # Nobody sees it: what it would deliver was delivered by an earlier attempt.
        delta = self.delta()
        for index, token in enumerate(generated):
            if index and index % REPLAY_PIECE_TOKENS == 0:
                delta.tokens.clear()
                yield
            delta.text = ""
            try:
                self.advance(token, delta)
            except Disagreement as error:
                raise InvalidRequest("generated_token_ids has a stop id before min_tokens", field="generated_token_ids") from error
            if delta.finish is not None:
                raise _has_ended()


def _has_ended() -> InvalidRequest:
    return InvalidRequest("generated_token_ids is an answer that has ended", field="generated_token_ids")
