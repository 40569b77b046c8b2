"""One compute replica's stream: requests that open and close, frames of rows in, verdicts and deltas out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.drawing.draw import draw_token
from sampler_svc.errors import Disagreement
from sampler_svc.grammars import GrammarState
from sampler_svc.logprobs import PromptPart, RowLogprobs, TokenLogprob, token_logprob
from sampler_svc.request_slots import RequestSlots
from sampler_svc.request_state import REPLAY_PIECE_TOKENS, Delta, Finish, RequestState
from sampler_svc.text.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest, ServiceError
from triserve.rpc.sampling import Grammar
from triserve.rpc.token_mask import unpacked
from triserve.rpc.traces.context import read_traceparent
from triserve.rpc.traces.spans import OpenSpan, Tracer, error_type
from triserve.v1 import sampler_pb2

logger = logging.getLogger(__name__)

# Of a request's id, where it goes further than the log.
_MAX_ID_CHARS = 256


class Frame(NamedTuple):
    """What one step of a replica gave; the columns have one entry per row."""

    number: int
    opens: Sequence[sampler_pb2.OpenRequest]
    closes: Sequence[int]
    request: Sequence[int]
    position: Sequence[int]  # of the first token
    tokens: Sequence[Sequence[int]]  # none = to be drawn here, from the row's logits
    logprobs: Mapping[int, RowLogprobs]  # by row, of some that were drawn
    logits: Mapping[int, NDArray[np.float32]]  # by row, [width], of all to be drawn here and of those that are audited
    prompts: Sequence[PromptPart] = ()
    computed: Sequence[int] = ()  # requests that draw nothing, and whose prompt is computed


class ToCompile(NamedTuple):
    """A grammar of a request that has opened."""

    request: int
    grammar: Grammar
    stop_token_ids: frozenset[int]
    generated: Sequence[int]


class Compiled(NamedTuple):
    """What came of it."""

    request: int
    grammar: GrammarState | ServiceError


class Mask(NamedTuple):
    """What can be drawn next of a request that has a grammar."""

    request: int
    position: int
    allowed: bytes  # a bit for each id
    forced: Sequence[int]  # the token there and those behind it, as far as there is no choice


class Verdict(NamedTuple):
    """A token that was drawn here."""

    request: int
    position: int
    token: int


@dataclass(slots=True)
class Audits:
    """Rows of the process that compute had drawn, and that were drawn here again."""

    rows: int = 0
    disagreements: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of some frames."""

    verdicts: list[Verdict] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    failed: list[tuple[int, ServiceError]] = field(default_factory=list)
    deltas: dict[int, Delta] = field(default_factory=dict)
    """By the replica's request: however many frames there are, one delta for each."""
    masks: dict[int, Mask] = field(default_factory=dict)
    """By the replica's request: of each the latest."""
    to_compile: list[ToCompile] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.verdicts or self.finished or self.failed or self.deltas or self.masks)


