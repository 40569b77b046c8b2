"""The replica's side of gateways: hellos, submissions, cancels, and gateways that leave or do not read."""

from __future__ import annotations

import grpc
import pytest

from compute_svc.replica.servicer import MAX_CANCELS, MAX_SUBMITS
from tests.fakes.compute_replica import SAMPLED, WIDTH, Gateway, Replica, submission, until
from triserve.v1 import common_pb2, compute_pb2


async def test_the_hello_says_what_the_replica_is(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    assert gateway.hello is not None
    hello = gateway.hello
    assert hello.fingerprint.computation == "bfloat16 on cpu, KV float32"
    assert (hello.fingerprint.tokenizer_sha256, hello.policy) == (replica.fingerprint.tokenizer_sha256, "fcfs")
    assert (hello.max_model_len_tokens, hello.logits_width, hello.page_size_tokens, hello.num_pages) == (64, WIDTH, 4, 32)
    assert (hello.max_waiting_requests, hello.dtype, hello.device, hello.policy, hello.load.free_pages) == (
        4,
        "bfloat16",
        "cpu",
        "fcfs",
        32,
    )
    assert (hello.kv_format, hello.kv_bytes_per_page) == ("float32", 2 * 4 * 4)
    sampler_hello = replica.samplers[0].hellos[0]
    assert (sampler_hello.logits_width, sampler_hello.fingerprint) == (WIDTH, hello.fingerprint)


async def test_the_last_parcel_and_the_end_are_one_message(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2, 3], 1)
    await gateway.end_of(1)
    (last,) = [response for response in gateway.responses if response.ended]
    assert len(last.parcels) == len(last.started) == 1


@pytest.mark.parametrize("stage", ["waiting", "prefilling", "decoding", "awaiting a verdict"])
async def test_a_cancelled_request_ends_and_its_pages_are_free(replica: Replica, stage: str) -> None:
    await (await replica.start(sizes={"max_running_requests": 1, "num_pages": 300, "max_model_len_tokens": 1100})).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    if stage == "waiting":
        await gateway.submit(9, [1], 50)
        await until(lambda: len(gateway.tokens.get(9, [])) > 1)
        sampler.may_answer.clear()
    if stage == "prefilling":
        replica.gate.open.clear()
    if stage == "awaiting a verdict":
        sampler.may_answer.clear()
    # Long enough that no machine is done with it before it is cancelled.
    max_tokens = 1000 if stage == "decoding" else 40
    await gateway.submit(
        1, list(range(20)), max_tokens, sampling=SAMPLED if stage == "awaiting a verdict" else common_pb2.SamplingParams(temperature=0)
    )
    if stage == "decoding":
        await until(lambda: len(gateway.tokens.get(1, [])) > 2)
    if stage == "awaiting a verdict":
        await until(lambda: any(frame.request for frame in sampler.frames))
    await gateway.send(cancel=[1, 12345])
    replica.gate.open.set()
    (end,) = await gateway.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_CANCELLED
    sampler.may_answer.set()
    if stage == "waiting":
        await gateway.send(cancel=[9])
    await replica.idle()
    await until(lambda: not sampler.open)


async def test_a_gateway_that_leaves_takes_its_requests_with_it(replica: Replica) -> None:
    await (await replica.start()).ready()
    leaving, staying = await replica.gateway(), await replica.gateway()
    await leaving.submit(1, [1, 2, 3], 60)
    await staying.submit(1, [4, 5, 6], 12)
    await until(lambda: 1 in leaving.tokens)
    await leaving.close()
    await staying.end_of(1)
    assert staying.tokens[1] == replica.model.greedy_answer([4, 5, 6], 12)
    await replica.idle()
    await until(lambda: not replica.samplers[0].open)


async def test_a_gateway_that_ends_its_side_takes_its_requests_with_it(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2, 3], 50)
    await gateway.call.done_writing()
    assert await gateway.call.code() is grpc.StatusCode.OK
    replica.samplers[0].may_answer.set()
    await replica.idle()


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (submission(2, []), "token_ids"),
        (submission(2, [WIDTH]), "token_ids"),
        (submission(2, [1] * 64), "token_ids"),
        (submission(2, [1], generated_token_ids=[WIDTH]), "generated_token_ids"),
        (submission(2, [1], 2, generated_token_ids=[1, 2]), "generated_token_ids"),
        (submission(2, [1], 64), "max_tokens"),
        (submission(2, [1], system_tokens=2), "system_tokens"),
        (submission(2, [1], sampling=common_pb2.SamplingParams(temperature=-1)), "temperature"),
    ],
    ids=["empty prompt", "id", "long prompt", "generated id", "complete answer", "long answer", "system tokens", "temperature"],
)
async def test_a_bad_request_fails_alone_and_by_name(replica: Replica, bad: compute_pb2.SubmitRequest, field: str) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.send(submit=[bad, submission(1, [1, 2, 3], 4)])
    failed, fine = await gateway.end_of(2, 1)
    assert (failed.outcome, failed.error.field, failed.error.code) == (compute_pb2.REQUEST_OUTCOME_FAILED, field, 3)
    assert fine.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


