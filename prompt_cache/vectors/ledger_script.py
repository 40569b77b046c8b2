"""What all back ends do in Redis to a scope's entries, as Lua: each operation is one script, so nobody sees it half done.

A scope has a ledger: sorted sets of its entries' priorities, expiries and sizes, with counters beside the sizes. The ledger decides what there
is: what a back end's index finds and the ledger does not know is no entry. Entries vanish without the ledger's doing (they expire, or Redis
evicts them), so whatever a script meets that is gone or garbage, it takes off the books there and then; the counted sizes stay true.

A script is an index's part (`index_is_sound`, `index_put`, `index_drop`, `more_fields`, of which each back end has its own), then `LEDGER`,
then a body. Redis does not undo a script that fails half-way: what may fail comes before what is written.

Fields of an entry: d = sealed bytes, o = observations, h = hits and the insertion, t = tokens a hit saves, and what the back end adds.
"""

from __future__ import annotations

from prompt_cache.vectors.packing import MAX_OBSERVATIONS_BYTES, OBSERVATION_BYTES

# Entries that one `add` may evict; more would hold up everybody who uses the Redis. And expired ones that an operation takes off the books.
_MAX_EVICTED = 64
_SWEPT_BY_ADD = 64
_SWEPT_BY_SEARCH = 16

# A scope's own keys outlive its entries by this.
_SCOPE_OUTLIVES_MS = 60_000

LEDGER = f"""
local priorities, expiries, numbers, index, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local entries, scope = ARGV[1], ARGV[2]
local COUNTERS = 5
local corrupt = 0
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)

local function card(key)
  local count = redis.pcall('ZCARD', key)
  return type(count) == 'number' and count or -1
end

local function counter(name)
  return tonumber(redis.call('ZSCORE', numbers, name))
end

local function count_up(name)
  return tonumber(redis.call('ZINCRBY', numbers, 1, name))
end

local function drop_scope()
  redis.call('UNLINK', unpack(KEYS))
end

-- Whether the books can be relied on. Redis may evict any of these keys, and others may write to them: then the scope starts anew.
local function is_sound()
  local count = card(priorities)
  local sizes = card(numbers)
  if count >= 0 and card(expiries) == count and (sizes == count + COUNTERS or (count == 0 and sizes == 0)) and index_is_sound(count) then
    return true
  end
  drop_scope()
  corrupt = corrupt + 1
  return false
end

local function forget(id)
  local size = redis.call('ZSCORE', numbers, id)
  if size then
    redis.call('ZREM', numbers, id)
    redis.call('ZINCRBY', numbers, -size, '#bytes')
    redis.call('ZREM', priorities, id)
    redis.call('ZREM', expiries, id)
  end
  index_drop(id, size)
  redis.call('UNLINK', entries .. id)
end

local function forget_corrupt(id)
  corrupt = corrupt + 1
  forget(id)
end

local function sweep(most)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', now_ms, 'LIMIT', 0, most)) do
    forget(id)
  end
end

local function priority(policy, hits, tokens, size)
  if policy == 'lru' or policy == 'fifo' then
    return now_us
  end
  return counter('#clock') + (policy == 'cost' and hits * tokens / size or hits)
end

-- An entry's bytes, observations and ms left; nothing if it is gone or garbage, and then it is off the books too.
local function read(id, max_bytes)
  local key = entries .. id
  local expiry = redis.call('ZSCORE', expiries, id)
  local bytes = redis.pcall('HSTRLEN', key, 'd')
  if not expiry or bytes == 0 and redis.call('EXISTS', key) == 0 then
    return forget(id)
  end
  if type(bytes) ~= 'number' or bytes == 0 or bytes > max_bytes then
    return forget_corrupt(id)
  end
  local observed = redis.call('HSTRLEN', key, 'o')
  if observed > {MAX_OBSERVATIONS_BYTES} or observed % {OBSERVATION_BYTES} ~= 0 then
    return forget_corrupt(id)
  end
  local left = redis.call('PTTL', key)
  if left < 0 then
    left = expiry - now_ms
    if left <= 0 then
      return forget(id)
    end
    redis.call('PEXPIREAT', key, expiry)
  end
  local fields = redis.call('HMGET', key, 'd', 'o')
  return fields[1], fields[2] or '', left
end
"""

