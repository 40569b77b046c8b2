"""JSON schemas as llguidance holds them: what it would leave out or take in another way is refused, by keyword and place; the rest is written anew.

What comes out is of draft 2020-12 whatever went in, has one `$defs` and keywords that ask for something alone. Two answers of JSON are told apart
by their text here, so that a schema may be held more narrowly than it says, never more widely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from sampler_svc.grammar_check.disjoint import are_disjoint
from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.formats import FORMATS, MAX_EXACT

# Of schemas within schemas; llguidance reads no deeper JSON.
_MAX_DEPTH = 50
_MAX_SHOWN_CHARS = 60
_NEWEST = "2020-12"
_DRAFTS: Final = {
    "json-schema.org/draft-04/schema": "4",
    "json-schema.org/draft-06/schema": "6",
    "json-schema.org/draft-07/schema": "7",
    "json-schema.org/draft/2019-09/schema": "2019-09",
    "json-schema.org/draft/2020-12/schema": _NEWEST,
}
_REF_ALONE = ("4", "6", "7")
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Characters that can be written in a JSON string in one way alone are all that const and enum may have.
_SHORT_ESCAPES = "\b\f\n\r\t"


def _always(schema: dict[str, Any], value: Any) -> bool:
    return True


def _unless_empty(schema: dict[str, Any], value: Any) -> bool:
    return bool(value != {})


def _unless_anything(schema: dict[str, Any], value: Any) -> bool:
    return value is not True and value != {}


def _asks_of_names(schema: dict[str, Any], value: Any) -> bool:
    return _unless_anything(schema, value) and value != {"type": "string"}


REFUSED: Final[dict[str, Callable[[dict[str, Any], Any], bool]]] = {
    "not": _always,
    "if": lambda schema, value: "then" in schema or "else" in schema,
    "contains": _always,
    "uniqueItems": lambda schema, value: value is not False and schema.get("maxItems") not in (0, 1),
    "propertyNames": _asks_of_names,
    "dependencies": _unless_empty,
    "dependentRequired": _unless_empty,
    "dependentSchemas": _unless_empty,
    "unevaluatedItems": _unless_anything,
    "unevaluatedProperties": _unless_anything,
    "$dynamicRef": _always,
    "$recursiveRef": _always,
    # Of draft 3.
    "disallow": _always,
    "divisibleBy": _always,
    "extends": _always,
}
"""Keywords that ask for what cannot be held, and whether they do so in a schema."""
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref")


class _Place(NamedTuple):
    """Where a schema is.

    Attributes:
        pointer: to it, with "#".
        depth: schemas around it.
        owner: the definition of which it is a part that the same value must fit; None = it is of another value.
        is_merged: whether a value must fit others beside it.
    """

    pointer: str
    depth: int
    owner: str | None
    is_merged: bool

    def below(self, *steps: str | int) -> _Place:
        """Of a value within the value."""
        return _Place(self._pointer(steps), self.depth + 1, None, False)

    def beside(self, *steps: str | int, is_merged: bool) -> _Place:
        """Of the same value."""
        return self._replace(pointer=self._pointer(steps), depth=self.depth + 1, is_merged=self.is_merged or is_merged)

    def _pointer(self, steps: tuple[str | int, ...]) -> str:
        return "/".join([self.pointer, *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)])


def held_schema(text: str) -> dict[str, Any] | bool:
    """A schema as llguidance is to read it.

    Raises:
        CannotHold: it is no JSON schema, or asks for what cannot be held.
    """
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise CannotHold("it is no JSON schema: it is no JSON") from None
    if not isinstance(schema, dict | bool):
        raise CannotHold("it is no JSON schema: it is neither an object nor a boolean")
    return schema if isinstance(schema, bool) else _Reader(schema).read()


def _no_constant(name: str) -> None:
    raise ValueError(name)


class _Reader:
    """Reads one schema."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._draft = _draft_of(root)
        # Names of definitions, by pointers to them; those that are still to be read, and as what.
        self._names: dict[str, str] = {}
        self._held: dict[str, Any] = {}
        self._wanted: list[tuple[str, bool]] = []
        self._seen: set[tuple[str, bool]] = set()
        # Definitions that a value of a definition must fit too.
        self._in_place: dict[str, set[str]] = {}

    def read(self) -> dict[str, Any]:
        """The whole."""
        held = self._schema(self._root, _Place("#", 0, "#", is_merged=False))
        assert isinstance(held, dict), "an object stays one"
        while self._wanted:
            pointer, is_merged = self._wanted.pop()
            self._held[self._names[pointer]] = self._schema(self._at(pointer), _Place(pointer, 0, pointer, is_merged))
        self._require_ends()
        return {**held, "$defs": self._held} if self._held else held

    def _schema(self, schema: Any, place: _Place) -> dict[str, Any] | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise CannotHold(f"{place.pointer} is no schema: it is neither an object nor a boolean")
        if place.depth > _MAX_DEPTH:
            raise CannotHold(f"schemas are nested deeper than {_MAX_DEPTH}, at {_shown(place.pointer)}")
        if "$ref" in schema and self._draft in _REF_ALONE:
            schema = {"$ref": schema["$ref"]}
        self._refuse(schema, place)
        held: dict[str, Any] = {}
        extra: list[dict[str, Any]] = []
        self._add_scalars(schema, held, extra, place)
        self._add_items(schema, held, place)
        self._add_objects(schema, held, place)
        self._add_values(schema, held, place)
        parts = bool(held) + sum(len(schema[key]) if key == "allOf" else 1 for key in _IN_PLACE if schema.get(key))
        for key in ("allOf", "anyOf", "oneOf"):
            if key in schema:
                options = self._list(schema, key, place)
                read = [self._schema(one, place.beside(key, number, is_merged=parts > 1)) for number, one in enumerate(options)]
                # The same, where no value can fit two.
                held["anyOf" if key == "oneOf" and self._is_any_of(schema, options) else key] = read
        if extra:
            held["allOf"] = [*held.get("allOf", []), *extra]
        if "$ref" in schema:
            held["$ref"] = self._reference(schema["$ref"], place, is_merged=parts > 1)
        return held

    def _is_any_of(self, schema: dict[str, Any], options: list[Any]) -> bool:
        return "anyOf" not in schema and are_disjoint([self._resolved(option) for option in options])

    def _refuse(self, schema: dict[str, Any], place: _Place) -> None:
        for key, asks in REFUSED.items():
            if key in schema and asks(schema, schema[key]):
                raise CannotHold(f"{key} is not supported, at {_shown(place.pointer)}")
        if place.pointer != "#":
            for key in ("$id", "id") if self._draft == "4" else ("$id",):
                # What `$ref`s within mean would depend on it.
                if isinstance(schema.get(key), str):
                    raise CannotHold(f"{key} is supported at the root alone, it is at {_shown(place.pointer)}")
        if "prefixItems" in schema and self._draft != _NEWEST:
            raise CannotHold(f"prefixItems is not of draft {self._draft}, at {_shown(place.pointer)}")
        if "patternProperties" in schema and (place.is_merged or any(key in schema for key in (*_IN_PLACE, "const", "enum"))):
            raise CannotHold(f"patternProperties beside other schemas of the same value is not supported, at {_shown(place.pointer)}")

    def _add_scalars(self, schema: dict[str, Any], held: dict[str, Any], extra: list[dict[str, Any]], place: _Place) -> None:
        if "type" in schema:
            held["type"] = _types(schema["type"], place)
        for key in _COUNTS:
            if key in schema:
                held[key] = _count(schema[key], key, place)
        self._add_bounds(schema, held, place)
        for key in ("pattern", "format"):
            if key in schema and not isinstance(schema[key], str):
                raise CannotHold(f"{key} is no string, at {_shown(place.pointer)}")
        if "pattern" in schema:
            held["pattern"] = schema["pattern"]
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise CannotHold(f"format {_shown(schema['format'])!r} is not supported, at {_shown(place.pointer)}")
            if FORMATS[schema["format"]]:
                extra.append(FORMATS[schema["format"]])

    def _add_bounds(self, schema: dict[str, Any], held: dict[str, Any], place: _Place) -> None:
        for key, sign in (("minimum", -1), ("maximum", 1)):
            exclusive = "exclusive" + key.capitalize()
            limit, excludes = schema.get(key), schema.get(exclusive)
            if isinstance(excludes, bool) and self._draft == "4":
                limit, excludes = (None, limit) if excludes else (limit, None)
            for name, value in ((key, limit), (exclusive, excludes)):
                if value is not None or schema.get(name, 0) is None:
                    # What lies beyond is left out: the widest bounds of other languages are beyond.
                    is_beyond = isinstance(value, int | float) and sign * value > MAX_EXACT
                    held[name] = sign * MAX_EXACT if is_beyond else _number(value, name, place)
        if "multipleOf" in schema:
            held["multipleOf"] = _number(schema["multipleOf"], "multipleOf", place)
            if held["multipleOf"] <= 0:
                raise CannotHold(f"multipleOf is not above 0, at {_shown(place.pointer)}")

    def _add_items(self, schema: dict[str, Any], held: dict[str, Any], place: _Place) -> None:
        first, rest = "prefixItems", "items"
        # A list has no other meaning, whatever the draft is said to be.
        if isinstance(schema.get("items"), list):
            first, rest = "items", "additionalItems"
        if first in schema:
            if not isinstance(schema[first], list):
                raise CannotHold(f"{first} is no list, at {_shown(place.pointer)}")
            held["prefixItems"] = [self._schema(one, place.below(first, number)) for number, one in enumerate(schema[first])]
        if rest in schema:
            held["items"] = self._schema(schema[rest], place.below(rest))

    def _add_objects(self, schema: dict[str, Any], held: dict[str, Any], place: _Place) -> None:
        for key in ("properties", "patternProperties"):
            if key in schema:
                if not isinstance(schema[key], dict):
                    raise CannotHold(f"{key} is no object, at {_shown(place.pointer)}")
                held[key] = {name: self._schema(one, place.below(key, name)) for name, one in schema[key].items()}
        if "additionalProperties" in schema:
            held["additionalProperties"] = self._schema(schema["additionalProperties"], place.below("additionalProperties"))
        if "required" in schema:
            names = schema["required"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise CannotHold(f"required is no list of names, at {_shown(place.pointer)}")
            held["required"] = names
        # Names that are not in `properties` may be written twice, and count as one.
        if held.get("minProperties", 0) > len(set(held.get("required", ()))) + 1:
            raise CannotHold(f"minProperties is not supported beyond one more than are required, at {_shown(place.pointer)}")

    def _add_values(self, schema: dict[str, Any], held: dict[str, Any], place: _Place) -> None:
        if "const" in schema:
            _require_exact(schema["const"], place.pointer + "/const")
            held["const"] = schema["const"]
        if "enum" in schema:
            for value in self._list(schema, "enum", place):
                _require_exact(value, place.pointer + "/enum")
            held["enum"] = schema["enum"]

    def _list(self, schema: dict[str, Any], key: str, place: _Place) -> list[Any]:
        if not isinstance(schema[key], list) or not schema[key]:
            raise CannotHold(f"{key} is no list with an entry, at {_shown(place.pointer)}")
        return list(schema[key])

    def _reference(self, reference: Any, place: _Place, *, is_merged: bool) -> str:
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise CannotHold(f"$ref {_shown(str(reference))!r} is no reference like #/$defs/name, at {_shown(place.pointer)}")
        name = self._names.setdefault(reference, f"d{len(self._names)}")
        wanted = (reference, place.is_merged or is_merged)
        if wanted not in self._seen:
            self._seen.add(wanted)
            self._wanted.append(wanted)
        if place.owner is not None:
            self._in_place.setdefault(place.owner, set()).add(reference)
        return f"#/$defs/{name}"

    def _at(self, reference: str) -> Any:
        """What a reference refers to."""
        found: Any = self._root
        for step in reference.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise CannotHold(f"$ref {_shown(reference)!r} refers to nothing")
        return found

    def _resolved(self, schema: Any) -> Any:
        """A schema that is nothing but a reference, as what it refers to."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            if schema.keys() & (REFUSED.keys() | {"type", "const", "enum", "properties", "required"}):
                break
            schema = self._at(schema["$ref"])
        return schema

    def _require_ends(self) -> None:
        """Refuses a value that fits if it fits."""
        done: set[str] = set()
        for start in self._in_place:
            path: list[tuple[str, Iterator[str]]] = [(start, iter(self._in_place.get(start, ())))]
            on_path = {start}
            while path:
                pointer, targets = path[-1]
                target = next(targets, None)
                if target is None:
                    path.pop()
                    on_path.discard(pointer)
                    done.add(pointer)
                elif target in on_path:
                    raise CannotHold(f"$ref {_shown(target)!r} refers to itself")
                elif target not in done:
                    path.append((target, iter(self._in_place.get(target, ()))))
                    on_path.add(target)


def _draft_of(root: dict[str, Any]) -> str:
    name = root.get("$schema", f"https://json-schema.org/draft/{_NEWEST}/schema")
    draft = _DRAFTS.get(str(name).removesuffix("#").split("://")[-1])
    if draft is None:
        raise CannotHold(f"$schema {_shown(str(name))!r} is none of the drafts 4, 6, 7, 2019-09 and 2020-12")
    return draft


def _types(types: Any, place: _Place) -> Any:
    names = types if isinstance(types, list) else [types]
    for name in names:
        if name not in _TYPES:
            raise CannotHold(f"type {_shown(str(name))!r} is none of JSON's, at {_shown(place.pointer)}")
    if not names:
        raise CannotHold(f"type is an empty list, at {_shown(place.pointer)}")
    return types


def _count(value: Any, key: str, place: _Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(min(value, MAX_EXACT)):
        raise CannotHold(f"{key} is no whole number from 0 to 2^53, at {_shown(place.pointer)}")
    return int(value)


def _number(value: Any, key: str, place: _Place) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_EXACT:
        raise CannotHold(f"{key} is no number from -2^53 to 2^53, at {_shown(place.pointer)}")
    return value


def _require_exact(value: Any, pointer: str) -> None:
    """Refuses a value of const or enum that could be written in ways that are not held apart."""
    if isinstance(value, dict):
        for one in value.values():
            _require_exact(one, pointer)
    elif isinstance(value, list):
        for one in value:
            _require_exact(one, pointer)
    elif isinstance(value, str):
        if any((character < " " and character not in _SHORT_ESCAPES) or character == "\x7f" for character in value):
            raise CannotHold(f"a text has a control character, at {_shown(pointer)}")
    elif isinstance(value, int | float) and not isinstance(value, bool) and not (math.isfinite(value) and abs(value) <= MAX_EXACT):
        raise CannotHold(f"a number is beyond 2^53, at {_shown(pointer)}")


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
