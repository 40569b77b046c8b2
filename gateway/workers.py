"""Several gateway processes on one port (`GATEWAY_WORKERS`): started, kept up, watched, drained together.

An event loop is one core's. The processes share no memory: the kernel gives each connection to one of them, each has its own connections to the stages, its
own limits and its own part of the prompt cache in memory; what Redis keeps is of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.http.server import listen_on
from gateway.settings import Settings
from gateway.worker_metrics import WorkersCollector

logger = logging.getLogger(__name__)

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_S = 1.0
_ANSWER_S = 2.0
# Unanswered questions in a row, after which a process counts as hanging.
_MOST_SILENCES = 5
_RESTART_S = 1.0


class WorkerFailed(Exception):
    """A process could not start; its own last line says why.

    Args:
        status: it ended with.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"a worker process ended with status {status} before it answered")
        self.status = status


class Workers:
    """All processes of one gateway. Implements `Service`.

    Args:
        settings: of each; the addresses are theirs together.

    Raises:
        CannotListen: an address cannot be listened on.
    """

    def __init__(self, settings: Settings) -> None:
        # Bound and never listening, so that the ports are taken before the first process and between two.
        self._held = [_hold(settings.listen), _hold(settings.grpc_listen)]
        listen, grpc_listen = (f"{host}:{held.getsockname()[1]}" for host, held in zip(_hosts(settings), self._held, strict=True))
        environment = settings.worker_environment(listen=listen, grpc_listen=grpc_listen)
        self._workers = []
        for number in range(settings.workers):
            metrics = _hold("127.0.0.1:0")
            self._held.append(metrics)
            port = int(metrics.getsockname()[1])
            self._workers.append(Worker(number, port, {**environment, "GATEWAY_METRICS_LISTEN": f"127.0.0.1:{port}"}))
        # Nothing of this process: the same names come from each worker.
        self.registry = CollectorRegistry()
        self.registry.register(WorkersCollector(self._workers))
        self._tasks: list[asyncio.Task[None]] = []
        self._ports = (listen, grpc_listen)
        self._is_stopping = False

    @property
    def health(self) -> Workers:
        """Itself."""
        return self

    @property
    def ready(self) -> bool:
        """Whether every process takes requests: a connection goes to any of them."""
        return not self._is_stopping and all(worker.is_ready for worker in self._workers)

    async def start(self) -> None:
        """Starts the processes. They are ready when they say so."""
        self._tasks = [asyncio.create_task(worker.keep(), name=f"worker {worker.number}") for worker in self._workers]
        logger.info("%d worker processes: HTTP on %s, gRPC on %s", len(self._workers), *self._ports)

    async def failed(self) -> None:
        """Waits until a process cannot start.

        Raises:
            WorkerFailed: always.
        """
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Has every process drain, and waits for it."""
        self._is_stopping = True
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for held in self._held:
            held.close()


class Worker:
    """One process, and the next one in its place.

    Args:
        number: from 0; its label in metrics.
        metrics_port: where it is watched.
        environment: it is started with.
    """

    def __init__(self, number: int, metrics_port: int, environment: Mapping[str, str]) -> None:
        self.number = number
        self.is_ready = False
        self._metrics_port = metrics_port
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._was_alive = False
        self._is_stopping = False

    async def keep(self) -> None:
        """Starts the process, and again whenever it ends or hangs.

        Raises:
            WorkerFailed: it ended by itself before it ever answered.
        """
        while not self._is_stopping:
            # It dies with this process, and is told to end by this process alone: a terminal's Ctrl-C comes once.
            command = (sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), sys.executable, "-m", "gateway")
            self._process = await asyncio.create_subprocess_exec(*command, env=self._environment, start_new_session=True)
            watch = asyncio.create_task(self._watch(self._process))
            try:
                status = await self._process.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                raise
            finally:
                watch.cancel()
                self.is_ready = False
            if self._is_stopping:
                return
            if not self._was_alive:
                raise WorkerFailed(status)
            logger.error("worker %d has ended with status %d and is started again", self.number, status)
            await asyncio.sleep(_RESTART_S)

    async def stop(self) -> None:
        """Has it drain, which takes as long as its own setting allows."""
        self._is_stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()

    def ask(self, path: str) -> tuple[int, bytes]:
        """What it answers on its port for those who watch. Blocks for a moment.

        Raises:
            OSError: it answers nothing, or what is no HTTP.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics_port, timeout=_ANSWER_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(f"worker {self.number} answers with what is no HTTP") from error
        finally:
            connection.close()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Notes what the process says of itself, and kills it when it says nothing any more; until it has answered it is starting, however long."""
        silences, has_answered = 0, False
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                alive, _ = await asyncio.to_thread(self.ask, "/livez")
                ready, _ = await asyncio.to_thread(self.ask, "/readyz")
            except OSError:
                alive = ready = 503
            self.is_ready = ready == 200
            has_answered |= alive == 200
            self._was_alive |= has_answered
            silences = 0 if alive == 200 else silences + 1
            if silences > _MOST_SILENCES and has_answered:
                logger.error("worker %d does not answer and is killed", self.number)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return


def _hosts(settings: Settings) -> Iterable[str]:
    return (address.rpartition(":")[0] for address in (settings.listen, settings.grpc_listen))


def _hold(address: str) -> socket.socket:
    """Takes a port for processes that share it.

    Raises:
        CannotListen: somebody else has it, or the address is none of this machine.
    """
    # Others that share their port would share it with us, too: whoever listens alone would not.
    listen_on(address).close()
    return listen_on(address, reuse_port=True, is_held=True)
