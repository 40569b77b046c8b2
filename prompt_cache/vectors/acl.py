"""The least that a Redis user needs to be allowed for each back end.

An operator runs `acl_rule("vector-sets")` with a password in place of PASSWORD. Nothing here lists keys, empties a Redis or changes its settings.
"""

from __future__ import annotations

from prompt_cache.vectors.vector_store import BackendName

# Scripts, and what they do to entries and to a scope's records; INFO (and COMMAND INFO) is the probe's.
_EVERY_BACK_END = (
    *("evalsha", "eval", "time", "info"),
    *("exists", "unlink", "pttl", "pexpire", "pexpireat"),
    *("hset", "hget", "hmget", "hdel", "hlen", "hstrlen", "hexists", "hincrby"),
    *("zadd", "zcard", "zrange", "zrangebyscore", "zrem", "zscore"),
)

COMMANDS: dict[BackendName, tuple[str, ...]] = {
    "query-engine": (*_EVERY_BACK_END, "command|info", "ft.create", "ft.info", "ft.search"),
    "vector-sets": (*_EVERY_BACK_END, "command|info", "vadd", "vcard", "vrem", "vsim"),
    "flat": (*_EVERY_BACK_END, "zpopmin"),
}

KEY_PATTERN = "triserve:cache:*"


def acl_rule(name: BackendName, *, user: str = "triserve", password: str = "PASSWORD") -> str:
    """The command that makes a user who may do what a back end does, on the cache's keys, and nothing else."""
    allowed = " ".join(f"+{command}" for command in COMMANDS[name])
    return f"ACL SETUSER {user} on >{password} resetkeys ~{KEY_PATTERN} resetchannels -@all {allowed}"
