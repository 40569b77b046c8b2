"""What is read off the engine's stream between two steps."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from compute_svc.engine.command_reader import MAX_BYTES, CommandReader
from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.codec import pack


class ScriptedSocket(socket.socket):
    """A socket that always polls readable and gives pieces one by one; None = it would block."""

    pieces: list[bytes | None]

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """The next piece."""
        piece = self.pieces.pop(0) if self.pieces else None
        if piece is None:
            raise BlockingIOError
        assert len(piece) <= bufsize and flags == socket.MSG_DONTWAIT
        return piece


@pytest.fixture
def scripted() -> Iterator[ScriptedSocket]:
    ours, theirs = socket.socketpair()
    with ours, ScriptedSocket(fileno=theirs.detach()) as connection:
        ours.send(b"readable")
        connection.pieces = []
        yield connection


def _pings(contents: list[bytes] | None) -> list[int]:
    assert contents is not None
    return [wire.Command.FromString(content).ping for content in contents]


def _prompt(num_bytes: int) -> bytes:
    return pack(wire.Command(submit=wire.Submission(prompt=bytes(num_bytes))))


def _cut(data: bytes, size: int) -> list[bytes | None]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_a_short_command_behind_many_prompts_is_read_with_them(scripted: ScriptedSocket) -> None:
    scripted.pieces = [*_cut(_prompt(48_000) * 100, 200_000), pack(wire.Command(ping=7))]
    contents = CommandReader(scripted).read(0.0)
    assert contents is not None and len(contents) == 101
    assert _pings(contents[-1:]) == [7]


def test_the_rest_of_a_message_that_has_begun_is_waited_for(scripted: ScriptedSocket) -> None:
    message = pack(wire.Command(ping=1)) + pack(wire.Command(ping=2))
    scripted.pieces = [message[:3], None, None, message[3:], None, pack(wire.Command(ping=3))]
    reader = CommandReader(scripted)
    assert _pings(reader.read(0.0)) == [1, 2], "and what follows a whole message is not"
    assert _pings(reader.read(0.0)) == [3]


def test_steps_go_on_however_much_there_is_to_read(scripted: ScriptedSocket) -> None:
    piece = _prompt(1 << 19)
    scripted.pieces = [piece] * 64
    reader = CommandReader(scripted)
    counts = []
    while contents := reader.read(0.0):
        counts.append(len(contents))
    assert counts == [MAX_BYTES // (1 << 19)] * 4


def test_what_came_before_the_end_is_read_before_the_end(scripted: ScriptedSocket) -> None:
    scripted.pieces = [pack(wire.Command(ping=1)), b"", b""]
    reader = CommandReader(scripted)
    assert _pings(reader.read(None)) == [1]
    assert reader.read(None) is None


def test_nothing_is_waited_for_between_messages() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = CommandReader(theirs)
        assert reader.read(0.0) == []
        ours.sendall(pack(wire.Command(ping=1)))
        assert _pings(reader.read(None)) == [1]
        assert reader.read(0.001) == []
