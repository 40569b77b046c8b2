"""What a step's logits give for each of its requests: tokens that are drawn here, whole rows for a sampler. Changes no request."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import Drawer, RequestDraw, RowLogprobs, RowStatus, RowToDraw
from compute_svc.kernels.host_copy import rows_of
from compute_svc.scheduler.base import RequestState
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2


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
        status: What became of it; None if a sampler is to draw it.
        token: Without meaning in rows that were not drawn.
        logprobs: None if nobody asked for them.
        logits: [width] float32 for the sampler, None if it does not get them.
    """

    status: RowStatus | None
    token: int
    logprobs: RowLogprobs | None
    logits: npt.NDArray[np.float32] | None


class StepDrawing:
    """Draws the rows of steps.

    Args:
        logits_width: Number of logits of a row.
        device: Where they are.
        config: How.
    """

    def __init__(self, logits_width: int, device: torch.device, config: DrawConfig) -> None:
        self._width = logits_width
        self._config = config
        self._drawer = Drawer(logits_width, device)
        # Grows by the share with every row, and is one less for each that is audited.
        self._audits_due = 0.0

    def open(self, request: Request) -> RequestDraw:
        """What the drawing keeps of a request, until `close`."""
        return RequestDraw(
            request.sampling,
            min_tokens=request.min_tokens,
            stop_token_ids=request.stop_token_ids,
            num_prompt=request.prompt.size,
            logits_width=self._width,
        )

    def close(self, state: RequestState) -> None:
        """A request has ended."""
        self._drawer.forget(_draw_of(state))

    def draw(self, states: Sequence[RequestState], logits: torch.Tensor) -> list[DrawnRow]:
        """Draws what is drawn here.

        Args:
            states: Requests whose last known token the step computed, in the order of the rows.
            logits: [rows, width] float32.
        """
        leaves = [self._leaves(state) for state in states]
        kept = [index for index, is_out in enumerate(leaves) if not is_out]
        rows = [RowToDraw(_draw_of(states[index]), states[index].tokens[: states[index].num_tokens]) for index in kept]
        drawn = self._drawer.draw(logits if len(kept) == len(states) else rows_of(logits, kept), rows) if kept else None
        sent = [index for index, is_out in enumerate(leaves) if is_out or (not states[index].request.pins and self._is_audited())]
        whole = dict(zip(sent, rows_of(logits, sent).cpu().numpy(), strict=True)) if sent else {}
        result: list[DrawnRow] = []
        place = 0
        for index, is_out in enumerate(leaves):
            if is_out or drawn is None:
                status = None if np.isfinite(whole[index].max()) else RowStatus.BROKEN
                result.append(DrawnRow(status, 0, None, whole[index]))
            else:
                result.append(DrawnRow(drawn.status[place], drawn.tokens[place], drawn.logprobs[place], whole.get(index)))
                place += 1
        return result

    def _leaves(self, state: RequestState) -> bool:
        """Whether a sampler draws the next token of a request."""
        request = state.request
        if self._config.place is DrawPlace.DEVICE or request.pins:
            return False
        sampling = request.sampling
        bans_stops = bool(request.stop_token_ids) and state.position < request.min_tokens
        return not sampling.greedy or sampling.changes_logits or bans_stops

    def _is_audited(self) -> bool:
        self._audits_due += self._config.audited_share
        if self._audits_due < 1:
            return False
        self._audits_due -= 1
        return True


class RowsWriter:
    """Collects rows in the columns of `Rows`."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._positions: list[int] = []
        self._counts: list[int] = []
        self._tokens: list[int] = []
        self._logprobs: list[sampler_pb2.RowLogprobs] = []
        self._logits: list[sampler_pb2.RowLogits] = []

    def add(self, number: int, position: int, row: DrawnRow) -> None:
        """Adds a row that was drawn or is to be.

        Args:
            number: Of the request.
            position: Of its next token.
            row: What the step gave.
        """
        index = len(self._numbers)
        self._numbers.append(number)
        self._positions.append(position)
        self._counts.append(0 if row.status is None else 1)
        if row.status is not None:
            self._tokens.append(row.token)
        if row.logprobs is not None:
            one = row.logprobs
            self._logprobs.append(
                sampler_pb2.RowLogprobs(
                    row=index, logprob=[one.logprob], top_token=one.top_ids.tolist(), top_logprob=one.top_logprobs.tolist()
                )
            )
        if row.logits is not None:
            self._logits.append(sampler_pb2.RowLogits(row=index, logits=row.logits.astype("<f4", copy=False).tobytes()))

    def rows(self) -> Rows:
        """All of them."""
        return Rows(
            np.array(self._numbers, np.uint64),
            np.array(self._positions, np.uint32),
            np.array(self._counts, np.uint32),
            np.array(self._tokens, np.uint32),
            self._logprobs,
            self._logits,
        )


def _draw_of(state: RequestState) -> RequestDraw:
    assert isinstance(state.draw, RequestDraw), "a submitted request has what its drawing needs"
    return state.draw
