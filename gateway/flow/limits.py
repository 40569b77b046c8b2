"""Bounds on one request, each with its range and default; every one is checked before anything of its size is made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from triserve.rpc import limits as contract

_KIB, _MIB = 1024, 1024 * 1024


class Limits(BaseModel):
    """What one request may ask for. `gateway.settings` takes the fields over, so that each is a variable of the environment."""

    model_config = ConfigDict(frozen=True)

    max_body_bytes: int = Field(4 * _MIB, ge=_KIB, le=64 * _MIB, description="Most bytes of a request's body")
    max_json_depth: int = Field(32, ge=4, le=200, description="How deep a request's JSON may be nested")
    max_json_values: int = Field(524_288, ge=1024, le=16 * _MIB, description="Most values of a request's JSON, each token id being one")
    max_json_items: int = Field(
        32_768, ge=1024, le=_MIB, description="Most values of a request's JSON that are no whole numbers, and names of fields"
    )
    max_n: int = Field(16, ge=1, le=128, description="Most answers to one prompt")
    max_prompts: int = Field(64, ge=1, le=4096, description="Most prompts of one request")
    max_choices: int = Field(128, ge=1, le=4096, description="Most answers of one request: prompts times n")
    max_messages: int = Field(1024, ge=1, le=65536, description="Most messages of one chat")
    max_stop_strings: int = Field(
        contract.MAX_STOP_STRINGS, ge=4, le=contract.MAX_STOP_STRINGS, description="Most stop strings of one request"
    )
    max_stop_string_chars: int = Field(
        contract.MAX_STOP_STRING_CHARS, ge=1, le=contract.MAX_STOP_STRING_CHARS, description="Most characters of one stop string"
    )
    max_stop_token_ids: int = Field(64, ge=1, le=4096, description="Most stop token ids of one request")
    max_logit_bias: int = Field(contract.MAX_LOGIT_BIAS, ge=300, le=contract.MAX_LOGIT_BIAS, description="Most entries of logit_bias")
    max_top_logprobs: int = Field(
        contract.MAX_TOP_LOGPROBS, ge=0, le=contract.MAX_TOP_LOGPROBS, description="Most likeliest tokens reported with each token"
    )
    max_rewrite_tokens: int = Field(1024, ge=16, le=1 << 20, description="Most tokens of a last turn that system2_attention has rewritten")
    max_contrastive_tokens: int = Field(
        4096, ge=16, le=1 << 20, description="Most tokens of prompt and answer whose hidden states a contrastive search keeps, float32"
    )
    max_prompt_logprobs: int = Field(
        131_072,
        ge=1024,
        le=16 * _MIB,
        description="Most log-probabilities of prompts in one answer: their tokens, times n, times 1 more than prompt_logprobs",
    )
    max_template_arguments: int = Field(16, ge=0, le=64, description="Most entries of chat_template_kwargs")
    body_timeout_s: float = Field(30.0, gt=0, le=3600, description="Seconds a request's body may take to arrive")
    request_timeout_s: float = Field(600.0, gt=0, le=86400, description="Seconds a request may take")
    retry_wait_s: float = Field(
        15.0,
        ge=0,
        le=3600,
        description="Seconds a request of which nothing was delivered waits for a process in place of one that was lost",
    )
    stall_timeout_s: float = Field(30.0, gt=0, le=3600, description="Seconds a client may leave its stream unread before it is cut")
    keep_alive_s: float = Field(15.0, gt=0, le=3600, description="Seconds of silence after which a stream gets a comment")
    cache_replay_tokens_per_s: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="How fast a remembered answer is delivered; 0 = at once. As fast as new ones, it does not tell who asked what before",
    )
