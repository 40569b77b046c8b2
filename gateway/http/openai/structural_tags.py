"""vLLM's and xgrammar's structural tags as a grammar: text that is free up to a trigger, and of a form behind it."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from gateway.http.openai.fields import MAX_SHOWN_CHARS
from gateway.tools.argument_grammars import in_one_line, quoted
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2

# What may be the name of a special token within what a client writes.
_NAME = re.compile(r"(<\|[^<>|\s]+\|>|</?[a-z][a-z_]*>|\[/?[A-Z][A-Z_]+\])")
_MAX_DEPTH = 16
_MAX_ELEMENTS = 256
_TRIGGERED = "triggered_tags"


def structural_grammar(value: dict[str, Any] | str, field: str) -> common_pb2.Grammar:
    """The grammar of a structural tag.

    Args:
        value: `{"structures": [...], "triggers": [...]}` or `{"format": {...}}`, as an object or as JSON.
        field: that holds it, for errors.

    Raises:
        InvalidRequest: it is none, or asks for what is not supported; names the field.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{field} is no JSON", field=field) from None
    if not isinstance(value, dict) or value.get("type", "structural_tag") != "structural_tag":
        raise InvalidRequest(f"{field} is no object of type structural_tag", field=field)
    if "format" in value:
        _Object(value, field).check("type", "format")
        return _Writer().grammar(_Object(value["format"], f"{field}.format"))
    legacy = _Object(value, field)
    legacy.check("type", "structures", "triggers")
    tags = [_legacy_tag(one) for one in legacy.objects("structures")]
    return _Writer().grammar(_Object({"type": _TRIGGERED, "triggers": legacy.strings("triggers"), "tags": tags}, field))


def _legacy_tag(structure: _Object) -> dict[str, Any]:
    structure.check("begin", "schema", "end")
    content = {"type": "json_schema", "json_schema": structure.get("schema", dict)}
    return {"begin": structure.get("begin", str), "content": content, "end": structure.get("end", str)}


class _Object(NamedTuple):
    """An object of the client's, and where it stands."""

    fields: Any
    path: str

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A field of it.

        Raises:
            InvalidRequest: it is missing and has no default, or of another type.
        """
        value = self.fields.get(name, default) if isinstance(self.fields, dict) else None
        if not isinstance(value, kind):
            raise InvalidRequest(f"{self.path}.{name} is missing or of the wrong type", field=f"{self.path}.{name}")
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings that are not empty."""
        values = self.get(name, list)
        if not values or not all(isinstance(one, str) and one for one in values):
            raise InvalidRequest(f"{self.path}.{name} must be strings that are not empty", field=f"{self.path}.{name}")
        return [str(one) for one in values]

    def objects(self, name: str) -> list[_Object]:
        """A list of objects, at least one."""
        values = self.get(name, list)
        if not 1 <= len(values) <= _MAX_ELEMENTS:
            raise InvalidRequest(
                f"{self.path}.{name} has {len(values)} entries, the limits are 1 and {_MAX_ELEMENTS}", field=f"{self.path}.{name}"
            )
        return [_Object(one, f"{self.path}.{name}[{index}]") for index, one in enumerate(values)]

    def check(self, *names: str) -> None:
        """Refuses every field but these, unless it is empty.

        Raises:
            InvalidRequest: naming it.
        """
        for name, value in self.fields.items() if isinstance(self.fields, dict) else ():
            if name not in names and value not in (None, [], False):
                field = f"{self.path}.{name[:MAX_SHOWN_CHARS]}"
                raise InvalidRequest(f"{field} is not supported", field=field)


