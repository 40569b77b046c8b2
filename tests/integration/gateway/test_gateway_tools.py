"""Tools and reasoning through a gateway, as the unmodified `openai` client sees them; the model is one that says what a test writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.fake_compute import Say
from tests.fakes.fake_tokenizer import EOS, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.fakes.tool_chats import ASK, BOTH, CALLS, HERMES, PARIS, ROME, THOUGHT, TOOLS, Heard, client_of, heard, says, written
from triserve.v1 import common_pb2

CHAT = "/v1/chat/completions"


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(tokenizers=[FakeTokenizer(**HERMES)]) as fleet:
        fleet.compute.script = says(CALLS)
        yield fleet


@pytest.fixture
async def client(fleet: GatewayFleet) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(fleet) as client:
        yield client


async def test_calls_come_whole(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.tool_calls is not None
    assert written(choice.message.tool_calls) == BOTH
    assert all(call.id.startswith("call_") and call.type == "function" for call in choice.message.tool_calls)
    (asked,) = fleet.tokenizer.asked
    assert [tool.name for tool in asked.encode.chat.tools] == ["get_weather", "get_time"]


async def test_a_call_alone_has_a_content_of_null(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    fleet.compute.script = says(CALLS.removeprefix("Let me look.\n"))
    async with aiohttp.ClientSession(fleet.url) as session, session.post(CHAT, json={"messages": ASK, "tools": TOOLS}) as response:
        message = (await response.json())["choices"][0]["message"]
    assert message["content"] is None
    assert [*message] == ["role", "content", "refusal", "tool_calls"]
    assert message["tool_calls"][0].keys() == {"id", "type", "function"}


async def test_a_chat_is_tokenized_with_its_tools(fleet: GatewayFleet) -> None:
    asked = {"messages": ASK, "tools": TOOLS, "add_special_tokens": False}
    async with aiohttp.ClientSession(fleet.url) as session, session.post("/tokenize", json=asked) as response:
        assert response.status == 200
    assert [tool.name for tool in fleet.tokenizer.asked[-1].encode.chat.tools] == ["get_weather", "get_time"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_calls_stream_in_any_pieces(client: AsyncOpenAI, fleet: GatewayFleet, size: int) -> None:
    fleet.compute.script = says(CALLS, size=size)
    (got,) = await heard(client, messages=ASK, tools=TOOLS)
    assert (got.content, got.finish_reason) == ("Let me look.", "tool_calls")
    assert [(name, arguments) for _, name, arguments in got.calls] == BOTH


async def test_an_answer_without_calls_is_content(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    text = ' It is 12 < 20 <tool>, {"name": "get_weather"}\n'
    fleet.compute.script = says(text)
    whole = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0]
    (streamed,) = await heard(client, messages=ASK, tools=TOOLS)
    assert whole.message.content == streamed.content == text
    assert whole.message.tool_calls is None and not streamed.calls
    assert whole.finish_reason == streamed.finish_reason == "stop"


async def test_without_tools_what_looks_like_a_call_is_content(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        whole: Any = await client.chat.completions.create(model="tiny", messages=ASK, **more)
        assert whole.choices[0].message.content == CALLS
        assert whole.choices[0].finish_reason == "stop"
        assert not fleet.tokenizer.asked[-1].encode.chat.tools
        assert not fleet.compute.submitted[-1].stopping.spoken_tokens


async def test_a_conversation_goes_on_with_results(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    first = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0].message
    assert first.tool_calls is not None
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12"} for call in first.tool_calls]
    fleet.compute.script = says("12 in both.")
    history: Any = [*ASK, first.model_dump(), *results]
    second = await client.chat.completions.create(model="tiny", messages=history, tools=TOOLS)
    assert second.choices[0].message.content == "12 in both."
    _, asked, *told = fleet.tokenizer.asked[-1].encode.chat.messages
    assert asked.content == "Let me look."
    assert [(call.name, call.arguments) for call in asked.tool_calls] == BOTH
    assert [one.tool_call_id for one in told] == [call.id for call in asked.tool_calls]


async def test_without_parallel_calls_there_is_one(client: AsyncOpenAI) -> None:
    whole = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, parallel_tool_calls=False)).choices[0]
    assert written(whole.message.tool_calls) == BOTH[:1]
    (streamed,) = await heard(client, messages=ASK, tools=TOOLS, parallel_tool_calls=False)
    assert [call[1:] for call in streamed.calls] == [list(BOTH[0])]
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"


async def test_choices_are_read_apart_and_their_calls_have_ids_of_their_own(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, n=3)
    streamed = await heard(client, messages=ASK, tools=TOOLS, n=3)
    ids = [call.id for choice in whole.choices for call in choice.message.tool_calls or []] + [
        call[0] for one in streamed for call in one.calls
    ]
    assert len(ids) == len(set(ids)) == 12
    assert all([tuple(call[1:]) for call in one.calls] == BOTH for one in streamed)


async def test_a_call_that_is_cut_off_is_delivered_as_far_as_it_goes(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    fleet.compute.script = says(CALLS[: CALLS.index("Rome") + 2], finish=common_pb2.FINISH_REASON_LENGTH)
    whole = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0]
    (streamed,) = await heard(client, messages=ASK, tools=TOOLS)
    assert written(whole.message.tool_calls) == [BOTH[0], ("get_weather", '{"city": "Ro')]
    assert [tuple(call[1:]) for call in streamed.calls] == written(whole.message.tool_calls)
    assert whole.finish_reason == streamed.finish_reason == "length"


async def test_a_delta_of_arguments_is_delivered_before_the_next_is_made(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    pieces = ['<tool_call>{"name": "get_time"', ', "arguments": {"a"', ": 1", "}", "}</tool_call>"]
    fleet.compute.script = lambda request: [
        *(Say(piece, [1]) for piece in pieces),
        Say("", [EOS], common_pb2.FINISH_REASON_STOP),
    ]
    fleet.compute.flowing.clear()
    fleet.compute.let_through(2)
    chunks = aiter(await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, stream=True))
    assert (await anext(chunks)).choices[0].delta.role == "assistant"
    got = []
    for count in (0, 1, 1):
        fleet.compute.let_through(count)
        (part,) = (await anext(chunks)).choices[0].delta.tool_calls or []
        got.append((part.function.name if part.function else None, part.function.arguments if part.function else None))
    assert got == [("get_time", '{"a"'), (None, ": 1"), (None, "}")]
    fleet.compute.flowing.set()
    assert [chunk.choices[0].finish_reason async for chunk in chunks] == ["tool_calls"]


async def test_answers_from_the_cache_and_of_shared_flights_are_the_same_bytes(fleet: GatewayFleet) -> None:
    body = {"messages": ASK, "tools": TOOLS, "temperature": 0, "stream": True}
    fleet.compute.flowing.clear()

    async def asked(session: aiohttp.ClientSession) -> tuple[str, list[Any]]:
        async with session.post(CHAT, json=body) as response:
            data = (await response.read()).decode()
        events = [json.loads(line.removeprefix("data: ")) for line in data.split("\n\n") if line.startswith("data: {")]
        heard = Heard()
        for event in events:
            heard.hear(openai.types.chat.ChatCompletionChunk.model_validate(event).choices[0])
        calls = [[call[0].startswith("call_"), *call[1:]] for call in heard.calls]
        return response.headers["X-Triserve-Cache"], [heard.content, calls, heard.finish_reason]

    async with aiohttp.ClientSession(fleet.url) as session:
        flying = [asyncio.create_task(asked(session)) for _ in range(2)]
        await eventually(lambda: fleet.active == 2 and fleet.compute.submitted, "both are there")
        fleet.compute.flowing.set()
        made, followed = await asyncio.gather(*flying)
        kept = await asked(session)
        body["stream"] = False
        async with session.post(CHAT, json=body) as response:
            whole = (await response.json())["choices"][0]
    assert len(fleet.compute.submitted) == 1
    assert sorted(one[0] for one in (made, followed)) == ["hit-exact", "miss"]
    assert kept[0] == "hit-exact"
    assert made[1] == followed[1] == kept[1] == ["Let me look.", [[True, *one] for one in BOTH], "tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in whole["message"]["tool_calls"]] == BOTH


async def test_the_same_prompt_is_kept_apart_where_other_tokens_are_text(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    request: Any = {"model": "tiny", "messages": ASK, "temperature": 0}
    await client.chat.completions.create(**request, tools=TOOLS)
    (asked,) = fleet.compute.submitted
    assert list(asked.stopping.spoken_tokens) == ["<tool_call>", "</tool_call>"]
    await client.completions.create(model="tiny", prompt=list(asked.token_ids), temperature=0, max_tokens=asked.stopping.max_tokens)
    assert len(fleet.compute.submitted) == 2


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
async def test_what_cannot_be_held_is_refused_by_name(client: AsyncOpenAI, fleet: GatewayFleet, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=ASK, **{"tools": TOOLS, **more})
    assert caught.value.param == param
    assert not fleet.tokenizer.asked


@pytest.mark.parametrize(
    ("info", "settings", "said"),
    [
        ({}, {}, "takes no tools"),
        ({"takes_tools": True}, {}, "not known here; GATEWAY_TOOL_PARSER may be set to one of hermes, llama3,"),
        ({"takes_tools": True, "tool_call_format": "of a later version"}, {}, "not known here"),
        ({"tool_call_format": "hermes"}, {"tool_parser": "hermes"}, "takes no tools"),
    ],
)
async def test_tools_that_no_template_or_parser_takes_are_refused(info: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    async with running_fleet(tokenizers=[FakeTokenizer(**info)], **settings) as fleet, client_of(fleet) as client:
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)
        assert caught.value.param == "tools"
        await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice="none")


FORMS = [
    ("llama3", f'{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "get_weather", "parameters": {ROME}}}'),
    ("pythonic", "[get_weather(city='Paris'), get_time()]"),
    ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]get_weather[ARGS]{ROME}"),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
    ),
    ("harmony", f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS}"),
    ("json", f'[{{"name": "get_weather", "arguments": {PARIS}}}]'),
]


@pytest.mark.parametrize(("name", "text"), FORMS)
@pytest.mark.parametrize("is_set", [False, True])
async def test_the_template_or_the_operator_chooses_the_form(name: str, text: str, is_set: bool) -> None:
    tokenizer = FakeTokenizer(takes_tools=True, tool_call_format="hermes" if is_set else name)
    settings: dict[str, Any] = {"tool_parser": name} if is_set else {}
    async with running_fleet(tokenizers=[tokenizer], **settings) as fleet, client_of(fleet) as client:
        fleet.compute.script = says(text)
        (streamed,) = await heard(client, messages=ASK, tools=TOOLS)
        whole = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0].message
        assert streamed.calls and streamed.finish_reason == "tool_calls"
        assert [tuple(call[1:]) for call in streamed.calls] == written(whole.tool_calls)
        assert json.loads(streamed.calls[0][2])["city"] == "Paris"
        async with aiohttp.ClientSession(fleet.url) as session, session.get("/v1/capabilities") as response:
            features = (await response.json())["features"]
        assert (features["tools"], features["tool_parser"]) == (True, name)


async def test_log_probabilities_are_of_all_that_the_model_wrote(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    text = '<tool_call>{"name": "get_time"}</tool_call>'
    fleet.compute.script = lambda request: [*(Say(one, [ord(one)]) for one in text), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]
    request: Any = {"model": "tiny", "messages": ASK, "tools": TOOLS, "logprobs": True}
    whole = (await client.chat.completions.create(**request)).choices[0]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert "".join(token.token for token in whole.logprobs.content).startswith(text)
    streamed: list[Any] = []
    async for chunk in await client.chat.completions.create(**request, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == whole.logprobs.content


@pytest.fixture
async def thinker() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(tokenizers=[FakeTokenizer(**HERMES, reasoning_format="think")]) as fleet:
        yield fleet


@pytest.mark.parametrize("begun", [False, True])
async def test_reasoning_is_apart_from_content_and_calls(thinker: GatewayFleet, begun: bool) -> None:
    text = THOUGHT + CALLS
    if begun:
        thinker.tokenizer.prompt_end = "<|im_start|>assistant\n<think>\n"
        text = text.removeprefix("<think>")
    thinker.compute.script = says(text)
    async with client_of(thinker) as client:
        whole: Any = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0]
        (streamed,) = await heard(client, messages=ASK, tools=TOOLS)
    assert whole.message.reasoning_content == streamed.reasoning == "Hm, <b>."
    assert whole.message.content == streamed.content == "Let me look."
    assert written(whole.message.tool_calls) == [tuple(call[1:]) for call in streamed.calls] == BOTH
    assert list(thinker.compute.submitted[0].stopping.spoken_tokens) == ["<tool_call>", "</tool_call>", "<think>", "</think>"]


async def test_reasoning_that_a_switch_has_closed_is_not_looked_for(thinker: GatewayFleet) -> None:
    thinker.tokenizer.prompt_end = "<think>\n\n</think>\n\n"
    thinker.compute.script = says("It is 4.")
    async with client_of(thinker) as client:
        message: Any = (await client.chat.completions.create(model="tiny", messages=ASK)).choices[0].message
        assert message.content == "It is 4."
        assert "reasoning_content" not in message.model_dump()


async def test_an_answer_with_reasoning_can_be_sent_back(thinker: GatewayFleet) -> None:
    thinker.compute.script = says(THOUGHT + "4.")
    async with client_of(thinker) as client:
        message = (await client.chat.completions.create(model="tiny", messages=ASK)).choices[0].message
        history: Any = [*ASK, message.model_dump(), *ASK]
        await client.chat.completions.create(model="tiny", messages=history)
    turn = thinker.tokenizer.asked[-1].encode.chat.messages[1]
    assert (turn.content, turn.reasoning) == ("4.", "Hm, <b>.")


@pytest.mark.parametrize(("parser", "begin", "end"), [("none", "<think>", "</think>"), ("brackets", "[THINK]", "[/THINK]")])
async def test_the_operator_chooses_how_reasoning_is_written(parser: str, begin: str, end: str) -> None:
    async with (
        running_fleet(tokenizers=[FakeTokenizer(reasoning_format="think")], reasoning_parser=parser) as fleet,
        client_of(fleet) as client,
    ):
        fleet.compute.script = says(f"{begin}a{end}b")
        message: Any = (await client.chat.completions.create(model="tiny", messages=ASK)).choices[0].message
        assert message.content == ("<think>a</think>b" if parser == "none" else "b")
        assert message.model_dump().get("reasoning_content") == (None if parser == "none" else "a")


async def test_completions_are_never_taken_apart(thinker: GatewayFleet) -> None:
    thinker.compute.script = says(THOUGHT + CALLS)
    async with client_of(thinker) as client:
        assert (await client.completions.create(model="tiny", prompt="a")).choices[0].text == THOUGHT + CALLS
    assert not thinker.compute.submitted[0].stopping.spoken_tokens
