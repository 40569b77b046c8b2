"""Keys are known by their hash, and nothing of them is ever shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.auth import DEFAULT_TENANT, ApiKeys, BadKeysFile, Grant, LiveKeys
from triserve.rpc.errors import Unauthenticated


def line(tenant: str, key: str, options: str = "") -> str:
    return f"{tenant} {hashlib.sha256(key.encode()).hexdigest()}{options}\n"


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    path = tmp_path / "keys"
    path.write_text("# comment\n\n" + line("acme", "one") + line("acme", "two", " lowest_priority=-3") + line("zorg", "three"))
    return ApiKeys.load(path)


@pytest.mark.parametrize(("header", "tenant"), [("Bearer one", "acme"), ("bearer two", "acme"), ("Bearer  three ", "zorg")])
def test_a_key_is_its_tenants(keys: ApiKeys, header: str, tenant: str) -> None:
    assert keys.grant_of(header).tenant == tenant


def test_a_priority_below_normal_is_granted_by_the_line_of_a_key_and_to_no_other_key_of_its_tenant(keys: ApiKeys) -> None:
    assert [keys.grant_of(f"Bearer {key}") for key in ("one", "two", "three")] == [Grant("acme", 0), Grant("acme", -3), Grant("zorg", 0)]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "one", "Basic one", "Bearer ONE", "Bearer one two", "Bearer é\udcff"])
def test_anything_else_is_refused(keys: ApiKeys, header: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        keys.grant_of(header)
    assert "one" not in caught.value.message


def test_the_hash_is_no_key(keys: ApiKeys) -> None:
    with pytest.raises(Unauthenticated):
        keys.grant_of("Bearer " + hashlib.sha256(b"one").hexdigest())


def test_without_a_file_nobody_is_asked() -> None:
    assert ApiKeys.load(None).grant_of(None) == Grant(DEFAULT_TENANT, 0, reads_metrics=True, sees_similarity=True)


@pytest.mark.parametrize(
    ("options", "reads", "lowest"), [("", False, 0), (" metrics", True, 0), (" lowest_priority=-3\tmetrics", True, -3)]
)
def test_metrics_are_for_the_keys_whose_line_says_so(tmp_path: Path, options: str, reads: bool, lowest: int) -> None:
    path = tmp_path / "keys"
    path.write_text(line("acme", "one", options))
    assert ApiKeys.load(path).grant_of("Bearer one") == Grant("acme", lowest, reads)


def test_how_near_a_question_was_is_for_the_keys_whose_line_says_so(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("acme", "one", " similarity") + line("acme", "two", " metrics similarity") + line("acme", "three", " metrics"))
    keys = ApiKeys.load(path)
    assert [keys.grant_of(f"Bearer {key}").sees_similarity for key in ("one", "two", "three")] == [True, True, False]


def test_tenants_are_counted_once_each(keys: ApiKeys) -> None:
    assert keys.num_tenants == 2
    assert ApiKeys.load(None).num_tenants == 1


@pytest.mark.parametrize("value", [-10, 0])
def test_the_ends_of_the_range_of_granted_priorities_belong_to_it(tmp_path: Path, value: int) -> None:
    path = tmp_path / "keys"
    path.write_text(line("acme", "one", f"\tlowest_priority={value}"))
    assert ApiKeys.load(path).grant_of("Bearer one").lowest_priority == value


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("lowest_priority=-11", r"line 1 has lowest_priority=-11, the range is \[-10, 0\]"),
        ("lowest_priority=1", r"line 1 has lowest_priority=1, the range is \[-10, 0\]"),
        ("lowest_priority=low", "with or without lowest_priority=N"),
        ("lowest_priority=", "with or without lowest_priority=N"),
        ("metrics metrics", "with or without lowest_priority=N, metrics and similarity"),
        ("metrics lowest_priority=-3", "with or without lowest_priority=N, metrics and similarity"),
        ("-3", "with or without lowest_priority=N"),
        ("lowest_priority=-1 lowest_priority=-2", "with or without lowest_priority=N"),
    ],
)
def test_a_bad_grant_is_refused_naming_the_line_and_the_range(tmp_path: Path, option: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(line("acme", "one", f" {option}"))
    with pytest.raises(BadKeysFile, match=words):
        ApiKeys.load(path)


@pytest.mark.parametrize(
    "text", ["", "# only\n", "acme\n", "acme one\n", "ac me " + "a" * 64 + "\n", "acme " + "A" * 64 + "\n", line("a", "x") + line("b", "x")]
)
def test_a_bad_file_is_refused_naming_the_line_and_not_its_content(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadKeysFile) as caught:
        ApiKeys.load(path)
    assert "a" * 64 not in str(caught.value).lower()


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["gone", "binary"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadKeysFile, match=f"{path} (cannot be read: No such file or directory|is not UTF-8)"):
        ApiKeys.load(path)


class Changes(list[int]):
    """The number of tenants of every file that came."""

    def note(self, keys: ApiKeys) -> None:
        self.append(keys.num_tenants)


def test_a_key_is_known_as_soon_as_it_is_in_the_file_and_no_longer_than_that(tmp_path: Path) -> None:
    path, changes = tmp_path / "keys", Changes()
    path.write_text(line("acme", "one"))
    keys = LiveKeys(path, on_change=changes.note)
    assert keys.grant_of("Bearer one").tenant == "acme" and changes == []
    path.write_text(line("zorg", "two", " metrics") + line("acme", "three"))
    assert keys.grant_of("Bearer two") == Grant("zorg", reads_metrics=True)
    with pytest.raises(Unauthenticated):
        keys.grant_of("Bearer one")
    assert changes == [2]


def test_a_broken_file_changes_nothing_and_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, changes = tmp_path / "keys", Changes()
    path.write_text(line("acme", "one"))
    keys = LiveKeys(path, on_change=changes.note)
    for text, words in ((line("acme", "two") + "half a li", "line 2 is not a tenant"), ("", "has no key")):
        path.write_text(text)
        caplog.clear()
        assert [keys.grant_of("Bearer one").tenant for _ in range(3)] == ["acme"] * 3
        (record,) = caplog.records
        assert f"{path} {words}" in record.getMessage() and hashlib.sha256(b"two").hexdigest() not in record.getMessage()
    path.unlink()
    assert keys.grant_of("Bearer one").tenant == "acme" and changes == []


def test_without_a_file_nothing_is_looked_at() -> None:
    assert LiveKeys(None, on_change=Changes().note).grant_of(None).tenant == DEFAULT_TENANT
