"""Of NetworkPolicies: who may speak to whom, worked out as Kubernetes does, against the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tests.deploy.kustomize import Object
from tests.deploy.manifests import STAGES, Manifests

_PART_OF = {"app.kubernetes.io/part-of": "triserve"}


class Place(NamedTuple):
    """Somebody on the network: a pod, or an address outside (namespace and labels empty)."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    # Ports somebody may listen on; only these are tried.
    ports: tuple[int, ...]


class Edge(NamedTuple):
    """Who may open a connection to whom."""

    source: str
    target: str
    port: int


# Places that are no pods of ours.
_OTHERS = (
    Place("stranger", "elsewhere", {"app": "stranger", **_PART_OF}, (8000, 443)),
    Place("prometheus", "monitoring", {"app": "prometheus"}, (9090,)),
    Place("collector", "monitoring", {"app": "otel-collector"}, (4317,)),
    Place("dns", "kube-system", {"k8s-app": "kube-dns"}, (53,)),
    Place("kube-system", "kube-system", {"k8s-app": "other"}, (53, 443)),
    Place("internet", "", {}, (443, 80, 53)),
)
_PICTURE = (
    Edge("gateway", "tokenizer", 7200),
    Edge("gateway", "compute", 7300),
    Edge("gateway", "redis", 6379),
    Edge("compute", "sampler", 7400),
    *(
        Edge(client, "gateway", port)
        for client in ("stranger", "prometheus", "collector", "dns", "kube-system", "internet")
        for port in (8000, 8001)
    ),
    *(Edge(watcher, stage, 9090) for watcher in ("prometheus", "collector") for stage in STAGES),
    Edge("gateway", "dns", 53),
    Edge("compute", "dns", 53),
)


def picture(manifests: Manifests) -> set[Edge]:
    """The edges there should be: README's picture, DNS, scraping, and what fetching a model and sending traces take."""
    fetching = [
        pod.name for pod in manifests.pods() if any("fetch" in one.get("command", ()) for one in pod.spec.get("initContainers", ()))
    ]
    tracing = [pod.name for pod in manifests.pods() if any(one["name"].endswith("_OTLP_ENDPOINT") for one in pod.main.get("env", ()))]
    return {
        *_PICTURE,
        *(edge for name in fetching for edge in (Edge(name, "dns", 53), Edge(name, "internet", 443))),
        *(edge for name in tracing for edge in (Edge(name, "dns", 53), Edge(name, "collector", 4317))),
    }


def as_in_the_picture(manifests: Manifests) -> list[str]:
    """Exactly the picture's connections are possible."""
    found, wanted = set(open_edges(manifests)), picture(manifests)
    shut = [f"{edge.source} cannot reach {edge.target}:{edge.port}" for edge in sorted(wanted - found)]
    return shut + [f"{edge.source} can reach {edge.target}:{edge.port}" for edge in sorted(found - wanted)]


def open_edges(manifests: Manifests) -> Iterator[Edge]:
    """Every connection that the policies let through, of those with one of our pods at an end."""
    namespace = manifests.of("Namespace")[0]["metadata"]["name"]
    ours = [
        Place(pod.name, namespace, pod.labels, tuple(port["containerPort"] for port in pod.main.get("ports", ())))
        for pod in manifests.pods()
    ]
    policies = [item["spec"] for item in manifests.of("NetworkPolicy")]
    for source in (*ours, *_OTHERS):
        for target in (*ours, *_OTHERS):
            if source.name == target.name or (source in _OTHERS and target in _OTHERS):
                continue
            for port in target.ports:
                leaves = source in _OTHERS or _allows(policies, "Egress", source, target, port, namespace)
                if leaves and (target in _OTHERS or _allows(policies, "Ingress", target, source, port, namespace)):
                    yield Edge(source.name, target.name, port)


def _allows(policies: list[Object], direction: str, pod: Place, peer: Place, port: int, namespace: str) -> bool:
    """Whether a pod's policies let it speak to a peer: all if none is about the direction, else what any of them says."""
    about = [one for one in policies if direction in one["policyTypes"] and _selected(one["podSelector"], pod.labels)]
    rules = [rule for one in about for rule in one.get(direction.lower(), ())]
    return not about or any(_rule_allows(rule, direction, peer, port, namespace) for rule in rules)


def _rule_allows(rule: Object, direction: str, peer: Place, port: int, namespace: str) -> bool:
    ports = rule.get("ports")
    if ports is not None and port not in {one["port"] for one in ports}:
        return False
    peers = rule.get("from" if direction == "Ingress" else "to")
    return peers is None or any(_is_peer(one, peer, namespace) for one in peers)


def _is_peer(selector: Object, peer: Place, namespace: str) -> bool:
    if "ipBlock" in selector:
        # Pods have addresses too, which a block of all addresses must leave out.
        private = "10.0.0.0/8" in selector["ipBlock"].get("except", ()) or ":" in selector["ipBlock"]["cidr"]
        return not peer.namespace or not private
    if "namespaceSelector" in selector:
        if not _selected(selector["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != namespace:
        return False
    return bool(peer.namespace) and _selected(selector.get("podSelector", {}), peer.labels)


def _selected(selector: Object, labels: Mapping[str, str]) -> bool:
    unknown = set(selector) - {"matchLabels", "matchExpressions"}
    assert not unknown, f"the tests do not know the selector {unknown}"
    for one in selector.get("matchExpressions", ()):
        assert one["operator"] == "In", f"the tests do not know the operator {one['operator']}"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
