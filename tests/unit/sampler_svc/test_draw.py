"""A draw is what the contract specifies, for every parameter, with ties and with logits of -inf."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.changes import Changes
from sampler_svc.draw import draw_token
from tests.fakes.literal_draw import literal_draw
from triserve.rpc.sampling import Sampling

WIDTH = 24
LOG = np.log


def f32(*values: float) -> list[float]:
    """As the contract's messages carry them."""
    return [float(np.float32(value)) for value in values]


def draw(logits: Any, sampling: Sampling, prompt: Any = (), answer: Any = (), position: int | None = None, **stops: Any) -> int | None:
    """The token that comes next after an answer."""
    row = np.array(logits, np.float32)
    changes = Changes(sampling, stops.get("min_tokens", 0), stops.get("stops", ()), prompt, len(row))
    for token in answer:
        changes.count(token)
    return draw_token(row, sampling, changes, len(answer) if position is None else position)


def drawable(logits: Any, draws: int = 300, **fields: Any) -> set[int | None]:
    """Ids that come up over many positions."""
    return {draw(logits, Sampling(seed=1, **fields), position=position) for position in range(draws)}


# A coarse grid makes ties, also with penalties; the others make awkward roundings.
LOGITS = st.one_of(st.integers(-6, 6).map(lambda n: n / 2), st.just(-math.inf), st.floats(-30, 30, width=32))
TOKENS = st.integers(0, WIDTH - 1)
SOME = st.lists(TOKENS, max_size=4).map(tuple)


def rarely(default: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Mostly the default, so that not every filter is on in every row."""
    return st.sampled_from([default, default, default, *others])


def samplings(**fixed: Any) -> st.SearchStrategy[Sampling]:
    """Any parameters."""
    bias = st.dictionaries(TOKENS, st.sampled_from([-100.0, -1.0, 0.5, 5.0]), max_size=3)
    fields: dict[str, Any] = {
        "temperature": st.sampled_from([0.0, 1.0, *f32(0.25, 0.7, 1, 1.7, 100)]),
        "top_k": st.one_of(st.none(), st.none(), st.integers(1, WIDTH + 2)),
        "top_p": rarely(1.0, *f32(0.1, 0.55, 0.9, 0.97)),
        "min_p": rarely(0.0, *f32(0.04, 0.45, 1)),
        "typical_p": rarely(1.0, *f32(0.2, 0.61, 0.93)),
        "top_n_sigma": rarely(None, *f32(0.3, 1.1, 2.7)),
        "xtc_probability": rarely(0.0, 0.5, 1.0),
        "xtc_threshold": st.sampled_from([0.1, *f32(0.02, 0.33)]),
        "repetition_penalty": rarely(1.0, *f32(0.5, 1.3)),
        "presence_penalty": rarely(0.0, 1.5, -2.0),
        "frequency_penalty": rarely(0.0, 0.5, -0.25),
        "dry_multiplier": rarely(0.0, *f32(0.8, 3)),
        "dry_base": st.sampled_from([1.75, 2.0, 10.0]),
        "dry_allowed_length": st.integers(1, 3),
        "dry_breaker_ids": SOME,
        "allowed_token_ids": rarely((), tuple(range(0, WIDTH, 2)), (1, 2, 3)),
        "banned_token_ids": SOME,
        "bad_words": st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
        "seed": st.integers(0, 2**64 - 1),
    } | {name: st.just(value) for name, value in fixed.items()}
    return st.builds(
        lambda bias, **fields: Sampling(logit_bias_ids=tuple(bias), logit_bias_values=tuple(bias.values()), **fields),
        bias,
        **fields,
    )


ROWS = st.lists(LOGITS, min_size=WIDTH, max_size=WIDTH)
# Few different tokens, so that there are repetitions.
HISTORY = st.lists(st.one_of(st.integers(0, 2), TOKENS), max_size=14)


@settings(max_examples=400, deadline=None)
@given(ROWS, samplings(), HISTORY, HISTORY, SOME, st.sampled_from([0, 0, 4, 20]))
def test_a_draw_is_what_the_specification_says(
    row: list[float], sampling: Sampling, prompt: list[int], answer: list[int], stops: tuple[int, ...], min_tokens: int
) -> None:
    given: dict[str, Any] = {"prompt": prompt, "answer": answer, "stops": stops, "min_tokens": min_tokens}
    assert draw(row, sampling, **given) == literal_draw(row, sampling, len(answer), **given)
