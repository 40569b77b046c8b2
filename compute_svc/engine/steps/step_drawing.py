"""What a step's logits give for each of its requests: tokens that are drawn here, whole rows for a sampler. Changes no request."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import Drawer, DrawInto, OnTokens, RequestDraw, RowLogprobs, RowStatus
from compute_svc.kernels.host.host_copy import rows_of
from compute_svc.scheduler.base import RequestState
from compute_svc.wire.request import GREEDY, Request
from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2

_NOTHING = np.empty(0, dtype=np.int64)
_Unsigned = TypeVar("_Unsigned", np.uint32, np.uint64)


class DrawPlace(Enum):
    """Where rows are drawn of which more is to be known than the likeliest token.

    DEVICE: Here, where the logits are.
    SERVICE: In the sampler, which gets the row; its request waits for the verdict.
    """

    DEVICE = auto()
    SERVICE = auto()


class DrawConfig(NamedTuple):
    """How rows are drawn.

    Attributes:
        place: Where.
        audited_share: Of the rows drawn here, the share that a sampler gets whole, to draw them again and compare. Range [0, 1].
    """

    place: DrawPlace = DrawPlace.DEVICE
    audited_share: float = 0.0


class DrawnRow(NamedTuple):
    """One row.

    Attributes:
        status: What became of it; None if a sampler is to draw it, or has yet to tell what can be drawn.
        token: Without meaning in rows that were not drawn.
        logprobs: None if nobody asked for them.
        logits: [width] float32 for the sampler, None if it does not get them.
        forced: Tokens that follow it because the grammar leaves no other.
    """

    status: RowStatus | None
    token: int
    logprobs: RowLogprobs | None
    logits: npt.NDArray[np.float32] | None
    forced: tuple[int, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether its logits are kept until it is known what can be drawn."""
        return self.status is None and self.logits is None


class StepDraws(NamedTuple):
    """What a step drew.

    Attributes:
        tokens: [rows] int64.
        others: Rows of which there is more to say than their token, by place.
        likely: [rows] int64, what the next step was begun with, if it was.
    """

    tokens: npt.NDArray[np.int64]
    others: dict[int, DrawnRow]
    likely: npt.NDArray[np.int64]


