"""What lies around pods, broken in one place, and what the check says that finds it."""

from __future__ import annotations

from tests.deploy.breaking import Broken, container, pod, put, rule, spec, variable, without
from tests.deploy.manifests import load

BROKEN_OBJECTS = (
    Broken(
        "selectors find pods",
        "cpu",
        lambda m: put(spec(m, "Service", "compute")["selector"], "app.kubernetes.io/name", "computes"),
        "selects pods of []",
    ),
    Broken(
        "selectors find pods",
        "cpu",
        lambda m: put(spec(m, "Deployment", "sampler")["selector"]["matchLabels"], "tier", "x"),
        "does not select its own pods",
    ),
    Broken(
        "selectors find pods",
        "cpu",
        lambda m: spec(m, "PodDisruptionBudget", "redis")["selector"]["matchLabels"].pop("app.kubernetes.io/name"),
        "selects",
    ),
    Broken("services lead to ports", "cpu", lambda m: put(spec(m, "Service", "gateway")["ports"][0], "targetPort", "web"), "leads to web"),
    Broken("services lead to ports", "cpu", lambda m: put(spec(m, "Service", "compute")["ports"][0], "port", 7301), "port 7301"),
    Broken("services lead to ports", "cpu", lambda m: put(spec(m, "Service", "compute"), "clusterIP", "10.0.0.1"), "not headless"),
    Broken(
        "services lead to ports",
        "cpu",
        lambda m: spec(m, "Service", "compute")["ports"].append({"name": "metrics", "port": 9090, "targetPort": "metrics"}),
        "shows metrics",
    ),
    Broken("what is mounted and named exists", "cpu", lambda m: without(m, "ServiceAccount", "redis"), "no ServiceAccount redis"),
    Broken("what is mounted and named exists", "gpu", lambda m: without(m, "Certificate", "compute"), "no Secret compute-tls"),
    Broken(
        "what is mounted and named exists", "gpu", lambda m: without(m, "PersistentVolumeClaim", "model"), "no PersistentVolumeClaim model"
    ),
    Broken("what is mounted and named exists", "cpu", lambda m: without(m, "PriorityClass", "triserve-cache"), "no PriorityClass"),
    Broken("what is mounted and named exists", "cpu", lambda m: pod(m, "gateway")["volumes"].pop(), "volumes are"),
    Broken(
        "what is mounted and named exists", "cpu", lambda m: [one["data"].pop("folder", None) for one in m.of("ConfigMap")], "has no folder"
    ),
    Broken(
        "routes lead to services",
        "gpu",
        lambda m: put(spec(m, "HTTPRoute", "triserve")["rules"][0], "timeouts", {"request": "30s"}),
        "cuts streams",
    ),
    Broken(
        "routes lead to services",
        "gpu",
        lambda m: put(spec(m, "GRPCRoute", "triserve")["rules"][0]["backendRefs"][0], "port", 8000),
        "GRPCRoute leads to gateway:8000",
    ),
    Broken(
        "routes lead to services",
        "gpu",
        lambda m: put(spec(m, "HTTPRoute", "triserve")["parentRefs"][0], "sectionName", "grpc"),
        "takes none",
    ),
    Broken(
        "routes lead to services",
        "gpu",
        lambda m: put(spec(m, "HTTPRoute", "triserve"), "hostnames", ["x.example.com"]),
        "is for ['x.example.com']",
    ),
    Broken(
        "routes lead to services",
        "gpu",
        lambda m: put(spec(m, "Gateway", "triserve")["listeners"][1], "hostname", "llm.example.com"),
        "forbids",
    ),
    Broken("certificates are for who asks for them", "gpu", lambda m: variable(m, "compute", "COMPUTE_REQUIRE_TLS", None), "without TLS"),
    Broken(
        "certificates are for who asks for them",
        "gpu",
        lambda m: variable(m, "compute", "COMPUTE_TLS_KEY_FILE", "/etc/other/tls.key"),
        "without TLS",
    ),
    Broken(
        "certificates are for who asks for them",
        "gpu",
        lambda m: spec(m, "Certificate", "sampler")["dnsNames"].remove("sampler"),
        "without its name",
    ),
    Broken("certificates are for who asks for them", "gpu", lambda m: without(m, "Issuer", "triserve-ca"), "unknown issuer"),
    Broken("variables are settings", "cpu", lambda m: variable(m, "gateway", "GATEWAY_TOKENISERS", "x"), "no setting GATEWAY_TOKENISERS"),
    Broken("variables are settings", "cpu", lambda m: variable(m, "sampler", "COMPUTE_LISTEN", "0.0.0.0:1"), "no setting COMPUTE_LISTEN"),
    Broken("variables are settings", "cpu", lambda m: variable(m, "sampler", "SAMPLER_MODEL", None), "needs SAMPLER_MODEL"),
    Broken(
        "variables are settings", "cpu", lambda m: container(m, "compute")["env"].append({"name": "COMPUTE_NAME", "value": "x"}), "twice"
    ),
    Broken(
        "variables have values in range",
        "cpu",
        lambda m: variable(m, "gateway", "GATEWAY_DRAIN_TIMEOUT_S", "7200"),
        "less than or equal to 3600",
    ),
    Broken("variables have values in range", "cpu", lambda m: variable(m, "compute", "COMPUTE_KV_CACHE_BYTES", "8Gi"), "valid integer"),
    Broken("variables have values in range", "cpu", lambda m: variable(m, "compute", "COMPUTE_DEVICE", "gpu"), "COMPUTE_DEVICE=gpu"),
    Broken(
        "only the picture's edges are open", "cpu", lambda m: without(m, "NetworkPolicy", "default-deny"), "redis can reach internet:443"
    ),
    Broken(
        "only the picture's edges are open", "cpu", lambda m: without(m, "NetworkPolicy", "sampler"), "compute cannot reach sampler:7400"
    ),
    Broken("only the picture's edges are open", "cpu", lambda m: without(m, "NetworkPolicy", "dns"), "gateway cannot reach dns:53"),
    Broken(
        "only the picture's edges are open", "cpu", lambda m: without(m, "NetworkPolicy", "scrape"), "prometheus cannot reach gateway:9090"
    ),
    Broken(
        "only the picture's edges are open",
        "cpu",
        lambda m: without(m, "NetworkPolicy", "model-fetch"),
        "compute cannot reach internet:443",
    ),
    Broken(
        "only the picture's edges are open",
        "model-token",
        lambda m: without(m, "NetworkPolicy", "traces"),
        "sampler cannot reach collector:4317",
    ),
    Broken(
        "only the picture's edges are open",
        "cpu",
        lambda m: spec(m, "NetworkPolicy", "compute")["ingress"][0].pop("from"),
        "stranger can reach compute:7300",
    ),
    Broken(
        "only the picture's edges are open",
        "cpu",
        lambda m: put(spec(m, "NetworkPolicy", "gateway")["egress"][0]["ports"][0], "port", 7400),
        "gateway cannot reach tokenizer:7200",
    ),
    Broken(
        "only the picture's edges are open",
        "cpu",
        lambda m: spec(m, "NetworkPolicy", "dns")["egress"][0].pop("to"),
        "gateway can reach internet:53",
    ),
    Broken(
        "what scales exists, once",
        "gpu",
        lambda m: put(spec(m, "ScaledObject", "compute")["scaleTargetRef"], "name", "computes"),
        "ScaledObject scales",
    ),
    Broken(
        "what scales exists, once",
        "gpu",
        lambda m: m.named("ScaledObject", "gateway").update(load("cpu").copied().named("HorizontalPodAutoscaler", "sampler")),
        "sampler has 2 autoscalers",
    ),
    Broken(
        "pods go slowly and counts are the autoscaler's",
        "cpu",
        lambda m: put(spec(m, "Deployment", "sampler"), "replicas", 2),
        "would undo",
    ),
    Broken(
        "pods go slowly and counts are the autoscaler's",
        "cpu",
        lambda m: put(spec(m, "HorizontalPodAutoscaler", "gateway")["behavior"]["scaleDown"], "stabilizationWindowSeconds", 60),
        "gateway shrinks after 60 s",
    ),
    Broken(
        "pods go slowly and counts are the autoscaler's",
        "cpu",
        lambda m: spec(m, "HorizontalPodAutoscaler", "gateway").pop("behavior"),
        "shrinks by []",
    ),
    Broken(
        "pods go slowly and counts are the autoscaler's",
        "cpu",
        lambda m: put(spec(m, "HorizontalPodAutoscaler", "gateway"), "minReplicas", 99),
        "99",
    ),
    Broken(
        "pods go slowly and counts are the autoscaler's",
        "gpu",
        lambda m: spec(m, "ScaledObject", "compute").pop("fallback"),
        "falls back to {}",
    ),
    Broken(
        "pods go slowly and counts are the autoscaler's",
        "gpu",
        lambda m: put(spec(m, "ScaledObject", "compute")["triggers"][0], "type", "cpu"),
        "has no fallback",
    ),
    Broken(
        "queries ask for metrics that are told",
        "gpu",
        lambda m: put(rule(m, "TriserveComputeBehind"), "expr", 'min(triserve_compute_queued_seconds{job="compute"}) > 1'),
        "compute does not tell triserve_compute_queued_seconds",
    ),
    Broken(
        "queries ask for metrics that are told",
        "gpu",
        lambda m: put(spec(m, "ScaledObject", "sampler")["triggers"][0]["metadata"], "query", "sum(triserve_sampler_rows_total)"),
        "without a job",
    ),
    Broken("images are pinned", "cpu", lambda m: put(container(m, "gateway"), "image", "triserve/gateway"), "another one tomorrow"),
    Broken(
        "images are pinned",
        "cpu",
        lambda m: put(container(m, "gateway"), "image", "registry:5000/gateway:latest"),
        "another one tomorrow",
    ),
    Broken(
        "no secret is in the manifests",
        "cpu",
        lambda m: m.named("ConfigMap", m.of("ConfigMap")[0]["metadata"]["name"]).update(kind="Secret"),
        "a Secret",
    ),
    Broken(
        "no secret is in the manifests", "cpu", lambda m: variable(m, "gateway", "GATEWAY_CACHE_SECRET", "x" * 16), "GATEWAY_CACHE_SECRET"
    ),
    Broken(
        "no secret is in the manifests",
        "cpu",
        lambda m: variable(m, "gateway", "GATEWAY_REDIS_URL", "redis://a:b@redis:6379"),
        "GATEWAY_REDIS_URL",
    ),
    Broken(
        "no secret is in the manifests",
        "cpu",
        lambda m: put(m.of("ConfigMap")[0]["data"], "x", "-----BEGIN PRIVATE KEY-----"),
        "has a secret",
    ),
)
