"""The engine's process, spoken to over a socket without an event loop."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from compute_svc.engine.engine import Engine
from compute_svc.engine.server import EngineServer
from compute_svc.models.weights import CheckpointError
from compute_svc.settings import Settings
from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.codec import MessageCutter, pack

TIMEOUT_S = 20.0


def _cannot_build(settings: Settings) -> Engine:
    raise CheckpointError("no such weights")


def test_an_engine_that_failed_reads_on_until_it_was_heard(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    settings = Settings.model_validate({"model": tmp_path})
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    server = threading.Thread(target=EngineServer(theirs, _cannot_build).run, daemon=True)
    server.start()
    with ours:
        ours.sendall(pack(wire.Command(load=wire.Load(settings=settings.model_dump_json()))))
        (content,) = MessageCutter().feed(ours.recv(1 << 16))
        assert wire.Report.FromString(content).failed == "no such weights"
        ours.sendall(pack(wire.Command(ping=1)))
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b"", "nothing was lost on the way"
    server.join(TIMEOUT_S)
    assert not server.is_alive()