# ARGV: 3 id, 4 vector, 5 bytes, 6 ms to live, 7 tokens saved, 8 max entries, 9 max bytes, 10 policy, 11 epoch. Returns corrupt, kept.
ADD = f"""
local id, vector, data, live_ms, tokens = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local max_entries, max_bytes, policy = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local size = #data

is_sound()
if card(numbers) == 0 then
  redis.call('ZADD', numbers, 0, '#bytes', 0, '#clock', ARGV[11], '#epoch', 0, '#seq', 0, '#floor')
end
sweep({_SWEPT_BY_ADD})
forget(id)
local evicted = 0
while card(priorities) >= max_entries or counter('#bytes') + size > max_bytes do
  local victim = redis.call('ZRANGE', priorities, 0, 0, 'WITHSCORES')
  if not victim[1] or evicted == {_MAX_EVICTED} then
    return {{corrupt, 0}}
  end
  if policy == 'lfu' or policy == 'cost' then
    redis.call('ZADD', numbers, math.max(counter('#clock'), victim[2]), '#clock')
  end
  forget(victim[1])
  evicted = evicted + 1
end

local problem = index_put(id, vector)
if problem then
  return problem
end
local key = entries .. id
redis.call('HSET', key, 'd', data, 'h', 1, 't', tokens, unpack(more_fields(vector)))
redis.call('PEXPIREAT', key, now_ms + live_ms)
redis.call('ZADD', numbers, size, id)
redis.call('ZINCRBY', numbers, size, '#bytes')
redis.call('ZADD', expiries, now_ms + live_ms, id)
redis.call('ZADD', priorities, priority(policy, 1, tokens, size), id)
for _, name in ipairs(KEYS) do
  if redis.call('PTTL', name) < live_ms + {_SCOPE_OUTLIVES_MS} then
    redis.call('PEXPIRE', name, live_ms + {_SCOPE_OUTLIVES_MS})
  end
end
return {{corrupt, 1}}
"""

# ARGV: 3 id, 4 policy. Returns corrupt.
HIT = """
local id, policy = ARGV[3], ARGV[4]
local key = entries .. id
if not is_sound() or not redis.call('ZSCORE', priorities, id) then
  return corrupt
end
if redis.call('EXISTS', key) == 0 then
  forget(id)
  return corrupt
end
local hits = redis.pcall('HINCRBY', key, 'h', 1)
local tokens = type(hits) == 'number' and tonumber(redis.call('HGET', key, 't') or '')
if tokens then
  redis.call('ZADD', priorities, priority(policy, hits, tokens, tonumber(redis.call('ZSCORE', numbers, id))), id)
else
  forget_corrupt(id)
end
return corrupt
"""

# ARGV: 3 id, 4 packed observation. Returns corrupt.
OBSERVE = f"""
local key = entries .. ARGV[3]
local there = redis.pcall('HEXISTS', key, 'd')
if type(there) ~= 'number' then
  if is_sound() then
    forget_corrupt(ARGV[3])
  end
elseif there == 1 then
  local observed = redis.call('HGET', key, 'o') or ''
  if #observed > {MAX_OBSERVATIONS_BYTES} or #observed % {OBSERVATION_BYTES} ~= 0 then
    observed = ''
    corrupt = corrupt + 1
  end
  redis.call('HSET', key, 'o', string.sub(observed .. ARGV[4], -{MAX_OBSERVATIONS_BYTES}))
end
return corrupt
"""

# ARGV: ids from 3 on. Returns corrupt.
REMOVE = """
if is_sound() then
  for i = 3, #ARGV do
    forget(ARGV[i])
  end
end
return corrupt
"""

# Returns corrupt. One script, however many entries: a scope that is half gone is seen by nobody.
PURGE = """
if is_sound() then
  local ids = redis.call('ZRANGE', priorities, 0, -1)
  for first = 1, #ids, 500 do
    local names = {}
    for i = first, math.min(first + 499, #ids) do
      names[#names + 1] = entries .. ids[i]
    end
    redis.call('UNLINK', unpack(names))
  end
end
drop_scope()
return corrupt
"""

# For an index that a script can ask: `index_nearest(vector, count)` gives ids, each followed by its score, best first, or a problem.
# ARGV: 3 vector, 4 k, 5 max bytes of an entry. Returns corrupt, then id, score, bytes, observations and ms left of each.
# Entries that are gone are still in the index, until now: more are asked for than are wanted, then many more, so that they crowd out none.
SEARCH = f"""
local vector, k, max_bytes = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local found, live, seen = {{}}, 0, {{}}
if is_sound() then
  sweep({_SWEPT_BY_SEARCH})
  local asked = k + 8
  for round = 1, 3 do
    local near, problem = index_nearest(vector, asked)
    if problem then
      return problem
    end
    for i = 1, #near, 2 do
      local id = near[i]
      if live < k and not seen[id] then
        seen[id] = true
        local data, observed, left = read(id, max_bytes)
        if data then
          live = live + 1
          for _, value in ipairs({{id, near[i + 1], data, observed, left}}) do
            found[#found + 1] = value
          end
        end
      end
    end
    if live == k or #near < 2 * asked then
      break
    end
    asked = asked * 8
  end
end
table.insert(found, 1, corrupt)
return found
"""
