"""Bodies of four megabytes, one for each way in which a body of each route can hold too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

_BYTES = 4 * 1024 * 1024
CHAT, COMPLETION, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


class HostileBody(NamedTuple):
    """A body and what becomes of it.

    Attributes:
        body: makes it; they are too large to keep.
        status: what it is answered with.
    """

    name: str
    route: str
    body: Callable[[], bytes]
    status: int = 400


# Items of lists. In objects they are the values.
_ITEMS = {
    "ones": b"1",
    "ids": b"12345",
    "empty objects": b"{}",
    "empty lists": b"[]",
    "empty strings": b'""',
    "strings": b'"abcdef"',
    "escapes": b'"\\"\\\\"',
    "fractions": b"1.2345678901234567",
    "exponents": b"1e400",
    "negatives": b"-1",
    "long numbers": b"9" * 400,
    "longer numbers": b"9" * 4000,
    "nulls": b"null",
    "booleans": b"true",
    "messages": b'{"role":"user","content":"a"}',
    "parts": b'{"type":"text","text":"a"}',
    "messages of wrong fields": b'{"role":1,"content":2,"x":3}',
    "short lists": b"[1]",
}
# The fields of each route that take a list or an object, what stands around them, and whether it is an object.
_BEFORE = {
    CHAT: b'"messages":[{"role":"user","content":"a"}],',
    COMPLETION: b'"prompt":"a",',
    TOKENIZE: b"",
    DETOKENIZE: b"",
    RESPONSES: b'"input":"a",',
    MESSAGES: b'"max_tokens":1,"messages":[{"role":"user","content":"a"}],',
}
_GENERATING = (
    "stop",
    "stop_token_ids",
    "allowed_token_ids",
    "bad_words",
    "dry_sequence_breakers",
    "tools",
    "modalities",
    "functions",
    "unknown",
)
_LISTS = {
    CHAT: ("messages", *_GENERATING),
    COMPLETION: ("prompt", *_GENERATING),
    TOKENIZE: ("messages", "unknown"),
    DETOKENIZE: ("tokens", "unknown"),
    RESPONSES: ("input", "include", "tools", "metadata"),
    MESSAGES: ("messages", "system", "stop_sequences", "tools"),
}
_OBJECTS = {
    CHAT: ("logit_bias", "chat_template_kwargs", "metadata", "stream_options", "response_format", "unknown"),
    COMPLETION: ("logit_bias", "metadata", "stream_options", "unknown"),
    TOKENIZE: ("chat_template_kwargs", "unknown"),
    DETOKENIZE: ("unknown",),
    RESPONSES: ("metadata", "text", "reasoning", "prompt_cache_options"),
    MESSAGES: ("metadata", "cache_control"),
}
# The field that a body is about.
_MAIN = ("messages", "prompt", "tokens", "input")
_OBJECT_VALUES = ("ones", "strings")


def _filled(before: bytes, item: bytes, after: bytes) -> bytes:
    """The item, again and again, until the body is full."""
    room = _BYTES - len(before) - len(after)
    return before + ((item + b",") * (room // (len(item) + 1)))[:-1] + after


def _named(before: bytes, value: bytes, after: bytes) -> bytes:
    """An object's fields, all of different names, until the body is full."""
    # Each takes as many bytes as any other, with the comma behind it; the last has none.
    count = (_BYTES - len(before) - len(after)) // (len(value) + 11)
    return before + _fields(value)[: count * (len(value) + 11) - 1] + after


