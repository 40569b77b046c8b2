"""One compute replica's stream: requests that open and close, frames of rows in, verdicts and deltas out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.candidate_rows import CandidateRows
from sampler_svc.drawing import CandidateRow, Drawing
from sampler_svc.errors import Disagreement
from sampler_svc.logprobs import token_logprob
from sampler_svc.request_slots import RequestSlots
from sampler_svc.request_state import REPLAY_PIECE_TOKENS, Delta, Opening, RequestState
from sampler_svc.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest, ServiceError

logger = logging.getLogger(__name__)


class Kind(Enum):
    """What a row carries."""

    DRAWN = auto()
    CANDIDATES = auto()


class Frame(NamedTuple):
    """What one step of a replica gave; the columns from `request` on have one entry per row."""

    number: int
    opens: list[Opening]
    closes: list[int]
    request: list[int]
    position: list[int]
    kind: list[Kind]
    token: list[int]  # without meaning in rows that are not drawn
    log_sum_exp: NDArray[np.float64]  # [rows]
    candidates: CandidateRows


class Verdict(NamedTuple):
    """A candidate row's drawn token."""

    request: int
    position: int
    token: int


@dataclass(slots=True)
class Outcome:
    """What came of some frames."""

    verdicts: list[Verdict] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    failed: list[tuple[int, ServiceError]] = field(default_factory=list)
    deltas: dict[int, Delta] = field(default_factory=dict)
    """By the replica's request: however many frames there are, one delta for each."""


class Session:
    """All requests of one compute replica.

    Args:
        vocabulary: of the tokenizer.
        logits_width: number of the replica's logits; every id is below it.
        slots: shared by all sessions of the process.
    """

    def __init__(self, vocabulary: Vocabulary, logits_width: int, slots: RequestSlots) -> None:
        self._vocabulary = vocabulary
        self._logits_width = logits_width
        self._slots = slots
        self._drawing = Drawing(logits_width)
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

    def process(self, frames: Sequence[Frame]) -> Outcome:
        """Takes frames in their order; what comes of them is the same as of each alone, with the deltas of a request joined.

        Raises:
            InvalidRequest: a request is opened that is open; the stream cannot go on.
        """
        outcome = Outcome()
        for frame in frames:
            for opening in frame.opens:
                self._open(opening, outcome)
            for request in frame.closes:
                self._drop(request)
            self._take_rows(frame, outcome)
        self._prepared.clear()
        return outcome

    def close(self) -> None:
        """Drops every request. Idempotent."""
        self._slots.release(len(self._requests))
        self._requests.clear()

    def _open(self, opening: Opening, outcome: Outcome) -> None:
        if opening.request in self._requests:
            raise InvalidRequest(f"open has request {opening.request}, which is open already", field="open")
        try:
            self._slots.admit()
        except ServiceError as error:
            outcome.failed.append((opening.request, error))
            return
        try:
            self._requests[opening.request] = self._state_of(opening)
        except InvalidRequest as error:
            self._slots.release()
            outcome.failed.append((opening.request, error))

    def _state_of(self, opening: Opening) -> RequestState:
        prepared = self._prepared.pop(opening.request, None)
        if isinstance(prepared, InvalidRequest):
            raise prepared
        if prepared is None:
            prepared = RequestState(opening, self._vocabulary, self._logits_width)
            for _ in prepared.replay():
                pass
        return prepared

    def _drop(self, request: int) -> None:
        if self._requests.pop(request, None) is not None:
            self._slots.release()

    def _take_rows(self, frame: Frame, outcome: Outcome) -> None:
        """Takes drawn rows as they come, then draws all others at once. Rows of requests that are gone are ignored."""
        undrawn: list[tuple[int, int, RequestState]] = []
        rows = zip(frame.request, frame.position, frame.kind, frame.token, strict=True)
        for row, (request, position, kind, token) in enumerate(rows):
            state = self._requests.get(request)
            if state is None or position < state.position:
                continue
            if position > state.position:
                self._fail(request, Disagreement(f"row is about position {position}, the next is {state.position}"), outcome)
            elif kind is Kind.DRAWN:
                self._advance(request, state, token, row, frame, outcome)
            else:
                undrawn.append((row, request, state))
        if undrawn:
            self._draw(undrawn, frame, outcome)

    def _draw(self, undrawn: Sequence[tuple[int, int, RequestState]], frame: Frame, outcome: Outcome) -> None:
        wanted = [CandidateRow(row, state.position, state.sampling, state.penalties) for row, _, state in undrawn]
        results = self._drawing.draw(frame.candidates, frame.log_sum_exp, wanted)
        for (row, request, state), drawn, result in zip(undrawn, wanted, results, strict=True):
            if self._requests.get(request) is not state or state.position != drawn.position:
                continue  # the frame had the row twice
            if isinstance(result, ServiceError):
                self._fail(request, result, outcome)
            elif self._advance(request, state, result, row, frame, outcome):
                outcome.verdicts.append(Verdict(request, drawn.position, result))

    def _advance(self, request: int, state: RequestState, token: int, row: int, frame: Frame, outcome: Outcome) -> bool:
        """Whether it went well; if not, the request has failed."""
        delta = outcome.deltas.get(request)
        if delta is None:
            delta = outcome.deltas[request] = state.delta()
        num_top, entry = state.sampling.top_logprobs, None
        try:
            if num_top is not None:
                ids, logits = frame.candidates.row(row)
                entry = token_logprob(ids, logits, float(frame.log_sum_exp[row]), token, num_top, self._logits_width)
            state.advance(token, delta, entry)
        except ServiceError as error:
            self._fail(request, error, outcome)
            return False
        if delta.finish is not None:
            outcome.finished.append(request)
            self._drop(request)
        return True

    def _fail(self, request: int, error: ServiceError, outcome: Outcome) -> None:
        if isinstance(error, Disagreement):
            logger.error("request %s: %s", self._requests[request].request_id, error.detail)
        outcome.failed.append((request, error))
        self._drop(request)
