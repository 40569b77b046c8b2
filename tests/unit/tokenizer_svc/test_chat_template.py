"""Templates: what they may see and do, and what stops them."""

from __future__ import annotations

import logging
from datetime import datetime
from itertools import count

import pytest

from tests.fakes.tokenizers import INSPECTING, INSTRUCTIONS
from tokenizer_svc.chat_template import ChatTemplate, Message, RenderLimits, TemplateSourceError, TemplateValue
from tokenizer_svc.special_tokens import MARKS
from triserve.rpc.errors import InvalidRequest

HELLO = (Message("user", "hello"),)


def render(source: str, messages: tuple[Message, ...] = HELLO, **arguments: TemplateValue) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, limits=RenderLimits(), now=lambda: datetime(2026, 2, 3, 4, 5))
    return template.render(messages, arguments, add_generation_prompt=True)


def refusal(source: str, messages: tuple[Message, ...] = HELLO) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        render(source, messages)
    assert caught.value.field == "messages"
    return caught.value


def test_a_template_sees_messages_special_tokens_arguments_and_the_generation_prompt() -> None:
    source = "{{ bos_token }}{{ messages[0].role }}:{{ messages[0]['content'] }} {{ level }} {{ add_generation_prompt }}"
    assert render(source, level=3) == "<s>user:hello 3 True"


def test_a_name_is_there_when_it_was_given() -> None:
    source = "{% for m in messages %}{{ m.name if 'name' in m else '-' }}{% endfor %}"
    assert render(source, (Message("user", "a", "Ada"), Message("user", "b"))) == "Ada-"


def test_tools_and_documents_are_none_and_not_undefined() -> None:
    assert render("{{ tools is none and documents is none }}") == "True"


def test_blocks_leave_no_line_of_their_own() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_json_is_as_models_read_it() -> None:
    assert render("{{ messages[0] | tojson }}", (Message("user", "<é> & 'x'"),)) == '{"role": "user", "content": "<é> & \'x\'"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_loops_can_be_left_and_continued() -> None:
    assert (
        render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "023"
    )


def test_a_generation_block_prints_its_body_in_a_scope_of_its_own() -> None:
    assert render("{% set a = 1 %}{% generation %}{% set a = 2 %}x{{ a }}{% endgeneration %}{{ a }}") == "x21"


def test_the_date_is_the_local_one() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "03 Feb 2026"


@pytest.mark.parametrize("form", ["%999999999d", "%d" * 200])
def test_a_time_format_cannot_ask_for_padding_or_be_endless(form: str) -> None:
    refusal(f"{{{{ strftime_now('{form}') }}}}")


def test_what_the_template_says_on_refusing_reaches_the_caller() -> None:
    assert "Turns must alternate, not assistant here." in refusal(INSTRUCTIONS, (Message("assistant", "x"),)).message


def test_a_refusal_is_shortened_and_carries_no_marks() -> None:
    message = refusal("{{ raise_exception(messages[0].content) }}", (Message("user", f"a{MARKS[0]}b" + "c" * 9999),)).message
    assert "abccc" in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__['logging'] }}",
        "{{ strftime_now.__closure__[0].cell_contents.x }}",
        "{{ ().__class__.__bases__[0].__subclasses__()[0] }}",
        "{{ '%s'.__class__.format('{0.__class__.__mro__}', 1) }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ self._TemplateReference__context.environment.globals }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
        "{{ (messages | attr('__class__')).mro() }}",
        "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_has_no_way_out(source: str) -> None:
    try:
        printed = render(source)
    except InvalidRequest:
        return
    assert printed.strip() == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].pop('role') }}",
        "{% set messages[0].role = 'system' %}",
        "{{ messages.sort() }}",
        "{{ [].append(1) }}",
    ],
)
def test_a_template_changes_nothing_it_was_given(source: str) -> None:
    with pytest.raises((InvalidRequest, TemplateSourceError)):
        render(source)


@pytest.mark.parametrize("source", ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}"])
def test_a_template_loads_no_other_file(source: str) -> None:
    refusal(source)


def test_a_failure_names_its_cause_and_quotes_no_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        error = refusal("{{ 1 + messages[0].content }}", (Message("user", "secret"),))
    assert "TypeError" in error.message
    assert "secret" not in error.message + caplog.text


def test_an_undefined_variable_is_named() -> None:
    assert "tool_calls" in refusal("{{ messages[0].tool_calls.id }}").message


def test_output_is_bounded_while_it_is_printed() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}"
    template = ChatTemplate(endless, {}, limits=RenderLimits(output_factor=8, output_slack=100))
    with pytest.raises(InvalidRequest, match="more than 172 characters, the limit"):
        template.render(HELLO, {}, add_generation_prompt=True)


def test_a_range_is_bounded() -> None:
    refusal("{% for i in range(10 ** 9) %}{% endfor %}")


def test_time_is_bounded_whenever_something_is_printed() -> None:
    seconds = count()
    template = ChatTemplate(
        "{% for i in range(99) %}{{ i }}{% endfor %}", {}, limits=RenderLimits(timeout_s=5), clock=lambda: float(next(seconds))
    )
    with pytest.raises(InvalidRequest, match="more than 5 s, the limit"):
        template.render(HELLO, {}, add_generation_prompt=True)


def test_a_recursion_without_end_fails_this_request_alone() -> None:
    assert "RecursionError" in refusal("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").message


def test_a_template_that_is_no_jinja_is_refused_by_line() -> None:
    with pytest.raises(TemplateSourceError, match="line 2"):
        ChatTemplate("x\n{% if %}", {}, limits=RenderLimits())


def test_known_roles_are_the_usual_ones_and_the_template_s_own() -> None:
    template = ChatTemplate("{% if messages[0].role == 'ipython' %}{% endif %}", {}, limits=RenderLimits())
    assert {"ipython", "user", "system"} <= template.known_roles
    assert "endoftext" not in template.known_roles


def test_what_a_template_may_cut_out_of_a_text_is_known() -> None:
    template = ChatTemplate("{{ messages[0].content.split('</think>')[-1] | replace('<|x|>', '') }}{{ 'kept' }}", {}, limits=RenderLimits())
    assert {"</think>", "<|x|>"} == template.cuts
    assert "</think>" in ChatTemplate(INSPECTING, {}, limits=RenderLimits()).cuts


def test_a_template_frames_with_what_it_prints_and_never_looks_for() -> None:
    source = (
        "<turn>{{ '<user>' + messages[0].content }}{% if '</think>' in messages[0].content %}{% endif %}</think>"
        "{{ messages[0].content.split('<cut>')[0] }}<cut>{{ messages[0].content | replace('<out>', '') }}<out>"
        "{{ '<is>' if messages[0].content is eq('<is>') else '' }}"
    )
    template = ChatTemplate(source, {}, limits=RenderLimits())
    tokens = ("<turn>", "<user>", "</think>", "<cut>", "<out>", "<is>", "<elsewhere>")
    assert [token for token in tokens if template.frames_with(token)] == ["<turn>", "<user>"]
