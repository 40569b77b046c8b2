"""What the client said is in the prompt: of every family's template, for every role, or the turn is refused by name."""

from __future__ import annotations

import pytest

from tests.fakes.template_styles import STYLES
from tokenizer_svc.chat_template import ChatTemplate, Message, RenderLimits
from tokenizer_svc.template_forms import TemplateForms
from triserve.rpc.errors import InvalidRequest

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ROLES = ("system", "developer", "user", "assistant", "tool", "critic")
# Which roles' turns, each where it belongs, are printed by none of a template's branches.
LOST = {
    "qwen": {"critic"},
    "llama_2": {"tool", "critic"},
    "phi_3": {"system", "developer", "tool", "critic"},
    "glm": {"critic"},
    "deepseek": {"critic"},
    "gpt_oss": {"tool", "critic"},
}
# Which roles a template refuses itself.
RAISES = {"mistral": {"tool", "critic"}, "gemma": {"tool", "critic"}}


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, TOKENS, limits=RenderLimits())


def chat_with(role: str, text: str) -> list[Message]:
    """A chat in which a turn of the role stands where its kind stands."""
    question, answer, again = Message("user", "First."), Message("assistant", "Yes."), Message("user", "Go on.")
    return {
        "system": [Message("system", text), question],
        "developer": [Message("developer", text), question],
        "user": [question, answer, Message("user", text)],
        "assistant": [question, Message("assistant", text), again],
    }.get(role, [question, answer, Message(role, text), again])


def prompt_of(source: str, messages: list[Message]) -> str:
    template = template_of(source)
    forms = TemplateForms(template)
    turns = forms.adapt(messages)
    text = template.render(turns, {}, add_generation_prompt=True)
    forms.check_printed(turns, {}, add_generation_prompt=True)
    return text


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("style", STYLES)
def test_a_turn_is_in_the_prompt_or_refused_by_its_place(style: str, role: str) -> None:
    messages = chat_with(role, "  Blue whales\nsing. ")
    if role in RAISES.get(style, ()):
        with pytest.raises(InvalidRequest, match="refuses the messages"):
            prompt_of(STYLES[style], messages)
    elif role in LOST.get(style, ()):
        place = next(index for index, message in enumerate(messages) if message.role == role)
        with pytest.raises(InvalidRequest, match="would not reach the model") as refused:
            prompt_of(STYLES[style], messages)
        assert refused.value.field == f"messages[{place}]"
        assert f"messages[{place}]" in refused.value.message and "whales" not in refused.value.message
    else:
        assert "Blue whales\nsing." in prompt_of(STYLES[style], messages).replace("\\n", "\n")


@pytest.mark.parametrize("style", STYLES)
def test_a_lost_turn_is_noticed_though_its_text_stands_elsewhere(style: str) -> None:
    for text in ("First.", "user", "o", "0"):
        for role in LOST.get(style, ()):
            with pytest.raises(InvalidRequest, match="would not reach the model"):
                prompt_of(STYLES[style], chat_with(role, text))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", ["", " \n", "<think>hm</think>", "<think>hm</think>\n\nYes.", "zq0qz", "a" * 5000])
def test_an_answer_whose_reasoning_the_template_drops_is_no_lost_turn(style: str, text: str) -> None:
    prompt_of(STYLES[style], chat_with("assistant", text))


@pytest.mark.parametrize("style", STYLES)
def test_the_developer_speaks_as_the_system_where_the_template_knows_none(style: str) -> None:
    if style in ("phi_3", "gpt_oss"):
        return
    developer = prompt_of(STYLES[style], chat_with("developer", "Be brief."))
    assert developer == prompt_of(STYLES[style], chat_with("system", "Be brief."))


def test_the_developer_keeps_its_role_where_the_template_names_it() -> None:
    template = template_of("{% for m in messages %}{{ '[developer]' if m.role == 'developer' else m.role }}{{ m.content }}{% endfor %}")
    forms = TemplateForms(template)
    assert forms.knows_developer
    assert forms.adapt([Message("developer", "x")])[0].role == "developer"


def test_a_developer_s_role_that_is_named_and_prints_nothing_is_the_system_s() -> None:
    source = "{% for m in messages %}{% if m.role == 'developer' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}"
    assert prompt_of(source, [Message("developer", "Be brief."), Message("user", "x")]) == "Be brief.x"


PARTS = "{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "with_parts"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", set()),
        (f"{{% for m in messages %}}{PARTS}{{% endfor %}}", {"user", "assistant", "system", "developer", "tool"}),
        (
            f"{{% for m in messages %}}{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{PARTS}{{% endif %}}{{% endfor %}}",
            set(),
        ),
        ("{% for m in messages %}{{ m.role + m.content | map(attribute='text') | join }}{% endfor %}", {*ROLES} - {"critic"}),
        (
            f"{{% for m in messages %}}{{% if m.role == 'user' %}}{PARTS}{{% else %}}{{{{ m.content }}}}{{% endif %}}{{% endfor %}}",
            {"user"},
        ),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", {*ROLES} - {"critic"}),
    ],
)
def test_the_form_of_content_is_found_for_each_role(source: str, with_parts: set[str]) -> None:
    assert TemplateForms(template_of(source)).roles_with_parts == with_parts
    for role in ROLES:
        assert "Blue whales" in prompt_of(source, chat_with(role, "Blue whales"))


def test_a_template_that_takes_certain_texts_alone_is_left_to_its_author() -> None:
    source = "{% for m in messages %}{% if m.content != 'ping' %}{{ raise_exception('ping alone') }}{% endif %}{{ m.content }}{% endfor %}"
    assert prompt_of(source, [Message("user", "ping")]) == "ping"


def test_a_template_that_shouts_loses_nothing() -> None:
    assert prompt_of("{% for m in messages %}{{ m.content | upper }}{% endfor %}", [Message("user", "hello")]) == "HELLO"


def test_only_the_turns_a_template_leaves_out_are_lost() -> None:
    source = "{% for m in messages[-2:] %}{{ m.content }}{% endfor %}"
    turns = [Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    assert prompt_of(source, turns[1:]) == "yz"
    with pytest.raises(InvalidRequest) as refused:
        prompt_of(source, turns)
    assert refused.value.field == "messages[0]"
