"""From a body's JSON to its type: counts first, then what is refused by name, then the types."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from gateway.flow.limits import Limits
from gateway.http.body_counts import check_counts
from gateway.http.openai.fields import MAX_SHOWN_CHARS, REFUSED_IN_MESSAGE, REFUSED_IN_STREAM_OPTIONS, unknown, without_idle
from gateway.http.openai.generating import StreamOptions
from gateway.http.openai.messages import Message
from gateway.http.openai.tool_schema import check_call_counts
from gateway.http.openai.values import Body
from triserve.rpc.errors import InvalidRequest

B = TypeVar("B", bound=Body)

# What begins the name by which one of several kinds of objects is told; in a path it says nothing.
HIDDEN = "\0"


def parse_body(kind: type[B], body: dict[str, Any], limits: Limits) -> B:
    """The body as its type. Counts come first, and the first thing that is wrong ends it: the work is bounded by the limits.

    Raises:
        InvalidRequest: a field is unknown, not supported, missing, of the wrong type or holds too much; names it.
    """
    check_counts(body, limits)
    check_call_counts(body.get("messages"))
    kept = kind.tidied(without_idle(body, kind.refused, known=kind.model_fields))
    if isinstance(options := kept.get("stream_options"), dict):
        kept["stream_options"] = without_idle(options, REFUSED_IN_STREAM_OPTIONS, known=StreamOptions.model_fields, where="stream_options.")
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [
            without_idle(one, REFUSED_IN_MESSAGE, known=Message.model_fields, where=f"messages[{index}].") if isinstance(one, dict) else one
            for index, one in enumerate(messages)
        ]
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    # An unknown field says more of what went wrong than the type of another.
    first = min(
        error.errors(include_url=False, include_context=False, include_input=False), key=lambda one: one["type"] != "extra_forbidden"
    )
    field = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        raise unknown(field)
    if first["type"] == "missing":
        raise InvalidRequest(f"{field} is missing", field=field)
    if first["type"] == "value_error":
        raise InvalidRequest(f"{field} {first['msg'].removeprefix('Value error, ')}", field=field)
    raise InvalidRequest(f"{field}: {first['msg']}", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, of at most so many characters of a client's own."""
    path = ""
    for part in location:
        if isinstance(part, str) and part.startswith(HIDDEN):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part[:MAX_SHOWN_CHARS]}" if path else part[:MAX_SHOWN_CHARS]
    return path
