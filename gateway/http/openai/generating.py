"""What OpenAI's chat and completions share: what the fields are called and of what type. Ranges are checked in `gateway.flow.resolve`, for every door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from gateway.flow.call import MAX_SALT_CHARS, Wishes
from gateway.flow.search.kinds import EarlyStopping, Search
from gateway.http.openai.fields import REFUSED, Refused
from gateway.http.openai.search_fields import beams_of, best_of, contrast_of, early_stopping_of
from gateway.http.openai.structured_fields import ResponseFormat, StructuredOutputs, grammar_of, grammars_of
from gateway.http.openai.values import Body, Label, Text, listed, without_effect
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2

# Of ids that are none, named in an error.
_MAX_SHOWN_IDS = 8


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
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    penalty_alpha: float | None = None
    early_stopping: Annotated[EarlyStopping | None, PlainValidator(early_stopping_of, json_schema_input_type=EarlyStopping | None)] = None
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
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = Field(None, fail_fast=True)
    return_tokens_as_token_ids: bool | None = None
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
    def asked_prompt_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report with each token of the prompt; None = nothing of it.

        Raises:
            InvalidRequest: they are to be streamed.
        """
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("prompt_logprobs is set, stream must be false with it", field="prompt_logprobs")
        return self.prompt_logprobs

    @property
    def may_be_empty(self) -> bool:
        """Whether max_tokens may be 0 though nothing is asked of the prompt."""
        return False

    @property
    def asked_max_tokens(self) -> int | None:
        """Most tokens to generate; None = unset."""
        return self.max_tokens

    @property
    def spelling(self) -> dict[str, str]:
        """What the client calls wishes that have another name here."""
        return {}

    @property
    def is_rewritten(self) -> bool:
        """Whether the last turn is rewritten before it is answered."""
        return False

    @property
    def search(self) -> Search | None:
        """How answers are looked for.

        Raises:
            InvalidRequest: fields of several searches are set, or of one that is not asked for.
        """
        beams = beams_of(self.n, self.best_of, self.use_beam_search, length_penalty=self.length_penalty, early_stopping=self.early_stopping)
        others = beams or best_of(self.n, self.best_of)
        return contrast_of(self.penalty_alpha, self.top_k, others=others) or others

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
            prompt_logprobs=self.asked_prompt_logprobs,
            logprob_token_ids=tuple(self.logprob_token_ids or ()),
            max_tokens=self.asked_max_tokens,
            may_be_empty=self.may_be_empty,
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


def _bias(bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    if wrong := [token for token in bias if not (token.isascii() and token.isdecimal() and len(token) <= 10)]:
        shown = ", ".join(repr(token[:64]) for token in wrong[:_MAX_SHOWN_IDS]) + (", ..." if len(wrong) > _MAX_SHOWN_IDS else "")
        raise InvalidRequest(f"logit_bias has {shown} for a token id, which must be a whole number", field="logit_bias")
    return tuple((int(token), value) for token, value in bias.items())
