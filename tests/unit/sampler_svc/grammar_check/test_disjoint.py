"""Schemas that no value fits both of: whatever is said to be apart, is."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler_svc.grammar_check.disjoint import are_disjoint

VALUES: st.SearchStrategy[Any] = st.sampled_from([None, True, False, 0, 1, 1.5, "a", "b", "1", [], {}])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.fixed_dictionaries({"const": VALUES}),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"type": st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])}),
    st.fixed_dictionaries(
        {"type": st.lists(st.sampled_from(["null", "integer", "number", "string"]), min_size=1, max_size=2, unique=True)}
    ),
)
OBJECTS = st.fixed_dictionaries(
    {
        "type": st.just("object"),
        "properties": st.dictionaries(st.sampled_from("kl"), SCALARS, max_size=2),
        "required": st.lists(st.sampled_from("kl"), max_size=2, unique=True),
    }
)
SCHEMAS: st.SearchStrategy[Any] = st.one_of(SCALARS, OBJECTS, st.just({}), st.booleans())
ANSWERS = st.one_of(VALUES, st.dictionaries(st.sampled_from("kl"), VALUES, max_size=2))


@given(st.lists(SCHEMAS, min_size=2, max_size=3), ANSWERS)
def test_no_value_fits_two_schemas_that_are_said_to_be_apart(schemas: list[Any], value: Any) -> None:
    if are_disjoint(schemas):
        assert sum(jsonschema.Draft202012Validator(schema).is_valid(value) for schema in schemas) <= 1


@pytest.mark.parametrize(
    "schemas",
    [
        [{"type": "string"}, {"type": ["integer", "null"]}],
        [{"const": "a"}, {"enum": ["b", "c"]}, {"const": None}],
        [{"const": 1}, {"const": True}],
        [
            {"type": "object", "properties": {"t": {"const": "x"}}, "required": ["t"]},
            {"type": "object", "properties": {"t": {"enum": ["y"]}}, "required": ["t", "u"]},
        ],
    ],
)
def test_types_constants_and_required_constants_tell_schemas_apart(schemas: list[Any]) -> None:
    assert are_disjoint(schemas)


def test_what_is_not_required_tells_nothing_apart() -> None:
    schema = {"type": "object", "properties": {"t": {"const": "x"}}}
    assert not are_disjoint([schema, {"type": "object", "properties": {"t": {"const": "y"}}, "required": ["t"]}])
    assert not are_disjoint([{**schema, "required": ["t"]}, {"properties": {"t": {"const": "y"}}, "required": ["t"]}])
