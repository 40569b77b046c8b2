"""The bounds on what a body holds are exact, and strings count as one whatever is in them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.limits import Limits
from gateway.http.json_structure import MAX_NUMBER_DIGITS, check_structure
from triserve.rpc.errors import InvalidRequest

LIMITS = Limits(max_json_values=2048, max_json_items=1024, max_json_depth=8)

# In an object under one name: with it and the outer list that makes three items more, and one value more.
AT_MOST = LIMITS.max_json_items - 3


def body(items: str) -> bytes:
    return f'{{"p": [{items}]}}'.encode()


@pytest.mark.parametrize(
    "item",
    ['""', '"a,b"', '"\\\\"', '"\\""', '"[{"', "{}", "[]", "true", "false", "null", "1.5", "1e5", "1E5"],
    ids=lambda item: f"item {item}",
)
def test_items_are_counted_exactly(item: str) -> None:
    check_structure(body(",".join([item] * AT_MOST)), LIMITS)
    with pytest.raises(InvalidRequest, match=r"^the body has more than 1024 names and values that are no whole numbers, the limit$"):
        check_structure(body(",".join([item] * (AT_MOST + 1))), LIMITS)


@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_the_limit_on_depth_is_exact_beside_many_shallow_ones(bracket: str) -> None:
    def nested(depth: int) -> bytes:
        # The object and the list around all are two levels.
        inner = "[" * (depth - 3) + bracket + "]" * (depth - 3)
        return body(",".join([bracket] * 50 + [inner] + [bracket] * 50))

    check_structure(nested(LIMITS.max_json_depth), LIMITS)
    with pytest.raises(InvalidRequest, match=r"^the body is nested deeper than 8 levels, the limit$"):
        check_structure(nested(LIMITS.max_json_depth + 1), LIMITS)


def test_names_are_items_too() -> None:
    def named(count: int) -> bytes:
        return json.dumps({str(number): 1 for number in range(count)}).encode()

    check_structure(named(LIMITS.max_json_items - 1), LIMITS)
    with pytest.raises(InvalidRequest, match="1024 names"):
        check_structure(named(LIMITS.max_json_items), LIMITS)


def test_whole_numbers_are_counted_exactly() -> None:
    check_structure(body(",".join(["1"] * LIMITS.max_json_values)), LIMITS)
    with pytest.raises(InvalidRequest, match=r"^the body has more than 2048 values, the limit$"):
        check_structure(body(",".join(["1"] * (LIMITS.max_json_values + 1))), LIMITS)


@pytest.mark.parametrize("digit", ["9", "0"])
@pytest.mark.parametrize("padding", [0, 4096])
def test_the_limit_on_digits_is_exact_in_bodies_of_any_size(digit: str, padding: int) -> None:
    text = " " * padding
    check_structure(f'{{"seed": {digit * MAX_NUMBER_DIGITS}{text}}}'.encode(), LIMITS)
    with pytest.raises(InvalidRequest, match=r"^the body has a number of more than 400 digits, the limit$"):
        check_structure(f'{{"seed": {digit * (MAX_NUMBER_DIGITS + 1)}{text}}}'.encode(), LIMITS)


def test_digits_in_a_text_are_no_number() -> None:
    check_structure(json.dumps({"p": "9" * 5000}).encode(), LIMITS)


def num_items(value: object) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(num_items, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(num_items, value))
    return 0 if type(value) is int else 1


scalars = st.none() | st.booleans() | st.integers() | st.floats(-1e4, 1e4).map(lambda value: round(value, 2)) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=20)


@given(st.dictionaries(st.text(), values), st.integers(0, 3))
def test_what_is_within_the_limit_is_never_refused_and_what_is_above_it_always(value: dict[str, object], slack: int) -> None:
    count = num_items(value)
    text = json.dumps(value, ensure_ascii=False).encode()
    deep = Limits(max_json_depth=200)
    # Padding makes it large enough to be counted.
    padded = text + b" " * (2000 + count)
    check_structure(padded, deep.model_copy(update={"max_json_items": count + slack}))
    with pytest.raises(InvalidRequest, match="names and values"):
        check_structure(padded, deep.model_copy(update={"max_json_items": count - 1 - slack}))
