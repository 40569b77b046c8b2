"""Schemas made at random; the same ones each time."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

_PATTERNS = ["^[a-z]+$", "[0-9]{2}", "^(yes|no)?$", r"^\d{3}-\w+$", "a", r"^[^\s]{1,4}$", "x{0,3}$", r"^\W\D\S$", r"^a\/b|c$"]
_FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "int32", "byte", "regex", "colour"]
_NAMES = ["a", "b", "c d", "é", "a/b", "$ref", "type", 'q"']
_VALUES: list[Any] = [None, True, False, 0, -1, 2.5, "", "x", 'q"\\', "ü\n", [], [1, "y"], {}, {"a": 1}, 1e-7, 123456789]
# Some of what cannot be held, so that it is met within others.
_REFUSED: list[Any] = [{"not": {"type": "null"}}, {"if": {"type": "null"}, "then": False}, {"contains": {}}, {"uniqueItems": True}]
_Schemas = st.SearchStrategy[Any]


def _some(needed: dict[str, _Schemas], **optional: _Schemas) -> _Schemas:
    return st.fixed_dictionaries(needed, optional=optional)


def _leaves() -> _Schemas:
    one_of = st.sampled_from
    pattern, form, length = one_of(_PATTERNS), one_of(_FORMATS), st.integers(2, 12)
    return st.one_of(
        _some(
            {"type": one_of(["string", ["string", "null"]])}, minLength=st.integers(0, 3), maxLength=length, pattern=pattern, format=form
        ),
        _some({"type": st.just("string"), "format": form}),
        _some({"type": st.just("string"), "pattern": pattern}, maxLength=length),
        _some({"type": one_of(["integer", "number"])}, minimum=one_of([-10, 0, 0.5, 7]), maximum=one_of([8, 99, 99.5, 1e6])),
        _some(
            {"type": one_of(["integer", "number", ["integer", "boolean"], ["number", "string"]])},
            exclusiveMinimum=one_of([-3, 0.25]),
            exclusiveMaximum=one_of([9, 50.75]),
            multipleOf=one_of([1, 2, 5, 0.5, 0.01]),
            format=one_of(["int32", "double"]),
        ),
        _some({"const": one_of(_VALUES)}, type=one_of(["string", "integer", "object"])),
        _some({"enum": st.lists(one_of(_VALUES), min_size=1, max_size=5)}, title=st.just("T")),
        _some({"type": one_of(["null", "boolean", "array", "object", ["object", "null"]])}, description=st.just("d")),
        st.sampled_from([True, False, *_REFUSED]),
    )


def _objects(inner: _Schemas) -> _Schemas:
    names = st.lists(st.sampled_from(_NAMES), max_size=3, unique=True)
    properties = st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4)
    extra = st.one_of(st.booleans(), inner)
    held = {"type": st.just("object"), "properties": properties}
    return st.one_of(
        _some(held, required=names, additionalProperties=extra),
        _some({**held, "required": names, "additionalProperties": st.just(False)}),
        _some({"type": st.just("object"), "additionalProperties": inner}, minProperties=st.integers(0, 2), maxProperties=st.integers(1, 3)),
        _some({}, **held, required=names, patternProperties=st.dictionaries(st.sampled_from(["^x", "[0-9]$", "a"]), inner, max_size=2)),
    )


def _within(inner: _Schemas) -> _Schemas:
    several = st.lists(inner, min_size=1, max_size=3)
    beside = {
        "type": st.sampled_from(["object", "string", "integer"]),
        "minLength": st.integers(0, 2),
        "properties": st.just({"a": {"type": "null"}}),
    }
    array = {"type": st.just("array")}
    return st.one_of(
        _objects(inner),
        _some({**array, "items": inner}, minItems=st.integers(0, 2), maxItems=st.integers(1, 3)),
        _some(array, prefixItems=several, items=inner, minItems=st.integers(0, 2), maxItems=st.integers(1, 4)),
        *(_some({key: several}, **beside) for key in ("anyOf", "oneOf", "allOf")),
        _some({"anyOf": several, "allOf": several}),
    )


def generated(count: int) -> list[dict[str, Any]]:
    """So many schemas at most, each another."""
    found: dict[str, dict[str, Any]] = {}
    quietly = settings(
        max_examples=2 * count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )

    @quietly
    @given(_within(st.recursive(_leaves(), _within, max_leaves=6)))
    def collect(schema: Any) -> None:
        if len(found) < count:
            found.setdefault(json.dumps(schema, sort_keys=True), schema)

    collect()
    return list(found.values())
