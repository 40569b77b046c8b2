"""The body of POST /v1/responses: what its fields are called and of what type, and which are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from gateway.flow.call import Wishes
from gateway.http.one_answer import OneAnswer
from gateway.http.openai.fields import MAX_SHOWN_CHARS, Refused, without_idle
from gateway.http.openai.generating import CacheField
from gateway.http.openai.messages import Message, chat_input
from gateway.http.openai.structured_fields import TextFormat
from gateway.http.openai.tool_schema import MayUseTools, ToolUse, tool_inputs, tool_use
from gateway.http.openai.values import Body, Label, Text, without_effect
from gateway.http.responses.items import InputItems, ResponseTool, ResponseToolChoice, turns_of
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

_EFFORT = "reasoning_effort"
_LOGPROBS = "message.output_text.logprobs"
# The second is what servers hide thoughts in; here they are plain.
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")
REFUSED_IN_RESPONSE: Refused = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "truncation": ("disabled",),
    "context_management": ([],),
    "moderation": (),
    "stream_options": ({}, {"include_obfuscation": False}),
}
REFUSED_IN_TEXT: Refused = {"verbosity": ("medium",)}
REFUSED_IN_REASONING: Refused = {"summary": (), "generate_summary": (), "context": ("auto",), "mode": ("standard",)}


def _includable(value: object) -> object:
    for name in value if isinstance(value, list) else ():
        if isinstance(name, str) and name not in _INCLUDABLE:
            raise ValueError(f"has {name[:MAX_SHOWN_CHARS]!r}, which is not supported")
    return value


class TextConfig(Body):
    """Of what form the text is to be."""

    format: TextFormat | None = None


class Reasoning(Body):
    """How the model is to think."""

    # For models whose template reads it.
    effort: Label | None = None


class ResponsesBody(OneAnswer, MayUseTools, Body):
    """Body of POST /v1/responses."""

    refused: ClassVar[Refused] = REFUSED_IN_RESPONSE

    model: Label = ""
    input: InputItems
    instructions: Text | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: Annotated[list[Text] | None, BeforeValidator(_includable)] = Field(None, fail_fast=True)
    stream: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    # Comes back as it is.
    metadata: dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] | None = Field(None, max_length=16)
    user: Label | None = None
    priority: int | None = None
    cache: CacheField | None = None
    store: bool | None = without_effect("responses are not stored")
    tools: Annotated[list[ResponseTool], Field(fail_fast=True)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = without_effect("it bounds tools that servers run, of which there are none")
    prompt_cache_key: Label | None = without_effect("prefixes are found by what they hold")
    prompt_cache_retention: Label | None = without_effect("prefixes are kept for as long as there is room")
    prompt_cache_options: dict[str, Any] | None = without_effect("prefixes are kept for as long as there is room")
    safety_identifier: Label | None = without_effect("answers do not depend on who asks")
    service_tier: Label | None = without_effect("there is one tier; see priority")

    @classmethod
    def tidied(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """See `Body`."""
        nested: tuple[tuple[str, Refused, type[Body]], ...] = (
            ("text", REFUSED_IN_TEXT, TextConfig),
            ("reasoning", REFUSED_IN_REASONING, Reasoning),
        )
        for name, refused, kind in nested:
            if isinstance(inner := fields.get(name), dict):
                fields[name] = without_idle(inner, refused, known=kind.model_fields, where=f"{name}.")
        return fields

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """Arguments of the template that would have no effect if it did not read them."""
        return () if self.effort is None else (_EFFORT,)

    @property
    def format(self) -> dict[str, Any]:
        """Of what form the text is to be, as it was asked for."""
        asked = self.text.format if self.text is not None else None
        return {"type": "text"} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)

    @property
    def effort(self) -> str | None:
        """How much the model is to think; None = as it does."""
        return None if self.reasoning is None else self.reasoning.effort

    def wishes(self) -> Wishes:
        """The sampling and stopping fields.

        Raises:
            InvalidRequest: fields contradict each other.
        """
        with_logprobs = _LOGPROBS in (self.include or ())
        if self.top_logprobs and not with_logprobs:
            raise InvalidRequest(f"top_logprobs is set, include must have {_LOGPROBS} with it", field="top_logprobs")
        grammar = self.text.format.grammar() if self.text is not None and self.text.format is not None else None
        return Wishes(
            temperature=self.temperature,
            top_p=self.top_p,
            top_logprobs=(self.top_logprobs or 0) if with_logprobs else None,
            max_tokens=self.max_output_tokens,
            grammar=grammar,
            spelling={"max_tokens": "max_output_tokens", "grammar": "tools" if grammar is None else "text.format"},
        )

    def prompt(self) -> tokenizer_pb2.EncodeRequest:
        """Instructions and turns, for the tokenizer."""
        said = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        arguments = {} if self.effort is None else {_EFFORT: self.effort}
        chat = chat_input([*said, *turns_of(self.input)], arguments, tool_inputs(self.asked_tools.functions))
        return tokenizer_pb2.EncodeRequest(chat=chat)

    @property
    def asked_tools(self) -> ToolUse:
        """See `MayUseTools`."""
        return tool_use([tool.function for tool in self.tools or ()], self.tool_choice, self.parallel_tool_calls, name_field="name")
