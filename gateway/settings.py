"""Settings of the gateway, read from GATEWAY_* and nowhere else."""

from __future__ import annotations

import re
import secrets
from typing import Annotated

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.flow.limits import Limits
from gateway.flow.served_model import ServedNames
from gateway.http.cors import ANY_ORIGIN
from prompt_cache import CacheConfig

_ADDRESS = r"^.+:\d{1,5}$"
# As browsers send it: no path, and the port only where it is not the scheme's own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+")
_KIB, _MIB = 1024, 1024 * 1024


class Settings(Limits, BaseSettings):
    """What an operator can set: these fields and those of `Limits`. Each is GATEWAY_ and its name."""

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
        " a priority below 0, `metrics` where it may read /metrics, `similarity` where it may see how near a question was that the semantic cache answers from; unset = no keys, everybody is tenant `default`",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names under which browsers may ask, beside localhost, IP addresses, the name listened on and the machine's own, where"
        " there are no keys; separated by commas, * = any",
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web sites whose pages may call, as `https://example.org`, separated by commas; `*` = all, unset = none"
    )

    cache: bool = Field(True, description="Whether finished answers are remembered")
    redis_url: SecretStr | None = Field(
        None, description="Redis that gateways share for remembered answers; unset = each has its own memory alone"
    )
    cache_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key that names and encrypts remembered answers, of all gateways that share the Redis; unset = a new one at each start",
    )
    cache_ttl_s: float = Field(3600.0, gt=0, le=30 * 86400, description="Seconds for which Redis remembers an answer")
    cache_local_ttl_s: float = Field(60.0, gt=0, le=30 * 86400, description="Seconds for which the process itself remembers an answer")
    cache_local_bytes: int = Field(64 * _MIB, ge=0, le=64 * 1024 * _MIB, description="Memory for answers the process itself remembers")
    cache_max_entry_bytes: int = Field(256 * _KIB, ge=1, le=16 * _MIB, description="Longest answer that is remembered")

    max_active_requests: int = Field(1024, ge=1, le=65536, description="Answers under way at once; more are refused with 429")
    max_bodies_bytes: int = Field(
        256 * _MIB,
        ge=_KIB,
        le=64 * 1024 * _MIB,
        description="Most bytes of the bodies of all requests under way together; more are refused with 429",
    )
    idle_timeout_s: float = Field(
        75.0, gt=0, le=3600, description="Seconds a connection may be without a request that is complete but for its body"
    )
    drain_timeout_s: float = Field(20.0, ge=0, le=3600, description="Seconds that requests under way may take to end after SIGTERM")

    @field_validator("tokenizers", "computes", "model_aliases", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin such as https://example.org, nor *")
        return value

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

    @model_validator(mode="after")
    def _has_room_for_one_body(self) -> Settings:
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError("GATEWAY_MAX_BODIES_BYTES must have room for one body of GATEWAY_MAX_BODY_BYTES")
        return self

    def limits(self) -> Limits:
        """Bounds on one request."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

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
