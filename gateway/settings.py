"""Settings of the gateway, read from GATEWAY_* and nowhere else."""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Annotated

from pydantic import Field, FilePath, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.flow.limits import Limits
from gateway.flow.served_model import ServedNames
from prompt_cache import CacheConfig
from triserve.rpc import limits as contract

_DEFAULTS = Limits()
_ADDRESS = r"^.+:\d{1,5}$"
_KIB, _MIB = 1024, 1024 * 1024


class Settings(BaseSettings):
    """What an operator can set. Each field is GATEWAY_ and its name."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True)

    listen: str = Field("127.0.0.1:8000", pattern=_ADDRESS, description="Address of the HTTP API, host:port; port 0 picks a free one")
    grpc_listen: str = Field("127.0.0.1:8001", pattern=_ADDRESS, description="Address of the gRPC API, host:port; port 0 picks a free one")
    tokenizers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1:7200",), min_length=1, description="Tokenizer processes, host:port, separated by commas"
    )
    computes: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1:7300",), min_length=1, description="Compute replicas, host:port, separated by commas"
    )
    model_name: str = Field("triserve", min_length=1, max_length=256, description="Name under which the model is served")
    model_aliases: Annotated[tuple[str, ...], NoDecode] = Field((), description="Other names clients may use for it, separated by commas")
    api_keys_file: FilePath | None = Field(
        None,
        description="File with a line `tenant sha256-of-key-in-hex` for each key, and `lowest_priority=N` after it where the key may ask for"
        " a priority below 0; unset = no keys, everybody is tenant `default`",
    )

    cache: bool = Field(True, description="Whether finished answers are remembered")
    redis_url: SecretStr | None = Field(
        None, description="Redis that gateways share for remembered answers; unset = each has its own memory alone"
    )
    cache_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key of remembered answers' names and seals, shared with the Redis; unset = a new one at each start",
    )
    cache_ttl_s: float = Field(3600.0, gt=0, le=30 * 86400, description="Seconds for which Redis remembers an answer")
    cache_local_ttl_s: float = Field(60.0, gt=0, le=30 * 86400, description="Seconds for which the process itself remembers an answer")
    cache_local_bytes: int = Field(64 * _MIB, ge=0, le=64 * 1024 * _MIB, description="Memory for answers the process itself remembers")
    cache_max_entry_bytes: int = Field(256 * _KIB, ge=1, le=16 * _MIB, description="Longest answer that is remembered")

    max_active_requests: int = Field(1024, ge=1, le=65536, description="Answers under way at once; more are refused with 429")
    max_body_bytes: int = Field(_DEFAULTS.max_body_bytes, ge=_KIB, le=64 * _MIB, description="Most bytes of a request's body")
    max_json_depth: int = Field(_DEFAULTS.max_json_depth, ge=4, le=200, description="How deep a request's JSON may be nested")
    max_n: int = Field(_DEFAULTS.max_n, ge=1, le=128, description="Most answers to one prompt")
    max_prompts: int = Field(_DEFAULTS.max_prompts, ge=1, le=4096, description="Most prompts of one request")
    max_choices: int = Field(_DEFAULTS.max_choices, ge=1, le=4096, description="Most answers of one request: prompts times n")
    max_messages: int = Field(_DEFAULTS.max_messages, ge=1, le=65536, description="Most messages of one chat")
    max_stop_strings: int = Field(
        _DEFAULTS.max_stop_strings, ge=4, le=contract.MAX_STOP_STRINGS, description="Most stop strings of one request"
    )
    max_stop_string_chars: int = Field(
        _DEFAULTS.max_stop_string_chars, ge=1, le=contract.MAX_STOP_STRING_CHARS, description="Most characters of one stop string"
    )
    max_stop_token_ids: int = Field(_DEFAULTS.max_stop_token_ids, ge=1, le=4096, description="Most stop token ids of one request")
    max_logit_bias: int = Field(_DEFAULTS.max_logit_bias, ge=300, le=contract.MAX_LOGIT_BIAS, description="Most entries of logit_bias")
    max_top_logprobs: int = Field(
        _DEFAULTS.max_top_logprobs, ge=0, le=contract.MAX_TOP_LOGPROBS, description="Most likeliest tokens reported with each token"
    )
    max_template_arguments: int = Field(_DEFAULTS.max_template_arguments, ge=0, le=64, description="Most entries of chat_template_kwargs")
    body_timeout_s: float = Field(_DEFAULTS.body_timeout_s, gt=0, le=3600, description="Seconds a request's body may take to arrive")
    request_timeout_s: float = Field(_DEFAULTS.request_timeout_s, gt=0, le=86400, description="Seconds a request may take")
    stall_timeout_s: float = Field(
        _DEFAULTS.stall_timeout_s, gt=0, le=3600, description="Seconds a client may leave its stream unread before it is cut"
    )
    keep_alive_s: float = Field(_DEFAULTS.keep_alive_s, gt=0, le=3600, description="Seconds of silence after which a stream gets a comment")
    drain_timeout_s: float = Field(20.0, ge=0, le=3600, description="Seconds that requests under way may take to end after SIGTERM")

    @field_validator("tokenizers", "computes", "model_aliases", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("tokenizers", "computes")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for target in value:
            host, _, port = target.rpartition(":")
            if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
                raise ValueError(f"{target!r} is no host:port")
        if len(set(value)) != len(value):
            raise ValueError("an address is given twice")
        return value

    def limits(self) -> Limits:
        """Bounds on one request."""
        return Limits(**{item.name: getattr(self, item.name) for item in fields(Limits)})

    def names(self) -> ServedNames:
        """The names of the model."""
        return ServedNames(name=self.model_name, aliases=self.model_aliases)

    def cache_config(self) -> CacheConfig:
        """Bounds of the prompt cache."""
        secret = self.cache_secret.get_secret_value().encode() if self.cache_secret else secrets.token_bytes(32)
        return CacheConfig(
            redis_url=self.redis_url.get_secret_value() if self.redis_url else None,
            secret=secret,
            ttl_s=self.cache_ttl_s,
            l0_ttl_s=self.cache_local_ttl_s,
            l0_max_bytes=self.cache_local_bytes,
            max_entry_bytes=self.cache_max_entry_bytes,
        )
