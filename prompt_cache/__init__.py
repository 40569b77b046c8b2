"""Remembers answers, in process and in Redis, for requests asked before; knows no service, no model and no text.

A caller needs `CacheConfig`, `PromptCache`, `CacheScope` and `CachedAnswer`:

    cache = PromptCache(CacheConfig(redis_url=..., secret=...))
    await cache.start()
    key = cache.key(scope, prompt_token_ids)
    answer = await cache.get(key)        # None on a miss and on every failure
    cache.put(key, answer)               # returns at once
    await cache.close()
"""

from prompt_cache.cache import CacheStats, PromptCache
from prompt_cache.config import CacheConfig
from prompt_cache.entry import CachedAnswer, CachedDelta
from prompt_cache.keys import CacheKey, CacheScope, SemanticScope

__all__ = ["CacheConfig", "CacheKey", "CacheScope", "CacheStats", "CachedAnswer", "CachedDelta", "PromptCache", "SemanticScope"]
