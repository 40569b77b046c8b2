"""What a sampler may say: every answer is held against what it was sent, and one that does not fit counts for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import SamplerLedger, Verdict
from triserve.rpc.errors import Internal, to_proto
from triserve.rpc.session import MalformedMessage
from triserve.v1 import common_pb2, sampler_pb2

WIDTH = 10
Response = sampler_pb2.SampleResponse


def send(ledger: SamplerLedger, *rows: tuple[int, int, bool]) -> None:
    """Sends a frame of rows: request, position, and whether the sampler is to draw it."""
    ledger.note_sent(
        sampler_pb2.SampleRequest(
            frame=ledger.sent + 1,
            request=[number for number, _, _ in rows],
            position=[position for _, position, _ in rows],
            num_tokens=[0 if undrawn else 1 for _, _, undrawn in rows],
            token=[3 for _, _, undrawn in rows if not undrawn],
        )
    )


def opened(*numbers: int) -> SamplerLedger:
    """Requests of gateway 1, which calls them 100 more, open in the first frame."""
    ledger = SamplerLedger(WIDTH)
    for number in numbers:
        ledger.open(number, TextKey(1, 100 + number, 0), 1)
    return ledger


def deltas(*requests: int, **changes: Any) -> bytes:
    """A parcel with a token for each request of gateway 1."""
    count = len(requests)
    columns: dict[str, Any] = {
        "request": requests,
        "epoch": [0] * count,
        "first_position": [0] * count,
        "num_tokens": [1] * count,
        "text": ["x"] * count,
        "finish_reason": [0] * count,
        "token": [3] * count,
    }
    return sampler_pb2.DeltaFrame(**{**columns, **changes}).SerializeToString()


def of_prompt(count: int, first: int = 0) -> dict[str, Any]:
    """Columns of a parcel with one delta that tells of so many tokens of a prompt."""
    return {"num_prompt_logprobs": [count], "first_prompt_position": [first], "prompt_logprobs": [sampler_pb2.TokenLogprobs()] * count}


def failure(number: int, message: str = "it failed") -> sampler_pb2.SampleFailure:
    return sampler_pb2.SampleFailure(request=number, error=to_proto(Internal(message)))


def with_parcel(content: bytes, gateway: int = 1) -> Response:
    return Response(frame=1, request=[1], position=[0], token=[3], parcels=[sampler_pb2.Parcel(gateway=gateway, delta_frame=content)])


def asked() -> SamplerLedger:
    """Request 1 awaits a verdict at position 0, request 2 has a drawn row; nothing is answered."""
    ledger = opened(1, 2)
    send(ledger, (1, 0, True), (2, 0, False))
    return ledger


def test_an_answer_that_fits_is_passed_on_whole() -> None:
    ledger = asked()
    parcel = deltas(101, 102, finish_reason=[0, common_pb2.FINISH_REASON_STOP])
    response = Response(frame=1, request=[1], position=[0], token=[3], finished=[2])
    response.parcels.add(gateway=1, delta_frame=parcel)
    answer = ledger.read(response)
    assert answer.verdicts == [Verdict(1, 0, [3])]
    assert [(one.gateway, one.content) for one in answer.parcels] == [(1, parcel)]
    assert (answer.finished, answer.failed, answer.silent) == ([2], [], [])
    assert list(ledger.requests) == [1]


MALFORMED: dict[str, Response] = {
    "a second hello": Response(hello=sampler_pb2.GetSamplerInfoResponse(), frame=1),
    "a frame that was never sent": Response(frame=2),
    "a frame that is answered": Response(frame=0),
    "positions missing": Response(frame=1, request=[1], token=[3]),
    "tokens missing": Response(frame=1, request=[1], position=[0]),
    "tokens too many": Response(frame=1, request=[1], position=[0], token=[3, 3]),
    "more tokens than counted by a verdict": Response(frame=1, request=[1], position=[0], num_tokens=[1], token=[3, 3]),
    "two tokens for one row": Response(frame=1, request=[1], position=[0], num_tokens=[2], token=[3, 3]),
    "no token for a row": Response(frame=1, request=[1], position=[0], num_tokens=[0]),
    "counts missing": Response(frame=1, request=[1], position=[0], num_tokens=[1, 1], token=[3, 3]),
    "requests missing": Response(frame=1, position=[0], token=[3]),
    "the same verdict twice": Response(frame=1, request=[1, 1], position=[0, 0], token=[3, 3]),
    "another position": Response(frame=1, request=[1], position=[1], token=[3]),
    "a verdict on a drawn row": Response(frame=1, request=[2], position=[0], token=[3]),
    "a verdict on a stranger": Response(frame=1, request=[7], position=[0], token=[3]),
    "a verdict on no row": Response(frame=1, request=[2**64 - 1], position=[2**32 - 1], token=[3]),
    "a token without a logit": Response(frame=1, request=[1], position=[0], token=[WIDTH]),
    "the end of a stranger": Response(frame=1, finished=[7]),
    "the failure of a stranger": Response(frame=1, failed=[failure(7)]),
    "an end twice": Response(frame=1, finished=[1, 1]),
    "an end and a failure": Response(frame=1, finished=[1], failed=[failure(1)]),
    "a giant error": Response(frame=1, failed=[failure(1, "x" * 5000)]),
    "a parcel for a gateway without requests here": with_parcel(deltas(101), gateway=2),
    "two parcels for a gateway": Response(frame=1, parcels=[sampler_pb2.Parcel(gateway=1, delta_frame=deltas(101))] * 2),
    "text for a stranger": with_parcel(deltas(107)),
    "text for another attempt": with_parcel(deltas(101, epoch=[1])),
    "garbage": with_parcel(b"\xff\xff\xff"),
    "text that is no UTF-8": with_parcel(b"\x2a\x01\xff"),
    "an epoch missing": with_parcel(deltas(101, epoch=[])),
    "a position missing": with_parcel(deltas(101, first_position=[])),
    "a count missing": with_parcel(deltas(101, num_tokens=[])),
    "a text missing": with_parcel(deltas(101, text=[])),
    "a finish reason missing": with_parcel(deltas(101, finish_reason=[])),
    "an unknown finish reason": with_parcel(deltas(101, finish_reason=[9])),
    "more tokens than counted": with_parcel(deltas(101, token=[3, 3])),
    "fewer tokens than counted": with_parcel(deltas(101, num_tokens=[2**32 - 1])),
    "log-probabilities that nobody has": with_parcel(deltas(101, logprobs=[sampler_pb2.TokenLogprobs()])),
    "counts of log-probabilities missing": with_parcel(deltas(101, 102, num_logprobs=[0])),
    "a token of a parcel without a logit": with_parcel(deltas(101, token=[WIDTH])),
    "more tokens than rows": with_parcel(deltas(101, num_tokens=[3], token=[3] * 3)),
    "a prompt that nobody asked of": with_parcel(deltas(101, **of_prompt(1))),
    "counts of a prompt's tokens missing": with_parcel(deltas(101, prompt_logprobs=[sampler_pb2.TokenLogprobs()])),
    "positions of a prompt's tokens missing": with_parcel(deltas(101, num_prompt_logprobs=[0])),
    "a giant text": with_parcel(deltas(101, text=["x" * (2 << 20)])),
}


@pytest.mark.parametrize("response", MALFORMED.values(), ids=MALFORMED.keys())
def test_an_answer_that_does_not_fit_is_refused_and_changes_nothing(response: Response) -> None:
    ledger = asked()
    with pytest.raises(MalformedMessage):
        ledger.read(response)
    good = ledger.read(Response(frame=1, request=[1], position=[0], token=[3], finished=[2]))
    assert (good.verdicts, good.finished) == ([Verdict(1, 0, [3])], [2])


def test_an_answer_may_not_run_ahead_of_its_frame() -> None:
    ledger = opened(1)
    ledger.open(2, TextKey(1, 102, 0), 2)
    send(ledger)
    send(ledger, (1, 0, True), (2, 0, False))
    for response in (Response(frame=1, request=[1], position=[0], token=[3]), Response(frame=1, finished=[2])):
        with pytest.raises(MalformedMessage):
            ledger.read(response)


@pytest.mark.parametrize("limit", [WIDTH - 1, 0])
def test_the_last_token_that_has_a_logit_is_taken(limit: int) -> None:
    assert asked().read(Response(frame=1, request=[1], position=[0], token=[limit])).verdicts == [Verdict(1, 0, [limit])]


def test_a_row_without_a_verdict_is_told_once() -> None:
    ledger = asked()
    send(ledger, (2, 1, False))
    assert ledger.read(Response(frame=1)).silent == [1]
    assert ledger.read(Response(frame=2)).silent == []


@pytest.mark.parametrize("response", [Response(frame=1, finished=[1]), Response(frame=1, failed=[failure(1)])], ids=["finished", "failed"])
def test_a_row_whose_request_has_ended_needs_no_verdict(response: Response) -> None:
    assert asked().read(response).silent == []


def test_several_frames_answered_at_once_settle_all_their_rows() -> None:
    ledger = asked()
    send(ledger, (2, 1, True))
    send(ledger)
    answer = ledger.read(Response(frame=3, request=[2], position=[1], token=[4]))
    assert (answer.verdicts, answer.silent) == ([Verdict(2, 1, [4])], [1])


def test_a_last_row_that_ends_nothing_is_told() -> None:
    ledger = asked()
    ledger.expect_end(2, 1)
    assert ledger.take_silent() == []
    assert ledger.read(Response(frame=1, request=[1], position=[0], token=[3])).silent == [2]
    ledger.expect_end(1, 1)
    assert ledger.take_silent() == [1]


def test_what_is_said_of_a_closed_request_is_dropped_until_the_close_is_answered() -> None:
    ledger = asked()
    ledger.close(1, 2)
    send(ledger)
    response = Response(frame=1, request=[1], position=[0], token=[3])
    response.parcels.add(gateway=1, delta_frame=deltas(101, 102, text=["secret", "kept"]))
    answer = ledger.read(response)
    (parcel,) = answer.parcels
    kept = sampler_pb2.DeltaFrame.FromString(parcel.content)
    assert (list(kept.request), list(kept.text), list(kept.token), answer.verdicts, answer.silent) == ([102], ["kept"], [3], [], [])
    assert ledger.is_leaving(TextKey(1, 101, 0))
    assert ledger.read(Response(frame=2)).silent == []
    assert not ledger.is_leaving(TextKey(1, 101, 0))
    send(ledger)
    with pytest.raises(MalformedMessage):
        ledger.read(Response(frame=3, finished=[1]))


def test_a_parcel_of_closed_requests_alone_goes_nowhere() -> None:
    ledger = asked()
    ledger.close(1, 2)
    ledger.close(2, 2)
    answer = ledger.read(Response(frame=1, parcels=[_parcel(deltas(101, 102))]))
    assert (answer.parcels, answer.silent) == ([], [])


def test_of_a_parcel_what_belongs_to_others_is_whole_when_closed_requests_are_left_out() -> None:
    ledger = opened(1, 2, 3, 4)
    send(ledger, *((number, position, False) for position in range(2) for number in range(1, 5)))
    ledger.close(1, 2)
    ledger.close(3, 2)
    entries = [sampler_pb2.TokenLogprobs(logprob=-float(index)) for index in range(5)]
    columns: dict[str, Any] = {"num_tokens": [2, 1, 2, 1], "token": range(6), "num_logprobs": [2, 1, 0, 2], "logprobs": entries}
    parcel = deltas(101, 102, 103, 104, text=["a", "b", "c", "d"], first_position=[0, 5, 0, 7], **columns)
    (left,) = ledger.read(Response(frame=1, parcels=[_parcel(parcel)])).parcels
    frame = sampler_pb2.DeltaFrame.FromString(left.content)
    assert (list(frame.request), list(frame.text), list(frame.first_position)) == ([102, 104], ["b", "d"], [5, 7])
    assert (list(frame.num_tokens), list(frame.token)) == ([1, 1], [2, 5])
    assert (list(frame.num_logprobs), [entry.logprob for entry in frame.logprobs]) == ([1, 2], [-2.0, -3.0, -4.0])


def test_a_closed_request_owes_nothing() -> None:
    ledger = asked()
    ledger.expect_end(2, 1)
    ledger.close(1, 2)
    ledger.close(2, 2)
    assert ledger.read(Response(frame=1)).silent == []


def test_a_last_row_without_a_verdict_is_told_once() -> None:
    ledger = asked()
    ledger.expect_end(1, 1)
    assert ledger.read(Response(frame=1)).silent == [1]


@pytest.mark.parametrize("end", [lambda: Response(frame=1, finished=[1]), lambda: Response(frame=1, failed=[failure(1)])])
def test_a_request_that_left_both_ways_at_once_is_dropped(end: Callable[[], Response]) -> None:
    ledger = asked()
    ledger.close(1, 2)
    answer = ledger.read(end())
    assert (answer.finished, answer.failed) == ([], [])
    send(ledger)
    ledger.read(Response(frame=2))
    assert not list(_left_over(ledger, keep=[2]))


def _left_over(ledger: SamplerLedger, keep: Sequence[int]) -> list[object]:
    """Everything the ledger still remembers beside some requests."""
    state = vars(ledger)
    rest: list[object] = [
        number for name in ("_leaving", "_opened_in", "_owed", "_last_rows") for number in state[name] if number not in keep
    ]
    rest += [number for requests in state["_by_text"].values() for number in requests.values() if number not in keep]
    return [*rest, *state["_closes"], *state["_owed_order"], *state["_num_tokens"]]


def test_nothing_is_remembered_of_requests_that_have_ended() -> None:
    ledger = SamplerLedger(WIDTH)
    for number in range(1, 6):
        ledger.open(number, TextKey(number % 2, number, 0), ledger.sent + 1)
    send(ledger, *((number, 0, True) for number in range(1, 6)))
    ledger.expect_end(1, 1)
    ledger.close(4, 2)
    ledger.read(Response(frame=1, request=[1, 2], position=[0, 0], token=[1, 1], finished=[1, 2], failed=[failure(3), failure(5)]))
    send(ledger)
    ledger.read(Response(frame=2))
    assert not _left_over(ledger, keep=[])
    assert not list(ledger.requests)


def test_text_of_a_number_that_is_used_again_goes_to_its_new_owner() -> None:
    ledger = asked()
    ledger.read(Response(frame=1, request=[1], position=[0], token=[3], finished=[1]))
    ledger.open(3, TextKey(1, 101, 0), 2)
    send(ledger, (3, 0, False))
    assert len(ledger.read(Response(frame=2, parcels=[_parcel(deltas(101))])).parcels) == 1


def _parcel(content: bytes) -> sampler_pb2.Parcel:
    return sampler_pb2.Parcel(gateway=1, delta_frame=content)


@pytest.mark.parametrize("field", ["", "sampling"])
def test_an_error_may_be_as_long_as_the_limit_its_field_included(field: str) -> None:
    def told(num_chars: int) -> Response:
        response = Response(frame=1, request=[1], position=[0], token=[3], failed=[failure(1, "x" * (num_chars - len(field)))])
        response.failed[0].error.field = field
        return response

    with pytest.raises(MalformedMessage, match=r"^an error is longer than 4096 characters$"):
        asked().read(told(4097))
    assert [failed.number for failed in asked().read(told(4096)).failed] == [1]


@pytest.mark.parametrize("token", [WIDTH, WIDTH + 1, 2**32 - 1])
def test_a_token_without_a_logit_is_named_with_the_limit(token: int) -> None:
    with pytest.raises(MalformedMessage, match=f"^token is {token}, the limit is 9$"):
        asked().read(Response(frame=1, request=[1], position=[0], token=[token]))


def test_a_last_row_that_was_answered_long_ago_is_told_when_it_is_known_to_be_the_last() -> None:
    ledger = asked()
    send(ledger)
    ledger.read(Response(frame=2, request=[1], position=[0], token=[3]))
    ledger.expect_end(2, 1)
    assert ledger.take_silent() == [2]
    assert ledger.take_silent() == []


def test_parcels_have_no_more_tokens_than_the_frames_they_answer() -> None:
    ledger = opened(1)
    for position in range(3):
        send(ledger, (1, position, False))
    ledger.read(Response(frame=3))
    for position in range(3, 6):
        send(ledger, (1, position, False))
    for tokens in (3, 2):
        response = Response(frame=5, parcels=[_parcel(deltas(101, num_tokens=[tokens], token=[3] * tokens))])
        if tokens == 3:
            with pytest.raises(MalformedMessage, match="more tokens than the frames had"):
                ledger.read(response)
        else:
            assert len(ledger.read(response).parcels) == 1
    assert ledger.answered == 5
    with pytest.raises(MalformedMessage, match=r"^frame is 5, 6 are sent and 5 answered$"):
        ledger.read(Response(frame=5))
    assert ledger.read(Response(frame=6, parcels=[_parcel(deltas(101))])).parcels
    assert not vars(ledger)["_num_tokens"]


def test_a_request_that_fails_and_one_that_ends_are_both_told_and_open_no_longer() -> None:
    ledger = opened(1, 2, 3)
    send(ledger)
    answer = ledger.read(Response(frame=1, finished=[2], failed=[failure(3, "it broke")]))
    assert (answer.finished, [(one.number, one.error.message) for one in answer.failed]) == ([2], [(3, "it broke")])
    assert (list(ledger.requests), len(ledger), 1 in ledger, 2 in ledger) == ([1], 1, True, False)


def test_each_closed_request_is_forgotten_with_the_frame_that_closed_it() -> None:
    ledger = asked()
    ledger.close(1, 2)
    send(ledger)
    ledger.close(2, 3)
    send(ledger)
    for frame, leaving in ((1, [True, True]), (2, [False, True]), (3, [False, False])):
        ledger.read(Response(frame=frame))
        assert [ledger.is_leaving(TextKey(1, request, 0)) for request in (101, 102)] == leaving


def test_a_sampler_tells_of_as_many_tokens_of_prompts_as_it_was_sent_now_or_later() -> None:
    ledger = opened(1)
    opening = sampler_pb2.OpenRequest(request=1, sampling=common_pb2.SamplingParams(prompt_logprobs=0))
    parts = [sampler_pb2.PromptLogprobs(request=1, first_position=1, logprob=[-1.0, -2.0])]
    ledger.note_sent(sampler_pb2.SampleRequest(frame=1, open=[opening], prompt_logprobs=parts))
    ledger.note_sent(sampler_pb2.SampleRequest(frame=2, prompt_logprobs=parts))
    nothing: dict[str, Any] = {"num_tokens": [0], "token": []}

    def answer(frame: int, count: int) -> Response:
        return Response(frame=frame, parcels=[sampler_pb2.Parcel(gateway=1, delta_frame=deltas(101, **nothing, **of_prompt(count)))])

    with pytest.raises(MalformedMessage, match="more tokens"):
        ledger.read(answer(1, 4))
    # The first token of the prompt goes with the open; half a character may wait.
    assert ledger.read(answer(1, 1)).parcels
    with pytest.raises(MalformedMessage, match="more tokens"):
        ledger.read(answer(2, 5))
    assert ledger.read(answer(2, 4)).parcels


def test_what_is_told_of_the_prompt_of_one_who_leaves_is_left_out_with_it() -> None:
    ledger = opened(1, 2)
    openings = [sampler_pb2.OpenRequest(request=number, sampling=common_pb2.SamplingParams(prompt_logprobs=0)) for number in (1, 2)]
    ledger.note_sent(sampler_pb2.SampleRequest(frame=1, open=openings))
    ledger.close(1, 2)
    entries = [sampler_pb2.TokenLogprobs(token=token) for token in (5, 6)]
    columns: dict[str, Any] = {"num_prompt_logprobs": [1, 1], "first_prompt_position": [0, 0], "prompt_logprobs": entries}
    content = deltas(101, 102, num_tokens=[0, 0], token=[], **columns)
    (parcel,) = ledger.read(Response(frame=1, parcels=[sampler_pb2.Parcel(gateway=1, delta_frame=content)])).parcels
    kept = sampler_pb2.DeltaFrame.FromString(parcel.content)
    assert (list(kept.request), list(kept.num_prompt_logprobs), [one.token for one in kept.prompt_logprobs]) == ([102], [1], [6])
