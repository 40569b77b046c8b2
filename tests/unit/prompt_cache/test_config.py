"""Bad bounds are refused by name; the secret is never shown."""

from __future__ import annotations

import pytest

from prompt_cache.config import CacheConfig

SECRET = b"0123456789abcdef"


@pytest.mark.parametrize(
    "name",
    [
        "ttl_s",
        "l0_ttl_s",
        "max_entry_bytes",
        "write_queue_len",
        "socket_timeout_s",
        "lookup_timeout_s",
        "flush_timeout_s",
        "max_connections",
        "breaker_failures",
        "breaker_open_s",
    ],
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_bound_below_its_least_value_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, the least is"):
        CacheConfig(redis_url=None, secret=SECRET, **{name: value})  # type: ignore[arg-type]


def test_a_store_of_no_entries_is_allowed() -> None:
    assert CacheConfig(redis_url=None, secret=SECRET, l0_max_entries=0).l0_max_entries == 0


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="secret has 3 bytes, the least is 16"):
        CacheConfig(redis_url=None, secret=b"abc")


def test_the_secret_is_not_shown() -> None:
    assert "0123" not in repr(CacheConfig(redis_url=None, secret=SECRET))
