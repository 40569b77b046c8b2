"""Writes the README's table of settings from the services' settings classes: `python tests/readme_settings.py`."""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from compute_svc.settings import Settings as ComputeSettings
from gateway.settings import Settings as GatewaySettings
from sampler_svc.settings import Settings as SamplerSettings
from tokenizer_svc.settings import Settings as TokenizerSettings

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def settings_table() -> str:
    """A markdown table of every variable a service reads, its default and its meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for settings in (GatewaySettings, TokenizerSettings, ComputeSettings, SamplerSettings):
        rows += _rows(settings)
    return "\n".join(rows) + "\n"


def _rows(settings: type[BaseSettings]) -> list[str]:
    prefix = settings.model_config.get("env_prefix", "")
    rows = []
    # A class's own fields before those it takes over: addresses before bounds.
    for name, field in sorted(settings.model_fields.items(), key=lambda item: item[0] not in settings.__annotations__):
        rows.append(f"| `{prefix}{name.upper()}` | {_default(field)} | {field.description} |")
    return rows


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None or field.default in (None, "", ()):
        return ""
    value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{value}`"


def with_table(text: str) -> str:
    """The README with a current table between the two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{settings_table()}{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
