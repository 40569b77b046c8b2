"""The turns of a chat in OpenAI's request bodies, and how they reach the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from gateway.http.openai.tool_schema import ToolCallId, ToolCalls, call_inputs
from gateway.http.openai.values import Body, Text, TextPart, parts_as_text, without_effect
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2


class Message(Body):
    """One turn of a chat."""

    role: Text
    content: Annotated[Text, BeforeValidator(parts_as_text, json_schema_input_type=str | list[TextPart])]
    name: Text | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: ToolCallId | None = None
    # What the model thought before the turn.
    reasoning_content: Text | None = None
    # As OpenAI's client leaves it where it has parsed an answer.
    parsed: Any = without_effect("the content says it")

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


def chat_input(
    messages: list[Message], arguments: Mapping[str, bool | int | str], tools: Sequence[tokenizer_pb2.FunctionTool] = ()
) -> tokenizer_pb2.ChatInput:
    """A chat in the contract's form."""
    return tokenizer_pb2.ChatInput(
        messages=[_turn(one) for one in messages],
        template_arguments=[_argument(name, value) for name, value in arguments.items()],
        tools=tools,
    )


def set_end(chat: tokenizer_pb2.ChatInput, add_generation_prompt: bool | None, continue_final_message: bool | None) -> None:
    """Says how the prompt ends: with the assistant's header, unless told otherwise.

    Raises:
        InvalidRequest: it cannot end so.
    """
    if continue_final_message:
        if add_generation_prompt:
            raise InvalidRequest("continue_final_message and add_generation_prompt are both true", field="continue_final_message")
        chat.continue_final_message = True
    if add_generation_prompt is False:
        chat.add_generation_prompt = False


def _turn(message: Message) -> tokenizer_pb2.ChatMessage:
    """A turn in the contract's form."""
    return tokenizer_pb2.ChatMessage(
        role=message.role,
        content=message.content,
        name=message.name,
        tool_calls=call_inputs(message.tool_calls or ()),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content,
    )


def _argument(name: str, value: bool | int | str) -> tokenizer_pb2.TemplateArgument:
    if isinstance(value, bool):
        return tokenizer_pb2.TemplateArgument(name=name, bool_value=value)
    if isinstance(value, int):
        return tokenizer_pb2.TemplateArgument(name=name, int_value=value)
    return tokenizer_pb2.TemplateArgument(name=name, string_value=value)
