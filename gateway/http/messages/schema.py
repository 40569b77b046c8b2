"""The bodies of POST /v1/messages and /v1/messages/count_tokens: what their fields are called and of what type."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gateway.flow.call import Wishes
from gateway.http.messages.blocks import Blocks, CallBlock, MessageTool, ResultBlock, SystemText, ToolChoice, turns_of
from gateway.http.one_answer import OneAnswer
from gateway.http.openai.fields import Refused
from gateway.http.openai.generating import CacheField
from gateway.http.openai.messages import Message, chat_input
from gateway.http.openai.tool_schema import MayUseTools, ToolUse, tool_inputs, tool_use
from gateway.http.openai.values import Body, Label, Text, without_effect
from triserve.v1 import tokenizer_pb2

_ASSISTANT = "assistant"
REFUSED_IN_MESSAGES: Refused = {
    "thinking": ({"type": "disabled"},),
    "mcp_servers": ([],),
    "container": (),
    "context_management": (),
    "output_config": ({},),
    "output_format": (),
    "speed": ("standard",),
}


class Turn(Body):
    """One turn of a chat."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _is_of_its_role(self) -> Turn:
        if self.role != _ASSISTANT and any(isinstance(block, CallBlock) for block in self.content):
            raise ValueError("has a tool_use block, which only a turn of role assistant may have")
        if self.role != "user" and any(isinstance(block, ResultBlock) for block in self.content):
            raise ValueError("has a tool_result block, which only a turn of role user may have")
        return self


class Metadata(Body):
    """Who asks."""

    user_id: Label | None = None


class CountBody(MayUseTools, Body):
    """Body of POST /v1/messages/count_tokens, and what a message has of it."""

    refused: ClassVar[Refused] = REFUSED_IN_MESSAGES

    model: Label = ""
    messages: list[Turn] = Field(min_length=1, fail_fast=True)
    system: SystemText | None = None
    tools: Annotated[list[MessageTool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: dict[str, Any] | None = without_effect("prefixes are found by what they hold")

    def prompt(self) -> tokenizer_pb2.EncodeRequest:
        """System prompt and turns, for the tokenizer: turns of the same side are one, and one of the assistant's at the end is gone on with."""
        said = [] if self.system is None else [Message(role="system", content=self.system)]
        for role, turns in groupby(self.messages, key=lambda turn: turn.role):
            said += turns_of(role, [block for turn in turns for block in turn.content])
        chat = chat_input(said, {}, tool_inputs(self.asked_tools.functions))
        if said and said[-1].role == _ASSISTANT:
            chat.continue_final_message = True
        return tokenizer_pb2.EncodeRequest(chat=chat)

    @property
    def asked_tools(self) -> ToolUse:
        """See `MayUseTools`."""
        asked = self.tool_choice
        is_single = asked is not None and asked.disable_parallel_tool_use
        choice = None if asked is None else asked.choice
        return tool_use([tool.function for tool in self.tools or ()], choice, not is_single, name_field="name")


class MessagesBody(OneAnswer, CountBody):
    """Body of POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[Text] | None = Field(None, fail_fast=True)
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Metadata | None = None
    priority: int | None = None
    cache: CacheField | None = None
    service_tier: Label | None = without_effect("there is one tier; see priority")
    inference_geo: Label | None = without_effect("the model is where it is")

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """The template gets no arguments."""
        return ()

    @property
    def user(self) -> str | None:
        """The client's name for its user."""
        return None if self.metadata is None else self.metadata.user_id

    def wishes(self) -> Wishes:
        """The sampling and stopping fields, but for max_tokens: an answer that comes to the end of the context before it says so and is no
        error. Text ends with the stop string that ended it, which is how the answer's renderer knows it."""
        return Wishes(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_strings=tuple(self.stop_sequences or ()),
            include_stop_string=True,
            spelling={"stop": "stop_sequences", "grammar": "tools"},
        )
