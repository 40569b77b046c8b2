"""Our renderer makes what kubectl makes, and refuses what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomize import Object, UnsupportedKustomization, rendered
from tests.deploy.manifests import COMPOSITIONS, EVERY, K8S, OVERLAYS, composed, kubectl, rendered_by_kubectl
from tests.deploy.strategic_merge import UnsupportedPatch, json_patched, merged


def _by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


@pytest.mark.parametrize("name", EVERY)
def test_both_renderers_make_the_same(name: str, tmp_path: Path) -> None:
    if kubectl() is None:
        pytest.skip("there is no kubectl of 1.27 or newer to compare with")
    folder = K8S / "overlays" / name if name in OVERLAYS else composed(tmp_path, COMPOSITIONS[name])
    assert _by_name(rendered(folder)) == _by_name(rendered_by_kubectl(folder))


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_can_be_rendered_without_kubectl(name: str) -> None:
    assert {item["kind"] for item in rendered(K8S / "overlays" / name)} >= {"Namespace", "Deployment", "Service", "ConfigMap"}


def _kustomization(folder: Path, **fields: object) -> Path:
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization", **fields}))
    return folder


def test_a_config_maps_name_changes_with_what_is_in_it(tmp_path: Path) -> None:
    names = set()
    for value in ("a=1", "a=2", "b=1"):
        folder = _kustomization(tmp_path, configMapGenerator=[{"name": "model", "literals": [value]}])
        names.add(rendered(folder)[0]["metadata"]["name"])
    assert len(names) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"commonLabels": {"a": "b"}},
        {"configMapGenerator": [{"name": "x", "envs": ["f"]}]},
        {"patches": [{"target": {"kind": "Deployment", "name": "absent"}, "patch": "[]"}]},
        {"patches": [{"target": {"kind": "Deployment", "labelSelector": "a=b"}, "patch": "[]"}]},
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedKustomization):
        rendered(_kustomization(tmp_path, **fields))


def test_lists_merge_by_name_and_what_the_patch_names_stands_first() -> None:
    base = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    patch = {"env": [{"name": "B", "value": None, "valueFrom": {"x": 1}}, {"name": "C", "value": "3"}]}
    assert merged(base, patch) == {"env": [{"name": "B", "valueFrom": {"x": 1}}, {"name": "C", "value": "3"}, {"name": "A", "value": "1"}]}
    assert base["env"][1] == {"name": "B", "value": "2"}


def test_lists_without_a_key_are_replaced() -> None:
    assert merged({"args": ["a", "b"]}, {"args": ["c"]}) == {"args": ["c"]}


def test_json_patches_add_replace_and_remove() -> None:
    document = {"a": {"b/c": [1, 2]}, "d": 1}
    operations: list[dict[str, Any]] = [
        {"op": "add", "path": "/a/b~1c/-", "value": 3},
        {"op": "add", "path": "/a/b~1c/0", "value": 0},
        {"op": "replace", "path": "/a/b~1c/1", "value": 9},
        {"op": "remove", "path": "/d"},
    ]
    assert json_patched(document, operations) == {"a": {"b/c": [0, 9, 2, 3]}}
    assert document == {"a": {"b/c": [1, 2]}, "d": 1}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/x"},
        {"op": "replace", "path": "/a/9", "value": 1},
        {"op": "move", "path": "/a", "from": "/b"},
        {"op": "add", "path": "/x/y", "value": 1},
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedPatch):
        json_patched({"a": [1]}, [operation])


def test_a_directive_is_refused() -> None:
    with pytest.raises(UnsupportedPatch):
        merged({"a": [{"name": "x"}]}, {"a": {"$patch": "delete"}})
