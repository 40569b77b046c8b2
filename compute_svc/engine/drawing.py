"""What a step's logits say of each of its rows; changes no request."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.engine.candidates import Candidates, Drawn, draw_greedy, select_candidates
from compute_svc.engine.draw_rule import DrawRule
from compute_svc.kernels.host_copy import rows_of
from compute_svc.scheduler.base import RequestState


class Drawing(NamedTuple):
    """The rows of a step.

    Attributes:
        bare: Requests of which nothing but a token is wanted, or not even that.
        drawn: What they draw; None if there are none.
        full: Requests of which candidates are wanted.
        chosen: Their candidates; None if there are none.
    """

    bare: list[RequestState]
    drawn: Drawn | None
    full: list[RequestState]
    chosen: Candidates | None


def draw(states: list[RequestState], logits: torch.Tensor) -> Drawing:
    """Draws what can be drawn here and picks candidates of the rest.

    Args:
        states: Requests whose last token the step computed, in the order of the rows.
        logits: [rows, width] float32.

    Effects: rules learn the tokens of requests that begin.
    """
    bare: list[int] = []
    full: list[int] = []
    for index, state in enumerate(states):
        rule = rule_of(state)
        if begins(state):
            rule.see(state.tokens, state.num_tokens)
        is_bare = state.request.pins or (state.position >= rule.drawn_from and not rule.num_reported)
        (bare if is_bare else full).append(index)
    chosen = None
    if full:
        rules = [rule_of(states[index]) for index in full]
        chosen = select_candidates(_rows(logits, full), rules, [states[index].position for index in full])
    drawn = draw_greedy(_rows(logits, bare)) if bare else None
    return Drawing([states[index] for index in bare], drawn, [states[index] for index in full], chosen)


def begins(state: RequestState) -> bool:
    """Whether a request that computes its last token has its first token drawn."""
    return state.num_tokens == state.num_given


def rule_of(state: RequestState) -> DrawRule:
    """The rule of a submitted request."""
    assert isinstance(state.rule, DrawRule), "a submitted request has a rule"
    return state.rule


def _rows(logits: torch.Tensor, indices: list[int]) -> torch.Tensor:
    return logits if len(indices) == len(logits) else rows_of(logits, indices)
