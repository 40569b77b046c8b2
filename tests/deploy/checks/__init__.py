"""What must be true of an overlay and no schema says: each check takes manifests and returns what is wrong with them, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.deploy.checks import edges, images, pods, queries, references, scaling, stages, variables
from tests.deploy.manifests import Manifests

Check = Callable[[Manifests], list[str]]

CHECKS: Mapping[str, Check] = {
    "pods may do nothing that serving does not need": pods.restricted,
    "requests are at most limits": pods.resources,
    "pods have time to drain": pods.grace,
    "nobody reads the cluster's API": pods.tokens,
    "a rollout takes nobody away first": pods.rollout,
    "pods are spread, and budgets let nodes be drained": pods.spread,
    "probes ask what tells alive from ready": stages.probes,
    "ports are the ones listened on": stages.ports,
    "peers are found by names that exist": stages.peers,
    "init containers run commands that exist": stages.model_commands,
    "selectors find pods": references.selectors,
    "services lead to ports": references.service_ports,
    "what is mounted and named exists": references.names,
    "routes lead to services": references.routes,
    "certificates are for who asks for them": references.certificates,
    "variables are settings": variables.known,
    "variables have values in range": variables.in_range,
    "only the picture's edges are open": edges.as_in_the_picture,
    "what scales exists, once": scaling.targets,
    "pods go slowly and counts are the autoscaler's": scaling.behaviour,
    "queries ask for metrics that are told": queries.told,
    "images are pinned": images.pinned,
    "no secret is in the manifests": images.without_secrets,
}
