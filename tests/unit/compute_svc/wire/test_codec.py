from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
import pytest
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
from compute_svc.wire.request import Request, SamplingOptions
from compute_svc.wire.step_output import KvChanges, Load, Pinned, PrefixStats, Released, Rows, Started, StepOutput
from triserve.rpc.errors import InvalidRequest, ServiceError

T = TypeVar("T")
IDS = st.integers(0, 2**31 - 1)
NUMBERS = st.integers(0, 2**63 - 1)
REALS = st.floats(allow_nan=False)
TOKENS = st.lists(IDS, max_size=8).map(lambda ids: np.array(ids, dtype=np.int64))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    sampling = SamplingOptions(
        temperature=draw(REALS),
        top_k=draw(st.none() | IDS),
        top_p=draw(REALS),
        min_p=draw(REALS),
        repetition_penalty=draw(REALS),
        presence_penalty=draw(REALS),
        frequency_penalty=draw(REALS),
        bias_ids=tuple(draw(st.lists(IDS, max_size=4))),
        top_logprobs=draw(st.none() | st.integers(0, 20)),
    )
    return Request(
        number=draw(NUMBERS),
        tenant=draw(st.text(max_size=8)),
        prompt=draw(TOKENS),
        generated=draw(TOKENS),
        max_tokens=draw(IDS),
        submitted_at=draw(REALS),
        min_tokens=draw(IDS),
        stop_token_ids=draw(st.frozensets(IDS, max_size=4)),
        sampling=sampling,
        deadline=draw(st.none() | REALS),
        priority=draw(st.integers(-(2**31), 2**31 - 1)),
    )


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    count = draw(st.integers(0, 5))

    def column(values: st.SearchStrategy[T]) -> list[T]:
        return draw(st.lists(values, min_size=count, max_size=count))

    counts = column(st.integers(0, 3))
    ids = np.array(draw(st.lists(IDS, min_size=sum(counts), max_size=sum(counts))), dtype=np.uint32)
    logits = (ids / 3).astype(np.float32)
    return Rows(column(NUMBERS), column(IDS), column(st.none() | IDS), counts, column(REALS), ids, logits)


def _fields(value: object) -> dict[str, object]:
    """The fields of a request or of rows, arrays as lists, so that they can be compared."""
    names = value._fields if isinstance(value, tuple) else value.__slots__  # type: ignore[attr-defined]
    fields = {name: getattr(value, name) for name in names}
    return {name: (field.dtype, field.tolist()) if isinstance(field, np.ndarray) else field for name, field in fields.items()}


@given(requests())
def test_a_request_arrives_as_it_was_sent(request: Request) -> None:
    message = wire.Submission.FromString(encode_request(request).SerializeToString())
    assert _fields(decode_request(message)) == _fields(request)


@pytest.mark.parametrize("field", dataclasses.fields(SamplingOptions), ids=lambda field: field.name)
def test_every_sampling_option_arrives(field: dataclasses.Field[Any]) -> None:
    other: Any = {"float": 0.25, "int | None": 3, "tuple[int, ...]": (1, 2)}[str(field.type)]
    changes: dict[str, Any] = {field.name: other}
    sampling = SamplingOptions(**changes)
    assert sampling != SamplingOptions()
    request = Request(1, "", np.array([5]), np.array([], dtype=np.int64), 4, 0.0, sampling=sampling)
    message = wire.Submission.FromString(encode_request(request).SerializeToString())
    assert decode_request(message).sampling == sampling


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
    output = StepOutput(computed, [Started(number, 3, 1.5, 2.5)], released, load, [Pinned(number, 8, 4)], changes)
    message = wire.Output.FromString(encode_output(output, ended_at).SerializeToString())
    arrived = decode_output(message)
    assert (arrived.rows is None) == (computed is None)
    if computed is not None and arrived.rows is not None:
        assert _fields(arrived.rows) == _fields(computed)
    assert (arrived.started, arrived.load, message.ended_at) == (output.started, load, ended_at)
    assert (arrived.pinned, arrived.kv_changes) == (output.pinned, changes)
    assert arrived.released[0] == output.released[0]
    error = arrived.released[1].error
    assert isinstance(error, InvalidRequest) and (error.message, error.field) == ("top_k is 0", "top_k")


def test_prefix_stats_arrive_as_they_were_sent() -> None:
    stats = PrefixStats._make([*range(10), [("a", 8, 2**64 - 1), ("", 4, 0)]])
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
