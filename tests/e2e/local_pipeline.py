"""A whole pipeline of real processes, started the way a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from tests.child_processes import children_running
from tests.ports import free_port
from triserve.v1 import compute_pb2, compute_pb2_grpc, sampler_pb2, sampler_pb2_grpc

READY_TIMEOUT_S = 90.0
_POLL_S = 0.02
# A machine that does much else may be slow; whoever waits for what is never so waits for this long.
_PATIENCE_S = 60.0


def wait_until(condition: object, what: str, *, timeout_s: float = _PATIENCE_S) -> None:
    """Polls a callable of another process's state until it is true.

    Raises:
        AssertionError: naming `what` when it stays false.
    """
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"still not so after {timeout_s} s: {what}"
        time.sleep(_POLL_S)


@dataclass
class Pipeline:
    """`triserve up` as a child process.

    Args:
        arguments: of `triserve up`, without the ports. The last --model counts; without one it is the small trained model.
    """

    arguments: list[str]
    port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Starts the pipeline and returns when it is ready."""
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        command = [sys.executable, "-m", "gateway.cli", "up", "--model", "tiny", *ports, *self.arguments]
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            # The gateway may know it first; what dies before `up` knows it too counts as a part that cannot start.
            wait_until(lambda: self.is_healthy() and self._says_ready(), "triserve up says that it is ready", timeout_s=READY_TIMEOUT_S)
        except AssertionError as error:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError("\n".join((str(error), *self.log[-40:]))) from None

    def _says_ready(self) -> bool:
        return any("Ctrl-C stops everything" in line for line in self.log)

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip())

    @property
    def url(self) -> str:
        """Base of the HTTP API."""
        return f"http://127.0.0.1:{self.port}"

    def is_healthy(self) -> bool:
        """Whether /health answers 200."""
        assert self.process.poll() is None, "\n".join(self.log[-40:])
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def parts(self, module: str) -> list[psutil.Process]:
        """The processes of one service, by the name of its package."""
        return children_running(module, self.process.pid)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric of the gateway over all series that have the labels; 0 if there is none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=_PATIENCE_S) as response:
            text = response.read().decode()
        total = 0.0
        for series, value in re.findall(rf"^{re.escape(name)}(\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE):
            if all(f'{key}="{wanted}"' in series for key, wanted in labels.items()):
                total += float(value)
        return total

    def computes(self) -> list[str]:
        """Where the compute replicas listen."""
        return [process.environ()["COMPUTE_LISTEN"] for process in self.parts("compute_svc")]

    def loads(self) -> list[compute_pb2.ComputeLoad]:
        """What each compute replica holds now, asked from the replica itself."""
        loads = []
        for target in self.computes():
            with grpc.insecure_channel(target) as channel:
                stub = compute_pb2_grpc.ComputeServiceStub(channel)
                loads.append(stub.GetComputeInfo(compute_pb2.GetComputeInfoRequest(), timeout=_PATIENCE_S).load)
        return loads

    def open_sampler_requests(self) -> int:
        """Requests the samplers hold state for."""
        total = 0
        for process in self.parts("sampler_svc"):
            with grpc.insecure_channel(process.environ()["SAMPLER_LISTEN"]) as channel:
                stub = sampler_pb2_grpc.SamplerServiceStub(channel)
                total += stub.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest(), timeout=_PATIENCE_S).open_requests
        return total

    def is_idle(self) -> bool:
        """Whether no stage holds anything of any request."""
        return (
            all(load.running_requests == load.waiting_requests == load.used_pages == 0 for load in self.loads())
            and self.open_sampler_requests() == 0
            and self.metric("triserve_active_requests") == 0
        )

    def stop(self) -> None:
        """Ctrl-C; every process must be gone within 5 s.

        Raises:
            AssertionError: `up` did not leave in time or with status 0, or a process outlived it.
        """
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("triserve up did not stop within 5 s:\n" + "\n".join(self.log[-40:])) from None
        self._reader.join(timeout=5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert code == 0, f"triserve up left with {code}:\n" + "\n".join(self.log[-40:])
        survivors = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for survivor in survivors:
            survivor.kill()
        assert not survivors, f"outlived triserve up: {survivors}"
