"""The cache without Redis: hits, misses, bounds and counters."""

from __future__ import annotations

import pytest

from prompt_cache import CacheConfig, CachedAnswer, CachedDelta, CacheScope, PromptCache

SECRET = b"0123456789abcdef"
ANSWER = CachedAnswer(deltas=(CachedDelta("Hi", (1, 2)),), finish_reason="stop", prompt_tokens=3, created_at=0)


class Clock:
    """Time that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def scope(tenant: str = "a") -> CacheScope:
    return CacheScope(tenant=tenant, model="m", weights_revision="w", computation="c", tokenizer_sha256="t", sampling=b"")


def make(clock: Clock | None = None, **bounds: float) -> PromptCache:
    return PromptCache(CacheConfig(redis_url=None, secret=SECRET, **bounds), clock=clock or Clock())  # type: ignore[arg-type]


async def test_an_answer_is_found_again_and_counted() -> None:
    cache = make()
    key = cache.key(scope(), [1, 2])
    assert await cache.get(key) is None
    cache.put(key, ANSWER)
    assert await cache.get(key) == ANSWER
    stats = cache.stats
    assert (stats.misses, stats.hits_l0, stats.hits_l1, stats.l0_entries) == (1, 1, 0, 1)


async def test_another_tenant_does_not_find_it() -> None:
    cache = make()
    cache.put(cache.key(scope("a"), [1]), ANSWER)
    assert await cache.get(cache.key(scope("b"), [1])) is None


@pytest.mark.parametrize(("ttl_s", "l0_ttl_s"), [(10.0, 100.0), (100.0, 10.0)])
async def test_an_answer_lives_no_longer_than_either_limit(ttl_s: float, l0_ttl_s: float) -> None:
    clock = Clock()
    cache = make(clock, ttl_s=ttl_s, l0_ttl_s=l0_ttl_s)
    key = cache.key(scope(), [1])
    cache.put(key, ANSWER)
    clock.now = 9.9
    assert await cache.get(key) == ANSWER
    clock.now = 10.0
    assert await cache.get(key) is None


async def test_an_answer_too_long_to_keep_is_counted_and_not_kept() -> None:
    cache = make(max_entry_bytes=100)
    key = cache.key(scope(), [1])
    cache.put(key, CachedAnswer(deltas=(CachedDelta("x" * 100, (1,)),), finish_reason="stop", prompt_tokens=1, created_at=0))
    assert await cache.get(key) is None
    assert cache.stats.too_large == 1


async def test_starting_and_closing_without_redis_does_nothing() -> None:
    cache = make()
    await cache.start()
    await cache.drain()
    await cache.close()


def test_a_malformed_redis_url_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with"):
        PromptCache(CacheConfig(redis_url="localhost:6379", secret=SECRET))
