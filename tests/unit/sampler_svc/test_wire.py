"""Messages: rows are cut out of the columns, and malformed columns are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sampler_svc.logprobs import TextLogprob, TokenLogprob, TopToken
from sampler_svc.request_state import Delta, Finish
from sampler_svc.session import Outcome, Verdict
from sampler_svc.text.vocabulary import Vocabulary
from sampler_svc.wire import read_frame, write_outcome
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.errors import InvalidRequest, Overloaded
from triserve.v1 import common_pb2, sampler_pb2

WIDTH = 257
VOCABULARY = Vocabulary(byte_tokenizer())


def message() -> sampler_pb2.SampleRequest:
    """A well-formed frame: a drawn row, one to be drawn, one that is audited, one of two tokens."""
    row = np.arange(WIDTH, dtype="<f4").tobytes()
    return sampler_pb2.SampleRequest(
        frame=4,
        close=[8],
        request=[1, 2, 3, 4],
        position=[0, 7, 8, 9],
        num_tokens=[1, 0, 1, 2],
        token=[65, 66, 67, 68],
        logprobs=[
            sampler_pb2.RowLogprobs(row=0, logprob=[-1]),
            sampler_pb2.RowLogprobs(row=3, logprob=[-1, -2], top_token=[5, 6, 7, 8], top_logprob=[-3, -4, -5, -6]),
        ],
        logits=[sampler_pb2.RowLogits(row=1, logits=row), sampler_pb2.RowLogits(row=2, logits=row)],
    )


def test_a_frame_is_read_row_by_row() -> None:
    frame = read_frame(message(), WIDTH)
    assert (frame.number, frame.closes, frame.request, frame.position) == (4, [8], [1, 2, 3, 4], [0, 7, 8, 9])
    assert frame.tokens == [[65], [], [66], [67, 68]]
    assert frame.logprobs == {0: ([-1.0], [], [], ()), 3: ([-1.0, -2.0], [5, 6, 7, 8], [-3.0, -4.0, -5.0, -6.0], ())}
    assert {row: logits.tolist() for row, logits in frame.logits.items()} == {1: [*range(WIDTH)], 2: [*range(WIDTH)]}


def test_rows_without_a_number_of_tokens_have_one_each() -> None:
    frame = read_frame(sampler_pb2.SampleRequest(frame=1, request=[1, 2], position=[3, 4], token=[5, 6]), WIDTH)
    assert frame.tokens == [[5], [6]]


def test_an_empty_frame_is_a_frame() -> None:
    assert read_frame(sampler_pb2.SampleRequest(frame=1), WIDTH).request == []


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda m: m.position.append(1), "position"),
        (lambda m: m.position.__delitem__(slice(None)), "position"),
        (lambda m: m.num_tokens.pop(), "num_tokens"),
        (lambda m: m.num_tokens.append(0), "num_tokens"),
        (lambda m: m.num_tokens.__delitem__(slice(None)), "logprobs"),
        (lambda m: m.token.pop(), "token"),
        (lambda m: m.token.append(1), "token"),
        (lambda m: m.num_tokens.__setitem__(0, 2**32 - 1), "token"),
        (lambda m: m.token.__setitem__(0, WIDTH), "token"),
        (lambda m: m.hello.SetInParent(), "hello"),
        (lambda m: setattr(m.logprobs[1], "row", 4), "logprobs"),
        (lambda m: setattr(m.logprobs[1], "row", 0), "logprobs"),
        (lambda m: m.logprobs.reverse(), "logprobs"),
        (lambda m: setattr(m.logprobs[0], "row", 1), "logprobs"),
        (lambda m: m.logprobs[1].logprob.pop(), "logprobs"),
        (lambda m: m.logprobs[1].top_logprob.pop(), "logprobs"),
        (lambda m: (m.logprobs[1].top_token.pop(), m.logprobs[1].top_logprob.pop()), "logprobs"),
        (lambda m: m.logprobs[1].top_token.__setitem__(3, WIDTH), "logprobs"),
        (lambda m: setattr(m.logits[1], "row", 4), "logits"),
        (lambda m: setattr(m.logits[1], "row", 1), "logits"),
        (lambda m: m.logits.reverse(), "logits"),
        (lambda m: setattr(m.logits[1], "row", 3), "logits"),
        (lambda m: m.logits.pop(0), "logits"),
        (lambda m: setattr(m.logits[0], "logits", b""), "logits"),
        (lambda m: setattr(m.logits[0], "logits", bytes(4 * WIDTH + 4)), "logits"),
    ],
)
def test_malformed_columns_are_refused_by_name(spoil: Callable[[sampler_pb2.SampleRequest], object], field: str) -> None:
    spoiled = message()
    spoil(spoiled)
    with pytest.raises(InvalidRequest) as caught:
        read_frame(spoiled, WIDTH)
    assert caught.value.field == field
    assert field in caught.value.message


def test_an_outcome_is_grouped_by_gateway() -> None:
    entry = TextLogprob(TokenLogprob(0xC3, -0.5, [TopToken(256, -0.25)]), "t", b"\xc3", 3, 4)
    outcome = Outcome(
        verdicts=[Verdict(1, 2, 3)],
        finished=[1],
        failed=[(9, Overloaded("full", field="x"))],
        deltas={
            1: Delta(70, 11, 1, 2, [3], "t", [entry], Finish.STOP),
            2: Delta(80, 12, 0, 0, [4, 5], ""),
            3: Delta(70, 13, 0, 6, [], "held", [], Finish.LENGTH),
            4: Delta(70, 14, 0, 6),
        },
    )
    response = write_outcome(outcome, 17, VOCABULARY)
    assert (response.frame, list(response.request), list(response.position), list(response.token)) == (17, [1], [2], [3])
    assert list(response.finished) == [1]
    (failure,) = response.failed
    assert (failure.request, failure.error.code, failure.error.reason, failure.error.field) == (9, 8, "OVERLOADED", "x")
    frames = {parcel.gateway: sampler_pb2.DeltaFrame.FromString(parcel.delta_frame) for parcel in response.parcels}
    assert frames == {
        70: sampler_pb2.DeltaFrame(
            request=[11, 13],
            epoch=[1, 0],
            first_position=[2, 6],
            num_tokens=[1, 0],
            text=["t", "held"],
            finish_reason=[common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH],
            token=[3],
            logprobs=[
                sampler_pb2.TokenLogprobs(
                    logprob=-0.5,
                    token_bytes=b"\xc3",
                    top=[sampler_pb2.TopLogprob(token=256, logprob=-0.25, token_bytes=b"<eos>")],
                    token=0xC3,
                    text="t",
                    text_offset=3,
                )
            ],
            num_logprobs=[1, 0],
        ),
        80: sampler_pb2.DeltaFrame(
            request=[12],
            epoch=[0],
            first_position=[0],
            num_tokens=[2],
            text=[""],
            finish_reason=[common_pb2.FINISH_REASON_UNSPECIFIED],
            token=[4, 5],
            num_logprobs=[0],
        ),
    }


def test_nothing_to_say_is_still_an_acknowledgement() -> None:
    assert write_outcome(Outcome(), 5, VOCABULARY) == sampler_pb2.SampleResponse(frame=5)
