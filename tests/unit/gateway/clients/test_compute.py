"""A replica's word is held against the contract: one that cannot be true costs the session."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.clients.compute import ComputePeer
from gateway.flow.generations.answer import Answer
from tests.fakes.fake_compute import FakeCompute, Say, frame
from tests.fakes.fake_tokenizer import FINGERPRINT, VOCAB_SIZE
from tests.fakes.gateway_fleet import eventually
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2


async def hello() -> compute_pb2.GatewayHello:
    return compute_pb2.GatewayHello(gateway_name="g", fingerprint=FINGERPRINT)


def session_with(replica: FakeCompute) -> ComputePeer:
    return ComputePeer(replica.target, hello=hello, on_change=lambda: None, on_stale=lambda count: None)


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"logits_width": 0}, "logits_width is 0, the least is 1"),
        ({"max_model_len_tokens": 1}, "max_model_len_tokens is 1, the least is 2"),
    ],
    ids=["logits", "length"],
)
async def test_a_replica_that_says_what_no_replica_is_gets_no_request(info: dict[str, Any], problem: str) -> None:
    replica = FakeCompute(**info)
    await replica.start()
    peer = session_with(replica)
    peer.start()
    await eventually(lambda: peer.problem == f"it sent a malformed message: {problem}")
    assert not peer.ready
    await peer.close()
    await replica.kill()


def spoilt(**changes: Any) -> bytes:
    """A parcel with one delta and columns that do not fit."""
    whole = sampler_pb2.DeltaFrame.FromString(frame(1, 0, 0, Say("x", [3], common_pb2.FINISH_REASON_STOP)))
    for name, value in changes.items():
        whole.ClearField(name)  # type: ignore[arg-type]
        getattr(whole, name).extend(value)
    return whole.SerializeToString()


@pytest.mark.parametrize(
    "parcel",
    [
        b"\xff\xff",
        spoilt(epoch=[]),
        spoilt(text=["a", "b"]),
        spoilt(finish_reason=[9]),
        spoilt(num_tokens=[2**32 - 1]),
        spoilt(token=[]),
        spoilt(token=[VOCAB_SIZE]),
        spoilt(logprobs=[sampler_pb2.TokenLogprobs()]),
        spoilt(num_prompt_logprobs=[0]),
        spoilt(num_prompt_logprobs=[2], first_prompt_position=[0], prompt_logprobs=[sampler_pb2.TokenLogprobs()] * 2),
    ],
    ids=["garbage", "epoch", "text", "finish reason", "count", "tokens", "no token", "log-probabilities", "prompt", "a longer prompt"],
)
async def test_a_parcel_that_does_not_fit_fails_what_the_replica_has_and_gives_nobody_anything(parcel: bytes) -> None:
    replica = FakeCompute(script=lambda request: [])
    replica.flowing.clear()
    await replica.start()
    peer = session_with(replica)
    peer.start()
    await eventually(lambda: peer.ready)
    answer = Answer(0, lambda one: None, every_delta=True)
    peer.submit(compute_pb2.SubmitRequest(token_ids=[1]), answer)
    replica.send(compute_pb2.GenerateResponse(parcels=[parcel]))
    await eventually(lambda: answer.error is not None)
    assert answer.error is not None
    assert answer.error.message.startswith("the compute process that had the request was lost: it sent a malformed message: ")
    await peer.close()
    await replica.kill()


@pytest.mark.parametrize(
    "hidden",
    [{"width": 3, "vectors": bytes(12)}, {"width": 2, "vectors": bytes(7)}, {"width": 2, "vectors": bytes(16)}, {"width": 0}],
    ids=["of another width", "in part", "of more tokens than there are", "of no width"],
)
async def test_hidden_states_that_cannot_be_cost_the_session(hidden: dict[str, Any]) -> None:
    replica = FakeCompute(script=lambda request: [], hidden_size=2)
    replica.flowing.clear()
    await replica.start()
    peer = session_with(replica)
    peer.start()
    await eventually(lambda: peer.ready)
    answer = Answer(0, lambda one: None, every_delta=True)
    attempt = peer.submit(compute_pb2.SubmitRequest(token_ids=[1]), answer)
    replica.send(compute_pb2.GenerateResponse(hidden_states=[compute_pb2.RequestHiddenStates(request=attempt.number, **hidden)]))
    await eventually(lambda: answer.error is not None)
    assert answer.error is not None and "malformed" in answer.error.message
    await peer.close()
    await replica.kill()


async def test_what_is_told_of_a_prompt_waits_for_its_answer_and_begins_none() -> None:
    replica = FakeCompute(script=lambda request: [Say("x", [3])], hidden_size=2)
    replica.flowing.clear()
    await replica.start()
    peer = session_with(replica)
    peer.start()
    await eventually(lambda: peer.ready)
    answer = Answer(0, lambda one: None, every_delta=True)
    attempt = peer.submit(compute_pb2.SubmitRequest(token_ids=[1, 2]), answer)
    entries = [sampler_pb2.TokenLogprobs(token=token) for token in (1, 2)]
    parcels = [
        sampler_pb2.DeltaFrame(
            request=[attempt.number],
            epoch=[0],
            first_position=[0],
            num_tokens=[0],
            text=[""],
            finish_reason=[common_pb2.FINISH_REASON_UNSPECIFIED],
            num_prompt_logprobs=[1],
            first_prompt_position=[index],
            prompt_logprobs=[entry],
        ).SerializeToString()
        for index, entry in enumerate(entries)
    ]
    vectors = [
        compute_pb2.RequestHiddenStates(request=attempt.number, first_position=index, vectors=bytes(8), width=2) for index in range(2)
    ]
    replica.send(compute_pb2.GenerateResponse(parcels=parcels, hidden_states=vectors))
    await eventually(lambda: len(answer.hidden) == 16)
    assert answer.blank and answer.take() is None
    replica.let_through()
    await eventually(lambda: not answer.blank)
    delta = answer.take()
    assert delta is not None and (delta.text, list(delta.prompt_logprobs)) == ("x", entries)
    await peer.close()
    await replica.kill()
