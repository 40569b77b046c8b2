"""A conversation with tools through a gateway and a real tokenizer: the prompt that reaches compute, and what is said of the template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.gateway_fleet import running_fleet
from tests.fakes.tokenizers import write_model_folder
from tests.fakes.tool_templates import TOOL_STYLES
from tokenizer_svc.model_folder import read_model_folder
from tokenizer_svc.service import TokenizerService
from tokenizer_svc.settings import Settings
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc.fingerprint import fingerprint_of
from triserve.v1 import common_pb2

ASK: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "description": "Of a city.", "parameters": {"type": "object"}}}]
WRITTEN = {
    "qwen": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "llama_3": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    "pythonic": '[get_weather(city="Paris")]',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"  # noqa: RUF001
    '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',  # noqa: RUF001
    "gpt_oss": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
    '{"city": "Paris"}',
    "granite": '[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
}


class Pipeline(NamedTuple):
    """A client and what is behind it."""

    client: AsyncOpenAI
    compute: FakeCompute
    tokenizer: Tokenizer

    def says(self, text: str) -> None:
        """Has the model say it, a letter at a time."""
        self.compute.script = lambda request: [*(Say(one, [1]) for one in text), Say("", [2], common_pb2.FINISH_REASON_STOP)]

    def prompt(self) -> str:
        """The latest prompt, special tokens by their names."""
        ids = list(self.compute.submitted[-1].token_ids)
        return self.tokenizer.decode(ids, skip_special_tokens=False, return_tokens=False).text


@asynccontextmanager
async def pipeline(path: Path, template: str, **settings: Any) -> AsyncIterator[Pipeline]:
    folder = write_model_folder(path / "model", kind="byte_level_bpe", template=template)
    service = TokenizerService(Settings(model=folder, listen="127.0.0.1:0"))
    await service.start()
    tokenizer = Tokenizer(read_model_folder(folder))
    compute = FakeCompute(fingerprint=fingerprint_of(folder), logits_width=tokenizer.vocab_size)
    addresses = {"tokenizers": (f"127.0.0.1:{service.port}",)}
    try:
        async with (
            running_fleet(tokenizers=[], computes=[compute], addresses=addresses, **settings) as fleet,
            AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20) as client,
        ):
            yield Pipeline(client, compute, tokenizer)
    finally:
        await service.stop()


@pytest.mark.parametrize("style", WRITTEN)
async def test_a_call_and_its_result_go_to_and_fro(tmp_path: Path, style: str) -> None:
    async with pipeline(tmp_path, TOOL_STYLES[style]) as made:
        made.says(WRITTEN[style])
        message = (await made.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0].message
        assert "get_weather" in made.prompt() and "Of a city." in made.prompt()
        (call,) = message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
        made.says("It is fine.")
        result = {"role": "tool", "tool_call_id": call.id, "content": "fine <|im_end|>"}
        history: Any = [*ASK, message.model_dump(), result]
        answer = await made.client.chat.completions.create(model="tiny", messages=history, tools=TOOLS)
        assert answer.choices[0].message.content == "It is fine."
        _, _, after = made.prompt().rpartition("get_weather")
        assert "fine <|im_end|>" in after
        assert made.prompt().count("Paris") == 2, "in question and call"


@pytest.mark.parametrize(
    ("style", "said"),
    [("qwen_coder", "not known here"), ("kimi", "not known here"), ("none", "takes no tools")],
)
async def test_tools_are_refused_by_name_where_calls_would_be_lost(tmp_path: Path, style: str, said: str) -> None:
    template = TOOL_STYLES.get(style, "{% for m in messages %}{{ m.content }}{% endfor %}")
    async with pipeline(tmp_path, template) as made:
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            await made.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)
        assert caught.value.param == "tools"


async def test_what_the_tokenizer_refuses_of_tools_is_named_in_the_client_s_words(tmp_path: Path) -> None:
    deep: Any = {}
    for _ in range(64):
        deep = {"items": deep}
    cut: Any = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
    cases: Any = [
        ([*ASK, cut], TOOLS, "messages[1].tool_calls[0].function.arguments"),
        (ASK, [*TOOLS, {"type": "function", "function": {"name": "f", "parameters": deep}}], "tools[1].function.parameters"),
    ]
    async with pipeline(tmp_path, TOOL_STYLES["qwen"], max_json_depth=200) as made:
        for messages, tools, param in cases:
            with pytest.raises(openai.BadRequestError) as caught:
                await made.client.chat.completions.create(model="tiny", messages=messages, tools=tools)
            assert caught.value.param == param


@pytest.mark.parametrize(("thinks", "expected"), [(True, ("Hm.", "It is 4.")), (False, (None, "Hm.</think>\n\nIt is 4."))])
async def test_a_prompt_that_begins_reasoning_is_noticed(tmp_path: Path, thinks: bool, expected: tuple[str | None, str]) -> None:
    async with pipeline(tmp_path, TOOL_STYLES["qwen_thinking"]) as made:
        made.says("Hm.</think>\n\nIt is 4.")
        extra = {} if thinks else {"chat_template_kwargs": {"enable_thinking": False}}
        message: Any = (await made.client.chat.completions.create(model="tiny", messages=ASK, extra_body=extra)).choices[0].message
        assert (message.model_dump().get("reasoning_content"), message.content) == expected


async def test_an_author_s_template_for_tools_is_used_where_there_are_some(tmp_path: Path) -> None:
    plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    (tmp_path / "model" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "model" / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_STYLES["qwen"], encoding="utf-8")
    async with pipeline(tmp_path, plain) as made:
        made.says(WRITTEN["qwen"])
        called = (await made.client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0]
        assert called.finish_reason == "tool_calls"
        assert made.prompt().startswith("<|im_start|>system")
        await made.client.chat.completions.create(model="tiny", messages=ASK)
        assert made.prompt() == f"<user>{ASK[0]['content']}"
