"""One request in the sampler: everything of it can be built again from its parameters, its prompt and its tokens so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from sampler_svc.drawing.changes import Changes
from sampler_svc.errors import Disagreement
from sampler_svc.grammars import GrammarState
from sampler_svc.logprobs import LogprobTrail, PromptPart, TextLogprob, TokenLogprob
from sampler_svc.prompt_trail import PromptTrail
from sampler_svc.text.detokenizer import Fed, open_detokenizer
from sampler_svc.text.stop_matcher import StopMatcher, StopPatterns
from sampler_svc.text.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Sampling, Stopping, check_ids
from triserve.v1 import sampler_pb2

# Above any context.
MAX_TOKENS = 1 << 20
# Tokens that are replayed in one go: some milliseconds.
REPLAY_PIECE_TOKENS = 1024


class Finish(Enum):
    """Why an answer ended."""

    STOP = auto()
    LENGTH = auto()


@dataclass(slots=True)
class Delta:
    """What is new of one request for its gateway."""

    gateway: int
    gateway_request: int
    epoch: int
    first_position: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TextLogprob] = field(default_factory=list)
    finish: Finish | None = None
    first_prompt_position: int = 0
    """Index in the prompt of the first of `prompt_logprobs`."""
    prompt_logprobs: list[TextLogprob] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.tokens or self.text or self.logprobs or self.prompt_logprobs) and self.finish is None


class RequestState:
    """Changes to logits, text and end of one request. Nothing may be done with it before `replay` has ended.

    Args:
        opening: as compute sent it; checked here.
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
        "_named",
        "_prompt",
        "_sent",
        "_spoken",
        "_stop_token_ids",
        "_trail",
        "changes",
        "epoch",
        "gateway",
        "gateway_request",
        "grammar",
        "position",
        "request_id",
        "sampling",
    )

    def __init__(self, opening: sampler_pb2.OpenRequest, vocabulary: Vocabulary, logits_width: int) -> None:
        sampling = Sampling.read(opening.sampling, logits_width)
        stopping = Stopping.read(opening.stopping, logits_width)
        assert stopping.max_tokens is not None, "checked"
        num_tokens = len(opening.prompt_token_ids) + len(opening.generated_token_ids)
        if num_tokens > MAX_TOKENS:
            raise InvalidRequest(f"prompt and answer have {num_tokens} tokens, the limit is {MAX_TOKENS}", field="prompt_token_ids")
        if len(opening.generated_token_ids) >= max(1, stopping.max_tokens):
            raise _has_ended()
        if sampling.prompt_logprobs is not None and not opening.prompt_token_ids:
            raise InvalidRequest("prompt_token_ids is empty, it must have at least one id", field="prompt_token_ids")
        check_ids("prompt_token_ids", opening.prompt_token_ids, logits_width)
        check_ids("generated_token_ids", opening.generated_token_ids, logits_width)
        self.gateway = opening.gateway
        self.gateway_request = opening.gateway_request
        self.epoch = opening.epoch
        self.request_id = opening.request_id
        # Of what is never drawn no grammar need be compiled.
        self.sampling = sampling if stopping.max_tokens else replace(sampling, grammar=None)
        self.changes = Changes(sampling, stopping.min_tokens, stopping.stop_token_ids, opening.prompt_token_ids, logits_width)
        self.position = 0
        """Index of the next token of the answer."""
        self._max_tokens = stopping.max_tokens
        self._min_tokens = stopping.min_tokens
        self._stop_token_ids = stopping.stop_token_ids
        shown = vocabulary if stopping.skip_special_tokens else vocabulary.with_special_tokens
        joins = not stopping.spaces_between_special_tokens
        self._detokenizer = open_detokenizer(shown, opening.prompt_token_ids, joins_special_tokens=joins)
        self._matcher: StopMatcher | None = None
        if stopping.stop_strings:
            self._matcher = StopMatcher(StopPatterns(stopping.stop_strings), includes_stop=stopping.include_stop_string)
        # Where all special tokens are text, the detokenizer writes these too.
        self._spoken = {} if shown.shows_special_tokens else _spoken_names(stopping.spoken_tokens, vocabulary)
        # Special tokens are no text, and yet a client that knows them stops at their names.
        self._named = {} if shown.shows_special_tokens else _special_names_in(stopping.stop_strings, vocabulary)
        self._trail = None if sampling.top_logprobs is None else LogprobTrail()
        self._prompt: PromptTrail | None = None
        if sampling.prompt_logprobs is not None:
            self._prompt = PromptTrail(vocabulary, list(opening.prompt_token_ids), min(sampling.prompt_logprobs, logits_width))
        self._sent = 0
        """Characters of the answer that deltas have; counted for the trail alone."""
        self._generated: Sequence[int] = opening.generated_token_ids
        self.grammar: GrammarState | None = None
        """Where its text is in its grammar; None until that is compiled, when nothing can be drawn, and where there is none."""

    @property
    def awaits_grammar(self) -> bool:
        """Whether it has a grammar that is not compiled yet."""
        return self.sampling.grammar is not None and self.grammar is None

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """End the answer."""
        return self._stop_token_ids

    def delta(self) -> Delta:
        """An empty delta that begins here."""
        num_told = 0 if self._prompt is None else self._prompt.num_told
        return Delta(self.gateway, self.gateway_request, self.epoch, self.position, first_prompt_position=num_told)

    @property
    def reads_prompt(self) -> bool:
        """Whether log-probabilities of its prompt were asked for."""
        return self._prompt is not None

    def begin_prompt(self, delta: Delta) -> None:
        """The prompt's first token goes into a delta, where it `reads_prompt`."""
        if self._prompt is not None:
            delta.prompt_logprobs += self._prompt.begin()

    def read_prompt(self, part: PromptPart, delta: Delta) -> None:
        """More tokens of the prompt go into a delta.

        Raises:
            Disagreement: nobody asked for them, or they do not fit.
        """
        if self._prompt is None:
            raise Disagreement("log-probabilities of the prompt come though none were asked for")
        delta.prompt_logprobs += self._prompt.read(part)

    def require_prompt(self, *, draws: bool) -> None:
        """The prompt is computed.

        Args:
            draws: whether something is drawn now.

        Raises:
            Disagreement: log-probabilities of it are missing, or something is drawn and should not, or is not and should.
        """
        if self._prompt is not None and not self._prompt.is_whole:
            raise Disagreement("log-probabilities of the prompt are missing")
        if draws != (self._max_tokens > 0):
            raise Disagreement(
                f"max_tokens is {self._max_tokens}, and a token is drawn" if draws else "the prompt is all, and max_tokens is not 0"
            )

    def advance(self, token: int, delta: Delta, logprob: TokenLogprob | None = None) -> None:
        """The answer goes on with a token. Where several reasons end it at once, a stop id goes before a stop string before the length.

        Args:
            token: below the logits width.
            delta: receives the token, the text that is certain now, and the end if this is it.
            logprob: of the token, if asked for; goes out with the token's text.

        Raises:
            Disagreement: a stop id came before min_tokens, or the token is none that the grammar allows.
        """
        count = self.position + 1
        stops = token in self._stop_token_ids
        if stops and count <= self._min_tokens:
            raise Disagreement(f"stop id {token} came at position {self.position}, min_tokens is {self._min_tokens}")
        is_whole = self.grammar is not None and self._follow(self.grammar, token, stops=stops)
        self.position = count
        self.changes.count(token)
        delta.tokens.append(token)
        last = stops or is_whole or count >= self._max_tokens
        text = "" if stops else self._feed(token, logprob)
        if last:
            text += self._flush()
        if stops and self._prompt is not None and self._trail is not None:
            self._trail.feed(logprob, Fed("", b""), pending_before=False, pending=False)
        stop = None
        if self._matcher is not None:
            armed = not stops and count >= self._min_tokens
            text, stop = self._matcher.feed(text, armed=armed)
            if stop is None and not stops and token in self._named and token not in self._spoken:
                before, stop = self._matcher.feed(self._named[token], armed=armed, hidden=True)
                text += before
            if last and stop is None:
                text += self._matcher.flush()
        delta.text += text
        if stops or is_whole or stop is not None:
            delta.finish = Finish.STOP
        elif last:
            delta.finish = Finish.LENGTH
        if self._trail is not None:
            self._sent += len(text)
            delta.logprobs += self._trail.sent(self._sent) if stop is None else self._trail.cut(self._sent)

    def _follow(self, grammar: GrammarState, token: int, *, stops: bool) -> bool:
        """Whether the text is whole with a token, and nothing can follow."""
        if not (grammar.is_whole if stops else grammar.advance([token])):
            raise Disagreement(f"token {token} came at position {self.position}, which the grammar does not allow")
        return not stops and grammar.is_over

    def _feed(self, token: int, logprob: TokenLogprob | None) -> str:
        name = self._spoken.get(token)
        if self._trail is None:
            return self._detokenizer.feed(token) if name is None else self._detokenizer.interrupt() + name
        pending_before = self._detokenizer.pending
        fed = self._detokenizer.feed_exactly(token) if name is None else Fed(self._detokenizer.interrupt() + name, name.encode())
        self._trail.feed(logprob, fed, pending_before=pending_before, pending=self._detokenizer.pending)
        return fed.text

    def _flush(self) -> str:
        text = self._detokenizer.flush()
        if self._trail is not None:
            self._trail.flush(text)
        return text

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


def _spoken_names(names: Sequence[str], vocabulary: Vocabulary) -> dict[int, str]:
    """Special tokens with one of these names, by id."""
    return {token: name for token, name in vocabulary.special_names.items() if name in names} if names else {}


def _special_names_in(stops: Sequence[str], vocabulary: Vocabulary) -> dict[int, str]:
    """Names of special tokens that are in a stop string, by id."""
    if not stops:
        return {}
    return {token: name for token, name in vocabulary.special_names.items() if any(name in stop for stop in stops)}
