"""What all back ends do in Redis to a scope's entries, as Lua: each operation is one script, so nobody sees it half done.

A scope has a ledger: sorted sets of its entries' priorities and expiries, and a hash of records with counters beside them. The ledger decides
what there is: what a back end's index finds and the ledger does not know is no entry. Entries vanish without the ledger's doing (they expire, or
Redis evicts them), so whatever a script meets that is gone or garbage, it takes off the books there and then; the counted bytes stay true.

An entry is a hash that is written once: d = sealed bytes, and what the back end adds. What changes is in its record (the query engine indexes an
entry anew whatever changes in it): bytes, hits with the insertion, tokens that a hit saves, each a uint32, then packed observations.

A script is an index's part (`index_is_sound`, `index_put`, `index_drop`, `more_fields`, of which each back end has its own), then `LEDGER`,
then a body. Redis does not undo a script that fails half-way: what may fail comes before what is written.
"""

from __future__ import annotations

from prompt_cache.vectors.packing import MAX_OBSERVATIONS_BYTES, OBSERVATION_BYTES

# Entries that one `add` may evict; more would hold up everybody who uses the Redis. And expired ones that an operation takes off the books.
_MAX_EVICTED = 64
_SWEPT_BY_ADD = 64
_SWEPT_BY_SEARCH = 16

# A scope's own keys outlive its entries by this.
_SCOPE_OUTLIVES_MS = 60_000

_HEAD = "<I4I4I4"
_HEAD_BYTES = 12

LEDGER = f"""
local priorities, expiries, records, index, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local entries, scope = ARGV[1], ARGV[2]
local COUNTERS = 5
local corrupt = 0
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)

local function size_of(command, key)
  local count = redis.pcall(command, key)
  return type(count) == 'number' and count or -1
end

local function counter(name)
  return tonumber(redis.call('HGET', records, name))
end

local function drop_scope()
  redis.call('UNLINK', unpack(KEYS))
end

local function counters_are_numbers()
  for _, value in ipairs(redis.call('HMGET', records, '#bytes', '#clock', '#epoch', '#seq', '#floor')) do
    if not tonumber(value or '') then
      return false
    end
  end
  return true
end

-- Whether the books can be relied on. Redis may evict any of these keys, and others may write to them: then the scope starts anew.
local function is_sound()
  local count = size_of('ZCARD', priorities)
  local known = size_of('HLEN', records)
  local is_whole = known == count + COUNTERS and counters_are_numbers() or count == 0 and known == 0
  if is_whole and size_of('ZCARD', expiries) == count and index_is_sound(count) then
    return true
  end
  drop_scope()
  corrupt = corrupt + 1
  return false
end

local function forget(id)
  local record = redis.call('HGET', records, id)
  if record then
    local bytes = #record >= {_HEAD_BYTES} and struct.unpack('<I4', record) or redis.pcall('HSTRLEN', entries .. id, 'd')
    redis.call('HDEL', records, id)
    redis.call('HINCRBY', records, '#bytes', type(bytes) == 'number' and 0 - bytes or 0)
    redis.call('ZREM', priorities, id)
    redis.call('ZREM', expiries, id)
  end
  index_drop(id, record)
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

local function priority(policy, hits, tokens, bytes)
  if policy == 'lru' or policy == 'fifo' then
    return now_us
  end
  return counter('#clock') + (policy == 'cost' and hits * tokens / bytes or hits)
end

-- An entry's record; nothing if there is none or it is garbage, and then the entry is off the books.
local function record_of(id)
  local record = redis.call('HGET', records, id)
  if not record then
    return forget(id)
  end
  local observed = #record - {_HEAD_BYTES}
  if observed < 0 or observed > {MAX_OBSERVATIONS_BYTES} or observed % {OBSERVATION_BYTES} ~= 0 or struct.unpack('<I4', record) == 0 then
    return forget_corrupt(id)
  end
  return record
end

-- An entry's bytes, observations and ms left; nothing if it is gone or garbage, and then it is off the books.
local function read(id, max_bytes)
  local key = entries .. id
  local record = record_of(id)
  if not record then
    return
  end
  local bytes = redis.pcall('HSTRLEN', key, 'd')
  if bytes == 0 and redis.call('EXISTS', key) == 0 then
    return forget(id)
  end
  if type(bytes) ~= 'number' or bytes == 0 or bytes > max_bytes then
    return forget_corrupt(id)
  end
  local left = redis.call('PTTL', key)
  if left < 0 then
    local expiry = redis.call('ZSCORE', expiries, id) or 0
    left = expiry - now_ms
    if left <= 0 then
      return forget(id)
    end
    redis.call('PEXPIREAT', key, expiry)
  end
  return redis.call('HGET', key, 'd'), string.sub(record, {_HEAD_BYTES + 1}), left
end
"""