class StepDrawing:
    """Draws the rows of steps.

    Args:
        logits_width: Number of logits of a row.
        device: Where they are.
        config: How.
        direct: See `Drawer`.
    """

    def __init__(self, logits_width: int, device: torch.device, config: DrawConfig, direct: DrawInto | None = None) -> None:
        self._width = logits_width
        self._config = config
        self._drawer = Drawer(logits_width, device, direct)
        # Grows by the share with every row, and is one less for each that is audited.
        self._audits_due = 0.0
        # Of the last step: most steps are of the same requests as the one before.
        self._states: list[RequestState] = []
        self._draws: list[RequestDraw] = []
        self._num_prompt = np.empty(0, dtype=np.int64)
        # Rows whose requests have a grammar.
        self._with_grammar: list[int] = []

    def open(self, request: Request) -> RequestDraw:
        """What the drawing keeps of a request, until `close`."""
        # The row of one that draws nothing is looked at all the same: whether it is finite.
        return RequestDraw(
            GREEDY if request.draws_nothing else request.sampling,
            min_tokens=0 if request.draws_nothing else request.min_tokens,
            stop_token_ids=request.stop_token_ids,
            num_prompt=request.prompt.size,
            logits_width=self._width,
        )

    def close(self, state: RequestState) -> None:
        """A request has ended."""
        self._drawer.forget(_draw_of(state))

    def draw(
        self,
        states: list[RequestState],
        num_tokens: npt.NDArray[np.int64],
        logits: torch.Tensor,
        on_tokens: OnTokens | None = None,
        found: torch.Tensor | None = None,
    ) -> StepDraws:
        """Draws what is drawn here.

        Args:
            states: Requests whose last known token the step computed, in the order of the rows.
            num_tokens: [rows], how many tokens of each are known.
            logits: [rows, width] float32.
            on_tokens: See `Drawer.draw`.
            found: See `Drawer.draw`.
        """
        self._look_at(states)
        positions = num_tokens - self._num_prompt
        waiting = [row for row in self._with_grammar if not self._draws[row].is_told(int(positions[row]))]
        if waiting or self._config.place is DrawPlace.SERVICE:
            return self._draw_some(states, positions, logits, waiting)
        drawn = self._drawer.draw(logits, self._draws, positions, lambda row: _known(states[row]), on_tokens, found)
        others = {row: DrawnRow(status, 0, None, None) for row, status in drawn.failed.items()}
        for row, logprobs in drawn.logprobs.items():
            others[row] = DrawnRow(RowStatus.DRAWN, int(drawn.tokens[row]), logprobs, None)
        self._add_forced(positions, drawn.tokens, others)
        if self._config.audited_share:
            self._add_audited(states, drawn.tokens, logits, others)
        return StepDraws(drawn.tokens, others, drawn.tokens if drawn.likely is None else drawn.likely)

    def untold(self, states: list[RequestState], num_tokens: npt.NDArray[np.int64]) -> bool:
        """Whether it is not known yet what some of the rows can draw. Arguments as of `draw`."""
        self._look_at(states)
        positions = num_tokens - self._num_prompt
        return any(not self._draws[row].is_told(int(positions[row])) for row in self._with_grammar)

    def draw_kept(self, states: list[RequestState]) -> list[DrawnRow]:
        """Draws rows whose logits were kept, now that it is known what they can draw.

        Effects: they are kept no longer.
        """
        draws = [_draw_of(state) for state in states]
        rows = []
        for draw in draws:
            assert draw.kept is not None, "what waits is kept"
            rows.append(draw.kept)
            draw.kept = None
        positions = np.array([state.position for state in states], dtype=np.int64)
        with torch.inference_mode():
            logits = torch.cat(rows)
            drawn = self._drawer.draw(logits, draws, positions, lambda row: _known(states[row]))
        others = {
            row: DrawnRow(
                drawn.failed.get(row, RowStatus.DRAWN), int(drawn.tokens[row]), drawn.logprobs.get(row), None, draw.forced_behind(position)
            )
            for row, (draw, position) in enumerate(zip(draws, positions.tolist(), strict=True))
        }
        if self._config.audited_share:
            self._add_audited(states, drawn.tokens, logits, others)
        return list(others.values())

    def _look_at(self, states: list[RequestState]) -> None:
        if states != self._states:
            self._states, self._draws = states, [_draw_of(state) for state in states]
            self._num_prompt = np.array([state.request.prompt.size for state in states], dtype=np.int64)
            self._with_grammar = [row for row, draw in enumerate(self._draws) if draw.has_grammar]

    def _draw_some(
        self, states: list[RequestState], positions: npt.NDArray[np.int64], logits: torch.Tensor, waiting: list[int]
    ) -> StepDraws:
        """The same where samplers draw what is not simply the likeliest, or have yet to say what can be drawn in some rows."""
        leaves = [self._leaves(state) for state in states]
        kept = [row for row, is_out in enumerate(leaves) if not is_out and row not in waiting]
        sent = [row for row, is_out in enumerate(leaves) if is_out]
        tokens = np.zeros(len(states), dtype=np.int64)
        others: dict[int, DrawnRow] = {}
        if kept:
            draws = [self._draws[row] for row in kept]
            drawn = self._drawer.draw(rows_of(logits, kept), draws, positions[kept], lambda place: _known(states[kept[place]]))
            tokens[kept] = drawn.tokens
            for place, status in drawn.failed.items():
                others[kept[place]] = DrawnRow(status, 0, None, None)
            for place, logprobs in drawn.logprobs.items():
                others[kept[place]] = DrawnRow(RowStatus.DRAWN, int(drawn.tokens[place]), logprobs, None)
        self._add_forced(positions, tokens, others)
        if waiting:
            is_finite = torch.isfinite(rows_of(logits, waiting).amax(dim=1)).tolist()
            for row, finite in zip(waiting, is_finite, strict=True):
                others[row] = DrawnRow(None if finite else RowStatus.BROKEN, 0, None, None)
                self._draws[row].kept = logits[row : row + 1].clone() if finite else None
        if sent:
            for row, whole in zip(sent, rows_of(logits, sent).cpu().numpy(), strict=True):
                others[row] = DrawnRow(None if np.isfinite(whole.max()) else RowStatus.BROKEN, 0, None, whole)
        if self._config.audited_share:
            self._add_audited(states, tokens, logits, others)
        return StepDraws(tokens, others, tokens)

    def _add_forced(self, positions: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64], others: dict[int, DrawnRow]) -> None:
        """Adds to rows that were drawn what follows them without a choice."""
        for row in self._with_grammar:
            forced = self._draws[row].forced_behind(int(positions[row]))
            if forced and row not in others:
                others[row] = DrawnRow(RowStatus.DRAWN, int(tokens[row]), None, None, forced)

    def _leaves(self, state: RequestState) -> bool:
        """Whether a sampler draws the next token of a request."""
        request = state.request
        # What a grammar allows is told to whoever has the logits.
        if request.draws_nothing or request.sampling.grammar is not None or self._config.place is DrawPlace.DEVICE:
            return False
        bans_stops = bool(request.stop_token_ids) and state.position < request.min_tokens
        return not request.sampling.greedy or request.sampling.changes_logits or bans_stops

    def _add_audited(
        self, states: list[RequestState], tokens: npt.NDArray[np.int64], logits: torch.Tensor, others: dict[int, DrawnRow]
    ) -> None:
        """Adds the logits of some of the drawn rows."""
        audited = []
        for row, state in enumerate(states):
            drawn = others.get(row)
            if (drawn is None or drawn.status is RowStatus.DRAWN) and not state.request.draws_nothing:
                self._audits_due += self._config.audited_share
                if self._audits_due >= 1:
                    self._audits_due -= 1
                    audited.append(row)
        if audited:
            for row, whole in zip(audited, rows_of(logits, audited).cpu().numpy(), strict=True):
                known = others.get(row, DrawnRow(RowStatus.DRAWN, int(tokens[row]), None, None))
                others[row] = known._replace(logits=whole)


