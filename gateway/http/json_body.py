"""Reads a request's JSON: bytes, encoding, depth and numbers are bounded before anything is made of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from aiohttp import web

from gateway.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from gateway.flow.limits import Limits
from triserve.rpc.errors import InvalidRequest

# JSON's own type, and what curl, urllib and others say when nobody told them; a form or a file is refused.
_MEDIA_TYPES = ("application/json", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream")


async def read_json_object(request: web.Request, limits: Limits) -> dict[str, Any]:
    """The body of a request, which must be a JSON object.

    Raises:
        UnsupportedMediaType: it is compressed, or of a type that is no JSON.
        BodyTooLarge: it has more bytes than the limit; they are not read.
        BodyTimeout: it does not come to its end in time.
        InvalidRequest: it is not UTF-8, not JSON, nested too deep or no object.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Content-Encoding is set, the body must not be compressed")
    if request.content_type not in _MEDIA_TYPES:
        raise UnsupportedMediaType(f"Content-Type is {request.content_type}, it must be application/json")
    if request.content_length is not None and request.content_length > limits.max_body_bytes:
        raise BodyTooLarge(f"the body has {request.content_length} bytes, the limit is {limits.max_body_bytes}")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await request.read()
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {limits.body_timeout_s:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(f"the body has more than {limits.max_body_bytes} bytes, the limit") from None
    return parse_json_object(body, max_depth=limits.max_json_depth)


def parse_json_object(body: bytes, *, max_depth: int) -> dict[str, Any]:
    """The JSON object in the bytes.

    Raises:
        InvalidRequest: they are not UTF-8, not JSON, nested too deep or no object.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except RecursionError:
        raise InvalidRequest(f"the body is nested deeper than {max_depth} levels, the limit") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:
        # An integer of more digits than Python converts.
        raise InvalidRequest("the body has a number of too many digits") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object")
    # A body with few brackets cannot be nested deep, whether they are in strings or not.
    if body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(value, max_depth)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"the body has {name}, which is not JSON")


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth):
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InvalidRequest(f"the body is nested deeper than {max_depth} levels, the limit")
