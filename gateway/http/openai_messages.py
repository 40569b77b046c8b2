"""The turns of a chat in OpenAI's request bodies."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from gateway.http.openai_values import Body, Text, parts_as_text
from gateway.http.tool_schema import ToolCallId, ToolCalls, call_inputs
from triserve.v1 import tokenizer_pb2


class Message(Body):
    """One turn of a chat."""

    role: Text
    content: Annotated[Text, BeforeValidator(parts_as_text)]
    name: Text | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: ToolCallId | None = None
    # What the model thought before the turn.
    reasoning_content: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _may_have_said_nothing(cls, message: Any) -> Any:
        """An assistant's message may lack a content."""
        if isinstance(message, dict) and message.get("role") == "assistant" and "content" not in message:
            return {**message, "content": ""}
        return message

    @model_validator(mode="after")
    def _is_of_its_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("has tool_calls, which only a turn of role assistant may have")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError("has a tool_call_id, which only a turn of role tool may have")
        return self


def message_input(message: Message) -> tokenizer_pb2.ChatMessage:
    """A turn in the contract's form."""
    return tokenizer_pb2.ChatMessage(
        role=message.role,
        content=message.content,
        name=message.name,
        tool_calls=call_inputs(message.tool_calls or ()),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content,
    )
