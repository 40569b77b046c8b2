"""The query engine (`FT.SEARCH`; RediSearch, Redis 8, Redis Stack): one HNSW index for all scopes, each search kept to one of them by a tag.

A search is a script that asks the index. A cluster of several nodes refuses that ("Cannot block"), as do some versions that search in threads of
their own: there the probe's test fails, and another back end is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prompt_cache.keys import SCHEMA_VERSION
from prompt_cache.vectors.keyspace import Keyspace
from prompt_cache.vectors.packing import clipped
from prompt_cache.vectors.scripted_store import SearchedInScript, execute
from prompt_cache.vectors.vector_store import Neighbour, StoreLimits

if TYPE_CHECKING:
    from prompt_cache.embedding.embedder import Vector

# Nodes of the graph that a search looks at.
_EF_RUNTIME = 64
# A scope of so many entries is compared entry by entry: exact, and 0.4 ms for 1,000 of them; 2.7 ms for 3,000 scattered among 100,000 of other scopes,
# where the graph, which finds few of the scope, takes 4.
_MOST_COMPARED = 4000
# In a larger one the nearest of all scopes are looked at first, some more than are wanted: where they hold as many of the scope as are wanted, those are
# its nearest. That takes 0.4 ms, where the query engine, left to itself, compares 9,000 of 10,000 one by one in 2.8. HYBRID_POLICY BATCHES is as fast,
# but leaves entries out where nearer ones of other scopes crowd them (RediSearch 2.10.5).
_MORE_OF_ALL = 4
_EF_CONSTRUCTION = 200
_M = 16

# The filter is the scope and nothing else: one that holds something of the question finds nothing that is merely near.
_INDEX = """
local function index_is_sound(count)
  return true
end

-- The first entry of a scope may be the first since somebody emptied the Redis, which takes the index too. An index that is created beside
-- entries finds them only some time later.
local function index_put(id, vector)
  if redis.call('ZCARD', KEYS[1]) == 0 then
    local made = redis.pcall(CREATE_INDEX)
    if made.err and not string.find(made.err, 'already exists', 1, true) then
      return made
    end
  end
end

local function index_drop(id, known)
end

local function more_fields(vector)
  return {'v', vector, 's', ARGV[2]}
end

-- Of what a filter lets pass, those of the scope among the nearest.
local function nearest_of(filter, vector, count, how)
  local query = filter .. '=>[KNN ' .. string.format('%d', count) .. ' @v $q ' .. how .. ' AS c]'
  local near = redis.pcall('FT.SEARCH', 'INDEX_NAME', query, 'PARAMS', 2, 'q', vector, 'SORTBY', 'c', 'LIMIT', 0, count, 'RETURN', 1, 'c',
    'DIALECT', 2)
  if near.err then
    return nil, near
  end
  local found = {}
  for i = 2, #near, 2 do
    local name, fields = near[i], near[i + 1]
    if string.sub(name, 1, #ARGV[1]) == ARGV[1] and type(fields) == 'table' and fields[2] then
      found[#found + 1] = string.sub(name, #ARGV[1] + 1)
      found[#found + 1] = fields[2]
    end
  end
  return found
end

local function index_nearest(vector, count)
  local own = '(@s:{' .. ARGV[2] .. '})'
  if redis.call('ZCARD', KEYS[1]) <= MOST_COMPARED then
    return nearest_of(own, vector, count, 'HYBRID_POLICY ADHOC_BF')
  end
  local found, problem = nearest_of('*', vector, MORE_OF_ALL * count, 'EF_RUNTIME EF_VALUE')
  if problem or #found >= 2 * count then
    return found, problem
  end
  return nearest_of(own, vector, count, 'EF_RUNTIME EF_VALUE')
end
"""


class WrongIndex(Exception):
    """An index has our name and is not ours."""


class QueryEngine(SearchedInScript):
    """Entries found by `FT.SEARCH`.

    The index is named by what its vectors are, so vectors of another embedder, another length or another layout are in another index.

    Args:
        redis: a client that does not decode replies, of a Redis with the query engine.
        embedder_id: of the embedder whose vectors these are.
        dimensions: of all vectors.
        limits: of each scope.
        most_compared: entries of a scope up to which every one is compared, and the nearest are exact.
    """

    name = "query-engine"

    def __init__(
        self, redis: Redis, *, embedder_id: str, dimensions: int, limits: StoreLimits, most_compared: int = _MOST_COMPARED
    ) -> None:
        kind = hashlib.sha256(f"{SCHEMA_VERSION} {dimensions} {embedder_id}".encode()).hexdigest()[:16]
        keyspace = Keyspace(f"ft-{kind}")
        self.index_name = f"{keyspace.entries}index"
        hnsw = ("TYPE", "FLOAT32", "DIM", dimensions, "DISTANCE_METRIC", "COSINE", "M", _M, "EF_CONSTRUCTION", _EF_CONSTRUCTION)
        schema = ("s", "TAG", "v", "VECTOR", "HNSW", len(hnsw), *hnsw)
        self._create = ("FT.CREATE", self.index_name, "ON", "HASH", "PREFIX", 1, keyspace.entries, "SCHEMA", *schema)
        # The words are ours, of letters, digits, ":", "." and "-": they need no escaping.
        create = ", ".join(f"'{word}'" for word in self._create)
        index = _INDEX.replace("CREATE_INDEX", create).replace("INDEX_NAME", self.index_name)
        index = (
            index.replace("EF_VALUE", str(_EF_RUNTIME))
            .replace("MOST_COMPARED", str(most_compared))
            .replace("MORE_OF_ALL", str(_MORE_OF_ALL))
        )
        super().__init__(redis, keyspace=keyspace, index=index, dimensions=dimensions, limits=limits)

    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """See `VectorStore`. Creates the index if it is not there (any more: whoever empties a Redis takes the index too)."""
        try:
            return await super().search(scope, vector, k)
        except ResponseError as error:
            if not _is_missing_index(error):
                raise
        await self.prepare()
        return await super().search(scope, vector, k)

    async def prepare(self) -> None:
        """Creates the index, if there is none.

        Raises:
            WrongIndex: there is one of this name for other vectors.
        """
        try:
            await execute(self._redis, *self._create)
        except ResponseError as error:
            if "already exists" not in str(error):
                raise
            await self._check_index()

    def _cosine(self, score: bytes) -> float:
        return clipped(1 - float(score))

    async def _check_index(self) -> None:
        words = set(_words(await execute(self._redis, "FT.INFO", self.index_name)))
        missing = {self._keys.entries, "HNSW", "FLOAT32", "COSINE", str(self._dimensions)} - words
        if missing:
            raise WrongIndex(
                f"the index {self.index_name} is none of ours (it has no {', '.join(sorted(missing))}): drop it with FT.DROPINDEX"
            )


def _is_missing_index(error: ResponseError) -> bool:
    text = str(error).lower()
    return "no such index" in text or "unknown index" in text or "index not found" in text


def _words(reply: Any) -> Iterable[str]:
    """All strings and numbers in a reply, whatever its nesting (it is a list in RESP2 and a map in RESP3)."""
    if isinstance(reply, dict):
        reply = [*reply.keys(), *reply.values()]
    if isinstance(reply, (list, tuple, set)):
        for item in reply:
            yield from _words(item)
    elif isinstance(reply, bytes):
        yield reply.decode("utf-8", "replace")
    else:
        yield str(reply)
