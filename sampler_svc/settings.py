"""Settings of the sampler, read from variables that begin with SAMPLER_."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import DirectoryPath, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    model: DirectoryPath = Field(description="Model folder. Of its files only tokenizer.json is loaded; the others give the fingerprint.")
    max_open_requests: int = Field(4096, ge=1, le=1_000_000, description="Requests under way at once; one more is refused as overloaded.")
    max_queued_frames: int = Field(
        64,
        ge=1,
        le=4096,
        description="Frames of one compute replica that may wait; no more are read from its stream before some are answered.",
    )
    drain_timeout_s: float = Field(20.0, ge=0, le=3600, description="Seconds that requests under way may take to end after SIGTERM.")

    @field_validator("model")
    @classmethod
    def _require_tokenizer(cls, value: Path) -> Path:
        if not (value / "tokenizer.json").is_file():
            raise ValueError("the folder has no tokenizer.json")
        return value