async def test_a_number_that_is_under_way_is_refused_and_the_first_goes_on(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.send(submit=[submission(1, [1, 2], 4, epoch=1), submission(1, [1, 2], 4, epoch=2)])
    await until(lambda: 1 in gateway.ended)
    refused = gateway.ended.pop(1)
    assert (refused.epoch, refused.error.field) == (2, "request")
    replica.samplers[0].may_answer.set()
    (end,) = await gateway.end_of(1)
    assert (end.epoch, end.outcome) == (1, compute_pb2.REQUEST_OUTCOME_FINISHED)


async def test_a_full_queue_says_overloaded(replica: Replica) -> None:
    await (await replica.start(sizes={"max_running_requests": 1, "max_waiting_requests": 1})).ready()
    gateway = await replica.gateway()
    replica.gate.open.clear()
    await gateway.send(submit=[submission(request, [1, 2], 2) for request in range(4)])
    replica.gate.open.set()
    ends = await gateway.end_of(0, 1, 2, 3)
    assert [end.error.reason for end in ends].count("OVERLOADED") >= 1
    assert ends[0].outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


async def test_a_deadline_ends_a_request_with_an_error(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2], 40, deadline_ms=50, sampling=SAMPLED)
    await gateway.submit(2, [1, 2], 2, deadline_ms=50)
    ends = await gateway.end_of(1, 2)
    assert [end.error.reason for end in ends] == ["DEADLINE_EXCEEDED"] * 2
    replica.samplers[0].may_answer.set()
    await replica.idle()


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [1, 2, 3, 4]), ("priority", [4, 1, 3, 2])])
async def test_a_better_priority_that_comes_later_is_answered_earlier_where_the_policy_is_by_priority(
    replica: Replica, policy: str, order: list[int]
) -> None:
    await (await replica.start(policy=policy, sizes={"max_running_requests": 1, "max_waiting_requests": 8})).ready()
    gateway = await replica.gateway()
    assert gateway.hello is not None
    assert gateway.hello.policy == policy
    # One that waits for its verdict holds the only place until all others are there.
    replica.samplers[0].may_answer.clear()
    holder = submission(9, [9], 50, priority=-10, sampling=SAMPLED)
    priorities = {1: 0, 2: 10, 3: 0, 4: -10}
    await gateway.send(submit=[holder, *(submission(number, [number], 4, priority=priority) for number, priority in priorities.items())])
    await gateway.send(cancel=[9])
    await gateway.end_of(9)
    replica.samplers[0].may_answer.set()
    await gateway.end_of(*priorities)
    assert list(gateway.ended) == [9, *order]
    assert all(gateway.tokens[number] == replica.model.greedy_answer([number], 4) for number in priorities)


@pytest.mark.parametrize("first", [compute_pb2.GenerateRequest(), compute_pb2.GenerateRequest(cancel=[1])], ids=["empty", "no hello"])
async def test_a_stream_without_hello_ends_with_a_status(replica: Replica, first: compute_pb2.GenerateRequest) -> None:
    await (await replica.start()).ready()
    gateway = Gateway(replica.port)
    call = gateway.stub.Generate()
    await call.write(first)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    await gateway.channel.close()


async def test_a_second_hello_ends_the_stream_with_a_status(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.send(hello=compute_pb2.GatewayHello(fingerprint=replica.fingerprint))
    assert await gateway.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_another_tokenizer_is_refused(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway(common_pb2.Fingerprint(tokenizer_sha256="other"))
    assert await gateway.call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_gateway_that_does_not_read_is_cut_off_and_harms_nobody(replica: Replica) -> None:
    await (await replica.start(max_backlog_bytes=1 << 20, sizes={"max_model_len_tokens": 100_000, "num_pages": 30_000})).ready()
    good, deaf = await replica.gateway(), await replica.gateway(reads=False)
    # Long numbers make large parcels; the transport itself holds some megabytes.
    replica.samplers[0].text_bytes = 15_000
    await deaf.submit(1, [1, 2], 90_000)

    async def has_begun() -> bool:
        return (await good.load()).decode_tokens > 0

    await until(has_begun)
    await replica.idle()
    replica.samplers[0].text_bytes = 0
    await good.submit(1, [5, 6], 4)
    (end,) = await good.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await deaf.call.read() is not grpc.aio.EOF:
            continue
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("field", ["submit", "cancel"])
async def test_a_message_with_too_many_entries_ends_its_stream_and_no_other(replica: Replica, field: str) -> None:
    await (await replica.start()).ready()
    greedy, good = await replica.gateway(), await replica.gateway()
    entries = [compute_pb2.SubmitRequest()] * (MAX_SUBMITS + 1) if field == "submit" else range(MAX_CANCELS + 1)
    await greedy.send(**{field: entries})
    assert await greedy.call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (await greedy.call.details() or "")
    assert not greedy.ended
    await good.submit(1, [1, 2], 3)
    (end,) = await good.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED


async def test_a_message_with_as_many_entries_as_allowed_is_taken(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    submits = [compute_pb2.SubmitRequest(request=number) for number in range(MAX_SUBMITS)]
    await gateway.send(submit=submits, cancel=range(MAX_CANCELS))
    ends = await gateway.end_of(*range(MAX_SUBMITS))
    assert {end.error.field for end in ends} == {"token_ids"}
