"""Kubernetes' two ways to patch an object, as far as deploy/k8s uses them: strategic merge and JSON patch (RFC 6902)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

Json = Any

# Lists whose elements merge by a field; all others are replaced.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
}


class UnsupportedPatch(Exception):
    """A patch uses what is not implemented here."""


def merged(base: Json, patch: Json, *, field: str = "") -> Json:
    """A value after a strategic merge; does not modify its arguments.

    Args:
        base: the value; None = there is none.
        patch: what to change. None in a mapping removes a field.
        field: name of the field the value is in, which tells how a list merges.

    Raises:
        UnsupportedPatch: the patch has a directive such as `$patch`.
    """
    if isinstance(patch, dict):
        if directives := [key for key in patch if key.startswith("$")]:
            raise UnsupportedPatch(f"{directives[0]} is not supported")
        result = dict(base) if isinstance(base, dict) else {}
        for key, value in patch.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), value, field=key)
        return result
    if isinstance(patch, list) and isinstance(base, list) and (key_name := _MERGE_KEYS.get(field)) is not None:
        return _merged_list(base, patch, key_name)
    return [merged(None, item) for item in patch] if isinstance(patch, list) else copy.deepcopy(patch)


def _merged_list(base: list[Json], patch: list[Json], key: str) -> list[Json]:
    """What the patch names stands first, as kustomize has it."""
    old, named = {item[key]: item for item in base}, {item[key] for item in patch}
    return [*(merged(old.get(item[key]), item) for item in patch), *(item for item in base if item[key] not in named)]


def json_patched(document: Json, operations: Sequence[dict[str, Any]]) -> Json:
    """A document after `add`, `remove` and `replace` operations; does not modify its arguments.

    Raises:
        UnsupportedPatch: another operation, or a path that is not there.
    """
    result = copy.deepcopy(document)
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].lstrip("/").split("/")]
        holder = result
        for part in parents:
            holder = _at(holder, part, operation)
        _apply(holder, last, operation)
    return result


def _at(holder: Json, part: str, operation: dict[str, Any]) -> Json:
    try:
        return holder[int(part)] if isinstance(holder, list) else holder[part]
    except (KeyError, IndexError, ValueError):
        raise UnsupportedPatch(f"{operation['op']} {operation['path']}: there is no {part}") from None


def _apply(holder: Json, last: str, operation: dict[str, Any]) -> None:
    action = operation["op"]
    if action not in ("add", "remove", "replace"):
        raise UnsupportedPatch(f"the operation {action} is not supported")
    if action == "add":
        if not isinstance(holder, list):
            holder[last] = copy.deepcopy(operation["value"])
        else:
            holder.insert(len(holder) if last == "-" else int(last), copy.deepcopy(operation["value"]))
        return
    _at(holder, last, operation)
    place = int(last) if isinstance(holder, list) else last
    if action == "remove":
        del holder[place]
    else:
        holder[place] = copy.deepcopy(operation["value"])
