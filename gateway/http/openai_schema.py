"""OpenAI's request bodies: what their fields are called and of what type. Ranges are checked in `gateway.flow.resolve`, for every door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError

from gateway.flow.call import MAX_SALT_CHARS, AnswerReading, Wishes
from gateway.flow.limits import Limits
from gateway.http.body_counts import check_counts
from gateway.http.openai_fields import (
    MAX_SHOWN_CHARS,
    REFUSED,
    REFUSED_IN_MESSAGE,
    REFUSED_IN_STREAM_OPTIONS,
    Refused,
    unknown,
    without_idle,
)
from gateway.http.openai_messages import Message, chat_input, set_end
from gateway.http.openai_values import Body, Label, Prompts, TemplateArguments, Text, listed, prompts_of, without_effect
from gateway.http.structured_fields import ResponseFormat, StructuredOutputs, grammar_of, grammars_of
from gateway.http.tool_schema import ToolChoice, Tools, ToolUse, check_call_counts, tool_inputs, tool_use
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2, tokenizer_pb2

_EFFORT = "reasoning_effort"


class StreamOptions(Body):
    """What a stream carries besides deltas."""

    include_usage: bool | None = None
    # Usage in every chunk, as load generators ask for it.
    continuous_usage_stats: bool | None = None


class CacheField(Body):
    """What the client wants of the prompt cache."""

    # "refresh": a fresh answer, which is kept; "only": a kept one or none; "bypass": a fresh one that is not kept.
    mode: Literal["default", "refresh", "only", "bypass"] | None = None
    # Least cosine of a question that was asked before, for the semantic cache.
    threshold: float | None = Field(None, ge=-1, le=1)
    max_age_s: float | None = Field(None, ge=0, le=10**9)
    # Answers are found under the salt they were kept with.
    salt: str | None = Field(None, max_length=MAX_SALT_CHARS)


class Generating(Body):
    """What chat and completions share."""

    refused: ClassVar[Refused] = REFUSED

    model: Label = ""
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_sequence_breakers: list[Text] | None = Field(None, fail_fast=True)
    allowed_token_ids: list[int] | None = Field(None, fail_fast=True)
    banned_token_ids: list[int] | None = Field(None, fail_fast=True)
    bad_words: list[Text] | None = Field(None, fail_fast=True)
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: Annotated[list[Text] | None, BeforeValidator(listed, json_schema_input_type=str | list[str] | None)] = Field(None, fail_fast=True)
    stop_token_ids: list[int] | None = Field(None, fail_fast=True)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = Field(None, min_length=1, fail_fast=True)
    guided_grammar: Text | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    cache: CacheField | None = None
    user: Label | None = None
    return_token_ids: bool | None = None
    return_timeline: bool | None = None
    metadata: dict[str, Any] | None = without_effect("requests are not stored")
    store: bool | None = without_effect("requests are not stored")
    prediction: dict[str, Any] | None = without_effect("it changes no answer, and nothing is sped up by it")
    prompt_cache_key: Label | None = without_effect("prefixes are found by what they hold")
    prompt_cache_retention: Label | None = without_effect("prefixes are kept for as long as there is room")
    safety_identifier: Label | None = without_effect("answers do not depend on who asks")
    service_tier: Label | None = without_effect("there is one tier; see priority")

    @property
    def asked_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report; None = no log-probabilities."""
        raise NotImplementedError

    @property
    def asked_max_tokens(self) -> int | None:
        """Most tokens to generate; None = unset."""
        return self.max_tokens

    @property
    def spelling(self) -> dict[str, str]:
        """What the client calls wishes that have another name here."""
        return {}

    def grammar(self) -> tuple[str, common_pb2.Grammar] | None:
        """What the answer's text must be, and the field that says so; None = anything.

        Raises:
            InvalidRequest: two fields say so.
        """
        guided = grammars_of(schema=self.guided_json, regex=self.guided_regex, choice=self.guided_choice, lark=self.guided_grammar)
        structured = self.structured_outputs.grammars() if self.structured_outputs is not None else {}
        return grammar_of(
            {
                "response_format": self.response_format.grammar() if self.response_format is not None else None,
                **{f"structured_outputs.{name}": grammar for name, grammar in structured.items()},
                **{f"guided_{name}": grammar for name, grammar in guided.items()},
            }
        )

    def wishes(self) -> Wishes:
        """The sampling and stopping fields.

        Raises:
            InvalidRequest: fields contradict each other.
        """
        grammar = self.grammar()
        return Wishes(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            top_n_sigma=self.top_n_sigma,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            dry_multiplier=self.dry_multiplier,
            dry_base=self.dry_base,
            dry_allowed_length=self.dry_allowed_length,
            dry_sequence_breakers=None if self.dry_sequence_breakers is None else tuple(self.dry_sequence_breakers),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            banned_token_ids=tuple(self.banned_token_ids or ()),
            bad_words=tuple(self.bad_words or ()),
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=_bias(self.logit_bias or {}),
            seed=self.seed,
            top_logprobs=self.asked_top_logprobs,
            max_tokens=self.asked_max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            stop_strings=tuple(self.stop or ()),
            grammar=grammar[1] if grammar is not None else None,
            include_stop_string=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            spaces_between_special_tokens=self.spaces_between_special_tokens is not False,
            spelling={**self.spelling, "grammar": grammar[0]} if grammar is not None else self.spelling,
        )


