"""Of variables: each is a setting of its service, with a value that the setting takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

import compute_svc.settings
import gateway.settings
import sampler_svc.settings
import tokenizer_svc.settings
from tests.deploy.manifests import Manifests, variables

SETTINGS: Mapping[str, type[BaseSettings]] = {
    "gateway": gateway.settings.Settings,
    "tokenizer": tokenizer_svc.settings.Settings,
    "compute": compute_svc.settings.Settings,
    "sampler": sampler_svc.settings.Settings,
}
# Of no service, but used in the value of a variable or argument.
_HELPERS = {"MODEL_FOLDER"}


def drain_setting(stage: str) -> tuple[str, float]:
    """The variable for how long a stage drains, and its default in seconds."""
    return f"{_prefix(stage)}DRAIN_TIMEOUT_S", float(SETTINGS[stage].model_fields["drain_timeout_s"].default)


def known(manifests: Manifests) -> list[str]:
    """No variable is misspelt or of another service, and what a service cannot do without is given."""
    problems = []
    for pod in manifests.pods():
        if pod.name not in SETTINGS:
            continue
        names = [entry["name"] for entry in pod.main.get("env", ())]
        fields = {f"{_prefix(pod.name)}{name}".upper(): field for name, field in SETTINGS[pod.name].model_fields.items()}
        problems += [f"{pod.name} has no setting {name}" for name in names if name not in fields and name not in _HELPERS]
        problems += [f"{pod.name} needs {name}" for name, field in fields.items() if field.is_required() and name not in names]
        problems += [f"{pod.name} is given {name} twice" for name in set(names) if names.count(name) > 1]
    return problems


def in_range(manifests: Manifests) -> list[str]:
    """Every value is one that its setting takes by itself. Files are not looked for."""
    problems = []
    for pod in manifests.pods():
        if pod.name not in SETTINGS:
            continue
        fields = {f"{_prefix(pod.name)}{name}".upper(): field for name, field in SETTINGS[pod.name].model_fields.items()}
        for name, value in variables(pod.main).items():
            field = fields.get(name)
            if field is None or _is_file(field) or not _is_plain(field):
                continue
            try:
                _adapter(field).validate_python(value)
            except ValidationError as error:
                problems.append(f"{pod.name}: {name}={value}: {error.errors()[0]['msg']}")
    return problems


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated)


def _prefix(stage: str) -> str:
    return SETTINGS[stage].model_config.get("env_prefix", "")


def _is_file(field: FieldInfo) -> bool:
    return any(isinstance(one, type) and issubclass(one, Path) for one in _types(field.annotation))


def _is_plain(field: FieldInfo) -> bool:
    """Whether pydantic reads the variable as it stands: lists are split by the settings themselves."""
    return not any(one is tuple for one in _types(field.annotation))


def _types(annotation: Any) -> set[Any]:
    found = {getattr(annotation, "__origin__", annotation)}
    for part in get_args(annotation):
        found |= _types(part)
    return found
