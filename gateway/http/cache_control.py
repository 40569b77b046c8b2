"""What a client says about the prompt cache: the Cache-Control header (RFC 9111) and the field `cache` of a body. Both hold."""

from __future__ import annotations

from gateway.flow.call import CachePolicy
from gateway.http.openai.generating import CacheField
from triserve.rpc.errors import InvalidRequest

_HEADER = "Cache-Control"
_MAX_AGE = "max-age"
_MAX_DIGITS = 10


def cache_policy(header: str, field: CacheField | None) -> CachePolicy:
    """What both allow together.

    Args:
        header: the value of Cache-Control; directives that say nothing of a cache in a server are let be.
        field: of the body.

    Raises:
        InvalidRequest: a value is malformed or out of range.
    """
    directives = dict(_directive(part) for part in header.split(",") if part.strip())
    mode = (field.mode if field is not None else None) or "default"
    no_store = "no-store" in directives or mode == "bypass"
    ages = [age for age in (_max_age(directives), field.max_age_s if field is not None else None) if age is not None]
    return CachePolicy(
        read=not no_store and "no-cache" not in directives and mode != "refresh",
        write=not no_store,
        only="only-if-cached" in directives or mode == "only",
        max_age_s=min(ages, default=None),
        threshold=field.threshold if field is not None else None,
        salt=(field.salt if field is not None else None) or "",
    )


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.strip().partition("=")
    return name.strip().lower(), value.strip().strip('"')


def _max_age(directives: dict[str, str]) -> float | None:
    value = directives.get(_MAX_AGE)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS):
        raise InvalidRequest(f"{_HEADER}: {_MAX_AGE} must be a whole number of seconds", field=_HEADER)
    return float(value)
