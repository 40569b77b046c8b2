"""Ways to break an overlay in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.deploy.manifests import Manifests


class Broken(NamedTuple):
    """One way to break an overlay.

    Attributes:
        check: the check that finds it, a name of `CHECKS`.
        overlay: what is broken.
        change: breaks it.
        says: part of what the check says.
    """

    check: str
    overlay: str
    change: Callable[[Manifests], object]
    says: str


def pod(manifests: Manifests, name: str) -> Any:
    """What a Deployment makes pods of."""
    return manifests.named("Deployment", name)["spec"]["template"]["spec"]


def container(manifests: Manifests, name: str) -> Any:
    """The container that serves."""
    return pod(manifests, name)["containers"][0]


def spec(manifests: Manifests, kind: str, name: str) -> Any:
    """An object's spec."""
    return manifests.named(kind, name)["spec"]


def put(holder: Any, field: str, value: Any) -> None:
    """Sets a field."""
    holder[field] = value


def variable(manifests: Manifests, pod: str, name: str, value: str | None) -> None:
    """Gives a variable another value, or takes it away."""
    env = container(manifests, pod)["env"]
    env[:] = [entry for entry in env if entry["name"] != name]
    if value is not None:
        env.append({"name": name, "value": value})


def without(manifests: Manifests, kind: str, name: str) -> None:
    """Takes an object away."""
    # The tuple is frozen, what is in it is not: an object of no kind is nobody's.
    manifests.named(kind, name).update(kind="Nothing")


def rule(manifests: Manifests, alert: str) -> Any:
    """An alert."""
    groups = manifests.of("PrometheusRule")[0]["spec"]["groups"]
    return next(rule for group in groups for rule in group["rules"] if rule["alert"] == alert)
