"""Chats with tools through a gateway: a model that says what a test writes, and a client that puts its chunks together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai import AsyncOpenAI

from tests.fakes.fake_compute import Say
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import GatewayFleet
from triserve.v1 import common_pb2, compute_pb2

ASK: Any = [{"role": "user", "content": "How is the weather in Paris and Rome?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "get_time"}},
]
PARIS, ROME = '{"city": "Paris",  "é": "\\u00e9"}', '{"city": "Rome"}'
CALLS = f"""Let me look.
<tool_call>
{{"name": "get_weather", "arguments": {PARIS}}}
</tool_call>
<tool_call>
{{"name": "get_weather", "arguments": {ROME}}}
</tool_call>"""
HERMES: dict[str, Any] = {"takes_tools": True, "tool_call_format": "hermes"}
BOTH = [("get_weather", PARIS), ("get_weather", ROME)]
THOUGHT = "<think>\nHm, <b>.\n</think>\n\n"


def says(text: str, *, size: int = 3, finish: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_STOP) -> Any:
    """A model that says a text in deltas of so many characters."""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]

    def script(request: compute_pb2.SubmitRequest) -> Sequence[Say]:
        return [*(Say(piece, [1]) for piece in pieces), Say("", [EOS], finish)]

    return script


def client_of(fleet: GatewayFleet) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20)


class Heard:
    """A choice put together from its chunks, as clients do."""

    def __init__(self) -> None:
        self.content = ""
        self.reasoning = ""
        self.calls: list[Any] = []
        self.finish_reason: str | None = None

    def hear(self, choice: Any) -> None:
        assert self.finish_reason is None, "the finish reason comes last"
        self.content += choice.delta.content or ""
        self.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for part in choice.delta.tool_calls or []:
            if part.index == len(self.calls):
                assert (part.type, bool(part.id)) == ("function", True)
                self.calls.append([part.id, part.function.name, ""])
            else:
                assert part.index == len(self.calls) - 1
                assert part.id is None and part.function.name is None
            self.calls[part.index][2] += part.function.arguments
        self.finish_reason = choice.finish_reason


async def heard(client: AsyncOpenAI, **request: Any) -> list[Heard]:
    choices = [Heard() for _ in range(request.get("n", 1))]
    async for chunk in await client.chat.completions.create(model="tiny", stream=True, **request):
        for choice in chunk.choices:
            choices[choice.index].hear(choice)
    return choices


def written(calls: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in calls]
