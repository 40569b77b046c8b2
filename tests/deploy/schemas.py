"""Validates objects against the published schemas of Kubernetes and of custom resources."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.deploy.kustomize import Object
from tests.deploy.manifests import ROOT

_BUILT_IN_GROUPS = {"", "apps", "autoscaling", "batch", "networking.k8s.io", "policy", "scheduling.k8s.io"}
# Schemas are somebody else's files, which a checkout may lie beside.
_CRD_PLACES = (ROOT / "shared" / "data" / "crds", ROOT.parent / "shared" / "data" / "crds")
# cert-manager's is not among them.
KINDS_WITHOUT_SCHEMA = frozenset({"Issuer"})


def group_of(item: Object) -> str:
    """API group; "" is the core's."""
    group, slash, _ = item["apiVersion"].partition("/")
    return group if slash else ""


def is_built_in(item: Object) -> bool:
    """Whether Kubernetes itself knows the kind."""
    return group_of(item) in _BUILT_IN_GROUPS


def crd_folder() -> Path | None:
    """Where the schemas of custom resources are; None = not on this machine."""
    return next((place for place in _CRD_PLACES if place.is_dir()), None)


def kubernetes_problems(item: Object, version: str) -> list[str]:
    """What a Kubernetes of a version ("1.30") would not understand, unknown fields too."""
    return _problems(item, _validator(item["kind"].lower(), item["apiVersion"], version))


def crd_problems(item: Object, folder: Path) -> list[str]:
    """What the schema of a custom resource does not allow."""
    version = item["apiVersion"].partition("/")[2]
    file = folder / group_of(item) / f"{item['kind'].lower()}_{version}.json"
    if not file.is_file():
        return [f"{_name(item)}: there is no schema {file.name}"]
    return _problems(item, _crd_validator(file))


def _problems(item: Object, validator: Any) -> list[str]:
    return [f"{_name(item)}: {error.json_path}: {error.message[:300]}" for error in validator.iter_errors(item)]


def _name(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


@cache
def _registry(version: str) -> Any:
    definitions = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    return Resource.from_contents(definitions) @ Registry()


@cache
def _validator(kind: str, api_version: str, version: str) -> Any:
    group, slash, number = api_version.partition("/")
    name = f"{kind}-{group.partition('.')[0]}-{number}" if slash else f"{kind}-{api_version}"
    schema = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{name}.json", version)
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _registry(version))


@cache
def _crd_validator(file: Path) -> Any:
    return jsonschema.Draft7Validator(json.loads(file.read_text()))
