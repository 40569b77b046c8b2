"""Whether no value fits two of some schemas, as far as their types and constants say; where it is not known, no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_Values = frozenset[tuple[type, Any]]


def are_disjoint(schemas: Sequence[Any]) -> bool:
    """Whether each value fits one of them at most. False = not as far as is known."""
    told = [_Marks(schema) for schema in schemas]
    return all(one.is_apart_from(other) for index, one in enumerate(told) for other in told[index + 1 :])


class _Marks:
    """By what values of a schema are known."""

    def __init__(self, schema: Any) -> None:
        schema = schema if isinstance(schema, dict) else {}
        types = schema.get("type", [])
        self._types = set(types if isinstance(types, list) else [types])
        if "integer" in self._types:
            self._types.add("number")
        self._values = _values(schema)
        self._properties: dict[str, _Values] = {}
        if self._types == {"object"} and isinstance(schema.get("properties"), dict):
            required = schema.get("required")
            for name in required if isinstance(required, list) else ():
                values = _values(schema["properties"].get(name)) if isinstance(name, str) else None
                if values is not None:
                    self._properties[name] = values

    def is_apart_from(self, other: _Marks) -> bool:
        """Whether no value fits both."""
        if self._types and other._types and not self._types & other._types:
            return True
        if self._values is not None and other._values is not None and not self._values & other._values:
            return True
        both = self._properties.keys() & other._properties.keys()
        return any(not self._properties[name] & other._properties[name] for name in both)


def _values(schema: Any) -> _Values | None:
    """All values of a schema that lists them, none of them a list or an object."""
    if not isinstance(schema, dict) or not ("const" in schema or "enum" in schema):
        return None
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        return None
    # 1 is 1.0 in JSON, and not true.
    return frozenset(
        (bool if isinstance(value, bool) else float if isinstance(value, int | float) else type(value), value) for value in values
    )
