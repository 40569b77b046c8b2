"""The engine's process, spoken to over a socket without an event loop."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from compute_svc.engine.engine import MAX_FAILED_STEPS, Engine
from compute_svc.engine.server import EngineServer
from compute_svc.models.weights import CheckpointError
from compute_svc.settings import Settings
from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.codec import MessageCutter, decode_output, encode_request, pack
from compute_svc.wire.request import Request
from tests.fakes.engine_reader import TOP_3, WIDTH, request_of, small_engine
from tests.fakes.hash_model import HashModel
from tests.fakes.unreliable_model import UnreliableModel
from triserve.rpc.errors import from_proto

TIMEOUT_S = 20.0


class Peer:
    """The other end of an engine's stream."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._cutter = MessageCutter()
        self._reports: list[wire.Report] = []

    def give(self, *commands: wire.Command) -> None:
        """Sends commands, all at once."""
        self.connection.sendall(b"".join(map(pack, commands)))

    def submit(self, *requests: Request) -> None:
        """Sends requests."""
        self.give(*(wire.Command(submit=encode_request(request)) for request in requests))

    def take(self) -> wire.Report:
        """The next report."""
        while not self._reports:
            data = self.connection.recv(1 << 16)
            assert data, "the engine closed the stream"
            self._reports = [wire.Report.FromString(content) for content in self._cutter.feed(data)]
        return self._reports.pop(0)

    def take_until_released(self, *numbers: int) -> tuple[dict[int, list[int]], dict[int, str]]:
        """The tokens of all requests, and the errors of those that failed, until all of these have left."""
        tokens: dict[int, list[int]] = {}
        errors: dict[int, str] = {}
        left: set[int] = set()
        while not left >= set(numbers):
            output = self.take().output
            rows = decode_output(output).rows
            if rows is not None:
                drawn = iter(rows.tokens.tolist())
                for number, count in zip(rows.numbers.tolist(), rows.counts.tolist(), strict=True):
                    tokens.setdefault(number, []).extend(islice(drawn, count))
            for released in output.released:
                left.add(released.request)
                if released.HasField("error"):
                    errors[released.request] = from_proto(released.error).message
        return tokens, errors


@contextlib.contextmanager
def _served(folder: Path, build: Callable[[], Engine]) -> Iterator[Peer]:
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    settings = Settings.model_validate({"model": folder})
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    server = threading.Thread(target=EngineServer(theirs, lambda _: build()).run, daemon=True)
    server.start()
    with ours:
        peer = Peer(ours)
        peer.give(wire.Command(load=wire.Load(settings=settings.model_dump_json())))
        yield peer
    server.join(TIMEOUT_S)
    assert not server.is_alive()


def _cannot_build() -> Engine:
    raise CheckpointError("no such weights")


def test_an_engine_that_failed_reads_on_until_it_was_heard(tmp_path: Path) -> None:
    with _served(tmp_path, _cannot_build) as peer:
        assert peer.take().failed == "no such weights"
        peer.give(wire.Command(ping=1))
        peer.connection.shutdown(socket.SHUT_WR)
        assert peer.connection.recv(1) == b"", "nothing was lost on the way"


def test_what_comes_together_with_the_first_command_is_done_too(tmp_path: Path) -> None:
    with _served(tmp_path, small_engine) as peer:
        peer.give(wire.Command(ping=1), wire.Command(ping=2))
        assert peer.take().HasField("loaded")
        assert [peer.take().pong, peer.take().pong] == [1, 2]


def test_requests_are_refused_by_reason_and_the_others_are_answered(tmp_path: Path) -> None:
    model = HashModel(WIDTH)
    with _served(tmp_path, lambda: small_engine(model)) as peer:
        assert peer.take().HasField("loaded")
        peer.submit(request_of(1, range(65), 4), request_of(2, [WIDTH], 4), request_of(3, range(5), 4))
        refused = [peer.take().refused for _ in range(2)]
        assert [(item.request, from_proto(item.error).field) for item in refused] == [(1, "token_ids"), (2, "token_ids")]
        assert list(peer.take().admitted.request) == [3]
        assert peer.take_until_released(3) == ({3: model.greedy_answer(range(5), 4)}, {})


class _Overflowing(Engine):
    """Has no memory for one request."""

    def submit(self, request: Request) -> None:
        """See `Engine`."""
        if request.number == 1:
            raise MemoryError("cannot allocate")
        super().submit(request)


def test_a_request_that_cannot_be_taken_for_a_reason_of_the_engines_is_refused_alone(tmp_path: Path) -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    engine.__class__ = _Overflowing
    with _served(tmp_path, lambda: engine) as peer:
        assert peer.take().HasField("loaded")
        peer.submit(request_of(1, range(5), 4), request_of(2, range(5), 4))
        assert from_proto(peer.take().refused.error).message == "the request could not be put in the queue"
        assert list(peer.take().admitted.request) == [2]
        assert peer.take_until_released(2) == ({2: model.greedy_answer(range(5), 4)}, {})


def test_verdicts_of_unequal_columns_fail_the_requests_they_name_and_no_other(tmp_path: Path) -> None:
    model = HashModel(WIDTH)
    with _served(tmp_path, lambda: small_engine(model)) as peer:
        assert peer.take().HasField("loaded")
        peer.submit(request_of(1, range(5), 4, sampling=TOP_3), request_of(2, range(1, 6), 4))
        assert sorted(peer.take().admitted.request) == [1, 2]
        peer.give(wire.Command(verdicts=wire.Verdicts(request=[1], position=[0], num_tokens=[1], token=[3, 4])))
        tokens, errors = peer.take_until_released(1, 2)
        assert tokens[2] == model.greedy_answer(range(1, 6), 4)
        assert errors == {1: "the sampler's verdicts have columns of unequal length"}


def test_a_step_that_fails_costs_its_requests_and_many_in_a_row_the_engine(tmp_path: Path) -> None:
    model = UnreliableModel(WIDTH)
    with _served(tmp_path, lambda: small_engine(model)) as peer:
        assert peer.take().HasField("loaded")
        for number in range(MAX_FAILED_STEPS):
            model.fault = "no memory"
            peer.submit(request_of(number, range(5), 4))
            assert list(peer.take().admitted.request) == [number]
            if number < MAX_FAILED_STEPS - 1:
                assert peer.take_until_released(number) == ({}, {number: "the step that computed the request failed"})
        assert peer.take().failed.startswith(f"StepsFail: {MAX_FAILED_STEPS} steps have failed in a row")
        peer.connection.shutdown(socket.SHUT_WR)