class Session:
    """All requests of one compute replica.

    Args:
        vocabulary: of the tokenizer.
        logits_width: number of the replica's logits; every id is below it.
        slots: shared by all sessions of the process.
        audits: shared by all sessions of the process.
        tracer: records spans; None = nothing is traced.
    """

    def __init__(
        self, vocabulary: Vocabulary, logits_width: int, slots: RequestSlots, audits: Audits, tracer: Tracer | None = None
    ) -> None:
        self._tracer = tracer
        # Of requests that are traced.
        self._spans: dict[int, OpenSpan] = {}
        self._vocabulary = vocabulary
        self._logits_width = logits_width
        self._slots = slots
        self._audits = audits
        self._requests: dict[int, RequestState] = {}
        # Requests whose frame is not processed yet, replayed ahead: their state, or why there is none.
        self._prepared: dict[int, RequestState | InvalidRequest] = {}

    @property
    def num_requests(self) -> int:
        """Requests under way."""
        return len(self._requests)

    async def prepare(self, frames: Sequence[Frame]) -> None:
        """Replays long answers that are resumed in these frames, and lets other streams have their turn meanwhile.

        `process` does without, in one go.
        """
        for frame in frames:
            for opening in frame.opens:
                if len(opening.generated_token_ids) > REPLAY_PIECE_TOKENS:
                    try:
                        state = RequestState(opening, self._vocabulary, self._logits_width)
                        for _ in state.replay():
                            await asyncio.sleep(0)
                        self._prepared[opening.request] = state
                    except InvalidRequest as error:
                        self._prepared[opening.request] = error

    def process(self, frames: Sequence[Frame], compiled: Sequence[Compiled] = ()) -> Outcome:
        """Takes frames in their order; what comes of them is the same as of each alone, with the deltas of a request joined.

        Args:
            frames: of the stream.
            compiled: grammars of requests that opened in frames before.

        Raises:
            InvalidRequest: a request is opened that is open; the stream cannot go on.
        """
        outcome = Outcome()
        for one in compiled:
            self._begin_grammar(one, outcome)
        for frame in frames:
            for opening in frame.opens:
                self._open(opening, outcome)
            for request in frame.closes:
                self._drop(request, error="cancelled")
                outcome.masks.pop(request, None)
            self._take_prompts(frame, outcome)
            self._take_rows(frame, outcome)
            self._end_computed(frame, outcome)
        self._prepared.clear()
        return outcome

    def close(self) -> None:
        """Drops every request. Idempotent."""
        self._slots.release(len(self._requests))
        for request in list(self._spans):
            self._end_span(request, "cancelled")
        self._requests.clear()

    def _open(self, opening: sampler_pb2.OpenRequest, outcome: Outcome) -> None:
        if opening.request in self._requests:
            raise InvalidRequest(f"open has request {opening.request}, which is open already", field="open")
        try:
            self._slots.admit()
        except ServiceError as error:
            outcome.failed.append((opening.request, error))
            return
        try:
            caller = read_traceparent(opening.traceparent)
            state = self._requests[opening.request] = self._state_of(opening)
        except InvalidRequest as error:
            self._slots.release()
            outcome.failed.append((opening.request, error))
            return
        if state.reads_prompt:
            state.begin_prompt(self._delta(opening.request, state, outcome))
        if state.sampling.grammar is not None:
            outcome.to_compile.append(ToCompile(opening.request, state.sampling.grammar, state.stop_token_ids, opening.generated_token_ids))
        if caller is not None and self._tracer is not None:
            self._tracer.note(state.request_id, caller)
            span = self._spans[opening.request] = self._tracer.begin("sample", caller, kind="server")
            span.attributes["triserve.request_id"] = state.request_id[:_MAX_ID_CHARS]

    def _state_of(self, opening: sampler_pb2.OpenRequest) -> RequestState:
        prepared = self._prepared.pop(opening.request, None)
        if isinstance(prepared, InvalidRequest):
            raise prepared
        if prepared is None:
            prepared = RequestState(opening, self._vocabulary, self._logits_width)
            for _ in prepared.replay():
                pass
        return prepared

    def _begin_grammar(self, compiled: Compiled, outcome: Outcome) -> None:
        state = self._requests.get(compiled.request)
        # One that was closed meanwhile needs none.
        if state is None or not state.awaits_grammar:
            return
        if isinstance(compiled.grammar, ServiceError):
            self._fail(compiled.request, compiled.grammar, outcome)
            return
        state.grammar = compiled.grammar
        self._add_mask(compiled.request, state, outcome)

    def _add_mask(self, request: int, state: RequestState, outcome: Outcome) -> None:
        if state.grammar is None:
            return
        try:
            # A row that has log-probabilities has one token.
            forced = state.grammar.forced() if state.sampling.top_logprobs is None else ()
            outcome.masks[request] = Mask(request, state.position, state.grammar.allowed(), forced)
        except ServiceError as error:
            self._fail(request, error, outcome)

    def _drop(self, request: int, *, error: str | None = None) -> None:
        if request in self._spans:
            self._end_span(request, error)
        if self._requests.pop(request, None) is not None:
            self._slots.release()

    def _end_span(self, request: int, error: str | None) -> None:
        span = self._spans.pop(request)
        # Those of earlier attempts included.
        span.attributes["gen_ai.usage.output_tokens"] = self._requests[request].position
        span.error = error
        span.end()

    def _delta(self, request: int, state: RequestState, outcome: Outcome) -> Delta:
        delta = outcome.deltas.get(request)
        if delta is None:
            delta = outcome.deltas[request] = state.delta()
        return delta

    def _take_prompts(self, frame: Frame, outcome: Outcome) -> None:
        for part in frame.prompts:
            state = self._requests.get(part.request)
            if state is not None:
                try:
                    state.read_prompt(part, self._delta(part.request, state, outcome))
                except ServiceError as error:
                    self._fail(part.request, error, outcome)

    def _end_computed(self, frame: Frame, outcome: Outcome) -> None:
        for request in frame.computed:
            state = self._requests.get(request)
            if state is not None:
                try:
                    state.require_prompt(draws=False)
                except ServiceError as error:
                    self._fail(request, error, outcome)
                else:
                    delta = self._delta(request, state, outcome)
                    delta.finish = Finish.LENGTH
                    self._finish(request, delta.finish, outcome)

    def _take_rows(self, frame: Frame, outcome: Outcome) -> None:
        """Takes rows as they come. Rows of requests that are gone, and of tokens that are known, are ignored."""
        requests, logits = self._requests, frame.logits
        for row, (request, position, tokens) in enumerate(zip(frame.request, frame.position, frame.tokens, strict=True)):
            state = requests.get(request)
            if state is None:
                continue
            try:
                if position != state.position:
                    if position + max(1, len(tokens)) <= state.position:
                        continue
                    raise Disagreement(f"row is about position {position}, the next is {state.position}")
                if state.awaits_grammar:
                    raise Disagreement("row came before the request's grammar was compiled")
                state.require_prompt(draws=True)
                if not tokens:
                    self._take_whole(request, state, logits[row], outcome)
                    continue
                if row in logits:
                    self._audit(state, logits[row], tokens[0])
                entries = None if state.sampling.top_logprobs is None else self._entries(state, frame.logprobs.get(row), tokens)
                self._advance(request, state, tokens, entries, outcome)
            except ServiceError as error:
                self._fail(request, error, outcome)

    def _take_whole(self, request: int, state: RequestState, logits: NDArray[np.float32], outcome: Outcome) -> None:
        token, num_top = self._draw(state, logits), state.sampling.top_logprobs
        verdict = Verdict(request, state.position, token)
        self._advance(
            request,
            state,
            [token],
            None if num_top is None else [token_logprob(logits, token, num_top, state.sampling.logprob_token_ids)],
            outcome,
        )
        outcome.verdicts.append(verdict)

    def _entries(self, state: RequestState, logprobs: RowLogprobs | None, tokens: Sequence[int]) -> list[TokenLogprob]:
        if logprobs is None:
            raise Disagreement("row has no log-probabilities")
        return logprobs.entries(tokens, min(state.sampling.top_logprobs or 0, self._logits_width), state.sampling.logprob_token_ids)

    def _advance(
        self, request: int, state: RequestState, tokens: Sequence[int], entries: Sequence[TokenLogprob] | None, outcome: Outcome
    ) -> None:
        delta = self._delta(request, state, outcome)
        for index, token in enumerate(tokens):
            state.advance(token, delta, None if entries is None else entries[index])
            if delta.finish is not None:  # what is behind the end was drawn before it was known
                self._finish(request, delta.finish, outcome)
                return
        self._add_mask(request, state, outcome)

    def _finish(self, request: int, finish: Finish, outcome: Outcome) -> None:
        outcome.finished.append(request)
        if request in self._spans:
            self._spans[request].attributes["gen_ai.response.finish_reasons"] = (finish.name.lower(),)
        self._drop(request)
        outcome.masks.pop(request, None)

    def _draw(self, state: RequestState, logits: NDArray[np.float32]) -> int:
        """The token that comes next.

        Raises:
            Disagreement: the row is none that a model gives.
            InvalidRequest: the request leaves nothing that can be drawn.
        """
        if not np.isfinite(logits.max()):
            raise Disagreement("no logit is finite, or one is NaN or infinite")
        if state.grammar is not None:
            logits = np.where(unpacked(state.grammar.allowed(), self._logits_width), logits, np.float32(-np.inf))
        token = draw_token(logits, state.sampling, state.changes, state.position)
        if token is None:
            fields = [*state.changes.banning_fields(state.position), *(["grammar"] if state.grammar is not None else [])]
            raise InvalidRequest(f"{' and '.join(fields)} leave no token to draw at position {state.position}", field=fields[-1])
        return token

    def _audit(self, state: RequestState, logits: NDArray[np.float32], token: int) -> None:
        """Compares a token of compute's with the one that would be drawn here; compute's stands."""
        self._audits.rows += 1
        try:
            ours: int | str = self._draw(state, logits)
        except ServiceError as error:
            ours = error.detail if isinstance(error, Disagreement) else error.message
        if ours != token:
            self._audits.disagreements += 1
            logger.error("request %s, position %d: compute drew %d, the sampler %s", state.request_id, state.position, token, ours)

    def _fail(self, request: int, error: ServiceError, outcome: Outcome) -> None:
        if isinstance(error, Disagreement):
            logger.error("request %s: %s", self._requests[request].request_id, error.detail)
        outcome.failed.append((request, error))
        outcome.masks.pop(request, None)
        self._drop(request, error=error_type(error))
