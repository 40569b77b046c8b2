"""The body of OpenAI's completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainValidator

from gateway.http.openai.generating import Generating
from gateway.http.openai.values import Prompts, encode_requests, prompts_of, without_effect
from triserve.v1 import tokenizer_pb2


class CompletionBody(Generating):
    """Body of POST /v1/completions."""

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(prompts_of, json_schema_input_type=Prompts)]
    logprobs: int | None = None
    # Whether the text begins with the prompt, and log-probabilities with those of its tokens.
    echo: bool | None = None
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
    def asked_prompt_logprobs(self) -> int | None:
        """See `Generating`. An echo has as many as the answer; where the prompt's text is not known it comes from them."""
        asked = super().asked_prompt_logprobs
        if not self.echo:
            return asked
        of_echo = self.logprobs if self.logprobs is not None else None if None not in self.echoed else 0
        return max((one for one in (asked, of_echo) if one is not None), default=None)

    @property
    def echoed(self) -> list[str | None]:
        """Texts of the prompts; None where one came as ids, or may be cut."""
        return [prompt if isinstance(prompt, str) and self.truncate_prompt_tokens is None else None for prompt in self.prompt]

    @property
    def may_be_empty(self) -> bool:
        """As others have it: clients have their prompts measured so."""
        return True

    @property
    def spelling(self) -> dict[str, str]:
        """What the client calls wishes that have another name here."""
        named = {"top_logprobs": "logprobs"}
        return named if self.prompt_logprobs is not None else {**named, "prompt_logprobs": "logprobs"}

    def prompts(self) -> tuple[tokenizer_pb2.EncodeRequest | tuple[int, ...], ...]:
        """Texts for the tokenizer, or token ids."""
        return encode_requests(self.prompt, add_special_tokens=self.add_special_tokens)
