"""Pods that are broken in one place, and what the check says that finds it."""

from __future__ import annotations

from tests.deploy.breaking import Broken, container, pod, put, spec, variable, without

RESTRICTED = "pods may do nothing that serving does not need"

BROKEN_PODS = (
    Broken(RESTRICTED, "cpu", lambda m: put(pod(m, "gateway")["securityContext"], "runAsNonRoot", False), "runAsNonRoot is False"),
    Broken(RESTRICTED, "cpu", lambda m: put(pod(m, "gateway")["securityContext"], "runAsUser", 0), "runAsUser is 0"),
    Broken(RESTRICTED, "cpu", lambda m: pod(m, "redis")["securityContext"].pop("seccompProfile"), "seccompProfile is None"),
    Broken(
        RESTRICTED,
        "cpu",
        lambda m: put(container(m, "compute")["securityContext"], "readOnlyRootFilesystem", False),
        "readOnlyRootFilesystem",
    ),
    Broken(RESTRICTED, "cpu", lambda m: put(container(m, "compute")["securityContext"], "capabilities", {"drop": []}), "capabilities"),
    Broken(RESTRICTED, "cpu", lambda m: pod(m, "sampler")["initContainers"][0].pop("securityContext"), "allowPrivilegeEscalation is None"),
    Broken(RESTRICTED, "cpu", lambda m: pod(m, "sampler")["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "kind hostPath"),
    Broken(RESTRICTED, "cpu", lambda m: put(pod(m, "sampler"), "hostNetwork", True), "hostNetwork"),
    Broken(RESTRICTED, "cpu", lambda m: put(container(m, "gateway")["ports"][0], "hostPort", 80), "port of the node"),
    Broken(
        RESTRICTED,
        "cpu",
        lambda m: m.of("Namespace")[0]["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        "enforces None",
    ),
    Broken(
        "requests are at most limits", "gpu", lambda m: container(m, "compute")["resources"]["limits"].pop("memory"), "no limits of memory"
    ),
    Broken(
        "requests are at most limits",
        "gpu",
        lambda m: put(container(m, "redis")["resources"]["requests"], "cpu", "1500m"),
        "requests 1500m cpu",
    ),
    Broken("requests are at most limits", "cpu", lambda m: pod(m, "compute")["initContainers"][0].pop("resources"), "no requests of cpu"),
    Broken(
        "pods have time to drain",
        "gpu",
        lambda m: put(pod(m, "compute"), "terminationGracePeriodSeconds", 610),
        "killed after 610 s and needs 625",
    ),
    Broken("pods have time to drain", "gpu", lambda m: pod(m, "tokenizer").pop("terminationGracePeriodSeconds"), "killed after 30 s"),
    Broken("pods have time to drain", "gpu", lambda m: container(m, "sampler").pop("lifecycle"), "leaves after 0 s"),
    Broken("pods have time to drain", "gpu", lambda m: variable(m, "gateway", "GATEWAY_DRAIN_TIMEOUT_S", None), "cuts streams after 20 s"),
    Broken(
        "nobody reads the cluster's API",
        "cpu",
        lambda m: put(pod(m, "redis"), "automountServiceAccountToken", True),
        "redis gets a token",
    ),
    Broken("nobody reads the cluster's API", "cpu", lambda m: pod(m, "gateway").pop("enableServiceLinks"), "variable for every Service"),
    Broken("nobody reads the cluster's API", "cpu", lambda m: put(pod(m, "gateway"), "serviceAccountName", "default"), "account default"),
    Broken(
        "nobody reads the cluster's API",
        "cpu",
        lambda m: m.named("ServiceAccount", "compute").pop("automountServiceAccountToken"),
        "gives tokens",
    ),
    Broken(
        "a rollout takes nobody away first",
        "cpu",
        lambda m: put(spec(m, "Deployment", "compute")["strategy"]["rollingUpdate"], "maxUnavailable", 1),
        "compute is rolled out",
    ),
    Broken("a rollout takes nobody away first", "cpu", lambda m: spec(m, "Deployment", "redis").pop("strategy"), "two stores"),
    Broken("a rollout takes nobody away first", "cpu", lambda m: pod(m, "redis").pop("priorityClassName"), "no priority class"),
    Broken(
        "pods are spread, and budgets let nodes be drained",
        "cpu",
        lambda m: spec(m, "PodDisruptionBudget", "compute").pop("unhealthyPodEvictionPolicy"),
        "keeps nodes from being drained",
    ),
    Broken(
        "pods are spread, and budgets let nodes be drained",
        "cpu",
        lambda m: without(m, "PodDisruptionBudget", "compute"),
        "0 disruption budgets",
    ),
    Broken(
        "pods are spread, and budgets let nodes be drained",
        "cpu",
        lambda m: pod(m, "gateway")["topologySpreadConstraints"].pop(),
        "is spread over",
    ),
    Broken(
        "pods are spread, and budgets let nodes be drained",
        "cpu",
        lambda m: put(
            pod(m, "gateway")["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"], "app.kubernetes.io/name", "compute"
        ),
        "counts other pods",
    ),
    Broken(
        "probes ask what tells alive from ready",
        "cpu",
        lambda m: container(m, "tokenizer")["readinessProbe"]["grpc"].pop("service"),
        "readinessProbe",
    ),
    Broken(
        "probes ask what tells alive from ready",
        "cpu",
        lambda m: put(container(m, "compute")["livenessProbe"]["grpc"], "service", "triserve.v1.ComputeService"),
        "livenessProbe",
    ),
    Broken(
        "probes ask what tells alive from ready",
        "gpu",
        lambda m: put(container(m, "compute"), "startupProbe", {"grpc": {"port": 7300}, "timeoutSeconds": 2}),
        "startupProbe asks",
    ),
    Broken(
        "probes ask what tells alive from ready", "cpu", lambda m: container(m, "sampler").pop("livenessProbe"), "livenessProbe asks {}"
    ),
    Broken("ports are the ones listened on", "cpu", lambda m: variable(m, "sampler", "SAMPLER_LISTEN", "127.0.0.1:7400"), "listens on"),
    Broken(
        "ports are the ones listened on", "cpu", lambda m: put(container(m, "gateway")["ports"][0], "containerPort", 8080), "listens on"
    ),
    Broken(
        "ports are the ones listened on",
        "cpu",
        lambda m: put(container(m, "gateway"), "command", ["python", "-m", "gateways"]),
        "gateway runs",
    ),
    Broken(
        "peers are found by names that exist",
        "cpu",
        lambda m: variable(m, "gateway", "GATEWAY_COMPUTES", "dns:///computes:7300"),
        "no Service",
    ),
    Broken(
        "peers are found by names that exist",
        "cpu",
        lambda m: variable(m, "compute", "COMPUTE_SAMPLERS", "dns:///sampler:7300"),
        "no port 7300",
    ),
    Broken("peers are found by names that exist", "cpu", lambda m: spec(m, "Service", "sampler").pop("clusterIP"), "one address for all"),
    Broken(
        "init containers run commands that exist",
        "cpu",
        lambda m: pod(m, "compute")["initContainers"][0]["args"].append("--no-such"),
        "refuses",
    ),
    Broken(
        "init containers run commands that exist",
        "cpu",
        lambda m: variable(m, "compute", "COMPUTE_MODEL", "/models"),
        "looked for in /models",
    ),
    Broken("init containers run commands that exist", "cpu", lambda m: pod(m, "tokenizer").pop("initContainers"), "0 init containers"),
    Broken(
        "init containers run commands that exist",
        "cpu",
        lambda m: [volume["emptyDir"].pop("sizeLimit") for volume in pod(m, "compute")["volumes"] if "emptyDir" in volume],
        "fill the node's disk",
    ),
)
