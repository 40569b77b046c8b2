"""Makes of a rendered Deployment what `podman kube play` takes: the same pod, without what podman does not know."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.deploy.manifests import Manifests, Pod

Object = dict[str, Any]

# podman knows no probes of gRPC and no preStop, and asks none of them by itself: `tests.images.node` does a kubelet's part. It takes a container's
# port for one of the machine's.
_LEFT_OUT = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports")
_NAMESERVER_OPTIONS = [{"name": "ndots", "value": "5"}]


def played(manifests: Manifests, pod: Pod, name: str, *, volumes: Path, nameserver: str, images: Mapping[str, str]) -> list[Object]:
    """A pod and the ConfigMaps it names.

    Args:
        manifests: The overlay.
        pod: One of it.
        name: Of this one of the Deployment's pods.
        volumes: Folder of the pod, in which its emptyDirs are made as a kubelet makes them.
        nameserver: Address of the DNS that knows the Services.
        images: What is run instead of an image of the manifest.
    """
    spec = copy.deepcopy(pod.spec)
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        for field in _LEFT_OUT:
            container.pop(field, None)
        container["image"] = images.get(container["image"], container["image"])
    for volume in spec.get("volumes", ()):
        if volume.pop("emptyDir", None) is not None:
            volume["hostPath"] = {"path": str(_empty_dir(volumes / volume["name"], spec)), "type": "Directory"}
    # Whoever ends is to be seen to end.
    spec["restartPolicy"] = "Never"
    spec["dnsPolicy"] = "None"
    namespace = manifests.of("Namespace")[0]["metadata"]["name"]
    searches = [f"{namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local"]
    spec["dnsConfig"] = {"nameservers": [nameserver], "searches": searches, "options": _NAMESERVER_OPTIONS}
    played_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(pod.labels)}, "spec": spec}
    return [*manifests.of("ConfigMap"), played_pod]


def _empty_dir(folder: Path, spec: Object) -> Path:
    """Open to all, of the group that the pod's files are to have, which everything in it inherits."""
    folder.mkdir(parents=True)
    os.chown(folder, 0, spec["securityContext"]["fsGroup"])
    folder.chmod(0o2777)
    return folder
