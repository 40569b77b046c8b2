"""What clients say about the prompt cache, in the header and in the body."""

from __future__ import annotations

import pytest

from gateway.flow.call import CachePolicy
from gateway.http.cache_control import cache_policy
from gateway.http.openai.generating import CacheField
from triserve.rpc.errors import InvalidRequest


@pytest.mark.parametrize(
    ("header", "policy"),
    [
        ("", CachePolicy()),
        ("no-cache", CachePolicy(read=False)),
        ("no-store", CachePolicy(read=False, write=False)),
        ("max-age=0, No-Store", CachePolicy(read=False, write=False, max_age_s=0)),
        ("private", CachePolicy()),
        ('max-age="60", only-if-cached', CachePolicy(max_age_s=60, only=True)),
        ("only-if-cached,,", CachePolicy(only=True)),
    ],
)
def test_the_header_says_what_the_cache_may_do(header: str, policy: CachePolicy) -> None:
    assert cache_policy(header, None) == policy


@pytest.mark.parametrize("value", ["", "=", "=-1", "=1.5", "=ten", "=" + "9" * 11, "=٣"])
def test_a_malformed_age_is_refused_by_the_name_of_the_header(value: str) -> None:
    with pytest.raises(InvalidRequest, match="max-age must be a whole number of seconds") as caught:
        cache_policy(f"max-age{value}", None)
    assert caught.value.field == "Cache-Control"


@pytest.mark.parametrize(
    ("field", "policy"),
    [
        (CacheField(), CachePolicy()),
        (CacheField(mode="default"), CachePolicy()),
        (CacheField(mode="refresh"), CachePolicy(read=False)),
        (CacheField(mode="bypass"), CachePolicy(read=False, write=False)),
        (CacheField(mode="only", max_age_s=5), CachePolicy(only=True, max_age_s=5)),
        (CacheField(threshold=0.0, salt="mine"), CachePolicy(threshold=0.0, salt="mine")),
    ],
)
def test_the_field_says_what_the_cache_may_do(field: CacheField, policy: CachePolicy) -> None:
    assert cache_policy("", field) == policy


def test_header_and_field_both_hold() -> None:
    assert cache_policy("no-cache, max-age=9", CacheField(mode="only", max_age_s=20)) == CachePolicy(read=False, only=True, max_age_s=9)
    assert cache_policy("max-age=30", CacheField(mode="bypass", max_age_s=20)) == CachePolicy(read=False, write=False, max_age_s=20)
