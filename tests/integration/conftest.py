"""What files share: Redis servers, one for all tests of a file, empty at the start of each, and one that a test may kill; a small model; where engines find us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.redis_servers import RedisServer


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def raw(shared_server: RedisServer) -> Iterator[redis.Redis]:
    """A plain client of the empty server, to look at and to spoil what is kept."""
    with redis.Redis.from_url(shared_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def server(shared_server: RedisServer, raw: redis.Redis) -> RedisServer:
    """An empty server that the test leaves running."""
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server the test may kill."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights that knows no text."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, "llama")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started import from this source tree."""
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "protos")]))
