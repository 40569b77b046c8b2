"""The body of OpenAI's completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainValidator

from gateway.http.openai.generating import Generating
from gateway.http.openai.values import Prompts, prompts_of, without_effect
from triserve.v1 import tokenizer_pb2


class CompletionBody(Generating):
    """Body of POST /v1/completions."""

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(prompts_of, json_schema_input_type=Prompts)]
    logprobs: int | None = None
    add_special_tokens: bool = True
    parallel_tool_calls: bool | None = without_effect("completions call no tools")

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """No template is used."""
        return ()

    @property
    def reading(self) -> None:
        """A completion's text is the text."""
        return None

    @property
    def asked_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report; None = no log-probabilities."""
        return self.logprobs

    @property
    def spelling(self) -> dict[str, str]:
        """What the client calls wishes that have another name here."""
        return {"top_logprobs": "logprobs"}

    def prompts(self) -> tuple[tokenizer_pb2.EncodeRequest | tuple[int, ...], ...]:
        """Texts for the tokenizer, or token ids."""
        return tuple(
            tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=prompt, add_special_tokens=self.add_special_tokens))
            if isinstance(prompt, str)
            else tuple(prompt)
            for prompt in self.prompt
        )
