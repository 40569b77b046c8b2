"""Settings of the gateway, read from GATEWAY_* and nowhere else."""

from __future__ import annotations

import os
import re
import secrets
from typing import Annotated, Literal

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.flow.limits import Limits
from gateway.flow.served_model import ServedNames
from gateway.http.cors import ANY_ORIGIN
from gateway.tools.registry import FORMAT_NAMES, REASONING, ReasoningParserName, ToolParserName
from prompt_cache import CacheConfig
from prompt_cache.redis_tls import TlsFiles, check_redis_url, is_tls
from prompt_cache.semantic.config import SemanticConfig
from prompt_cache.vectors.vector_store import StoreLimits
from triserve.rpc.peer_names import parse_peer_names
from triserve.rpc.tls.certificate import CertificateFiles
from triserve.rpc.tls.choice import DNS_NAME, client_door_files, stage_files
from triserve.rpc.tls.loopback import PlainText, require_no_plain_text
from triserve.rpc.traces.choice import OTLP_ENDPOINT, plain_text_to_collector

_ADDRESS = r"^.+:\d{1,5}$"
# As browsers send it: no path, and the port only where it is not the scheme's own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+")
_KIB, _MIB = 1024, 1024 * 1024


class Settings(Limits, BaseSettings):
    """What an operator can set: these fields and those of `Limits`. Each is GATEWAY_ and its name."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True)

    listen: str = Field("127.0.0.1:8000", pattern=_ADDRESS, description="Address of the HTTP API, host:port; port 0 picks a free one")
    grpc_listen: str = Field("127.0.0.1:8001", pattern=_ADDRESS, description="Address of the gRPC API, host:port; port 0 picks a free one")
    metrics_listen: str | None = Field(
        None,
        pattern=_ADDRESS,
        description="Address of /metrics without a key, /livez and /readyz, host:port, for those who watch; unset = none",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the addresses, each one core's; limits, and memory of the prompt cache, are of each, and what Redis keeps is of all",
    )
    reuse_port: bool = Field(
        False, description="Whether other processes of the same user may listen on the same addresses, as those of GATEWAY_WORKERS do"
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of the log: lines of text, or a JSON object a line")
    otlp_endpoint: str | None = Field(
        None,
        pattern=OTLP_ENDPOINT,
        description="Collector that traces go to over OTLP/gRPC, http://HOST:PORT, or https:// for TLS; unset = there are no traces",
    )
    trace_sample_ratio: float = Field(
        0.1, ge=0, le=1, description="Share of requests that are traced, of those whose client does not say whether they are to be"
    )
    trace_client_limit_per_s: float = Field(
        10.0,
        ge=0,
        le=10_000,
        description="Most requests a second, of all clients together, that are traced because the client's `traceparent` says so; those beyond count"
        " as if it said nothing",
    )
    http_tls_cert_file: FilePath | None = Field(
        None, description="Certificate shown to clients of both APIs, PEM; with its key; read again when replaced; unset = plain text"
    )
    http_tls_key_file: FilePath | None = Field(None, description="Key of that certificate, without a passphrase")
    tls_cert_file: FilePath | None = Field(
        None,
        description="Certificate shown to tokenizers and compute replicas, PEM; with key and CA, or none of the three; read again when replaced",
    )
    tls_key_file: FilePath | None = Field(None, description="Key of that certificate, without a passphrase")
    tls_ca_file: FilePath | None = Field(None, description="What their certificates are checked against")
    tls_tokenizer_name: str = Field(
        "tokenizer", pattern=DNS_NAME, description="DNS name that a tokenizer's certificate must have, whatever address was dialled"
    )
    tls_compute_name: str = Field("compute", pattern=DNS_NAME, description="DNS name that a compute replica's certificate must have")
    require_tls: bool = Field(False, description="Whether to refuse to start where it listens or connects beyond loopback in plain text")
    tokenizers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1:7200",),
        min_length=1,
        description="Tokenizer processes, separated by commas: host:port, or `dns:///name:port` for one at every A or AAAA record of a name, or"
        " `srv:///name` for one for every SRV record, which are looked up again and again; `dns://10.0.0.10:53/name:port` asks that DNS server",
    )
    computes: Annotated[tuple[str, ...], NoDecode] = Field(("127.0.0.1:7300",), min_length=1, description="Compute replicas, as tokenizers")
    dns_interval_s: float = Field(
        3.0, ge=0.1, le=300, description="Seconds between two lookups of these names; a peer that is lost is looked for at once"
    )
    routing: Literal["prefix", "least-load", "random"] = Field(
        "prefix",
        description="Which replica gets a request: where the first token costs least, by what it has cached of the prompt and what waits there; the"
        " one with the fewest requests; or any",
    )
    prefix_index_bytes: int = Field(
        64 * _MIB, ge=0, le=16 * 1024 * _MIB, description="Memory for knowing what replicas have cached, 100 bytes for each KV page"
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

    tool_parser: ToolParserName = Field(
        "auto",
        description=f"How the model writes tool calls: as its chat template does, or, whatever that does, one of {FORMAT_NAMES}",
    )
    reasoning_parser: ReasoningParserName = Field(
        "auto",
        description=f"How the model sets its reasoning apart: as its chat template does, or one of {', '.join(REASONING)}, harmony; `none` leaves it in the content",
    )

    cache: bool = Field(True, description="Whether finished answers are remembered")
    redis_url: SecretStr | None = Field(
        None,
        description="Redis that gateways share for remembered answers, redis://USER:PASSWORD@HOST:PORT/DB, or rediss:// for TLS; unset = each has its"
        " own memory alone",
    )
    redis_ca_file: FilePath | None = Field(
        None, description="What the certificate of a rediss:// is checked against; unset = what the system trusts"
    )
    redis_cert_file: FilePath | None = Field(None, description="Certificate for a Redis that asks for one; with its key")
    redis_key_file: FilePath | None = Field(None, description="Key of that certificate")
    cache_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key that names and encrypts remembered answers, of all gateways that share the Redis; unset = a new one at each start",
    )
    cache_old_secrets: SecretStr | None = Field(
        None,
        description="Keys used before GATEWAY_CACHE_SECRET, the latest first, separated by commas: what they encrypted can be read still, until"
        " they are taken out",
    )
    cache_ttl_s: float = Field(3600.0, gt=0, le=30 * 86400, description="Seconds for which Redis remembers an answer")
    cache_local_ttl_s: float = Field(60.0, gt=0, le=30 * 86400, description="Seconds for which the process itself remembers an answer")
    cache_local_bytes: int = Field(64 * _MIB, ge=0, le=64 * 1024 * _MIB, description="Memory for answers the process itself remembers")
    cache_local_eviction: Literal["lru", "lfu", "fifo", "cost"] = Field(
        "lru",
        description="Which of them goes when the memory is full: the one used longest ago, least often, oldest, or that saves the fewest tokens per byte",
    )
    cache_local_tenant_share: float = Field(0.5, gt=0, le=1, description="Share of that memory that one tenant may fill")
    cache_timeout_ms: float = Field(25.0, ge=1, le=10_000, description="Most milliseconds a request waits for a Redis that does not answer")
    cache_max_entry_bytes: int = Field(256 * _KIB, ge=1, le=16 * _MIB, description="Longest answer that is remembered")

    semantic_cache: Literal["off", "shadow", "on"] = Field(
        "off",
        description="Whether a remembered answer may be given to a question that means the same; `shadow` gives none, and counts and checks what"
        " would have been",
    )
    embedder: str | None = Field(
        None,
        description="What tells which questions are near: a folder from `triserve cache build-embedder`, the http(s) address of an embeddings"
        " endpoint, or `ngrams`, which compares spelling alone",
    )
    embedder_model: str = Field("", max_length=256, description="Model to ask an embeddings endpoint for")
    embedder_key: SecretStr | None = Field(None, description="Key of an embeddings endpoint")
    embedder_window_chars: int = Field(1000, ge=16, le=32_768, description="Longest question an embeddings endpoint is asked about")
    semantic_store: Literal["auto", "query-engine", "vector-sets", "flat", "local"] = Field(
        "auto",
        description="Where vectors are: what the Redis has, its query engine, its vector sets, any Redis and this process's memory, or this process"
        " alone, which keeps vectors out of Redis",
    )
    semantic_threshold: float | None = Field(None, ge=-1, le=1, description="Least cosine of two questions; unset = the embedder's own")
    semantic_ttl_s: float = Field(
        86_400.0, gt=0, le=365 * 86400, description="Seconds for which an answer may be given to similar questions"
    )
    semantic_choice: Literal["first", "freshest", "softmax"] = Field(
        "first", description="Which of several answers is given: the nearest, the newest, or one at random, nearer ones likelier"
    )
    semantic_learned: bool = Field(
        False,
        description="Whether an answer is given again only once comparisons with the model have shown how near is near enough; else until they show"
        " the contrary",
    )
    semantic_sampled: bool = Field(True, description="Whether answers drawn at random, without a seed of the client's, may be given again")
    semantic_audited_share: float = Field(
        0.02, ge=0, le=1, description="Share of answers given to similar questions that the model is asked for too, and that are compared"
    )
    semantic_max_wrong_share: float = Field(
        0.01, gt=0, lt=1, description="Share of them that may be wrong; where there is evidence of more, a scope is switched off"
    )
    semantic_judge: str | None = Field(
        None,
        description="The http(s) address of a chat completions endpoint whose model is asked in the background whether two questions ask the same:"
        " where an answer given again was not the model's, and where a guard refused one; unset = nobody is",
    )
    semantic_judge_model: str = Field("", max_length=200, description="Model to ask for judgements")
    semantic_judge_key: SecretStr | None = Field(None, description="Key of the judge's endpoint")
    semantic_grey_margin: float = Field(
        0.1,
        ge=0,
        le=2,
        description="With a judge: how far below the threshold an answer is compared with the model's, and given once that has shown it right often"
        " enough",
    )
    semantic_timeout_ms: float = Field(25.0, ge=1, le=10_000, description="Most milliseconds a look for similar questions may take")
    semantic_max_question_bytes: int = Field(4096, ge=16, le=_MIB, description="Longest question that is looked for")
    semantic_max_entries: int = Field(
        10_000, ge=1, le=10_000_000, description="Most answers of one scope: of one tenant, system prompt and so on"
    )
    semantic_max_bytes: int = Field(64 * _MIB, ge=_KIB, le=64 * 1024 * _MIB, description="Most bytes of the answers of one scope")
    semantic_eviction: Literal["lru", "lfu", "fifo", "cost"] = Field(
        "lru",
        description="Which answer of a full scope goes: the one not given for longest, given least often, oldest, or that saves the fewest tokens"
        " per byte",
    )

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
        parse_peer_names(value)
        return value

    @model_validator(mode="after")
    def _has_room_for_one_body(self) -> Settings:
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError("GATEWAY_MAX_BODIES_BYTES must have room for one body of GATEWAY_MAX_BODY_BYTES")
        return self

    def worker_environment(self, *, listen: str, grpc_listen: str) -> dict[str, str]:
        """The environment of several processes: this one's, but for the addresses. They keep their answers under one secret."""
        return {
            **os.environ,
            "GATEWAY_WORKERS": "1",
            "GATEWAY_REUSE_PORT": "true",
            "GATEWAY_LISTEN": listen,
            "GATEWAY_GRPC_LISTEN": grpc_listen,
            "GATEWAY_CACHE_SECRET": self.cache_secret.get_secret_value() if self.cache_secret else secrets.token_hex(32),
        }

    def limits(self) -> Limits:
        """Bounds on one request."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    def names(self) -> ServedNames:
        """The names of the model."""
        return ServedNames(name=self.model_name, aliases=self.model_aliases)

    @model_validator(mode="after")
    def _has_what_a_semantic_cache_needs(self) -> Settings:
        if self.semantic_cache != "off" and not self.cache:
            raise ValueError("GATEWAY_SEMANTIC_CACHE needs GATEWAY_CACHE")
        if self.semantic_cache != "off" and self.embedder is None:
            raise ValueError(
                "GATEWAY_SEMANTIC_CACHE needs GATEWAY_EMBEDDER: a folder that `triserve cache build-embedder` makes, an address, or ngrams"
            )
        return self

    @model_validator(mode="after")
    def _can_ask_redis(self) -> Settings:
        files = self.redis_tls()
        if self.redis_url is not None:
            try:
                check_redis_url(self.redis_url.get_secret_value(), files)
            except ValueError as error:
                raise ValueError(
                    f"GATEWAY_REDIS_URL, GATEWAY_REDIS_CA_FILE, GATEWAY_REDIS_CERT_FILE, GATEWAY_REDIS_KEY_FILE: {error}"
                ) from None
        elif files.given:
            raise ValueError("GATEWAY_REDIS_CA_FILE, GATEWAY_REDIS_CERT_FILE and GATEWAY_REDIS_KEY_FILE need GATEWAY_REDIS_URL")
        return self

    @model_validator(mode="after")
    def _keeps_plain_text_on_this_machine(self) -> Settings:
        between_stages, door = self.stage_tls_files(), self.http_tls_files()
        if not self.require_tls:
            return self
        ways: list[PlainText] = []
        if door is None:
            doors = (("GATEWAY_LISTEN", self.listen), ("GATEWAY_GRPC_LISTEN", self.grpc_listen))
            ways += [PlainText(*one, "GATEWAY_HTTP_TLS_CERT_FILE") for one in doors]
        if between_stages is None:
            stages = (("GATEWAY_TOKENIZERS", self.tokenizers), ("GATEWAY_COMPUTES", self.computes))
            ways += [PlainText(variable, target, "GATEWAY_TLS_CERT_FILE") for variable, targets in stages for target in targets]
        if self.redis_url is not None and not is_tls(self.redis_url.get_secret_value()):
            ways.append(PlainText("GATEWAY_REDIS_URL", self.redis_url.get_secret_value(), "rediss://"))
        for variable, url in (("GATEWAY_EMBEDDER", self.embedder), ("GATEWAY_SEMANTIC_JUDGE", self.semantic_judge)):
            if url is not None and url.startswith("http://"):
                ways.append(PlainText(variable, url, "https://"))
        ways += plain_text_to_collector("GATEWAY_", self.otlp_endpoint)
        require_no_plain_text("GATEWAY_REQUIRE_TLS", ways)
        return self

    def stage_tls_files(self) -> CertificateFiles | None:
        """For the connections to tokenizers and compute replicas; None = plain text.

        Raises:
            ValueError: they cannot be used; names them.
        """
        return stage_files("GATEWAY_", cert=self.tls_cert_file, key=self.tls_key_file, ca=self.tls_ca_file)

    def http_tls_files(self) -> CertificateFiles | None:
        """For clients of both APIs; as `stage_tls_files`."""
        return client_door_files("GATEWAY_", cert=self.http_tls_cert_file, key=self.http_tls_key_file)

    def redis_tls(self) -> TlsFiles:
        """Files for TLS to Redis."""
        return TlsFiles(ca=self.redis_ca_file, cert=self.redis_cert_file, key=self.redis_key_file)

    @model_validator(mode="after")
    def _judge_has_a_model(self) -> Settings:
        if self.semantic_judge is None and (self.semantic_judge_model or self.semantic_judge_key):
            raise ValueError("GATEWAY_SEMANTIC_JUDGE_MODEL and GATEWAY_SEMANTIC_JUDGE_KEY need GATEWAY_SEMANTIC_JUDGE")
        if self.semantic_judge is not None and not self.semantic_judge_model:
            raise ValueError("GATEWAY_SEMANTIC_JUDGE needs GATEWAY_SEMANTIC_JUDGE_MODEL")
        if self.semantic_judge is not None and self.semantic_cache == "off":
            raise ValueError("GATEWAY_SEMANTIC_JUDGE needs GATEWAY_SEMANTIC_CACHE")
        return self

    @model_validator(mode="after")
    def _has_the_redis_that_vectors_are_in(self) -> Settings:
        if self.semantic_cache != "off" and self.redis_url is None and self.semantic_store not in ("auto", "local"):
            raise ValueError(f"GATEWAY_SEMANTIC_STORE={self.semantic_store} needs GATEWAY_REDIS_URL")
        return self

    def semantic_config(self) -> SemanticConfig:
        """Bounds and policy of the semantic cache, where there is one."""
        assert self.semantic_cache != "off", "the caller has looked"
        return SemanticConfig(
            mode=self.semantic_cache,
            threshold=self.semantic_threshold,
            ttl_s=self.semantic_ttl_s,
            choice=self.semantic_choice,
            learned=self.semantic_learned,
            audited_share=self.semantic_audited_share,
            grey_margin=self.semantic_grey_margin,
            max_wrong_share=self.semantic_max_wrong_share,
            lookup_timeout_s=self.semantic_timeout_ms / 1000,
            max_question_bytes=self.semantic_max_question_bytes,
            max_entry_bytes=self.cache_max_entry_bytes,
            limits=StoreLimits(max_entries=self.semantic_max_entries, max_bytes=self.semantic_max_bytes, policy=self.semantic_eviction),
        )

    def cache_config(self) -> CacheConfig:
        """Bounds of the prompt cache."""
        secret = self.cache_secret.get_secret_value().encode() if self.cache_secret else secrets.token_bytes(32)
        old = self.cache_old_secrets.get_secret_value().split(",") if self.cache_old_secrets else []
        return CacheConfig(
            old_secrets=tuple(one.strip().encode() for one in old if one.strip()),
            redis_url=self.redis_url.get_secret_value() if self.redis_url else None,
            redis_tls=self.redis_tls(),
            secret=secret,
            ttl_s=self.cache_ttl_s,
            l0_ttl_s=self.cache_local_ttl_s,
            lookup_timeout_s=self.cache_timeout_ms / 1000,
            # A little less, so that a connection that hangs is given up as one and not with all that waits for it.
            socket_timeout_s=0.8 * self.cache_timeout_ms / 1000,
            l0_max_bytes=self.cache_local_bytes,
            l0_eviction=self.cache_local_eviction,
            l0_tenant_share=self.cache_local_tenant_share,
            max_entry_bytes=self.cache_max_entry_bytes,
        )
