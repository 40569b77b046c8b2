"""Values of OpenAI's request bodies that take more than a type: text, contents in parts, prompts of every form."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from gateway.http.openai.fields import MAX_SHOWN_CHARS, Refused
from triserve.v1 import tokenizer_pb2

WITHOUT_EFFECT = "without_effect"
_MAX_LABEL_CHARS = 256
_TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]
_PROMPT_FORMS = "must be a string, a list of strings, a list of token ids or a list of such lists"


class Body(BaseModel):
    """What all bodies share: strict types, no unknown fields, and of a list that fails (`fail_fast`) one error, not a million."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # Fields that are refused by name, unless with a value that asks for nothing. Elsewhere they are as unknown as any.
    refused: ClassVar[Refused] = {}

    @classmethod
    def tidied(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields without what asks for nothing inside of them.

        Raises:
            InvalidRequest: something in them asks for what is not done; names it.
        """
        return fields


def without_effect(why: str) -> Any:
    """A field that is accepted though nothing comes of it, since it asks for nothing that the answer could lack."""
    return Field(None, json_schema_extra={WITHOUT_EFFECT: why})


class TextPart(TypedDict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


# A text, texts, token ids or lists of token ids.
Prompts: TypeAlias = str | list[str] | list[_TokenId] | list[list[_TokenId]]


def unicode_text(value: str) -> str:
    """The text, which must be Unicode: half of a surrogate pair is none."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not Unicode text: it has a lone surrogate at character {error.start}") from None
    return value


def parts_as_text(value: object) -> object:
    """The text of a message's content; parts are joined by line ends."""
    # What the prefix cache does anyway.
    return joined_parts(value, ("text",), passed_over=("cache_control",))


def joined_parts(value: object, kinds: Collection[str], *, passed_over: Collection[str]) -> object:
    """The texts of a list of parts, joined by line ends; anything else as it is.

    Args:
        value: of a client.
        kinds: types of parts that are text.
        passed_over: fields of a part that ask for nothing, whatever they hold.

    Raises:
        ValueError: something is no part, or of another type, or has a field that would change the text.
    """
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError("has a part that is no object with a type")
        if part["type"] not in kinds:
            raise ValueError(f"has a part of type {part['type'][:MAX_SHOWN_CHARS]!r}, only text is supported")
        if not isinstance(part.get("text"), str):
            raise ValueError("has a text part without a text")
        for name, field in part.items():
            # What is left empty asks for nothing.
            if name not in ("type", "text") and name not in passed_over and field not in (None, []):
                raise ValueError(f"has a text part with {name[:MAX_SHOWN_CHARS]!r}, which is not supported")
        texts.append(part["text"])
    return "\n".join(texts)


def prompts_of(value: object) -> list[str] | list[list[int]]:
    """A text, texts, token ids or lists of token ids, as a list of one kind."""
    if not isinstance(value, str | list):
        raise ValueError(_PROMPT_FORMS)
    prompts: list[Any] = value if isinstance(value, list) else [value]
    if prompts and all(type(token) is int for token in prompts):
        prompts = [prompts]
    if all(isinstance(prompt, str) for prompt in prompts):
        return [unicode_text(prompt) for prompt in prompts]
    if not all(isinstance(prompt, list) and all(type(token) is int for token in prompt) for prompt in prompts):
        raise ValueError(_PROMPT_FORMS)
    if any(prompt and (min(prompt) < 0 or max(prompt) >= 2**32) for prompt in prompts):
        raise ValueError("has a token id that is not in [0, 2**32)")
    return prompts


def encode_requests(
    prompts: list[str] | list[list[int]], *, add_special_tokens: bool
) -> tuple[tokenizer_pb2.EncodeRequest | tuple[int, ...], ...]:
    """Prompts as the tokenizer takes them: texts, or token ids as they are."""
    return tuple(
        tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=prompt, add_special_tokens=add_special_tokens))
        if isinstance(prompt, str)
        else tuple(prompt)
        for prompt in prompts
    )


def listed(value: object) -> object:
    """A string as a list of one."""
    return [value] if isinstance(value, str) else value


def _template_arguments(value: object) -> dict[str, bool | int | str]:
    if not isinstance(value, dict) or not all(isinstance(item, bool | int | str) for item in value.values()):
        raise ValueError("must be an object of booleans, whole numbers and strings")
    if not all(-(2**63) <= item < 2**63 for item in value.values() if isinstance(item, int)):
        raise ValueError("has a number of more than 64 bits")
    return {unicode_text(name): unicode_text(item) if isinstance(item, str) else item for name, item in value.items()}


Text = Annotated[str, AfterValidator(unicode_text)]
Label = Annotated[str, Field(max_length=_MAX_LABEL_CHARS), AfterValidator(unicode_text)]
TemplateArguments = Annotated[dict[str, bool | int | str], BeforeValidator(_template_arguments)]
