"""Reads JSON: depth, numbers and how much there is of everything are bounded before anything is made of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from gateway.flow.limits import Limits
from gateway.http.json_structure import check_structure
from triserve.rpc.errors import InvalidRequest

_MAX_SHOWN_CHARS = 128


def parse_json_object(body: bytes | bytearray, limits: Limits) -> dict[str, Any]:
    """The JSON object in the bytes. Pure, and as safe in a thread as in the event loop.

    Raises:
        InvalidRequest: they are not UTF-8, not JSON, no object, nested too deep, hold too many values or a name twice in one object.
    """
    check_structure(body, limits)
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different: of two readers of one body, each might believe another value."""
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0][:_MAX_SHOWN_CHARS]
        raise InvalidRequest(f"the body has the field {twice!r} twice in one object", field=twice)
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body has {name}, which is not JSON")