class RowsWriter:
    """Collects rows in the columns of `Rows`.

    Args:
        prompt_logprobs: Of prompts, which come before the rows.
    """

    def __init__(self, prompt_logprobs: Sequence[sampler_pb2.PromptLogprobs] = ()) -> None:
        self._prompt_logprobs = prompt_logprobs
        self._computed: list[int] = []
        self._many: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]] = (_NOTHING, _NOTHING, _NOTHING)
        self._numbers: list[int] = []
        self._positions: list[int] = []
        self._counts: list[int] = []
        self._tokens: list[int] = []
        self._num_rows = 0
        self._logprobs: list[sampler_pb2.RowLogprobs] = []
        self._logits: list[sampler_pb2.RowLogits] = []

    def add_many(self, numbers: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
        """Adds rows with a token each and nothing else, before all others.

        Args:
            numbers: [rows] of the requests.
            positions: [rows] of the tokens.
            tokens: [rows].
        """
        assert not self._num_rows, "many come first, and once"
        self._many = (numbers, positions, tokens)
        self._num_rows = len(numbers)

    def add(self, number: int, position: int, row: DrawnRow, tokens: Sequence[int]) -> None:
        """Adds a row that was drawn or is to be.

        Args:
            number: Of the request.
            position: Of its next token.
            row: What the step gave.
            tokens: What was drawn, if it was.
        """
        index = self._num_rows
        self._num_rows += 1
        self._numbers.append(number)
        self._positions.append(position)
        self._counts.append(0 if row.status is None else len(tokens))
        if row.status is not None:
            self._tokens += tokens
        if row.logprobs is not None:
            one = row.logprobs
            self._logprobs.append(
                sampler_pb2.RowLogprobs(
                    row=index,
                    logprob=[one.logprob],
                    top_token=one.top_ids.tolist(),
                    top_logprob=one.top_logprobs.tolist(),
                    named_logprob=one.named,
                )
            )
        if row.logits is not None:
            self._logits.append(sampler_pb2.RowLogits(row=index, logits=row.logits.astype("<f4", copy=False).tobytes()))

    def add_computed(self, number: int) -> None:
        """Adds a request that draws nothing, and whose prompt is computed."""
        self._computed.append(number)

    def rows(self) -> Rows | None:
        """All of them; None if there is nothing to tell."""
        if not (self._num_rows or self._prompt_logprobs or self._computed):
            return None
        numbers, positions, tokens = self._many
        return Rows(
            _joined(numbers, self._numbers, np.uint64),
            _joined(positions, self._positions, np.uint32),
            _joined(np.ones(len(numbers), dtype=np.int64), self._counts, np.uint32),
            _joined(tokens, self._tokens, np.uint32),
            self._logprobs,
            self._logits,
            self._prompt_logprobs,
            self._computed,
        )


def _joined(many: npt.NDArray[np.int64], others: list[int], dtype: type[_Unsigned]) -> npt.NDArray[_Unsigned]:
    first = many.astype(dtype)
    return np.concatenate((first, np.array(others, dtype=dtype))) if others else first


def _known(state: RequestState) -> npt.NDArray[np.int64]:
    return state.tokens[: state.num_tokens]


def _draw_of(state: RequestState) -> RequestDraw:
    assert isinstance(state.draw, RequestDraw), "a submitted request has what its drawing needs"
    return state.draw
