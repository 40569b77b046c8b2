"""Of images and secrets."""

from __future__ import annotations

import re

from tests.deploy.manifests import Manifests, variables

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[^@]+:(?P<tag>[\w][\w.-]*)")
_MOVING = {"latest", "main", "master", "dev", "edge", "nightly", "stable"}
_SECRET = re.compile(r"(PASSWORD|SECRETS?|TOKEN|_KEY)$")
_PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def pinned(manifests: Manifests) -> list[str]:
    """Every image has a digest, or a tag that does not move."""
    problems = []
    for pod in manifests.pods():
        images = [container["image"] for container in pod.containers]
        images += [volume["image"]["reference"] for volume in pod.spec.get("volumes", ()) if "image" in volume]
        for image in images:
            tag = _TAG.fullmatch(image.rpartition("/")[2])
            if not _DIGEST.fullmatch(image) and (tag is None or tag["tag"] in _MOVING):
                problems.append(f"{pod.name}: the image {image} may be another one tomorrow")
    return problems


def without_secrets(manifests: Manifests) -> list[str]:
    """No Secret, no password and no key stands in a manifest; pods read them from Secrets."""
    problems = [f"there is a Secret {item['metadata']['name']}" for item in manifests.of("Secret")]
    for pod in manifests.pods():
        for container in pod.containers:
            for name, value in variables(container).items():
                if _SECRET.search(name) or _PASSWORD_IN_URL.search(value):
                    problems.append(f"{pod.name}: the value of {name} is in the manifest")
    for item in manifests.of("ConfigMap"):
        for key, text in item["data"].items():
            if _PRIVATE_KEY.search(text) or _PASSWORD_IN_URL.search(text):
                problems.append(f"ConfigMap {item['metadata']['name']}: {key} has a secret")
    return problems
