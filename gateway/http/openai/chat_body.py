"""The body of OpenAI's chat."""

from __future__ import annotations

from pydantic import Field

from gateway.http.openai.generating import Generating
from gateway.http.openai.messages import Message, chat_input, set_end
from gateway.http.openai.tool_schema import MayUseTools, ToolChoice, Tools, ToolUse, tool_inputs, tool_use
from gateway.http.openai.values import Label, TemplateArguments
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

_EFFORT = "reasoning_effort"


class ChatBody(MayUseTools, Generating):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: TemplateArguments | None = None
    # For models whose template reads it.
    reasoning_effort: Label | None = None
    add_generation_prompt: bool | None = None
    # Whether the tokenizer's own special tokens stand beside the template's.
    add_special_tokens: bool | None = None
    # The last message is an assistant's, and the answer goes on with it.
    continue_final_message: bool | None = None
    # The last turn is rewritten by the model before it is answered.
    system2_attention: bool | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def asked_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report; None = no log-probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs is set, logprobs must be true with it", field="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def asked_max_tokens(self) -> int | None:
        """Most tokens to generate; None = unset."""
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise InvalidRequest("max_tokens and max_completion_tokens are both set and differ", field="max_tokens")
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def is_rewritten(self) -> bool:
        """Whether the last turn is rewritten before it is answered."""
        return bool(self.system2_attention)

    @property
    def spelling(self) -> dict[str, str]:
        """What the client calls wishes that have another name here."""
        names = {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        # Where no field of its own asks for a form, it is tools that do.
        return {**names, "grammar": "tools"}

    def prompt(self) -> tokenizer_pb2.EncodeRequest:
        """The chat, for the tokenizer.

        Raises:
            InvalidRequest: fields contradict each other.
        """
        arguments = self.chat_template_kwargs or {}
        if self.reasoning_effort is not None:
            if arguments.get(_EFFORT, self.reasoning_effort) != self.reasoning_effort:
                raise InvalidRequest("reasoning_effort is set in chat_template_kwargs too, and differs", field=_EFFORT)
            arguments = {**arguments, _EFFORT: self.reasoning_effort}
        chat = chat_input(self.messages, arguments, tool_inputs(self.asked_tools.functions))
        set_end(chat, self.add_generation_prompt, self.continue_final_message)
        if self.add_special_tokens:
            chat.add_special_tokens = True
        return tokenizer_pb2.EncodeRequest(chat=chat)

    @property
    def asked_tools(self) -> ToolUse:
        """See `MayUseTools`."""
        return tool_use([tool.function for tool in self.tools or ()], self.tool_choice, self.parallel_tool_calls)

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """Arguments of the template that would have no effect if it did not read them."""
        return () if self.reasoning_effort is None else (_EFFORT,)
