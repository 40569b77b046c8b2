"""Settings of the sampler, read from variables that begin with SAMPLER_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, FilePath, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triserve.rpc.tls.choice import DNS_NAME, stage_files
from triserve.rpc.tls.ends import OwnCertificate, ServerTls
from triserve.rpc.tls.loopback import PlainText, require_no_plain_text
from triserve.rpc.traces.choice import OTLP_ENDPOINT, plain_text_to_collector


class Settings(BaseSettings):
    """What a sampler process needs to know."""

    model_config = SettingsConfigDict(env_prefix="SAMPLER_", frozen=True)

    listen: str = Field("127.0.0.1:7400", pattern=r"^.+:\d{1,5}$", description='Address to serve on, "host:port"; port 0 picks a free one.')
    metrics_listen: str | None = Field(
        None,
        pattern=r"^.+:\d{1,5}$",
        description="Address of /metrics, /livez and /readyz, host:port, apart from the data port; unset = none.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of the log: lines of text, or a JSON object a line.")
    otlp_endpoint: str | None = Field(
        None,
        pattern=OTLP_ENDPOINT,
        description="Collector that traces go to over OTLP/gRPC, http://HOST:PORT, or https:// for TLS; unset = there are no traces.",
    )
    tls_cert_file: FilePath | None = Field(
        None, description="Certificate shown to compute replicas, PEM; with key and CA, or none of the three; read again when replaced."
    )
    tls_key_file: FilePath | None = Field(None, description="Key of that certificate, without a passphrase.")
    tls_ca_file: FilePath | None = Field(None, description="What their certificates are checked against.")
    tls_clients: Annotated[tuple[Annotated[str, Field(pattern=DNS_NAME)], ...], NoDecode] = Field(
        ("compute",), min_length=1, description="DNS names of which a compute replica's certificate must have one, separated by commas."
    )
    require_tls: bool = Field(False, description="Whether to refuse to start where it listens beyond loopback in plain text.")
    model: DirectoryPath = Field(description="Model folder. Of its files only tokenizer.json is loaded; the others give the fingerprint.")
    max_open_requests: int = Field(4096, ge=1, le=1_000_000, description="Requests under way at once; one more is refused as overloaded.")
    max_queued_frames: int = Field(
        64,
        ge=1,
        le=4096,
        description="Frames of one compute replica that may wait; no more are read from its stream before some are answered.",
    )
    grammar_timeout_s: float = Field(
        2.0, ge=0.01, le=60, description="Seconds that compiling a grammar may take; one that takes longer is refused as too complex."
    )
    grammar_memory_bytes: int = Field(
        128 << 20,
        ge=16 << 20,
        le=64 << 30,
        description="Bytes of memory that compiling a grammar may take; one that takes more is refused as too complex.",
    )
    grammar_workers: int = Field(
        2, ge=1, le=64, description="Grammars that are checked at once, each in a process; one that takes long is one more."
    )
    drain_timeout_s: float = Field(20.0, ge=0, le=3600, description="Seconds that requests under way may take to end after SIGTERM.")

    @field_validator("tls_clients", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _require_tokenizer(cls, value: Path) -> Path:
        if not (value / "tokenizer.json").is_file():
            raise ValueError("the folder has no tokenizer.json")
        return value

    @model_validator(mode="after")
    def _keeps_plain_text_on_this_machine(self) -> Settings:
        files = stage_files("SAMPLER_", cert=self.tls_cert_file, key=self.tls_key_file, ca=self.tls_ca_file)
        if self.require_tls:
            ways = [] if files is not None else [PlainText("SAMPLER_LISTEN", self.listen, "SAMPLER_TLS_CERT_FILE")]
            require_no_plain_text("SAMPLER_REQUIRE_TLS", [*ways, *plain_text_to_collector("SAMPLER_", self.otlp_endpoint)])
        return self

    def server_tls(self) -> ServerTls | None:
        """What clients are shown and asked for; None = plain text.

        Raises:
            BadCertificate: a file was replaced by one that cannot be used since it was checked.
        """
        files = stage_files("SAMPLER_", cert=self.tls_cert_file, key=self.tls_key_file, ca=self.tls_ca_file)
        return None if files is None else ServerTls(OwnCertificate(files), frozenset(self.tls_clients))
