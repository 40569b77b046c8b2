"""Bodies of the tokenizer's two routes, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from gateway.http.openai.fields import Refused
from gateway.http.openai.messages import Message, chat_input, set_end
from gateway.http.openai.tool_schema import Tools, tool_inputs, tool_use
from gateway.http.openai.values import Body, Label, TemplateArguments, Text
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

REFUSED_IN_TOKENIZE: Refused = {"chat_template": (), "mm_processor_kwargs": ({},), "media_io_kwargs": ({},)}


class TokenizeBody(Body):
    """Body of POST /tokenize: a prompt or messages."""

    refused: ClassVar[Refused] = REFUSED_IN_TOKENIZE

    model: Label = ""
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)
    # Before and after a prompt, unless false; a chat's template writes its own.
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    tools: Tools | None = None
    return_token_strs: bool = False

    def input(self) -> tokenizer_pb2.EncodeRequest:
        """What to encode.

        Raises:
            InvalidRequest: not exactly one of prompt and messages is there, or a field asks for what that one has not.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("prompt and messages: exactly one of them is needed", field="prompt")
        if self.prompt is not None:
            if self.tools:
                raise InvalidRequest("tools is set, and a prompt has no template that prints them", field="tools")
            with_special = self.add_special_tokens is not False
            return tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=self.prompt, add_special_tokens=with_special))
        tools = tool_inputs(tool_use([tool.function for tool in self.tools or ()], None, None).functions)
        chat = chat_input(self.messages or [], self.chat_template_kwargs or {}, tools)
        set_end(chat, self.add_generation_prompt, self.continue_final_message)
        if self.add_special_tokens:
            chat.add_special_tokens = True
        return tokenizer_pb2.EncodeRequest(chat=chat)


class DetokenizeBody(Body):
    """Body of POST /detokenize."""

    model: Label = ""
    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(fail_fast=True)
