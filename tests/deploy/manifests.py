"""Everything an overlay renders to, and what tests ask of it."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.deploy.kustomize import Object, rendered

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("dev", "cpu", "gpu")
# What no overlay uses, on the base: an overlay of each is made for the tests.
COMPOSITIONS: Mapping[str, tuple[str, ...]] = {
    "model-image": ("model-image", "network-policies", "hpa", "tls"),
    "model-token": ("model-pvc", "model-token", "network-policies", "keda", "monitoring", "traces"),
}
EVERY = (*OVERLAYS, *COMPOSITIONS)
STAGES = ("gateway", "tokenizer", "compute", "sampler")
_MIN_KUBECTL_MINOR = 27


class Pod(NamedTuple):
    """What a Deployment makes pods of."""

    name: str
    labels: Mapping[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        """All of them, those that run first too."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def main(self) -> Object:
        """The one that serves."""
        return dict(self.spec["containers"][0])


@dataclass(frozen=True)
class Manifests:
    """Objects of one overlay."""

    name: str
    objects: tuple[Object, ...]

    def of(self, kind: str) -> list[Object]:
        """Objects of a kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def named(self, kind: str, name: str) -> Object:
        """The object of that kind and name."""
        found = [item for item in self.of(kind) if item["metadata"]["name"] == name]
        assert len(found) == 1, f"{self.name} has {len(found)} objects {kind} {name}"
        return found[0]

    def pods(self) -> Iterator[Pod]:
        """One for each Deployment."""
        for item in self.of("Deployment"):
            template = item["spec"]["template"]
            yield Pod(item["metadata"]["name"], template["metadata"]["labels"], template["spec"])

    def pod(self, name: str) -> Pod:
        """That of one Deployment."""
        return next(pod for pod in self.pods() if pod.name == name)

    def copied(self) -> Manifests:
        """Objects of its own, to be broken."""
        return Manifests(self.name, copy.deepcopy(self.objects))


def variables(container: Object) -> dict[str, str]:
    """Variables of a container that are written in the manifest."""
    return {entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry}


@cache
def load(name: str) -> Manifests:
    """An overlay or one of `COMPOSITIONS`, rendered as an operator's kubectl would, or by our own renderer where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        place = K8S / "overlays" / name if name in OVERLAYS else composed(Path(folder).resolve(), COMPOSITIONS[name])
        objects = rendered_by_kubectl(place) if kubectl() else rendered(place)
    return Manifests(name, tuple(objects))


def composed(folder: Path, components: Sequence[str]) -> Path:
    """Writes an overlay of the base and some components; returns its folder."""
    folder.joinpath("model.sha256").write_text(f"{'0' * 64}  config.json\n")
    images = [{"name": f"triserve-{stage}", "newName": f"registry.example.com/{stage}", "newTag": "0.1.0"} for stage in STAGES]
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "triserve",
        "resources": [os.path.relpath(K8S / "base", folder)],
        "components": [os.path.relpath(K8S / "components" / name, folder) for name in components],
        "configMapGenerator": [{"name": "model", "literals": ["source=org/name@main", "folder=name"], "files": ["model.sha256"]}],
        "images": [*images, {"name": "redis", "newTag": "8.2.1"}],
    }
    folder.joinpath("kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


@cache
def kubectl() -> str | None:
    """A kubectl whose kustomize is new enough; None = there is none."""
    program = shutil.which("kubectl")
    if program is None:
        return None
    said = subprocess.run([program, "version", "--client", "--output=yaml"], capture_output=True, text=True, check=False)
    version: dict[str, Any] = (yaml.safe_load(said.stdout) or {}).get("clientVersion", {}) if said.returncode == 0 else {}
    major, minor = (int("".join(filter(str.isdecimal, version.get(name, ""))) or 0) for name in ("major", "minor"))
    return program if (major, minor) >= (1, _MIN_KUBECTL_MINOR) else None


def rendered_by_kubectl(folder: Path) -> list[Object]:
    """What `kubectl kustomize` prints."""
    program = kubectl()
    assert program is not None, "the caller has looked"
    said = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return list(yaml.safe_load_all(said.stdout))
