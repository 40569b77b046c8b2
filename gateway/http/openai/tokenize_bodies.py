"""Bodies of the tokenizer's two routes, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.http.openai.messages import Message, chat_input, set_end
from gateway.http.openai.values import Body, Label, TemplateArguments, Text
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2


class TokenizeBody(Body):
    """Body of POST /tokenize: a prompt or messages."""

    model: Label = ""
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)
    add_special_tokens: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    return_token_strs: bool = False

    def input(self) -> tokenizer_pb2.EncodeRequest:
        """What to encode.

        Raises:
            InvalidRequest: not exactly one of prompt and messages is there.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("prompt and messages: exactly one of them is needed", field="prompt")
        if self.prompt is not None:
            return tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=self.prompt, add_special_tokens=self.add_special_tokens))
        chat = chat_input(self.messages or [], self.chat_template_kwargs or {})
        set_end(chat, self.add_generation_prompt, self.continue_final_message)
        return tokenizer_pb2.EncodeRequest(chat=chat)


class DetokenizeBody(Body):
    """Body of POST /detokenize."""

    model: Label = ""
    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(fail_fast=True)
