"""Tool calls in the text of answers: what a model wrote is what a client gets, whatever pieces it comes in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.tools.answer_parser import ReasoningFormat
from gateway.tools.call_formats import FORMATS
from tests.examples import examples
from tests.fakes.tool_answers import MARKED, TOOLS, WRITERS, Heard, WrittenCall, calls, cut, form_of, heard_in, places

WAYS = [(name, index) for name, writers in WRITERS.items() for index in range(len(writers))]
WEATHER = WrittenCall("get_weather", '{"city": "Paris",  "days": [1, 2]}')
SEARCH = WrittenCall("search", '{"q": "a \\"b\\" {c} \\u00e9"}')
SEPARATOR = "<｜tool▁sep｜>"  # noqa: RUF001
BEGIN = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"  # noqa: RUF001


def whole(name: str, text: str, **changes: Any) -> Heard:
    return heard_in(form_of(name, **changes), [text])


@examples(25)
@given(written=calls, places=places, before=st.sampled_from(["", "Let me see.", "a < b [c] {d}"]), data=st.data())
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}{way[1]}")
def test_calls_in_any_pieces_are_those_that_were_written(
    way: tuple[str, int], written: list[WrittenCall], places: list[int], before: str, data: Any
) -> None:
    name, index = way
    # Nothing can hold special tokens off where they are all there is: a model cannot write their names either.
    assume(name != "harmony" or not any(marker in call.arguments for call in written for marker in FORMATS[name].markers))
    text = WRITERS[name][index](written)
    if before and name in MARKED and (name, index) not in (("llama3", 0), ("llama3", 2)):
        text = f"{before}\n\n{text}"
    else:
        before = ""
    got = heard_in(form_of(name), cut(text, places))
    assert got == heard_in(form_of(name), [text]) == heard_in(form_of(name), list(text))
    assert (got.content, got.reasoning) == (before, "")
    assert [call for call, _ in got.calls] == [call.name for call in written]
    if name == "pythonic":
        assert [json.loads(arguments) for _, arguments in got.calls] == [json.loads(call.arguments) for call in written]
    else:
        assert [arguments for _, arguments in got.calls] == [call.arguments for call in written]


snippets = st.lists(
    st.sampled_from(
        [
            *(marker for form in FORMATS.values() for marker in form.markers),
            *("<tool", "[TOOL", "<｜tool", "<|py", "<", "[", "{", "}", "]", '"', "\\", ":", ",", ";", " ", "\n", "```json"),  # noqa: RUF001
            *('"name"', '"arguments"', '"parameters"', '"search"', "search", "(", ")", "q=", "1", "null", "'x'", "function", "é", "Hello"),
            *(
                '{"name": "search", "arguments": {"q": 1}}',
                "[search(q='x')]",
                '{"name": "search"',
                "[search(",
                f"function{SEPARATOR}search\n",
            ),
        ]
    ),
    max_size=12,
).map("".join)


@examples(60)
@given(text=snippets, places=places)
@pytest.mark.parametrize("name", FORMATS)
def test_any_text_gives_the_same_in_any_pieces(name: str, text: str, places: list[int]) -> None:
    got = heard_in(form_of(name), cut(text, places))
    assert got == heard_in(form_of(name), [text]) == heard_in(form_of(name), list(text))
    if not got.calls and name != "harmony":
        assert got.content == text


@examples(20)
@given(text=st.text(max_size=40), places=places)
@pytest.mark.parametrize("name", FORMATS)
def test_text_without_calls_is_content_to_the_last_character(name: str, text: str, places: list[int]) -> None:
    assert heard_in(form_of(name), cut(text, places)) == Heard(text, "", [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>not json</tool_call>"),
        ("hermes", "<tool_call></tool_call>"),
        ("hermes", '<tool_call>{"city": "Paris"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name"= "search"}</tool_call>'),
        ("hermes", r'<tool_call>{"name": "se\qarch", "arguments": {}}</tool_call>'),
        ("hermes", r'<tool_call>{"name": "\ud800", "arguments": {}}</tool_call>'),
        ("hermes", 'Write <tool_call> {"name": '),
        ("hermes", "1 < 2 and <tool_cal"),
        ("llama3", '{"name": "Bob", "parameters": {}}'),
        ("llama3", '{"name": "search", "age": 3}'),
        ("llama3", '{"age": 3, "name": "search"}'),
        ("llama3", 'Here: {"name": "search", "parameters": {}}'),
        ("llama3", "<|python_tag|>print(1)"),
        ("json", '[{"name": "Bob", "arguments": {}}]'),
        ("json", '["name", "search"]'),
        ("json", 'I call {"name": "search", "arguments": {}}'),
        ("pythonic", "[search(query)](http://x)"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[other(a=1)]"),
        ("pythonic", 'search(q="x")'),
        ("mistral", "[TOOL_CALLS] are markers"),
        ("mistral", "[TOOL_CALLS]search"),
        ("mistral", "[TOOL_CALLS][1]"),
        ("mistral", "[TOOL_CALLS][ARGS]{}"),
        ("deepseek", "<｜tool▁calls▁begin｜>nothing"),  # noqa: RUF001
        ("deepseek", f"{BEGIN}function{SEPARATOR}search"),
    ],
)
def test_what_only_looks_like_a_call_stays_content(name: str, text: str) -> None:
    assert whole(name, text) == Heard(text, "", [])


# Each answer ends where its tokens did: arguments as far as they go.
CUT = [
    ("hermes", '<tool_call>\n{"name": "search", "arguments": {"q": "Par', '{"q": "Par'),
    ("hermes", '<tool_call>{"name": "search", "arguments": "{\\"q\\": \\"Par', '{"q": "Par'),
    ("hermes", '<tool_call>{"name": "search", "arguments": "{\\"q\\": \\"\\u00e9\\ud83d\\ude', '{"q": "é'),
    ("llama3", '{"name": "search", "parameters": {"q": [1, ', '{"q": [1, '),
    ("json", '[{"name": "search", "arguments": {"q": 1', '{"q": 1'),
    ("pythonic", "[search(q='x', n=[1, 2", '{"q": "x"'),
    ("mistral", '[TOOL_CALLS]search[ARGS]{"q": tr', '{"q": tr'),
    ("mistral", '[TOOL_CALLS][{"name": "search", "arguments": {', "{"),
    ("deepseek", f'{BEGIN}function{SEPARATOR}search\n```json\n{{"q"', '{"q"'),
]


@pytest.mark.parametrize(("name", "text", "arguments"), CUT)
def test_a_call_that_is_cut_off_is_delivered_as_far_as_it_goes(name: str, text: str, arguments: str) -> None:
    assert whole(name, text) == Heard("", "", [("search", arguments)])
    assert heard_in(form_of(name), list(text)) == whole(name, text)


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"name": "search"}', "{}"),
        ('{"name": "search", "arguments": null}', "{}"),
        ('{"name": "search", "arguments": {}}', "{}"),
        ('{"name": "search", "arguments": ""}', "{}"),
        ('{"arguments": {"q": 1}, "name": "search"}', '{"q": 1}'),
        ('{"type": "function", "id": "7", "name": "search", "parameters": {"q": 1}}', '{"q": 1}'),
        ('{"name": "search", "arguments": "{\\"q\\": \\"\\u00e9\\"}"}', '{"q": "é"}'),
        ('{"name": "search", "arguments": {"q": 1}, "id": "7"}', '{"q": 1}'),
        ('{"name": "se\\u0061rch", "arguments": {"q":1.50}}', '{"q":1.50}'),
    ],
)
def test_every_way_to_give_arguments_is_understood(written: str, arguments: str) -> None:
    for name, text in (("hermes", f"<tool_call>{written}</tool_call>"), ("llama3", written), ("mistral", f"[TOOL_CALLS][{written}]")):
        assert whole(name, text) == Heard("", "", [("search", arguments)])


@pytest.mark.parametrize(
    ("value", "as_json"),
    [
        ("'it\\'s'", '"it\'s"'),
        ('"a\\nb"', '"a\\nb"'),
        ("True", "true"),
        ("None", "null"),
        ("[1, -2.5, 'x']", '[1, -2.5, "x"]'),
        ("(1, 2)", "[1, 2]"),
        ("{'a': {'b': None}}", '{"a": {"b": null}}'),
        ("'\\x41\\u00e9'", '"Aé"'),
        ("'a, b) c'", '"a, b) c"'),
        ("Paris", '"Paris"'),
        ("Zürich", '"Zürich"'),
        ("'\\d+'", '"\\\\d+"'),
        ("1_000", '"1_000"'),
        ("{1: 2}", '"{1: 2}"'),
        ("[", None),
    ],
)
def test_pythons_values_become_json(value: str, as_json: str | None) -> None:
    got = whole("pythonic", f"[search(q={value})]")
    assert got.calls == [("search", f'{{"q": {as_json}}}' if as_json is not None else "")]


def test_an_empty_string_of_arguments_ends_where_it_does() -> None:
    one = '{"name": "search", "arguments": ""}'
    assert whole("llama3", f"{one}; {one}").calls == [("search", "{}")] * 2
    assert whole("llama3", '{"name": "search", "": {}}').calls == []


def test_what_stands_behind_a_list_s_last_call_is_content() -> None:
    assert whole("json", '[{"name": "search", "arguments": {}}}]') == Heard("}]", "", [("search", "{}")])
    assert whole("json", '[{"name": "search", "arguments": {}}] | done') == Heard("| done", "", [("search", "{}")])


V31 = "<｜tool▁call▁begin｜>search<｜tool▁sep｜>{}<｜tool▁call▁end｜>"  # noqa: RUF001


@pytest.mark.parametrize(
    ("name", "text", "content"),
    [
        ("hermes", '<tool_call>{"name": "search"}</tool_call><tool_call>{"x": 1}</tool_call>', '<tool_call>{"x": 1}</tool_call>'),
        ("hermes", 'a <<tool_call>{"name": "search"}</tool_call>', "a <"),
        ("llama3", '{"name": "search"}; {"x": 1}', '; {"x": 1}'),
        ("llama3", '{"name": "search"}, or so', ", or so"),
        ("json", '[{"name": "search"}, {"x": 1}]', ', {"x": 1}]'),
        ("mistral", '[TOOL_CALLS]search[ARGS]{}[TOOL_CALLS] {"x": 1}', '[TOOL_CALLS] {"x": 1}'),
        ("pythonic", "[search(), and more]", ", and more]"),
        ("pythonic", "[search() and more]", "and more]"),
        ("deepseek", f"{V31} Done.", "Done."),
        ("deepseek", f"{V31}{BEGIN}oops", f"{BEGIN}oops"),
        ("deepseek", f"{V31}\n<｜tool▁call▁begin｜>oops", "<｜tool▁call▁begin｜>oops"),  # noqa: RUF001
    ],
)
def test_what_is_no_call_behind_or_before_one_is_content_too(name: str, text: str, content: str) -> None:
    assert whole(name, text) == Heard(content, "", [("search", "{}")]) == heard_in(form_of(name), list(text))


def test_only_a_function_s_name_behind_the_word_function_is_fenced() -> None:
    for name in ("add", "function", "get"):
        text = f"{BEGIN}{name}{SEPARATOR}[1]<｜tool▁call▁end｜><｜tool▁calls▁end｜>"  # noqa: RUF001
        assert whole("deepseek", text).calls == ([] if name == "function" else [(name, "[1]")])
    assert whole("deepseek", f'{BEGIN}function{SEPARATOR}{{"q": 1}}').calls == [("function", '{"q": 1}')]


def test_a_model_s_extra_bracket_and_missing_end_do_no_harm() -> None:
    text = '<tool_call>\n{"name": "search", "arguments": {"q": 1}}}\n</tool_call>'
    assert whole("hermes", text) == Heard("", "", [("search", '{"q": 1}')])
    text = '<tool_call>{"name": "search", "arguments": {"q": 1}}\n<tool_call>{"name": "search", "arguments": {"q": 2}}'
    assert whole("hermes", text).calls == [("search", '{"q": 1}'), ("search", '{"q": 2}')]


def test_text_between_and_behind_calls_is_content_without_the_space_around_calls() -> None:
    one, two = (WRITERS["hermes"][0]([call]) for call in (WEATHER, SEARCH))
    got = whole("hermes", f"First.\n\n{one}\n\nThen.\n{two}\n")
    assert got == Heard("First.\n\n\n\nThen.", "", [WEATHER, SEARCH])
    assert whole("hermes", f"\n{one}\n").content == ""


@pytest.mark.parametrize("name", WRITERS)
def test_without_parallel_calls_there_is_the_first_and_nothing_behind_it(name: str) -> None:
    for writer in WRITERS[name]:
        text = writer([WEATHER, SEARCH]) + (" And more." if name == "hermes" else "")
        ((call, arguments),) = whole(name, text, parallel=False).calls
        assert (call, json.loads(arguments)) == ("get_weather", json.loads(WEATHER.arguments))
        assert len(whole(name, text).calls) == 2


def test_ids_differ_between_calls_choices_and_requests_and_not_between_readings() -> None:
    text = WRITERS["hermes"][0]([WEATHER, SEARCH])

    def ids(choice: int, **changes: Any) -> Sequence[str | None]:
        parser = form_of("hermes", **changes).parser(choice)
        return [call.id for call in parser.feed(text).calls if call.id]

    found = [*ids(0), *ids(1), *ids(0, request_id="r-2")]
    assert len(set(found)) == 6
    assert all(one is not None and one.startswith("call_") and len(one) == 29 for one in found)
    assert ids(0) == ids(0)


def test_a_name_and_arguments_are_told_as_soon_as_they_are_there() -> None:
    parser = form_of("hermes").parser(0)
    assert parser.feed('<tool_call>{"name": "search"').is_empty
    (begun,) = parser.feed(', "arguments": {"q": "a').calls
    assert (begun.number, begun.name, begun.arguments) == (0, "search", '{"q": "a')
    (more,) = parser.feed('b"').calls
    assert (more.number, more.id, more.name, more.arguments) == (0, None, None, 'b"')


def test_what_came_to_light_is_empty_where_nothing_did() -> None:
    parser = form_of("hermes", reasoning=ReasoningFormat("<think>", "</think>")).parser(0)
    told = [parser.feed(text).is_empty for text in ("<think>", "Hm.", "</think>", "Yes.", "<tool_call>", '{"name": "f"}', "</tool_call>")]
    assert told == [True, False, True, False, True, False, True]


@pytest.mark.parametrize("name", FORMATS)
def test_a_long_answer_that_only_begins_like_calls_takes_time_in_proportion(name: str) -> None:
    marker = (*FORMATS[name].markers, "[{")[0]
    text = (marker + '{"arguments": "') * 3_000  # 45,000 characters and more
    assert len(whole(name, text).content) > 40_000


def test_tools_of_a_marked_call_may_have_any_name() -> None:
    assert "nonesuch" not in TOOLS
    assert whole("hermes", '<tool_call>{"name": "nonesuch", "arguments": {}}</tool_call>').calls == [("nonesuch", "{}")]
