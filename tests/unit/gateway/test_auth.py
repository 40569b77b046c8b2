"""Keys are known by their hash, and nothing of them is ever shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.auth import DEFAULT_TENANT, ApiKeys, BadKeysFile
from triserve.rpc.errors import Unauthenticated


def line(tenant: str, key: str) -> str:
    return f"{tenant} {hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    path = tmp_path / "keys"
    path.write_text("# comment\n\n" + line("acme", "one") + line("acme", "two") + line("zorg", "three"))
    return ApiKeys.load(path)


@pytest.mark.parametrize(("header", "tenant"), [("Bearer one", "acme"), ("bearer two", "acme"), ("Bearer  three ", "zorg")])
def test_a_key_is_its_tenants(keys: ApiKeys, header: str, tenant: str) -> None:
    assert keys.tenant_of(header) == tenant


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "one", "Basic one", "Bearer ONE", "Bearer one two", "Bearer é\udcff"])
def test_anything_else_is_refused(keys: ApiKeys, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        keys.tenant_of(header)
    assert "one" not in caught.value.message


def test_the_hash_is_no_key(keys: ApiKeys) -> None:
    with pytest.raises(Unauthenticated):
        keys.tenant_of("Bearer " + hashlib.sha256(b"one").hexdigest())


def test_without_a_file_nobody_is_asked() -> None:
    assert ApiKeys.load(None).tenant_of(None) == DEFAULT_TENANT


@pytest.mark.parametrize(
    "text", ["", "# only\n", "acme\n", "acme one\n", "ac me " + "a" * 64 + "\n", "acme " + "A" * 64 + "\n", line("a", "x") + line("b", "x")]
)
def test_a_bad_file_is_refused_naming_the_line_and_not_its_content(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadKeysFile) as caught:
        ApiKeys.load(path)
    assert "a" * 64 not in str(caught.value).lower()