@cache
def _fields(value: bytes) -> bytes:
    """As many fields as any body has room for. Making their names takes seconds, so it is done once."""
    return b",".join(b'"%07d":%b' % (number, value) for number in range(_BYTES // (len(value) + 11)))


def _open(route: str, field: str) -> bytes:
    before = b"" if field in _MAIN else _BEFORE[route]
    return b"{" + before + b'"' + field.encode() + b'":'


def _in_lists() -> Iterator[HostileBody]:
    for route, fields in _LISTS.items():
        for field in fields:
            # These doors read their lists as chats do.
            main = field in _MAIN and route not in (RESPONSES, MESSAGES)
            for name, item in _ITEMS.items():
                # Every kind of item where lists are long by nature; elsewhere one cheap and one dear kind.
                if main or name in ("ones", "empty objects"):
                    yield HostileBody(
                        f"{route} {field} of {name}",
                        route,
                        lambda r=route, f=field, i=item: _filled(_open(r, f) + b"[", i, b"]}"),  # type: ignore[misc]
                    )


def _in_objects() -> Iterator[HostileBody]:
    for route, fields in _OBJECTS.items():
        for field in fields:
            for name in _OBJECT_VALUES:
                yield HostileBody(
                    f"{route} {field} object of {name}",
                    route,
                    lambda r=route, f=field, i=_ITEMS[name]: _named(_open(r, f) + b"{", i, b"}}"),  # type: ignore[misc]
                )
        for name in _OBJECT_VALUES:
            yield HostileBody(f"{route} fields of {name}", route, lambda i=_ITEMS[name]: _named(b"{", i, b"}"))  # type: ignore[misc]


def _texts() -> Iterator[HostileBody]:
    for name, character in {
        "letters": b"a",
        "escaped quotes": b'\\"',
        "escaped letters": b"\\u00e9",
        "brackets": b"[",
        "commas": b",",
    }.items():
        text = lambda before, after, c=character: before + c * ((_BYTES - len(before) - len(after)) // len(c)) + after  # noqa: E731
        yield HostileBody(f"{CHAT} content of {name}", CHAT, lambda t=text: t(b'{"messages":[{"role":"user","content":"', b'"}]}'))  # type: ignore[misc]
        yield HostileBody(f"{CHAT} role of {name}", CHAT, lambda t=text: t(b'{"messages":[{"content":"a","role":"', b'"}]}'))  # type: ignore[misc]
        yield HostileBody(f"{COMPLETION} prompt of {name}", COMPLETION, lambda t=text: t(b'{"prompt":"', b'"}'))  # type: ignore[misc]
        yield HostileBody(f"{COMPLETION} stop of {name}", COMPLETION, lambda t=text: t(b'{"prompt":"a","stop":"', b'"}'))  # type: ignore[misc]
        yield HostileBody(f"{COMPLETION} model of {name}", COMPLETION, lambda t=text: t(b'{"prompt":"a","model":"', b'"}'))  # type: ignore[misc]
        yield HostileBody(f"{COMPLETION} name of {name}", COMPLETION, lambda t=text: t(b'{"prompt":"a","', b'":1}'))  # type: ignore[misc]


def _nested() -> Iterator[HostileBody]:
    yield HostileBody("open lists", COMPLETION, lambda: b"[" * _BYTES)
    yield HostileBody("open objects", COMPLETION, lambda: b'{"a":' * (_BYTES // 5))
    yield HostileBody("nested lists", COMPLETION, lambda: b'{"prompt":' + b"[" * (_BYTES // 2 - 10) + b"]" * (_BYTES // 2 - 10) + b"}")
    yield HostileBody("one long number", COMPLETION, lambda: b'{"prompt":"a","seed":' + b"9" * (_BYTES - 30) + b"}")
    yield HostileBody("one long fraction", COMPLETION, lambda: b'{"prompt":"a","top_p":0.' + b"1" * (_BYTES - 30) + b"}")
    yield HostileBody("spaces", COMPLETION, lambda: b'{"prompt":"a"' + b" " * (_BYTES - 20) + b"}", 200)
    yield HostileBody("the same field", COMPLETION, lambda: _filled(b"{", b'"prompt":"a"', b"}"))
    yield HostileBody("parts of a message", CHAT, lambda: _filled(b'{"messages":[{"role":"user","content":[', _ITEMS["parts"], b"]}]}"))
    yield HostileBody("fields of a message", CHAT, lambda: _named(b'{"messages":[{"role":"user","content":"a",', b"1", b"}]}"))
    yield HostileBody("valid messages", CHAT, lambda: _filled(b'{"messages":[', b'{"role":"user","content":"' + b"a" * 4000 + b'"}', b"]}"))
    yield HostileBody("no JSON", COMPLETION, lambda: b"\x00" * _BYTES)
    yield HostileBody("no UTF-8", COMPLETION, lambda: b'{"prompt":"' + b"\xff" * (_BYTES - 20) + b'"}')


HOSTILE_BODIES: tuple[HostileBody, ...] = (*_in_lists(), *_in_objects(), *_texts(), *_nested())
