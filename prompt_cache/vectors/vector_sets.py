"""Redis 8's vector sets: one set per scope, which is the fastest partition and the one that cannot be got wrong."""

from __future__ import annotations

from redis.asyncio import Redis

from prompt_cache.vectors.keyspace import Keyspace
from prompt_cache.vectors.packing import clipped
from prompt_cache.vectors.scripted_store import SearchedInScript
from prompt_cache.vectors.vector_store import StoreLimits

# Nodes of the graph that a search looks at; 50 finds the nearest of 10,000 in 99 of 100 cases.
_EF = 100

# NOQUANT: the default, 8 bits, moves cosines by up to 2e-3, and what decides over a hit compares them to a few thousandths. Exact vectors
# beside the quantised ones would take more memory than exact ones alone.
_INDEX = f"""
local index, gone = KEYS[4], KEYS[5]

local function index_is_sound(count)
  return redis.pcall('VCARD', index) == count
end

local function index_put(id, vector)
  local added = redis.pcall('VADD', index, 'FP32', vector, id, 'NOQUANT')
  return type(added) == 'table' and added.err and added or nil
end

local function index_drop(id, known)
  redis.call('VREM', index, id)
end

local function more_fields(vector)
  return {{}}
end

local function index_nearest(vector, count)
  local near = redis.pcall('VSIM', index, 'FP32', vector, 'WITHSCORES', 'COUNT', count, 'EF', {_EF})
  if near.err then
    return nil, near
  end
  return near
end
"""


class VectorSets(SearchedInScript):
    """Entries found by `VSIM`.

    Args:
        redis: a client that does not decode replies, of a Redis with vector sets.
        dimensions: of all vectors.
        limits: of each scope.
    """

    name = "vector-sets"

    def __init__(self, redis: Redis, *, dimensions: int, limits: StoreLimits) -> None:
        super().__init__(redis, keyspace=Keyspace("vs"), index=_INDEX, dimensions=dimensions, limits=limits)

    def _cosine(self, score: bytes) -> float:
        return clipped(2 * float(score) - 1)
