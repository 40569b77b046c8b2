"""Formats of JSON schemas: each in keywords that a grammar holds to the letter.

Those that llguidance reads itself stay, unless it reads them wider than they are: its dates have a 29th of February each year, and times a 60th second.
"""

from __future__ import annotations

from typing import Any, Final

MAX_EXACT: Final = 2**53
"""Integers beyond it are rounded where JSON's numbers are read as doubles, by llguidance as by most clients."""

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_HOUR_MINUTE = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR_MINUTE})"
_HEX = "[0-9a-fA-F]"


def _pattern(expression: str) -> dict[str, Any]:
    return {"pattern": f"^(?:{expression})$"}


def _uuid(version: int) -> dict[str, Any]:
    return _pattern(f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}")


def _integer(least: int, most: int) -> dict[str, Any]:
    return {"minimum": max(least, -MAX_EXACT + 1), "maximum": min(most, MAX_EXACT - 1)}


FORMATS: Final[dict[str, dict[str, Any]]] = {
    **{name: {"format": name} for name in ("duration", "email", "ipv4", "ipv6", "uri", "uuid")},
    "date": _pattern(_DATE),
    "time": _pattern(_TIME),
    "date-time": _pattern(f"{_DATE}T{_TIME}"),
    "hostname": {"format": "hostname", "maxLength": 253},
    **{f"uuid{version}": _uuid(version) for version in (1, 3, 4, 5)},
    **dict.fromkeys(("byte", "base64"), _pattern(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")),
    # Of numbers, as OpenAPI has them; what is beyond `MAX_EXACT` is left out.
    **{f"int{bits}": _integer(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": _integer(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    # These say how a value is kept or shown, not which values there are.
    **{name: {} for name in ("binary", "double", "float", "password")},
}
"""Keywords in place of a format, by its name."""
