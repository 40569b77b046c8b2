"""Redis 8's vector sets: one set per scope, which is the fastest partition and the one that cannot be got wrong."""

from __future__ import annotations

from redis.asyncio import Redis

from prompt_cache.vectors.keyspace import Keyspace
from prompt_cache.vectors.packing import clipped
from prompt_cache.vectors.scripted_store import SearchedInScript
from prompt_cache.vectors.vector_store import StoreLimits

# Nodes of the graph that a search looks at.
_EF = 64

# NOQUANT: the default, 8 bits, moves cosines by 4e-4 and up to 2.6e-3 (5,000 vectors of 384 numbers), and what decides over a hit compares them to a few thousandths. Exact vectors
# beside the quantised ones would take more memory than exact ones alone.
_INDEX = f"""
local index, gone = KEYS[4], KEYS[5]

local function index_is_sound(count)
  return redis.pcall('VCARD', index) == count
end

-- A set of other vectors under our name: the scope starts anew, after the error.
local function problem_in(reply)
  if type(reply) == 'table' and reply.err then
    if string.find(reply.err, 'mismatch', 1, true) then
      redis.call('UNLINK', unpack(KEYS))
    end
    return reply
  end
end

local function index_put(id, vector)
  return problem_in(redis.pcall('VADD', index, 'FP32', vector, id, 'NOQUANT'))
end

local function index_drop(id, known)
  redis.call('VREM', index, id)
end

local function more_fields(vector)
  return {{}}
end

local function index_nearest(vector, count)
  local near = redis.pcall('VSIM', index, 'FP32', vector, 'WITHSCORES', 'COUNT', count, 'EF', {_EF})
  return near, problem_in(near)
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
