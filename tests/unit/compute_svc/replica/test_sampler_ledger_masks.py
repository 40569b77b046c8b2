"""Masks of requests that have a grammar: when a sampler owes one, when it may send one, and what ends its stream."""

from __future__ import annotations

import pytest

from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import SamplerLedger
from tests.unit.compute_svc.replica.test_sampler_ledger import WIDTH, Response, failure, opened, send
from triserve.rpc.session import MalformedMessage
from triserve.v1 import sampler_pb2


def with_grammar(*, first: int = 0) -> SamplerLedger:
    """Request 1, which has a grammar, opens in the first frame."""
    ledger = SamplerLedger(WIDTH)
    ledger.open(1, TextKey(1, 101, 0), 1, first_position=first)
    return ledger


def mask(position: int, *, request: int = 1, allowed: bytes = b"\x01\x02") -> sampler_pb2.RowMask:
    return sampler_pb2.RowMask(request=request, position=position, allowed=allowed)


@pytest.mark.parametrize("first", [0, 7])
def test_a_first_mask_may_come_in_its_own_time_with_no_frame_of_its_own(first: int) -> None:
    ledger = with_grammar(first=first)
    send(ledger)
    assert ledger.read(Response(frame=1)).silent == []
    answer = ledger.read(Response(frame=1, masks=[mask(first)]))
    assert [tuple(one)[:3] for one in answer.masks] == [(1, first, b"\x01\x02")]


def test_a_mask_comes_with_the_answer_to_its_tokens_frame_or_the_request_is_left_out() -> None:
    ledger = with_grammar()
    send(ledger)
    ledger.read(Response(frame=1, masks=[mask(0)]))
    send(ledger, (1, 0, False))
    answer = ledger.read(Response(frame=2, masks=[mask(1)]))
    assert ([one.position for one in answer.masks], answer.silent) == ([1], [])
    send(ledger, (1, 1, False))
    assert ledger.read(Response(frame=3)).silent == [1]


def test_tokens_without_a_choice_come_with_the_mask_and_their_row_is_one() -> None:
    ledger = with_grammar()
    send(ledger)
    told = mask(0)
    told.forced.extend([3, 4, 5])
    assert list(ledger.read(Response(frame=1, masks=[told])).masks[0].forced) == [3, 4, 5]
    ledger.note_sent(sampler_pb2.SampleRequest(frame=2, request=[1], position=[0], num_tokens=[3], token=[3, 4, 5]))
    assert [one.position for one in ledger.read(Response(frame=2, masks=[mask(3)])).masks] == [3]


@pytest.mark.parametrize("forced", [[WIDTH], [0] * 65])
def test_tokens_without_a_choice_are_so_many_at_most_and_have_a_logit(forced: list[int]) -> None:
    ledger = with_grammar()
    send(ledger)
    told = mask(0)
    told.forced.extend(forced)
    with pytest.raises(MalformedMessage, match="forces"):
        ledger.read(Response(frame=1, masks=[told]))


def test_who_has_ended_is_owed_no_mask() -> None:
    ledger = with_grammar()
    send(ledger, (1, 0, False))
    answer = ledger.read(Response(frame=1, finished=[1]))
    assert (answer.finished, answer.silent) == ([1], [])


def test_a_last_row_needs_no_mask_behind_it() -> None:
    ledger = with_grammar()
    send(ledger, (1, 0, False))
    ledger.expect_end(1, 1)
    answer = ledger.read(Response(frame=1, finished=[1]))
    assert (answer.finished, answer.silent) == ([1], [])


def test_a_failure_of_a_grammar_may_come_with_no_frame_of_its_own() -> None:
    ledger = with_grammar()
    send(ledger)
    ledger.read(Response(frame=1))
    assert [one.number for one in ledger.read(Response(frame=1, failed=[failure(1)])).failed] == [1]


def test_a_mask_of_a_request_that_was_closed_counts_for_nothing() -> None:
    ledger = with_grammar()
    send(ledger)
    ledger.close(1, 2)
    assert ledger.read(Response(frame=1, masks=[mask(0)])).masks == []


@pytest.mark.parametrize(
    "response",
    [
        Response(frame=1, masks=[mask(1)]),
        Response(frame=1, masks=[mask(0, allowed=b"\x01")]),
        Response(frame=1, masks=[mask(0, allowed=b"\x01\x01\x01")]),
        Response(frame=1, masks=[mask(0, request=2)]),
        Response(frame=0, parcels=[sampler_pb2.Parcel(gateway=1)]),
        Response(frame=0, masks=[mask(0)], finished=[1]),
        Response(frame=0),
    ],
    ids=["too far", "short", "long", "of nobody", "text without a frame", "an end without a frame", "nothing"],
)
def test_a_mask_that_no_sampler_would_send_ends_the_stream(response: Response) -> None:
    ledger = with_grammar()
    send(ledger)
    with pytest.raises(MalformedMessage):
        ledger.read(response)


def test_a_mask_of_a_request_without_a_grammar_ends_the_stream() -> None:
    ledger = opened(1)
    send(ledger, (1, 0, False))
    with pytest.raises(MalformedMessage, match="no grammar"):
        ledger.read(Response(frame=1, masks=[mask(1)]))
