"""Tools, calls and results reach the model in the form its family wants, or are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.template_styles import STYLES
from tests.fakes.tool_templates import TOOL_STYLES
from tokenizer_svc.chat_template import ChatTemplate, Message, RenderLimits
from tokenizer_svc.reasoning_format import reasoning_format
from tokenizer_svc.template_forms import TemplateForms
from tokenizer_svc.tool_forms import CallForm
from tokenizer_svc.tools import Tool, ToolCall
from triserve.rpc.errors import InvalidRequest

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "Of a city.", json.dumps(SCHEMA)).read("tools[0]")
TIME = Tool("get_time")
ARGUMENTS = '{"city": "Zürich",  "days": 2}'
CALL = ToolCall("call_abc", "get_weather", ARGUMENTS)
QUESTION = Message("user", "How is it?")
RESULT = Message("tool", "12 degrees", tool_call_id="call_abc")
CONVERSATION = (QUESTION, Message("assistant", "", tool_calls=(CALL,)), RESULT)
# How each style writes the call of the conversation.
WRITTEN = {
    "qwen": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>',
    "qwen_thinking": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>',
    "llama_3": '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 2}}',
    "pythonic": '[get_weather(city="Zürich", days=2)]',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}, "id": "',
    "deepseek": f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{ARGUMENTS}\n```",  # noqa: RUF001
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}]',
    "gpt_oss": '<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Zürich", "days": 2}<|call|>',
    "qwen_coder": "<function=get_weather>\n<parameter=city>Zürich</parameter>\n<parameter=days>2</parameter>",
    "kimi": 'functions.get_weather:0<|tool_call_argument_begin|>{"city": "Zürich", "days": 2}',
}
FORMATS = {
    "qwen": "hermes",
    "qwen_thinking": "hermes",
    "llama_3": "llama3",
    "pythonic": "pythonic",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "granite": "json",
    "gpt_oss": "harmony",
    "qwen_coder": "",
    "kimi": "",
}


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, TOKENS, limits=RenderLimits())


def prompt_of(source: str, messages: tuple[Message, ...], tools: tuple[Tool, ...] = (WEATHER,), **arguments: Any) -> str:
    template = template_of(source)
    forms = TemplateForms(template)
    turns = forms.adapt(messages)
    text = template.render(turns, arguments, tools=tools, add_generation_prompt=True)
    forms.check_printed(turns, arguments, tools=tools, add_generation_prompt=True)
    return text


@pytest.mark.parametrize("style", TOOL_STYLES)
def test_tools_calls_and_results_are_in_the_prompt(style: str) -> None:
    text = prompt_of(TOOL_STYLES[style], CONVERSATION)
    assert WRITTEN[style] in text
    assert "12 degrees" in text
    assert json.dumps(SCHEMA) in " ".join(text.split()).replace("{ ", "{").replace(" }", "}").replace("[ ", "[").replace(" ]", "]")
    assert '"description": "Of a city."' in text or style == "gpt_oss"


@pytest.mark.parametrize("style", TOOL_STYLES)
def test_the_form_of_calls_is_named_after_the_template(style: str) -> None:
    tools = TemplateForms(template_of(TOOL_STYLES[style])).tools
    assert tools.takes_tools
    assert tools.call_format == FORMATS[style]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (TOOL_STYLES["qwen"], "tools, calls with arguments as objects, written as hermes"),
        (TOOL_STYLES["deepseek"], "tools, calls with arguments as text, written as deepseek"),
        (TOOL_STYLES["kimi"], "tools, calls with arguments as objects, written as no parser knows"),
        ("{{ tools | tojson }}{{ messages[0].content }}", "tools, calls none, written as json"),
        (STYLES["qwen"], "no tools"),
    ],
)
def test_the_log_says_what_was_found(source: str, said: str) -> None:
    assert str(TemplateForms(template_of(source))).endswith(f", {said}")


@pytest.mark.parametrize("style", STYLES)
def test_templates_without_tools_take_none(style: str) -> None:
    tools = TemplateForms(template_of(STYLES[style])).tools
    assert (tools.takes_tools, tools.calls, tools.call_format) == (False, None, "")


@pytest.mark.parametrize("style", STYLES)
def test_calls_that_a_template_does_not_print_are_refused_by_their_place(style: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompt_of(STYLES[style], (QUESTION, Message("assistant", "I look.", tool_calls=(CALL,)), QUESTION), tools=())
    assert refused.value.field in ("messages[1].tool_calls", "messages")
    assert "city" not in refused.value.message


def test_tools_that_a_template_prints_in_other_chats_are_refused() -> None:
    source = (
        "{% if tools and messages[0].role == 'system' %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert "get_weather" in prompt_of(source, (Message("system", "Be brief."), QUESTION))
    with pytest.raises(InvalidRequest, match="tools would not reach the model") as refused:
        prompt_of(source, (QUESTION,))
    assert refused.value.field == "tools"


@pytest.mark.parametrize("style", ["qwen", "pythonic", "mistral", "deepseek", "granite"])
def test_parallel_calls_are_all_printed(style: str) -> None:
    calls = (CALL, ToolCall("call_2", "get_time", "{}"))
    text = prompt_of(TOOL_STYLES[style], (QUESTION, Message("assistant", "", tool_calls=calls), RESULT), (WEATHER, TIME))
    assert text.index("get_weather", text.index("How is it?")) < text.rindex("get_time")


def test_a_template_that_takes_one_call_says_so_itself() -> None:
    calls = (CALL, ToolCall("call_2", "get_time", "{}"))
    with pytest.raises(InvalidRequest, match="single tool-calls"):
        prompt_of(TOOL_STYLES["llama_3"], (QUESTION, Message("assistant", "", tool_calls=calls), RESULT), (WEATHER, TIME))


@pytest.mark.parametrize(
    ("style", "form"),
    [
        ("qwen", CallForm(as_objects=True, null_content=True, short_ids=False)),
        ("qwen_thinking", CallForm(as_objects=True, null_content=True, short_ids=False)),
        ("llama_3", CallForm(as_objects=True, null_content=True, short_ids=False)),
        ("mistral", CallForm(as_objects=True, null_content=True, short_ids=True)),
        ("deepseek", CallForm(as_objects=False, null_content=True, short_ids=False, keeps_text=False)),
    ],
)
def test_the_form_a_template_takes_is_found(style: str, form: CallForm) -> None:
    assert TemplateForms(template_of(TOOL_STYLES[style])).tools.calls == form


def test_a_template_that_joins_an_empty_content_gets_no_null() -> None:
    source = "{{ tools | tojson }}{% for m in messages %}{{ '|' + m.content }}{{ m.tool_calls | default('') | tojson }}{% endfor %}"
    forms = TemplateForms(template_of(source)).tools
    assert forms.calls == CallForm(as_objects=True, null_content=False, short_ids=False)
    assert '||[{"id": "call_abc"' not in prompt_of(source, CONVERSATION)
    assert '|[{"id": "call_abc"' in prompt_of(source, CONVERSATION)


def test_a_template_that_takes_results_as_parts_alone_is_tried_with_parts() -> None:
    source = (
        "{{ tools | tojson }}{% for m in messages %}{% if m.role == 'tool' %}{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}"
        "{{ m.content[0].text }}{% else %}{{ m.content or '' }}{{ m.tool_calls | default('') | tojson }}{% endif %}{% endfor %}"
    )
    assert TemplateForms(template_of(source)).tools.calls is not None
    assert "12 degrees" in prompt_of(source, CONVERSATION)


def test_a_template_that_would_print_null_gets_none() -> None:
    source = "{{ tools | tojson }}{% for m in messages %}|{{ m.content }}{{ m.tool_calls | default('') | tojson }}{% endfor %}"
    assert TemplateForms(template_of(source)).tools.calls == CallForm(as_objects=True, null_content=False, short_ids=False)
    assert "None" not in prompt_of(source, CONVERSATION)


def test_a_template_that_prints_arguments_gets_them_as_text() -> None:
    source = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments }}{% endfor %}{% endfor %}"
    assert f"get_weather {ARGUMENTS}" in prompt_of(source, CONVERSATION)


@pytest.mark.parametrize(("content", "said"), [("I look.", True), ("", False)])
def test_what_is_said_beside_calls_is_kept_where_the_template_keeps_it(content: str, said: bool) -> None:
    turns = (QUESTION, Message("assistant", content, tool_calls=(CALL,)), RESULT)
    assert ("I look." in prompt_of(TOOL_STYLES["qwen"], turns)) is said
    for style in ("llama_3", "deepseek"):
        text = prompt_of(TOOL_STYLES[style], turns)
        assert WRITTEN[style] in text and "I look." not in text


@pytest.mark.parametrize("call_id", ["call_abc", "", "123456789", "é" * 256])
def test_ids_are_shortened_alike_in_calls_and_results(call_id: str) -> None:
    turns = (QUESTION, Message("assistant", "", tool_calls=(replace(CALL, id=call_id),)), replace(RESULT, tool_call_id=call_id))
    text = prompt_of(TOOL_STYLES["mistral"], turns)
    ids = [part.partition('"')[0] for part in text.split('"id": "')[1:]] + [
        part.partition('"')[0] for part in text.split('"call_id": "')[1:]
    ]
    assert len(ids) == 2 and len(set(ids)) == 1
    assert len(ids[0]) == 9 and ids[0].isalnum()


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_empty_arguments_are_an_object_without_entries(arguments: str) -> None:
    call = ToolCall("call_abc", "get_weather", arguments)
    assert '"arguments": {}}' in prompt_of(TOOL_STYLES["qwen"], (QUESTION, Message("assistant", "", tool_calls=(call,)), RESULT))


@pytest.mark.parametrize("arguments", ['{"city": "Par', "[1]", '"x"', '{"a": NaN}', "[" * 5000, '{"a":' * 70 + "1" + "}" * 70])
def test_arguments_that_are_no_object_are_refused_where_the_template_takes_one(arguments: str) -> None:
    turns = (QUESTION, Message("assistant", "", tool_calls=(ToolCall("call_abc", "get_weather", arguments),)), RESULT)
    with pytest.raises(InvalidRequest) as refused:
        prompt_of(TOOL_STYLES["qwen"], turns)
    assert refused.value.field == "messages[1].tool_calls[0].function.arguments"
    assert "Par" not in refused.value.message
    assert arguments in prompt_of(TOOL_STYLES["deepseek"], turns), "which takes any text"


def test_the_order_of_a_schema_s_entries_is_kept() -> None:
    schema = '{"z": 1, "a": {"y": 2, "b": 3}}'
    tool = Tool("f", None, schema).read("tools[0]")
    assert f'{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}' in prompt_of(
        TOOL_STYLES["qwen"], (QUESTION,), (tool,)
    )


def test_without_tools_templates_see_none() -> None:
    for style in TOOL_STYLES.values():
        assert "tojson" in style
        text = prompt_of(style, (QUESTION,), ())
        assert "Tools:" not in text and "[]" not in text and "AVAILABLE" not in text


def test_reasoning_sent_back_is_the_template_s_to_print() -> None:
    turns = (QUESTION, Message("assistant", "", tool_calls=(CALL,), reasoning="Let me look."))
    assert "<think>\nLet me look.\n</think>" in prompt_of(TOOL_STYLES["qwen_thinking"], turns)
    assert "Let me look." not in prompt_of(TOOL_STYLES["qwen"], turns)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (TOOL_STYLES["qwen_thinking"], "think"),
        (TOOL_STYLES["deepseek"], "think"),
        (TOOL_STYLES["qwen"], ""),
        (TOOL_STYLES["gpt_oss"], "harmony"),
        ("{{ '[THINK]' + x + '[/THINK]' }}", "brackets"),
    ],
)
def test_the_form_of_reasoning_is_named_after_the_template(source: str, name: str) -> None:
    assert reasoning_format(source) == name
