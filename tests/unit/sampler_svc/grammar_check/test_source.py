"""What llguidance is given: no answer it lets through is one that the schema does not allow."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.source import Written, source_of


class Bytes:
    """A tokenizer of bytes."""

    def __init__(self) -> None:
        self.eos_token_id, self.bos_token_id, self.special_token_ids = 256, None, [256]
        self.tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))


def allows(kind: str, grammar: str, text: str) -> bool:
    matcher = LLMatcher(TOKENIZER, source_of(Written(kind, grammar), {}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    written = text.encode()
    return matcher.try_consume_tokens(list(written)) == len(written) and matcher.is_accepting()


def is_answer(schema: Any, text: str) -> bool:
    return allows("json_schema", json.dumps(schema), text)


NAMED = {"type": "object", "properties": {"a": {"type": "integer"}, "b/\n": {"type": "null"}}}


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a":1,"c":"x"}', '{"a":1,"b/\\n":null, "c":[1]}', "{}"])
def test_names_beside_those_of_properties_may_be_used(text: str) -> None:
    assert is_answer(NAMED, text)


@pytest.mark.parametrize("text", ['{"a":"x"}', '{"a":1,"\\u0061":"x"}', '{"\\u0061":"x"}', '{"a":1,"b\\/\\n":1}', '{"b\\/\\u000a":1}'])
def test_a_property_cannot_be_written_in_another_way_to_be_of_another_type(text: str) -> None:
    assert not is_answer(NAMED, text)


def test_a_schema_cannot_ask_for_less_to_be_held() -> None:
    lenient = {"lenient": True, "coerce_one_of": True}
    schemas: list[dict[str, Any]] = [{"not": {}}, {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"format": "colour"}]
    for schema in schemas:
        with pytest.raises((CannotHold, AssertionError)):
            is_answer({**schema, "x-guidance": lenient}, "1")
        with pytest.raises((CannotHold, AssertionError)):
            allows("lark", f"start: %json {json.dumps({**schema, 'x-guidance': lenient})}", "1")


def test_what_cannot_be_held_is_left_out_where_both_the_grammar_and_its_schema_may_be_held_in_part() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    for lenient, is_schema_lenient in ((True, True), (True, False), (False, True)):
        lark = f"start: %json {json.dumps({**schema, 'x-guidance': {'lenient': is_schema_lenient}})}"
        for written in (Written("lark", lark, lenient=lenient), Written("regex", "a", f"{lark} | @text", lenient=lenient)):
            if not (lenient and is_schema_lenient):
                with pytest.raises(CannotHold):
                    source_of(written, {})
                continue
            matcher = LLMatcher(TOKENIZER, source_of(written, {}), log_level=0)
            assert matcher.consume_tokens(list(b"[1, 1]")) and matcher.is_accepting()
            assert not matcher.consume_tokens(list(b"a"))


def test_schemas_within_lark_grammars_are_held_as_all_are() -> None:
    grammar = 'start: "a " %json {"properties": {"a": {"format": "date"}}} " or " other\nother: %json  {"type": "null"}'
    assert allows("lark", grammar, 'a {"a": "2024-02-29"} or null')
    assert not allows("lark", grammar, 'a {"a": "2023-02-29"} or null')
    for bad in ('start: %json {"a', 'start: %json {"not": {}}'):
        with pytest.raises(CannotHold):
            source_of(Written("lark", bad), {})
    assert source_of(Written("lark", 'start: "%json" | "%json["'), {}) == LLMatcher.grammar_from_lark('start: "%json" | "%json["')


@given(st.dates(), st.integers(1, 12), st.integers(1, 31))
def test_dates_are_days_that_there_are(day: date, month: int, number: int) -> None:
    assert is_answer({"format": "date"}, json.dumps(day.isoformat()))
    try:
        real = bool(date(day.year, month, number))
    except ValueError:
        real = False
    assert is_answer({"format": "date"}, f'"{day.year:04}-{month:02}-{number:02}"') == real


@given(st.datetimes(), st.sampled_from(["Z", "+01:00", "-23:59"]))
def test_moments_are_those_that_there_are(moment: datetime, zone: str) -> None:
    assert is_answer({"format": "date-time"}, f'"{moment.isoformat()}{zone}"')
    assert is_answer({"format": "time"}, f'"{moment.time().isoformat()}{zone}"')


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date-time", "2024-01-01T00:00:00.5Z", "2024-01-01T23:59:60Z"),
        ("time", "23:59:59+00:00", "24:00:00Z"),
        ("date", "0001-01-01", "0000-01-01"),
        ("hostname", "a-b.example", "-a.example"),
        ("uuid4", "01234567-89ab-4def-8123-456789abcdef", "01234567-89ab-1def-8123-456789abcdef"),
        ("uuid", "01234567-89ab-1def-c123-456789abcdef", "0123456789ab1defc123456789abcdef"),
        ("byte", "QQ==", "QQ="),
        ("email", "a.b@example.com", "a.b"),
        ("ipv4", "10.0.0.255", "10.0.0.256"),
        ("ipv6", "::1", "1::2::3"),
        ("uri", "https://example.com/a?b#c", "a b"),
        ("duration", "P1DT2H", "P"),
    ],
)
def test_formats_hold_what_they_say(form: str, good: str, bad: str) -> None:
    assert is_answer({"type": "string", "format": form}, json.dumps(good))
    assert not is_answer({"type": "string", "format": form}, json.dumps(bad))
    shorter = {"type": "string", "format": form, "maxLength": len(good) - 1}
    assert not is_answer({"anyOf": [{"type": "null"}, shorter]}, json.dumps(good)), "beside what else is asked"


def test_formats_of_numbers_are_bounds() -> None:
    assert is_answer({"type": "integer", "format": "int8"}, "-128") and not is_answer({"type": "integer", "format": "int8"}, "128")
    assert is_answer({"type": "integer", "format": "uint64"}, str(2**53 - 1))
    assert not is_answer({"type": "integer", "format": "uint64"}, str(2**53)), "which a client would not read for sure"
    assert is_answer({"type": "number", "format": "double"}, "1e300")