# ARGV: 3 id, 4 vector, 5 bytes, 6 ms to live, 7 tokens saved, 8 max entries, 9 max bytes, 10 policy, 11 epoch. Returns corrupt.
ADD = f"""
local id, vector, data, live_ms, tokens = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local max_entries, max_bytes, policy = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]

is_sound()
-- A Redis that is full refuses a script's first write, and lets it go on if that was one that frees memory: so the first is one that takes some.
if redis.call('EXISTS', records) == 0 then
  redis.call('HSET', records, '#bytes', 0, '#clock', 0, '#epoch', ARGV[11], '#seq', 0, '#floor', 0)
else
  redis.call('HINCRBY', records, '#bytes', 0)
end
sweep({_SWEPT_BY_ADD})
forget(id)
local evicted = 0
while redis.call('ZCARD', priorities) >= max_entries or counter('#bytes') + #data > max_bytes do
  local victim = redis.call('ZRANGE', priorities, 0, 0, 'WITHSCORES')
  if not victim[1] or evicted == {_MAX_EVICTED} then
    return corrupt
  end
  if (policy == 'lfu' or policy == 'cost') and tonumber(victim[2]) > counter('#clock') then
    redis.call('HSET', records, '#clock', victim[2])
  end
  forget(victim[1])
  evicted = evicted + 1
end

local problem = index_put(id, vector)
if problem then
  return problem
end
local key = entries .. id
redis.call('HSET', key, 'd', data, unpack(more_fields(vector)))
redis.call('PEXPIREAT', key, now_ms + live_ms)
redis.call('HSET', records, id, struct.pack('{_HEAD}', #data, 1, tokens))
redis.call('HINCRBY', records, '#bytes', #data)
redis.call('ZADD', expiries, now_ms + live_ms, id)
redis.call('ZADD', priorities, priority(policy, 1, tokens, #data), id)
for _, name in ipairs(KEYS) do
  if redis.call('PTTL', name) < live_ms + {_SCOPE_OUTLIVES_MS} then
    redis.call('PEXPIRE', name, live_ms + {_SCOPE_OUTLIVES_MS})
  end
end
return corrupt
"""

# ARGV: 3 id, 4 policy. Returns corrupt.
HIT = f"""
local id, policy = ARGV[3], ARGV[4]
local record = is_sound() and redis.call('HEXISTS', records, id) == 1 and record_of(id)
if record and redis.call('EXISTS', entries .. id) == 0 then
  forget(id)
elseif record then
  local bytes, hits, tokens = struct.unpack('{_HEAD}', record)
  hits = math.min(hits + 1, 4294967295)
  redis.call('HSET', records, id, struct.pack('{_HEAD}', bytes, hits, tokens) .. string.sub(record, {_HEAD_BYTES + 1}))
  redis.call('ZADD', priorities, priority(policy, hits, tokens, bytes), id)
end
return corrupt
"""

# ARGV: 3 id, 4 packed observation. Returns corrupt.
OBSERVE = f"""
local id = ARGV[3]
local record = is_sound() and redis.call('HEXISTS', records, id) == 1 and record_of(id)
if record and redis.call('EXISTS', entries .. id) == 0 then
  forget(id)
elseif record then
  local observed = string.sub(record, {_HEAD_BYTES + 1}) .. ARGV[4]
  redis.call('HSET', records, id, string.sub(record, 1, {_HEAD_BYTES}) .. string.sub(observed, -{MAX_OBSERVATIONS_BYTES}))
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
