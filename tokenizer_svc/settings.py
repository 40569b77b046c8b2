"""Settings of the tokenize stage, read from TOKENIZER_* and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, FilePath, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tokenizer_svc.chat_template import RESERVED_NAMES
from tokenizer_svc.model_folder import SPECIAL_TOKEN_NAMES
from triserve.rpc.tls.choice import DNS_NAME, stage_files
from triserve.rpc.tls.ends import OwnCertificate, ServerTls
from triserve.rpc.tls.loopback import PlainText, require_no_plain_text
from triserve.rpc.traces.choice import OTLP_ENDPOINT, plain_text_to_collector


class Settings(BaseSettings):
    """What an operator can set. Each field is TOKENIZER_ and its name."""

    model_config = SettingsConfigDict(env_prefix="TOKENIZER_", frozen=True)

    listen: str = Field(
        default="127.0.0.1:7200", pattern=r"^.+:\d{1,5}$", description="Address to listen on, host:port; port 0 picks a free one"
    )
    metrics_listen: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="Address of /metrics, /livez and /readyz, host:port, apart from the data port; unset = none",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Form of the log: lines of text, or a JSON object a line")
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=OTLP_ENDPOINT,
        description="Collector that traces go to over OTLP/gRPC, http://HOST:PORT, or https:// for TLS; unset = there are no traces",
    )
    tls_cert_file: FilePath | None = Field(
        None, description="Certificate shown to gateways, PEM; with key and CA, or none of the three; read again when replaced"
    )
    tls_key_file: FilePath | None = Field(None, description="Key of that certificate, without a passphrase")
    tls_ca_file: FilePath | None = Field(None, description="What their certificates are checked against")
    tls_clients: Annotated[tuple[Annotated[str, Field(pattern=DNS_NAME)], ...], NoDecode] = Field(
        ("gateway",), min_length=1, description="DNS names of which a gateway's certificate must have one, separated by commas"
    )
    require_tls: bool = Field(False, description="Whether to refuse to start where it listens beyond loopback in plain text")
    model: DirectoryPath = Field(description="Folder with tokenizer.json and the model's other small files")
    max_input_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=32 * 1024 * 1024, description="Most UTF-8 bytes of one text or chat")
    max_messages: int = Field(default=4096, ge=1, le=65536, description="Most turns of one chat")
    inline_bytes: int = Field(default=2048, ge=0, le=65536, description="Inputs up to this size are encoded at once on the event loop")
    long_bytes: int = Field(default=65536, ge=1024, description="Inputs above this size have threads of their own and delay no shorter one")
    threads: int | None = Field(
        default=None, ge=1, le=256, description="Threads for inputs of middle size, and as many for long ones; unset = as many as cores"
    )
    max_queued_requests: int = Field(
        default=1024, ge=0, le=65536, description="Most requests that wait for a thread, of each of the two sizes"
    )
    max_queued_bytes: int = Field(
        default=256 * 1024 * 1024, ge=1024, description="Most bytes of the requests that wait, of each of the two sizes"
    )
    max_requests_per_stream: int = Field(default=4096, ge=1, le=65536, description="Most requests under way on one stream")
    template_allowed_arguments: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("enable_thinking", "thinking", "reasoning_effort"),
        description="Chat template arguments callers may give, separated by commas",
    )
    render_timeout_s: float = Field(default=10.0, gt=0, le=600, description="Most seconds a chat template may take")
    system_prompts_entries: int = Field(default=256, ge=0, le=65536, description="Most system prompts whose length in tokens is remembered")
    system_prompts_bytes: int = Field(
        default=16 * 1024 * 1024, ge=0, description="Most bytes of token ids of the system prompts remembered"
    )
    stall_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Not ready after this many seconds in which work waits and none begins or ends"
    )
    drain_timeout_s: float = Field(
        default=10.0, ge=0, le=3600, description="Most seconds for work under way when the process is told to stop"
    )

    @field_validator("template_allowed_arguments", "tls_clients", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("template_allowed_arguments")
    @classmethod
    def _refuse_reserved(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = sorted(name for name in value if not name.isidentifier() or name in RESERVED_NAMES or name in SPECIAL_TOKEN_NAMES)
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot be an argument: it has a meaning of its own in templates, or is no name")
        return value

    @field_validator("model")
    @classmethod
    def _require_tokenizer(cls, value: Path) -> Path:
        if not (value / "tokenizer.json").is_file():
            raise ValueError("the folder has no tokenizer.json; slow tokenizers such as tokenizer.model are not supported")
        return value

    @field_validator("max_queued_bytes")
    @classmethod
    def _require_room_for_one(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("max_input_bytes", 0):
            raise ValueError("the queue must have room for one input of TOKENIZER_MAX_INPUT_BYTES")
        return value

    @model_validator(mode="after")
    def _keeps_plain_text_on_this_machine(self) -> Settings:
        files = stage_files("TOKENIZER_", cert=self.tls_cert_file, key=self.tls_key_file, ca=self.tls_ca_file)
        if self.require_tls:
            ways = [] if files is not None else [PlainText("TOKENIZER_LISTEN", self.listen, "TOKENIZER_TLS_CERT_FILE")]
            require_no_plain_text("TOKENIZER_REQUIRE_TLS", [*ways, *plain_text_to_collector("TOKENIZER_", self.otlp_endpoint)])
        return self

    def server_tls(self) -> ServerTls | None:
        """What clients are shown and asked for; None = plain text.

        Raises:
            BadCertificate: a file was replaced by one that cannot be used since it was checked.
        """
        files = stage_files("TOKENIZER_", cert=self.tls_cert_file, key=self.tls_key_file, ca=self.tls_ca_file)
        return None if files is None else ServerTls(OwnCertificate(files), frozenset(self.tls_clients))
