"""Every overlay, and what no overlay uses, is valid and says what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.checks import CHECKS
from tests.deploy.checks.queries import queries
from tests.deploy.kustomize import Object
from tests.deploy.manifests import COMPOSITIONS, EVERY, K8S, OVERLAYS, ROOT, Manifests, load
from tests.deploy.schemas import KINDS_WITHOUT_SCHEMA, crd_folder, crd_problems, is_built_in, kubernetes_problems

# The oldest that the manifests are for, and a recent one.
VERSIONS = ("1.30", "1.35")
# Image volumes are younger.
_TOO_NEW_FOR_130 = {"model-image"}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("overlay", EVERY)
def test_of_every_overlay(overlay: str, check: str) -> None:
    assert CHECKS[check](load(overlay)) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", EVERY)
def test_kubernetes_knows_every_field(overlay: str, version: str) -> None:
    problems = [problem for item in load(overlay).objects if is_built_in(item) for problem in kubernetes_problems(item, version)]
    if version == "1.30" and overlay in _TOO_NEW_FOR_130:
        assert {problem.split(": ")[-1] for problem in problems} == {"Additional properties are not allowed ('image' was unexpected)"}
    else:
        assert problems == []


@pytest.mark.parametrize("overlay", EVERY)
def test_custom_resources_are_as_their_schemas_say(overlay: str) -> None:
    folder = crd_folder()
    if folder is None:
        pytest.skip("the schemas of custom resources are not on this machine: shared/data/crds")
    custom = [item for item in load(overlay).objects if not is_built_in(item) and item["kind"] not in KINDS_WITHOUT_SCHEMA]
    assert [problem for item in custom for problem in crd_problems(item, folder)] == []


def _first(manifests: Manifests, kind: str) -> Object:
    return manifests.of(kind)[0]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("Deployment", "replica", 2), ("NetworkPolicy", "ingres", []), ("PodDisruptionBudget", "maxUnavailable", True)],
)
def test_a_misspelt_field_or_a_wrong_type_is_found(kind: str, field: str, value: object) -> None:
    broken = _first(load("gpu").copied(), kind)
    broken["spec"][field] = value
    assert kubernetes_problems(broken, "1.30")


@pytest.mark.parametrize(
    ("kind", "field"),
    [("ScaledObject", "trigers"), ("PodMonitor", "selektor"), ("HTTPRoute", "rule"), ("Certificate", "dnsName"), ("BackendTLSPolicy", "x")],
)
def test_a_misspelt_field_of_a_custom_resource_is_found(kind: str, field: str) -> None:
    folder = crd_folder()
    if folder is None:
        pytest.skip("the schemas of custom resources are not on this machine: shared/data/crds")
    broken = _first(load("gpu").copied(), kind)
    broken["spec"][field] = []
    assert crd_problems(broken, folder)


def test_every_component_is_in_an_overlay_or_tested_on_its_own() -> None:
    used = {file for name in EVERY for file in _components_of(name)}
    assert used == {folder.name for folder in (K8S / "components").iterdir()}


def _components_of(name: str) -> set[str]:
    todo = list(COMPOSITIONS[name]) if name in COMPOSITIONS else _listed(K8S / "overlays" / name)
    found: set[str] = set()
    while todo:
        found.add(one := todo.pop())
        todo += _listed(K8S / "components" / one)
    return found


def _listed(folder: Path) -> list[str]:
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return [entry.rpartition("/")[2] for entry in content.get("components", ())]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_but_what_has_no_namespace_is_in_ours(overlay: str) -> None:
    namespaces = {item["metadata"].get("namespace") for item in load(overlay).objects if item["kind"] not in ("Namespace", "PriorityClass")}
    assert namespaces == {"triserve"}


def test_dev_is_one_of_each_and_needs_nothing_that_a_new_cluster_lacks() -> None:
    dev = load("dev")
    assert {item["metadata"]["name"]: item["spec"]["replicas"] for item in dev.of("Deployment")} == dict.fromkeys(
        ("gateway", "tokenizer", "compute", "sampler", "redis"), 1
    )
    assert all(is_built_in(item) for item in dev.objects)
    assert not [volume for pod in dev.pods() for volume in pod.spec["volumes"] if "secret" in volume]


def test_gpu_scales_every_stage_and_gives_compute_a_gpu() -> None:
    gpu = load("gpu")
    assert {item["metadata"]["name"] for item in gpu.of("ScaledObject")} == {"gateway", "tokenizer", "compute", "sampler"}
    limits = {pod.name: pod.main["resources"]["limits"].get("nvidia.com/gpu") for pod in gpu.pods()}
    assert limits == {"gateway": None, "tokenizer": None, "compute": "1", "sampler": None, "redis": None}


def test_a_gateway_starts_without_redis_and_its_secret() -> None:
    for overlay in ("cpu", "gpu"):
        sources = [entry["valueFrom"]["secretKeyRef"] for entry in load(overlay).pod("gateway").main["env"] if "valueFrom" in entry]
        assert {source["name"] for source in sources} == {"triserve-redis"}
        assert all(source["optional"] for source in sources)


def test_every_stage_scales_on_the_signal_that_is_its_own() -> None:
    asked = {query.where: query.text for query in queries(load("gpu")) if query.where.startswith("ScaledObject")}
    texts = " ".join(query.text for query in queries(load("gpu")))
    assert set(asked) == {f"ScaledObject {stage}" for stage in ("gateway", "tokenizer", "compute", "sampler")}
    for signal in (
        "triserve_gateway_open_streams",
        "triserve_tokenizer_queued_seconds",
        "triserve_compute_queued_prefill_seconds",
        "triserve_sampler_oldest_frame_seconds",
    ):
        assert f"sum({signal}" in texts


def test_every_alert_says_what_to_do() -> None:
    readme = (K8S / "README.md").read_text()
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", readme, re.MULTILINE)}
    rules = [rule for group in load("gpu").of("PrometheusRule")[0]["spec"]["groups"] for rule in group["rules"]]
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"deploy/k8s/README.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings, f"{rule['alert']} has no heading"
        assert rule["labels"]["severity"] in ("critical", "warning")
    assert headings == {rule["alert"].lower() for rule in rules}


def test_no_file_of_deploy_has_a_private_key() -> None:
    for file in (ROOT / "deploy").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert "PRIVATE KEY-----" not in file.read_text(), file
