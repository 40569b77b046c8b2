from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.codec import (
    MessageCutter,
    decode_output,
    decode_request,
    decode_stats,
    decode_tokens,
    encode_output,
    encode_request,
    encode_stats,
    encode_tokens,
    pack,
)
from compute_svc.wire.request import GREEDY, HiddenStates, Request
from compute_svc.wire.step_output import Hidden, KvChanges, Load, Pinned, PrefixStats, Released, Rows, Started, StepOutput
from triserve.rpc.errors import InvalidRequest, ServiceError
from triserve.rpc.sampling import Sampling
from triserve.v1 import sampler_pb2

IDS = st.integers(0, 2**31 - 1)
NUMBERS = st.integers(0, 2**63 - 1)
REALS = st.floats(allow_nan=False)
TOKENS = st.lists(IDS, max_size=8).map(lambda ids: np.array(ids, dtype=np.int64))


SAMPLINGS = st.sampled_from([GREEDY, Sampling(seed=2**64 - 1), Sampling(temperature=0.5, top_k=3, seed=0, bad_words=((1, 2), (3,)))])


@st.composite
def requests(draw: st.DrawFn) -> Request:
    return Request(
        number=draw(NUMBERS),
        tenant=draw(st.text(max_size=8)),
        prompt=draw(TOKENS),
        generated=draw(TOKENS),
        max_tokens=draw(IDS),
        submitted_at=draw(REALS),
        min_tokens=draw(IDS),
        stop_token_ids=draw(st.frozensets(IDS, max_size=4)),
        sampling=draw(SAMPLINGS),
        deadline=draw(st.none() | REALS),
        priority=draw(st.integers(-(2**31), 2**31 - 1)),
        pins=draw(st.booleans()),
        hidden_states=draw(st.sampled_from(HiddenStates)),
    )


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    count = draw(st.integers(0, 5))

    def column(values: st.SearchStrategy[int], dtype: type, size: int = count) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype)

    counts = column(st.integers(0, 3), np.uint32)
    logprobs = [sampler_pb2.RowLogprobs(row=row, logprob=[-1.5], top_token=[7], top_logprob=[-0.5]) for row in range(0, count, 2)]
    logits = [sampler_pb2.RowLogits(row=row, logits=bytes(8)) for row in range(1, count)]
    tokens = column(IDS, np.uint32, int(counts.sum()))
    prompts = [sampler_pb2.PromptLogprobs(request=number, first_position=1, logprob=[-1.5], rank=[2]) for number in range(count)]
    computed = draw(st.lists(NUMBERS, max_size=2))
    return Rows(column(NUMBERS, np.uint64), column(IDS, np.uint32), counts, tokens, logprobs, logits, prompts, computed)


def _fields(value: object) -> dict[str, object]:
    """The fields of a request or of rows, arrays as lists, so that they can be compared."""
    names = value._fields if isinstance(value, tuple) else value.__slots__  # type: ignore[attr-defined]
    fields = {name: getattr(value, name) for name in names}
    return {name: (field.dtype, field.tolist()) if isinstance(field, np.ndarray) else field for name, field in fields.items()}


@given(requests())
def test_a_request_arrives_as_it_was_sent(request: Request) -> None:
    message = wire.Submission.FromString(encode_request(request).SerializeToString())
    assert _fields(decode_request(message, 2**31)) == _fields(request)


def test_an_id_travels_in_four_bytes_and_the_largest_arrives() -> None:
    ids = np.array([0, 5, 2**32 - 1], dtype=np.int64)
    assert encode_tokens(ids) == b"\0\0\0\0" + b"\5\0\0\0" + b"\xff\xff\xff\xff"
    assert decode_tokens(encode_tokens(ids)).tolist() == ids.tolist()
    assert decode_tokens(encode_tokens(ids)).dtype == np.int64


@given(st.none() | rows(), st.integers(0, 2**63 - 1), REALS)
def test_an_output_arrives_as_it_was_sent(computed: Rows | None, number: int, ended_at: float) -> None:
    failure: ServiceError = InvalidRequest("top_k is 0", field="top_k")
    load = Load(*range(11))
    released = [Released(number, 1, None), Released(number, 2, failure)]
    changes = KvChanges(True, [2**64 - 1, 3], [4])
    output = StepOutput(
        computed, [Started(number, 3, 1.5, 2.5)], released, load, [Pinned(number, 8, 4)], changes, [Hidden(number, 3, bytes(8), 2)]
    )
    message = wire.Output.FromString(encode_output(output, ended_at).SerializeToString())
    arrived = decode_output(message)
    assert (arrived.rows is None) == (computed is None)
    if computed is not None and arrived.rows is not None:
        assert _fields(arrived.rows) == _fields(computed)
    assert (arrived.started, arrived.load, message.ended_at) == (output.started, load, ended_at)
    assert (arrived.pinned, arrived.kv_changes, arrived.hidden) == (output.pinned, changes, output.hidden)
    assert arrived.released[0] == output.released[0]
    error = arrived.released[1].error
    assert isinstance(error, InvalidRequest) and (error.message, error.field) == ("top_k is 0", "top_k")


def test_prefix_stats_arrive_as_they_were_sent() -> None:
    stats = PrefixStats._make([*range(9), [("a", 8, 2**64 - 1), ("", 4, 0)]])
    message = wire.PrefixStats.FromString(encode_stats(7, stats).SerializeToString())
    assert (message.number, decode_stats(message)) == (7, stats)


@given(st.lists(st.integers(0, 2**40), max_size=6), st.data())
def test_messages_are_cut_wherever_the_stream_was_broken(pings: list[int], data: st.DataObject) -> None:
    stream = b"".join(pack(wire.Command(ping=ping)) for ping in pings)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    cutter = MessageCutter()
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    contents = [content for piece in pieces for content in cutter.feed(piece)]
    assert [wire.Command.FromString(content).ping for content in contents] == pings
