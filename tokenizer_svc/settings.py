"""Settings of the tokenize stage, read from TOKENIZER_* and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tokenizer_svc.chat_template import RESERVED_NAMES
from tokenizer_svc.model_folder import SPECIAL_TOKEN_NAMES


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

    @field_validator("template_allowed_arguments", mode="before")
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
