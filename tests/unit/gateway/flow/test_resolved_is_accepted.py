"""Whatever the gateway lets through, the stages after it take: they read the same limits in the contract's narrower numbers."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.flow.call import Wishes
from gateway.flow.limits import Limits
from gateway.flow.resolve import resolve_sampling
from tests.fakes.fake_stages import MODEL
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, tokenizer_pb2

_FLOATS = (
    *("temperature", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base"),
)
_IDS = st.lists(st.integers(-1, MODEL.logits_width), max_size=4).map(tuple)


def numbers(name: str) -> st.SearchStrategy[float]:
    """Numbers in the range and at its ends, with those that float32 rounds to an end, and a few beyond."""
    allowed: contract.Range = getattr(contract, name.upper())
    edges = [allowed.low, allowed.high, allowed.low + 1e-50, allowed.low + 1e-12, allowed.high - 1e-12, allowed.high + 1e-12, -1.0]
    return st.floats(allowed.low, allowed.high) | st.sampled_from(edges)


WISHES = st.fixed_dictionaries(
    {},
    optional={
        **{name: numbers(name) for name in _FLOATS},
        "top_k": st.integers(-2, 2**32),
        "dry_allowed_length": st.integers(0, 65),
        "allowed_token_ids": _IDS,
        "banned_token_ids": _IDS,
        "dry_breaker_ids": _IDS,
        "bad_word_ids": st.lists(_IDS, max_size=3).map(tuple),
        "top_logprobs": st.integers(-1, 21),
    },
)
IDS = tokenizer_pb2.SamplingIds(
    bad_words=[common_pb2.TokenSequence(token_ids=[1, 2])], dry_breaker_ids=[MODEL.logits_width - 1, MODEL.logits_width]
)


@settings(max_examples=300, deadline=None)
@given(WISHES)
@example(dict.fromkeys(("top_p", "typical_p", "top_n_sigma", "xtc_threshold", "repetition_penalty", "xtc_probability"), 1e-50))
def test_what_the_gateway_accepts_the_stages_accept(wishes: dict[str, Any]) -> None:
    try:
        params = resolve_sampling(Wishes(**wishes), MODEL, Limits(), IDS)
    except InvalidRequest as error:
        assert error.field in {*wishes, "bad_words"}
        return
    params.seed = 1
    read = Sampling.read(params, MODEL.logits_width)
    assert read.greedy or read.temperature > 0
    assert read.bad_words and set(read.dry_breaker_ids) < set(range(MODEL.logits_width))
