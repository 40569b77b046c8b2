"""Renders kustomizations without kubectl, as far as deploy/k8s uses kustomize; a field that is not known here is an error.

Where kubectl is, a test compares the two.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.strategic_merge import json_patched, merged

Object = dict[str, Any]

_CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
_FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "patches", "replicas", "images"}
_NEEDS_HASH = "kustomize.needs-hash"
# kustomize writes a hash without digits and letters that read like words.
_HASH_LETTERS = str.maketrans("013ae", "ghkmt")


class UnsupportedKustomization(Exception):
    """A kustomization uses what is not implemented here."""


def rendered(folder: Path) -> list[Object]:
    """All objects of a kustomization, in no order that matters.

    Raises:
        UnsupportedKustomization: it uses what is not known here.
        UnsupportedPatch: a patch does.
    """
    return _with_hashed_names(_accumulated(folder, []))


def _accumulated(folder: Path, objects: list[Object]) -> list[Object]:
    """Objects so far and a folder's own, changed by what the folder says: a component's changes are for all of them."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := sorted(set(content) - _FIELDS):
        raise UnsupportedKustomization(f"{folder}: {unknown[0]} is not supported")
    for name in content.get("resources", ()):
        place = folder / name
        found = _accumulated(place, []) if place.is_dir() else list(_documents(place))
        objects = [*objects, *found]
    objects = [*objects, *(_config_map(folder, entry) for entry in content.get("configMapGenerator", ()))]
    for name in content.get("components", ()):
        objects = _accumulated(folder / name, objects)
    for patch in content.get("patches", ()):
        objects = _patched(objects, folder, patch)
    if "namespace" in content:
        objects = [_in_namespace(item, content["namespace"]) for item in objects]
    for entry in content.get("replicas", ()):
        objects = [_with_replicas(item, entry) for item in objects]
    for entry in content.get("images", ()):
        objects = [_map_containers(item, partial(_with_image, entry)) for item in objects]
    return objects


def _documents(file: Path) -> Iterator[Object]:
    return (document for document in yaml.safe_load_all(file.read_text()) if document is not None)


def _config_map(folder: Path, entry: dict[str, Any]) -> Object:
    if unknown := sorted(set(entry) - {"name", "literals", "files", "options"}):
        raise UnsupportedKustomization(f"{folder}: configMapGenerator.{unknown[0]} is not supported")
    data = dict(literal.split("=", 1) for literal in entry.get("literals", ()))
    for name in entry.get("files", ()):
        key, _, path = name.rpartition("=")
        data[key or Path(path).name] = (folder / path).read_text()
    options = entry.get("options", {})
    metadata: dict[str, Any] = {"name": entry["name"]}
    if labels := options.get("labels"):
        metadata["labels"] = labels
    if not options.get("disableNameSuffixHash"):
        metadata[_NEEDS_HASH] = True
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _patched(objects: list[Object], folder: Path, patch: dict[str, Any]) -> list[Object]:
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
    content = yaml.safe_load(text)
    target = patch.get("target")
    if target is not None and (unknown := sorted(set(target) - {"kind", "name"})):
        raise UnsupportedKustomization(f"{folder}: a target's {unknown[0]} is not supported")
    if target is None:
        target = {"kind": content["kind"], "name": re.escape(content["metadata"]["name"])}
    chosen = [item for item in objects if item["kind"] == target["kind"] and re.fullmatch(target["name"], item["metadata"]["name"])]
    if not chosen:
        raise UnsupportedKustomization(f"{folder}: a patch of {target['kind']} {target['name']} finds nothing")
    return [_patched_object(item, content) if item in chosen else item for item in objects]


def _patched_object(item: Object, content: Any) -> Object:
    if isinstance(content, list):
        return dict(json_patched(item, content))
    changed: Object = merged(item, content)
    changed["metadata"] = {**changed["metadata"], "name": item["metadata"]["name"]}
    return changed


def _in_namespace(item: Object, namespace: str) -> Object:
    if item["kind"] in _CLUSTER_SCOPED:
        return item if item["kind"] != "Namespace" else merged(item, {"metadata": {"name": namespace}})
    return dict(merged(item, {"metadata": {"namespace": namespace}}))


def _with_replicas(item: Object, entry: dict[str, Any]) -> Object:
    if item["kind"] != "Deployment" or item["metadata"]["name"] != entry["name"]:
        return item
    return dict(merged(item, {"spec": {"replicas": entry["count"]}}))


def _map_containers(item: Object, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Object:
    pod = item.get("spec", {}).get("template", {}).get("spec")
    if pod is None or item["kind"] != "Deployment":
        return item
    item = copy.deepcopy(item)
    pod = item["spec"]["template"]["spec"]
    for name in ("containers", "initContainers"):
        if name in pod:
            pod[name] = [change(container) for container in pod[name]]
    return item


def _with_image(entry: dict[str, str], container: dict[str, Any]) -> dict[str, Any]:
    name = re.split(r"[:@]", container["image"])[0]
    if name != entry["name"]:
        return container
    ending = f"@{entry['digest']}" if "digest" in entry else f":{entry['newTag']}" if "newTag" in entry else container["image"][len(name) :]
    return {**container, "image": entry.get("newName", name) + ending}


def _with_hashed_names(objects: list[Object]) -> list[Object]:
    """A ConfigMap's name ends in a hash of what is in it, wherever it is named: pods are replaced when it changes."""
    names: dict[str, str] = {}
    result = []
    for item in objects:
        metadata = dict(item["metadata"])
        if metadata.pop(_NEEDS_HASH, False):
            names[metadata["name"]] = metadata["name"] = f"{metadata['name']}-{_hash(item)}"
        result.append({**item, "metadata": metadata})
    return [_renamed(item, names) for item in result]


def _hash(item: Object) -> str:
    """kustomize's hash of a ConfigMap: of what Go makes of it as JSON, without its name."""
    content = {"data": item["data"], "kind": "ConfigMap", "name": ""}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(_HASH_LETTERS)


def _renamed(item: Object, names: dict[str, str]) -> Object:
    if item["kind"] != "Deployment":
        return item

    def container(one: dict[str, Any]) -> dict[str, Any]:
        for variable in one.get("env", ()):
            reference = variable.get("valueFrom", {}).get("configMapKeyRef")
            if reference is not None:
                reference["name"] = names.get(reference["name"], reference["name"])
        return one

    item = _map_containers(item, container)
    for volume in item["spec"]["template"]["spec"].get("volumes", ()):
        if "configMap" in volume:
            volume["configMap"]["name"] = names.get(volume["configMap"]["name"], volume["configMap"]["name"])
    return item