class _Writer:
    """Writes one grammar."""

    def __init__(self) -> None:
        self._markers: list[str] = []
        self._rules: list[str] = []

    def grammar(self, form: _Object) -> common_pb2.Grammar:
        """Of a whole answer."""
        body = self._form(form, depth=0, follow="")
        return common_pb2.Grammar(lark="\n".join((f"start: {body}", *self._rules)), markers=self._markers)

    def _form(self, form: _Object, *, depth: int, follow: str) -> str:
        """The expression of a form and of the text that follows it.

        Args:
            form: of the client.
            depth: of it in others.
            follow: the text; empty = none that is known.
        """
        kind = form.get("type", str)
        if depth > _MAX_DEPTH:
            raise InvalidRequest(f"{form.path} is deeper than {_MAX_DEPTH} levels", field=form.path)
        behind = f" {self._literal(follow, form.path)}" if follow and kind != "any_text" else ""
        if kind == "const_string":
            form.check("type", "value")
            return self._literal(form.get("value", str), form.path) + behind
        if kind == "json_schema":
            form.check("type", "json_schema")
            return self._rule(in_one_line(form.get("json_schema", dict))) + behind
        if kind == "regex":
            form.check("type", "pattern")
            return self._rule(_lark_regex(form.get("pattern", str))) + behind
        if kind == "any_text":
            form.check("type")
            return f"until_{self._marker(follow, form.path)}" if follow else "/(?s:.*)/"
        if kind == "or":
            form.check("type", "elements")
            return f"({' | '.join(self._form(one, depth=depth + 1, follow=follow) for one in form.objects('elements'))})"
        if kind == "sequence":
            form.check("type", "elements")
            return self._sequence(form.objects("elements"), depth, follow)
        if kind == "tag":
            return self._tag(form, depth) + behind
        if kind == "tags_with_separator":
            return self._separated(form, depth) + behind
        if kind == _TRIGGERED and not follow:
            return self._triggered(form, depth)
        why = " where something follows" if kind == _TRIGGERED else ""
        raise InvalidRequest(f"{form.path}.type of {kind[:MAX_SHOWN_CHARS]!r} is not supported{why}", field=f"{form.path}.type")

    def _sequence(self, elements: list[_Object], depth: int, follow: str) -> str:
        """Forms one after the other. Free text before another form ends with how that begins."""
        parts = []
        for index, element in enumerate(elements):
            is_last = index + 1 == len(elements)
            if element.get("type", str) not in ("any_text", _TRIGGERED) or is_last:
                parts.append(self._form(element, depth=depth + 1, follow=follow if is_last else ""))
                continue
            name = {"const_string": "value", "tag": "begin"}.get(elements[index + 1].get("type", str))
            if name is None or element.get("type", str) == _TRIGGERED:
                raise InvalidRequest(
                    f"{element.path} is free text before what has no fixed beginning, which is not supported", field=element.path
                )
            parts.append(self._form(element, depth=depth + 1, follow=elements[index + 1].get(name, str)))
            # What the text ends with is not there again.
            elements[index + 1] = _Object({**elements[index + 1].fields, name: ""}, elements[index + 1].path)
        return " ".join(parts)

    def _tag(self, tag: _Object, depth: int, *, begun: str = "") -> str:
        """A tag, of which the beginning may be there already."""
        tag.check("type", "begin", "content", "end")
        begin, content = tag.get("begin", str).removeprefix(begun), _Object(tag.get("content", dict), f"{tag.path}.content")
        return f"{self._literal(begin, tag.path)} {self._form(content, depth=depth + 1, follow=tag.get('end', str))}"

    def _separated(self, form: _Object, depth: int) -> str:
        form.check("type", "tags", "separator", "at_least_one", "stop_after_first")
        tag = self._rule(" | ".join(self._tag(one, depth + 1) for one in form.objects("tags")))
        separator = self._literal(form.get("separator", str), form.path)
        several = tag if form.get("stop_after_first", bool, False) else f"{tag} ({separator} {tag})*"
        return f"({several}){'' if form.get('at_least_one', bool, False) else '?'}"

    def _triggered(self, form: _Object, depth: int) -> str:
        form.check("type", "triggers", "tags", "at_least_one", "stop_after_first")
        behind: dict[str, list[str]] = {trigger: [] for trigger in form.strings("triggers")}
        for tag in form.objects("tags"):
            begin = tag.get("begin", str)
            trigger = next((one for one in behind if begin.startswith(one)), None)
            if trigger is None:
                raise InvalidRequest(f"{tag.path}.begin begins with none of the triggers", field=f"{tag.path}.begin")
            behind[trigger].append(self._tag(tag, depth + 1, begun=trigger))
        numbers = [self._marker(trigger, form.path) for trigger in behind]
        tags = self._rule(
            " | ".join(f"until_{number} ({' | '.join(tails)})" for number, tails in zip(numbers, behind.values(), strict=True) if tails)
        )
        self._rules.append(f"REST_{len(self._rules)}: {' & '.join(f'WITHOUT_{number}' for number in numbers)}")
        rest = f"REST_{len(self._rules) - 1}"
        is_needed = form.get("at_least_one", bool, False)
        if form.get("stop_after_first", bool, False):
            return tags if is_needed else f"({tags} | {rest})"
        return f"{tags}{'+' if is_needed else '*'} {rest}"

    def _rule(self, body: str) -> str:
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _literal(self, text: str, path: str) -> str:
        """A text that may have names of special tokens in it."""
        parts = [part for part in _NAME.split(text) if part]
        return " ".join(f"marker_{self._marker(part, path)}" if _NAME.fullmatch(part) else quoted(part) for part in parts) or '""'

    def _marker(self, text: str, path: str) -> int:
        if text not in self._markers:
            if len(self._markers) == contract.MAX_MARKERS or len(text) > contract.MAX_MARKER_CHARS:
                raise InvalidRequest(
                    f"{path} has too many or too long tags, the limits are {contract.MAX_MARKERS} of {contract.MAX_MARKER_CHARS} characters",
                    field=path,
                )
            self._markers.append(text)
        return self._markers.index(text)


def _lark_regex(pattern: str) -> str:
    """An expression between Lark's slashes."""
    return "/" + re.sub(r"(?s)(\\.)|/", lambda found: found[1] or r"\/", pattern).replace("\n", r"\n") + "/"
