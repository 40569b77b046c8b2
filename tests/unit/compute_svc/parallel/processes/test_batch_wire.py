"""A batch that goes to another rank is the same there, and a message is whole or none."""

from __future__ import annotations

import socket
from dataclasses import fields

import numpy as np
import pytest
import torch

from compute_svc.engine.steps.decode_graphs import DecodeRows
from compute_svc.layers.forward_batch import ForwardBatch, batch_on
from compute_svc.parallel.processes.batch_wire import decode_batch, decode_rows, encode_batch, encode_rows
from compute_svc.parallel.processes.channel import Channel, Kind


def _batch(hidden_rows: torch.Tensor | None, *, with_logits: bool = True) -> ForwardBatch:
    return ForwardBatch(
        token_ids=torch.tensor([7, 8, 9]),
        positions=torch.tensor([40, 0, 1]),
        slots=torch.tensor([88, 16, 17]),
        num_decodes=1,
        query_starts=(0, 1, 3),
        kv_lengths=(41, 2),
        page_table=torch.tensor([[1, 3, 5], [1, 0, 0]]),
        logit_rows=torch.tensor([0, 2] if with_logits else [], dtype=torch.int64),
        begun_pages=torch.tensor([1]),
        position_limit=41,
        hidden_rows=hidden_rows,
    )


def _assert_same(one: ForwardBatch, other: ForwardBatch) -> None:
    for field in fields(ForwardBatch):
        expected, got = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(got, expected) if isinstance(expected, torch.Tensor) else got == expected, field.name


@pytest.mark.parametrize("hidden_rows", [None, torch.tensor([1, 2])], ids=["no-hidden", "hidden"])
@pytest.mark.parametrize("with_logits", [True, False])
def test_a_batch_comes_out_of_its_bytes_as_it_went_in(hidden_rows: torch.Tensor | None, with_logits: bool) -> None:
    batch = _batch(hidden_rows, with_logits=with_logits)
    _assert_same(batch, decode_batch(encode_batch(batch)))


def test_rows_come_out_of_their_bytes_as_they_went_in() -> None:
    rows = DecodeRows(np.array([0, 1]), np.array([2, 3]), np.array([4, 5]), np.array([[9, 8, 7], [6, 5, 4]]))
    for one, other in zip(decode_rows(encode_rows(rows)), rows, strict=True):
        assert one.tolist() == other.tolist()


def test_a_batch_of_the_host_stays_there() -> None:
    batch = _batch(None)
    assert batch_on(batch, torch.device("cpu")) is batch
    moved = batch_on(_batch(torch.tensor([1])), torch.device("meta"))
    assert {name: getattr(moved, name).shape for name in ("page_table", "hidden_rows")} == {"page_table": (2, 3), "hidden_rows": (1,)}


def test_messages_come_one_by_one_and_then_the_end() -> None:
    ours, theirs = map(Channel, socket.socketpair())
    ours.send(Kind.FORWARD, b"one")
    ours.send(Kind.LOADED)
    ours.close()
    assert [theirs.receive(), theirs.receive(), theirs.receive()] == [(Kind.FORWARD, b"one"), (Kind.LOADED, b""), None]
    theirs.close()


def test_a_message_that_breaks_off_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(bytes([Kind.FORWARD]) + (5).to_bytes(8, "little") + b"abc")
    channel = Channel(theirs)
    assert channel.receive() is None
    channel.close()


def test_who_waits_too_long_for_a_message_is_told() -> None:
    ours, theirs = map(Channel, socket.socketpair())
    ours.limit(0.01)
    with pytest.raises(TimeoutError):
        ours.receive()
    ours.close()
    theirs.close()
