"""The computing process of a replica: takes commands from a stream, steps, reports. Its one thread does all torch work, loading included.

It is a process of its own because the event loop's work would hold the interpreter lock while the engine wants it: each of some five wake-ups per
step then stops the step. Nothing here waits for the network: the stream ends in the replica's other process, which always reads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from itertools import islice

from compute_svc.engine.command_reader import CommandReader
from compute_svc.engine.engine import Engine
from compute_svc.models.weights import CheckpointError
from compute_svc.parallel.processes.leader import RanksLost
from compute_svc.settings import Settings
from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.codec import decode_request, decode_tokens, encode_output, encode_stats, pack
from triserve.rpc import garbage
from triserve.rpc.errors import Internal, ServiceError, to_proto

logger = logging.getLogger(__name__)


# The other end closes the stream as soon as it has read that the engine has failed.
_LAST_WORDS_S = 5.0


class _CannotLoad(Exception):
    """The checkpoint or a setting is at fault, or a rank is lost; its message says all that there is to say."""


class EngineServer:
    """Serves one engine to the other end of a stream until that end is closed.

    Args:
        connection: A blocking stream socket; the server closes it.
        build: Loads the model and makes the engine.
    """

    def __init__(self, connection: socket.socket, build: Callable[[Settings], Engine]) -> None:
        self._connection = connection
        self._build = build
        self._reader = CommandReader(connection)
        self._writes = threading.Lock()
        # Commands that were read and not done: those that came together with the first, or while a step was under way.
        self._unread: list[wire.Command] = []
        self._is_closed = False

    def run(self) -> None:
        """Loads, then computes; returns when the other end is closed or the engine has failed, which the other end is told."""
        # The other end may go at any time; there is nobody to tell then.
        with self._connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                engine = self._load()
                if engine is not None:
                    self._serve(engine)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except _CannotLoad as error:
                self._send_last(wire.Report(failed=str(error)))
            except Exception as error:
                logger.exception("the engine failed")
                self._send_last(wire.Report(failed=f"{type(error).__name__}: {error}"))

    def end(self, reason: str) -> None:
        """Ends the process, once the other end is told why: where nothing can be computed any more, whatever the engine's thread waits for.

        Args:
            reason: A sentence of its own.

        Effects: never returns.
        """
        with contextlib.suppress(OSError):
            self._send(wire.Report(failed=reason))
            closed = select.poll()
            closed.register(self._connection, select.POLLHUP)
            closed.poll(_LAST_WORDS_S * 1000)
        os._exit(1)

    def _load(self) -> Engine | None:
        """The engine, which the other end is told of; None when that is gone already."""
        settings = self._first_command()
        if settings is None:
            return None
        try:
            engine = self._build(settings)
        except (CheckpointError, RanksLost, ValueError) as error:
            raise _CannotLoad(str(error)) from error
        config = engine.config
        self._send(
            wire.Report(
                loaded=wire.Loaded(
                    logits_width=engine.logits_width,
                    max_request_tokens=config.max_request_tokens,
                    page_size_tokens=config.page_size_tokens,
                    num_pages=config.num_pages,
                    max_waiting_requests=config.max_waiting_requests,
                    dtype=engine.dtype,
                    hidden_size=engine.hidden_size,
                    kv_format=engine.kv_format,
                    kernels=engine.kernels,
                    kv_bytes_per_page=engine.kv_bytes_per_page,
                    load=engine.load,
                )
            )
        )
        return engine

    def _first_command(self) -> Settings | None:
        """The settings to load with; None when the other end is gone already."""
        while (contents := self._reader.read(None)) is not None:
            if contents:
                command = wire.Command.FromString(contents[0])
                self._unread = [wire.Command.FromString(content) for content in contents[1:]]
                assert command.HasField("load"), "nothing is asked of an engine that is not there yet"
                return Settings.model_validate_json(command.load.settings)
        return None

    def _serve(self, engine: Engine) -> None:
        engine.look_for_masks = lambda: self._take_masks(engine)
        garbage.settle()
        while True:
            commands, self._unread = self._unread, []
            for command in commands:
                self._do(engine, command)
            kept = engine.draw_kept()
            if kept is not None:
                self._send(wire.Report(output=encode_output(kept, time.monotonic())))
            plan = engine.plan(time.monotonic())
            if plan.admitted:
                self._send(wire.Report(admitted=wire.Admitted(request=[state.request.number for state in plan.admitted])))
            output = engine.run(plan)
            if output is not None:
                self._send(wire.Report(output=encode_output(output, time.monotonic())))
            is_idle = output is None and not self._unread
            self._read(_seconds_until(engine.next_deadline) if is_idle else 0.0)
            if self._is_closed:
                return

    def _read(self, timeout_s: float | None) -> None:
        """Adds the commands that have arrived to those that are to be done; notes that the other end is closed."""
        contents = self._reader.read(timeout_s)
        if contents is None:
            self._is_closed = True
        else:
            self._unread += [wire.Command.FromString(content) for content in contents]

    def _take_masks(self, engine: Engine) -> None:
        """Does the commands that a step under way waits for, and leaves the others for when it is over."""
        self._read(0.0)
        others = []
        for command in self._unread:
            if command.HasField("masks"):
                self._do(engine, command)
            else:
                others.append(command)
        self._unread = others

    def _do(self, engine: Engine, command: wire.Command) -> None:
        kind = command.WhichOneof("kind")
        if kind == "submit":
            self._submit(engine, command.submit)
        elif kind == "release":
            engine.release(command.release)
        elif kind == "verdicts":
            self._judge(engine, command.verdicts)
        elif kind == "masks":
            for mask in command.masks.masks:
                engine.mask(mask.number, mask.position, mask.allowed, mask.forced)
        elif kind == "pause":
            engine.pause(command.pause.request, paused=command.pause.paused)
        elif kind == "ping":
            self._send(wire.Report(pong=command.ping))
        elif kind == "unpin":
            was_pinned = engine.unpin(command.unpin.tenant, decode_tokens(command.unpin.tokens))
            self._send(wire.Report(unpinned=wire.Unpinned(number=command.unpin.number, was_pinned=was_pinned)))
        elif kind == "stats":
            self._send(wire.Report(stats=encode_stats(command.stats, engine.prefix_stats)))
        elif kind == "watch":
            engine.watch(command.watch)
        else:
            raise AssertionError(f"unknown command {kind}")

    def _judge(self, engine: Engine, verdicts: wire.Verdicts) -> None:
        columns = len(verdicts.position) == len(verdicts.num_tokens) == len(verdicts.request)
        if not columns or sum(verdicts.num_tokens) != len(verdicts.token):
            for number in verdicts.request:
                engine.reject(number, Internal("the sampler's verdicts have columns of unequal length"))
            return
        tokens = iter(verdicts.token)
        for number, position, count in zip(verdicts.request, verdicts.position, verdicts.num_tokens, strict=True):
            engine.verdict(number, position, list(islice(tokens, count)))

    def _submit(self, engine: Engine, message: wire.Submission) -> None:
        error: ServiceError
        try:
            engine.submit(decode_request(message, engine.logits_width))
        except ServiceError as refusal:
            error = refusal
        except Exception:
            logger.exception("request %d could not be put in the queue", message.number)
            error = Internal("the request could not be put in the queue")
        else:
            return
        self._send(wire.Report(refused=wire.Refused(request=message.number, error=to_proto(error))))

    def _send_last(self, report: wire.Report) -> None:
        """Sends a report and returns when the other end is closed: one that writes to a closed stream would not read what is in it."""
        self._send(report)
        while self._reader.read(None) is not None:
            pass

    def _send(self, report: wire.Report) -> None:
        with self._writes:
            self._connection.sendall(pack(report))


def _seconds_until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
