"""Bodies are bounded before anything is made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.limits import Limits
from gateway.http.json_body import parse_json_object
from triserve.rpc.errors import InvalidRequest

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=20)


@given(st.dictionaries(st.text(), values))
def test_any_shallow_object_is_read_as_json_reads_it(value: dict[str, Any]) -> None:
    assert parse_json_object(json.dumps(value).encode(), Limits(max_json_depth=100)) == value


@given(st.binary())
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    try:
        assert isinstance(parse_json_object(body, Limits(max_json_depth=8)), dict)
    except InvalidRequest as error:
        assert error.message


def nested(depth: int, *, lists: bool) -> bytes:
    return (
        b'{"a":' * (1 if lists else depth)
        + (b"[" * (depth - 1) if lists else b"1")
        + (b"]" * (depth - 1) if lists else b"")
        + b"}" * (1 if lists else depth)
    )


@pytest.mark.parametrize("lists", [False, True])
def test_the_limit_on_depth_is_exact(lists: bool) -> None:
    parse_json_object(nested(32, lists=lists), Limits(max_json_depth=32))
    with pytest.raises(InvalidRequest, match="32 levels"):
        parse_json_object(nested(33, lists=lists), Limits(max_json_depth=32))


@pytest.mark.parametrize(("levels", "says"), [(10_000, "nested deeper"), (500_000, "the limit")])
def test_depth_without_end_is_refused_like_any_other(levels: int, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse_json_object(b'{"a":' * levels, Limits(max_json_depth=32))


@pytest.mark.parametrize("body", [b'{"a": 1, "b": 2, "a": 3}', b'{"c": [{"a": 1, "a": 1}]}', b'{"\\u0061": 1, "a": 2}'])
def test_a_field_that_is_there_twice_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body has the field 'a' twice in one object") as caught:
        parse_json_object(body, Limits())
    assert caught.value.field == "a"


def test_brackets_in_a_text_are_no_depth() -> None:
    assert parse_json_object(json.dumps({"a": "[" * 1000}).encode(), Limits(max_json_depth=4)) == {"a": "[" * 1000}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_number_is_refused(number: str) -> None:
    with pytest.raises(InvalidRequest, match=number):
        parse_json_object(f'{{"a": {number}}}'.encode(), Limits(max_json_depth=4))


def test_a_number_of_too_many_digits_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="digits"):
        parse_json_object(b'{"a": ' + b"9" * 5000 + b"}", Limits(max_json_depth=4))


def test_an_error_names_the_place_and_not_the_content() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json_object(b'{"a": "confidential" "b"}', Limits(max_json_depth=4))
    assert "line 1, column 22" in caught.value.message
    assert "confidential" not in caught.value.message