class ChatBody(Generating):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: TemplateArguments | None = None
    # For models whose template reads it.
    reasoning_effort: Label | None = None
    add_generation_prompt: bool | None = None
    # The last message is an assistant's, and the answer goes on with it.
    continue_final_message: bool | None = None
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
    def spelling(self) -> dict[str, str]:
        """What the client calls wishes that have another name here."""
        return {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}

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
        chat = chat_input(self.messages, arguments, tool_inputs(self._tool_use.tools))
        set_end(chat, self.add_generation_prompt, self.continue_final_message)
        return tokenizer_pb2.EncodeRequest(chat=chat)

    @property
    def reading(self) -> AnswerReading:
        """How the answer is to be taken apart.

        Raises:
            InvalidRequest: see `tool_use`.
        """
        return self._tool_use.reading

    @property
    def _tool_use(self) -> ToolUse:
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """Arguments of the template that would have no effect if it did not read them."""
        return () if self.reasoning_effort is None else (_EFFORT,)


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


def _bias(bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    for token in bias:
        if not (token.isascii() and token.isdecimal() and len(token) <= 10):
            raise InvalidRequest(f"logit_bias has {token[:64]!r} for a token id, which must be a whole number", field="logit_bias")
    return tuple((int(token), value) for token, value in bias.items())


B = TypeVar("B", bound=Body)


def parse_body(kind: type[B], body: dict[str, Any], limits: Limits) -> B:
    """The body as its type. Counts come first, and the first thing that is wrong ends it: the work is bounded by the limits.

    Raises:
        InvalidRequest: a field is unknown, not supported, missing, of the wrong type or holds too much; names it.
    """
    check_counts(body, limits)
    check_call_counts(body.get("messages"))
    kept = kind.tidied(without_idle(body, kind.refused, known=kind.model_fields))
    if isinstance(options := kept.get("stream_options"), dict):
        kept["stream_options"] = without_idle(options, REFUSED_IN_STREAM_OPTIONS, known=StreamOptions.model_fields, where="stream_options.")
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [
            without_idle(one, REFUSED_IN_MESSAGE, known=Message.model_fields, where=f"messages[{index}].") if isinstance(one, dict) else one
            for index, one in enumerate(messages)
        ]
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    # An unknown field says more of what went wrong than the type of another.
    first = min(
        error.errors(include_url=False, include_context=False, include_input=False), key=lambda one: one["type"] != "extra_forbidden"
    )
    field = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        raise unknown(field)
    if first["type"] == "missing":
        raise InvalidRequest(f"{field} is missing", field=field)
    if first["type"] == "value_error":
        raise InvalidRequest(f"{field} {first['msg'].removeprefix('Value error, ')}", field=field)
    raise InvalidRequest(f"{field}: {first['msg']}", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, of at most so many characters of a client's own."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:MAX_SHOWN_CHARS]}" if path else part[:MAX_SHOWN_CHARS]
    return path
