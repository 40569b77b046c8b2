"""OpenAI's request bodies: what their fields are called and of what type. Ranges are checked in `gateway.flow.resolve`, for every door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from gateway.flow.call import Wishes
from gateway.flow.limits import Limits
from gateway.http.body_counts import check_counts
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

# Fields of OpenAI's and others' APIs that ask for what is not done here, and the values with which they ask for nothing.
_NOT_DONE: dict[str, tuple[object, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None,),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, False),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None,),
    "web_search_options": (None,),
}
# What OpenAI's client leaves in an assistant's message that is sent back.
_NOT_DONE_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}
_MAX_LABEL_CHARS = 256
_MAX_SHOWN_CHARS = 128
_PROMPT_FORMS = "must be a string, a list of strings, a list of token ids or a list of such lists"


def _unicode(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not Unicode text: it has a lone surrogate at character {error.start}") from None
    return value


def _parts_as_text(value: object) -> object:
    """The text of a message's content; parts are joined by line ends."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError("has a part that is no object with a type")
        if part["type"] != "text":
            raise ValueError(f"has a part of type {part['type'][:64]!r}, only text is supported")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("has a text part that is not of the form {type, text}")
        texts.append(part["text"])
    return "\n".join(texts)


def _prompts(value: object) -> list[str] | list[list[int]]:
    """A text, texts, token ids or lists of token ids, as a list of one kind."""
    if not isinstance(value, str | list):
        raise ValueError(_PROMPT_FORMS)
    prompts: list[Any] = value if isinstance(value, list) else [value]
    if prompts and all(type(token) is int for token in prompts):
        prompts = [prompts]
    if all(isinstance(prompt, str) for prompt in prompts):
        return [_unicode(prompt) for prompt in prompts]
    if not all(isinstance(prompt, list) and all(type(token) is int for token in prompt) for prompt in prompts):
        raise ValueError(_PROMPT_FORMS)
    if any(prompt and (min(prompt) < 0 or max(prompt) >= 2**32) for prompt in prompts):
        raise ValueError("has a token id that is not in [0, 2**32)")
    return prompts


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _template_arguments(value: object) -> dict[str, bool | int | str]:
    if not isinstance(value, dict) or not all(isinstance(item, bool | int | str) for item in value.values()):
        raise ValueError("must be an object of booleans, whole numbers and strings")
    if not all(-(2**63) <= item < 2**63 for item in value.values() if isinstance(item, int)):
        raise ValueError("has a number of more than 64 bits")
    return {_unicode(name): _unicode(item) if isinstance(item, str) else item for name, item in value.items()}


Text = Annotated[str, AfterValidator(_unicode)]
Label = Annotated[str, Field(max_length=_MAX_LABEL_CHARS), AfterValidator(_unicode)]
TemplateArguments = Annotated[dict[str, bool | int | str], BeforeValidator(_template_arguments)]


class Body(BaseModel):
    """What all bodies share: strict types, no unknown fields, and of a list that fails (`fail_fast`) one error, not a million."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Message(Body):
    """One turn of a chat."""

    role: Text
    content: Annotated[Text, BeforeValidator(_parts_as_text)]
    name: Text | None = None


class StreamOptions(Body):
    """What a stream carries besides deltas."""

    include_usage: bool | None = None
    # Usage in every chunk, as load generators ask for it.
    continuous_usage_stats: bool | None = None


class _Generate(Body):
    """What chat and completions share."""

    model: Label = ""
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: Annotated[list[Text] | None, BeforeValidator(_listed)] = Field(None, fail_fast=True)
    stop_token_ids: list[int] | None = Field(None, fail_fast=True)
    priority: int | None = None
    user: Label | None = None
    return_token_ids: bool | None = None
    return_timeline: bool | None = None

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

    def wishes(self) -> Wishes:
        """The sampling and stopping fields.

        Raises:
            InvalidRequest: fields contradict each other.
        """
        return Wishes(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
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
            spelling=self.spelling,
        )


class ChatBody(_Generate):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: TemplateArguments | None = None

    @property
    def asked_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report; None = no log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
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
        """The chat, for the tokenizer."""
        return tokenizer_pb2.EncodeRequest(chat=chat_input(self.messages, self.chat_template_kwargs or {}))


class CompletionBody(_Generate):
    """Body of POST /v1/completions."""

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts)]
    logprobs: int | None = None
    add_special_tokens: bool = True

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
    add_generation_prompt: bool = True
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
        chat.add_generation_prompt = self.add_generation_prompt
        return tokenizer_pb2.EncodeRequest(chat=chat)


class DetokenizeBody(Body):
    """Body of POST /detokenize."""

    model: Label = ""
    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(fail_fast=True)


def chat_input(messages: list[Message], arguments: Mapping[str, bool | int | str]) -> tokenizer_pb2.ChatInput:
    """A chat in the contract's form."""
    return tokenizer_pb2.ChatInput(
        messages=[tokenizer_pb2.ChatMessage(role=one.role, content=one.content, name=one.name) for one in messages],
        template_arguments=[_argument(name, value) for name, value in arguments.items()],
    )


def _argument(name: str, value: bool | int | str) -> tokenizer_pb2.TemplateArgument:
    if isinstance(value, bool):
        return tokenizer_pb2.TemplateArgument(name=name, bool_value=value)
    if isinstance(value, int):
        return tokenizer_pb2.TemplateArgument(name=name, int_value=value)
    return tokenizer_pb2.TemplateArgument(name=name, string_value=value)


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
    # Only bodies of generating routes know fields that are not done; elsewhere they are as unknown as any.
    body = _without_idle(body, _NOT_DONE if issubclass(kind, _Generate) else {}, known=kind.model_fields, where="")
    if isinstance(options := body.get("stream_options"), dict):
        _without_idle(options, {}, known=StreamOptions.model_fields, where="stream_options.")
    if isinstance(body.get("messages"), list):
        messages = [
            _without_idle(one, _NOT_DONE_IN_MESSAGE, known=Message.model_fields, where=f"messages[{index}].")
            if isinstance(one, dict)
            else one
            for index, one in enumerate(body["messages"])
        ]
        body = {**body, "messages": messages}
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        _refuse(error)


def _without_idle(
    body: dict[str, Any], not_done: Mapping[str, tuple[object, ...]], *, known: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The object without fields that ask for nothing; the first unknown one is refused before any is looked into."""
    kept = {}
    for name, value in body.items():
        if name in known:
            kept[name] = value
        elif name not in not_done:
            raise _unknown(where + name[:_MAX_SHOWN_CHARS])
        elif not any(type(value) is type(idle) and value == idle for idle in not_done[name]):
            raise InvalidRequest(f"{where}{name} is not supported", field=f"{where}{name}")
    return kept


def _refuse(error: ValidationError) -> NoReturn:
    # An unknown field says more of what went wrong than the type of another.
    first = min(
        error.errors(include_url=False, include_context=False, include_input=False), key=lambda one: one["type"] != "extra_forbidden"
    )
    field = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        raise _unknown(field)
    if first["type"] == "missing":
        raise InvalidRequest(f"{field} is missing", field=field)
    if first["type"] == "value_error":
        raise InvalidRequest(f"{field} {first['msg'].removeprefix('Value error, ')}", field=field)
    raise InvalidRequest(f"{field}: {first['msg']}", field=field)


def _unknown(field: str) -> InvalidRequest:
    return InvalidRequest(f"Unknown field: {field}", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, of at most so many characters of a client's own."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:_MAX_SHOWN_CHARS]}" if path else part[:_MAX_SHOWN_CHARS]
    return path
