"""Messages: unset, zero and set are three things, and malformed columns are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from sampler_svc.logprobs import TextLogprob, TokenLogprob, TopToken
from sampler_svc.request_state import Delta, Finish
from sampler_svc.session import Kind, Outcome, Verdict
from sampler_svc.vocabulary import Vocabulary
from sampler_svc.wire import read_frame, write_outcome
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.errors import InvalidRequest, Overloaded
from triserve.rpc.sampling import Sampling, Stopping
from triserve.v1 import common_pb2, sampler_pb2

WIDTH = 257
VOCABULARY = Vocabulary(byte_tokenizer())


def message() -> sampler_pb2.SampleRequest:
    """A well-formed frame of two rows."""
    return sampler_pb2.SampleRequest(
        frame=4,
        close=[8],
        request=[1, 2],
        position=[0, 7],
        kind=[sampler_pb2.ROW_KIND_DRAWN, sampler_pb2.ROW_KIND_CANDIDATES],
        token=[65, 0],
        log_sum_exp=[1.5, 2.5],
        num_candidates=[0, 2],
        candidate_ids=bytes([3, 0, 0, 0, 4, 0, 0, 0]),
        candidate_logits=b"\0\0\x80\x3f\0\0\0\0",
    )


def test_a_frame_is_read_column_by_column() -> None:
    frame = read_frame(message(), WIDTH)
    assert (frame.number, frame.closes, frame.request, frame.position, frame.token) == (4, [8], [1, 2], [0, 7], [65, 0])
    assert frame.kind == [Kind.DRAWN, Kind.CANDIDATES]
    assert frame.log_sum_exp.tolist() == [1.5, 2.5]
    ids, logits = frame.candidates.row(1)
    assert (ids.tolist(), logits.tolist(), frame.candidates.count(0)) == ([3, 4], [1.0, 0.0], 0)


def test_an_empty_frame_is_a_frame() -> None:
    assert read_frame(sampler_pb2.SampleRequest(frame=1), WIDTH).request == []


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda m: m.position.append(1), "position"),
        (lambda m: m.kind.pop(), "kind"),
        (lambda m: m.token.pop(), "token"),
        (lambda m: m.log_sum_exp.append(0.0), "log_sum_exp"),
        (lambda m: m.num_candidates.append(0), "num_candidates"),
        (lambda m: m.kind.__setitem__(0, 0), "kind"),
        (lambda m: m.kind.__setitem__(0, 9), "kind"),
        (lambda m: m.token.__setitem__(0, WIDTH), "token"),
        (lambda m: m.num_candidates.__setitem__(0, 1), "candidate_ids"),
        (lambda m: m.num_candidates.__setitem__(0, 2**32 - 1), "candidate_ids"),
        (lambda m: setattr(m, "candidate_logits", b"\0" * 7), "candidate_logits"),
        (lambda m: setattr(m, "candidate_ids", bytes([3, 0, 0, 0, 1, 1, 0, 0])), "candidate_ids"),
        (lambda m: m.hello.SetInParent(), "hello"),
    ],
)
def test_malformed_columns_are_refused_by_name(spoil: Callable[[sampler_pb2.SampleRequest], object], field: str) -> None:
    spoiled = message()
    spoil(spoiled)
    with pytest.raises(InvalidRequest) as caught:
        read_frame(spoiled, WIDTH)
    assert caught.value.field == field
    assert field in caught.value.message


def read_open(sampling: common_pb2.SamplingParams, stopping: common_pb2.StoppingParams) -> tuple[Sampling, Stopping]:
    opened = sampler_pb2.OpenRequest(
        request=1,
        gateway=2,
        gateway_request=3,
        epoch=4,
        request_id="r",
        prompt_token_ids=[5],
        generated_token_ids=[6],
        sampling=sampling,
        stopping=stopping,
    )
    wire = sampler_pb2.SampleRequest.FromString(sampler_pb2.SampleRequest(frame=1, open=[opened]).SerializeToString())
    (opening,) = read_frame(wire, WIDTH).opens
    assert opening[:7] == (1, 2, 3, 4, "r", [5], [6])
    return opening.sampling, opening.stopping


def test_unset_fields_mean_what_the_contract_says() -> None:
    assert read_open(common_pb2.SamplingParams(), common_pb2.StoppingParams()) == (Sampling(), Stopping(None))


def test_zero_is_not_unset() -> None:
    zero = common_pb2.SamplingParams(
        temperature=0, top_k=0, top_p=0, min_p=0, repetition_penalty=0, presence_penalty=0, frequency_penalty=0, seed=0, top_logprobs=0
    )
    expected = Sampling(temperature=0.0, top_k=0, top_p=0.0, repetition_penalty=0.0, seed=0, top_logprobs=0)
    assert read_open(zero, common_pb2.StoppingParams(max_tokens=0)) == (expected, Stopping(0))


def test_set_fields_arrive() -> None:
    numbers = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given: dict[str, Any] = dict.fromkeys(numbers, 0.5) | dict.fromkeys(("top_k", "seed", "top_logprobs"), 2)
    stopping = common_pb2.StoppingParams(max_tokens=9, min_tokens=1, stop_token_ids=[3, 3, 4], stop_strings=["a", "b"])
    assert read_open(common_pb2.SamplingParams(**given, logit_bias_ids=[7], logit_bias_values=[1.5]), stopping) == (
        Sampling(**given, logit_bias_ids=(7,), logit_bias_values=(1.5,)),
        Stopping(9, 1, frozenset({3, 4}), ("a", "b")),
    )


def test_every_sampling_field_of_the_contract_is_known() -> None:
    assert {descriptor.name for descriptor in common_pb2.SamplingParams.DESCRIPTOR.fields} == {field.name for field in fields(Sampling)}


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
