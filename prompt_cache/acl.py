"""The least that a Redis user needs to be allowed for the whole prompt cache.

An operator runs `acl_rule("vector-sets")` with a password in place of PASSWORD, and gives gateways that user in GATEWAY_REDIS_URL. Nothing here
lists keys, empties a Redis or changes its settings.
"""

from __future__ import annotations

from prompt_cache.vectors.acl import COMMANDS, KEY_PATTERN
from prompt_cache.vectors.vector_store import BackendName

# The client tells its name and version when it connects.
_EXACT = ("ping", "client|setinfo", "getrange", "pttl", "set", "del")
_GENERATIONS = ("eval", "type", "get", "time")
_BUDGETS = ("multi", "exec", "hsetnx", "hset", "hincrby", "hmget", "expire")
_FLIGHTS = ("evalsha", "eval", "script|load", "get", "set", "del", "pexpire", "type", "xadd", "xlen", "xrange", "xread")


def acl_rule(name: BackendName | None, *, user: str = "triserve", password: str = "PASSWORD") -> str:
    """The command that makes a user who may do what the cache does, on its keys, and nothing else.

    Args:
        name: of the semantic cache's back end; None = there is none.
        user: its name.
        password: its password.
    """
    commands = sorted({*_EXACT, *_GENERATIONS, *_BUDGETS, *_FLIGHTS, *(COMMANDS[name] if name is not None else ())})
    allowed = " ".join(f"+{command}" for command in commands)
    return f"ACL SETUSER {user} on >{password} resetkeys ~{KEY_PATTERN} resetchannels -@all {allowed}"
