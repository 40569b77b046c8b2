"""What requests may draw: masks of those that have a grammar, as they come, and what is said where nothing is left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compute_svc.drawing import RequestDraw
from compute_svc.scheduler.base import RequestState
from compute_svc.wire.request import Request
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.token_mask import mask_bytes, unpacked


class Masks:
    """Gives masks to their requests, and gathers those whose row has waited for one.

    Args:
        logits_width: Number of logits of a row.
    """

    def __init__(self, logits_width: int) -> None:
        self._width = logits_width
        self._told: list[RequestState] = []
        self._unfit: list[RequestState] = []

    def take(self, state: RequestState, position: int, allowed: bytes, forced: Sequence[int] = ()) -> None:
        """A mask for a request's next token.

        Args:
            state: The request.
            position: For which the mask is.
            allowed: A bit for each id, the lowest of a byte first.
            forced: That token and those behind it, as far as there is no choice.
        """
        draw = state.draw
        assert isinstance(draw, RequestDraw), "a submitted request has what its drawing needs"
        if not draw.has_grammar or position != state.position or len(allowed) != mask_bytes(self._width):
            self._unfit.append(state)
            return
        mask = unpacked(allowed, self._width)
        if forced and not (max(forced) < self._width and mask[forced[0]] and np.count_nonzero(mask) == 1):
            self._unfit.append(state)
            return
        draw.set_mask(position, mask, forced)
        if draw.kept is not None and state not in self._told:
            self._told.append(state)

    def told(self) -> list[RequestState]:
        """Requests whose row can be drawn now, each once."""
        told, self._told = self._told, []
        return told

    def unfit(self) -> list[RequestState]:
        """Requests whose mask is none, each once."""
        unfit, self._unfit = self._unfit, []
        return unfit


def banned_all(request: Request, position: int) -> InvalidRequest:
    """Why no token is left to draw at a position."""
    sampling = request.sampling
    fields = [name for name in ("allowed_token_ids", "banned_token_ids", "bad_words") if getattr(sampling, name)]
    if request.stop_token_ids and position < request.min_tokens:
        fields.append("min_tokens")
    if sampling.grammar is not None:
        fields.append("grammar")
    assert fields, "nothing else bans a token"
    return InvalidRequest(f"{' and '.join(fields)} leave no token to draw at position {position}", field=fields[-1])
