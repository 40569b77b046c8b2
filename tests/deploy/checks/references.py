"""Of names: whatever one object says of another is true."""

from __future__ import annotations

from collections.abc import Iterator

from tests.deploy.kustomize import Object
from tests.deploy.manifests import STAGES, Manifests, Pod, variables

# What operators make themselves (deploy/k8s/README.md), or cert-manager does.
_OPERATORS_SECRETS = {"triserve-redis", "triserve-api-keys", "triserve-model", "triserve-public-tls"}
_OPERATORS_CONFIG_MAPS = {"triserve-ca"}


def selectors(manifests: Manifests) -> list[str]:
    """Each selector finds the pods of one Deployment, its own."""
    problems = []
    labels = {pod.name: pod.labels for pod in manifests.pods()}
    for item in manifests.of("Deployment"):
        name = item["metadata"]["name"]
        if not item["spec"]["selector"]["matchLabels"].items() <= labels[name].items():
            problems.append(f"Deployment {name} does not select its own pods")
    for item in (*manifests.of("Deployment"), *manifests.of("Service"), *manifests.of("PodDisruptionBudget")):
        selector = item["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        found = [name for name, has in labels.items() if wanted.items() <= has.items()]
        if found != [item["metadata"]["name"]]:
            problems.append(f"{item['kind']} {item['metadata']['name']} selects pods of {found}")
    return problems


def service_ports(manifests: Manifests) -> list[str]:
    """Services lead to ports that their pods name, and have the same number themselves."""
    problems = []
    for service in manifests.of("Service"):
        name = service["metadata"]["name"]
        pod = manifests.pod(name)
        ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
        for port in service["spec"]["ports"]:
            if ports.get(port["targetPort"]) != port["port"]:
                problems.append(f"Service {name}: port {port['port']} leads to {port['targetPort']}, pods have {ports}")
        if name in STAGES[1:] and service["spec"].get("clusterIP") != "None":
            problems.append(f"Service {name} is not headless")
        if "metrics" in {port["targetPort"] for port in service["spec"]["ports"]}:
            problems.append(f"Service {name} shows metrics to whoever may call it")
    return problems


def names(manifests: Manifests) -> list[str]:
    """ConfigMaps, Secrets, claims, accounts and priority classes that pods name exist; mounts have volumes, and volumes are mounted."""
    problems = []
    there = {(item["kind"], item["metadata"]["name"]) for item in manifests.objects}
    there |= {("Secret", one["spec"]["secretName"]) for one in manifests.of("Certificate")}
    there |= {("Secret", name) for name in _OPERATORS_SECRETS} | {("ConfigMap", name) for name in _OPERATORS_CONFIG_MAPS}
    for pod in manifests.pods():
        problems += [f"{pod.name}: there is no {kind} {name}" for kind, name in _named(pod) if (kind, name) not in there]
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", ())}
        if volumes != mounted:
            problems.append(f"{pod.name}: volumes are {sorted(volumes)}, mounted are {sorted(mounted)}")
        problems += [f"{pod.name}: {problem}" for problem in _key_problems(manifests, pod)]
    return problems


def _named(pod: Pod) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.spec["serviceAccountName"]
    yield "PriorityClass", pod.spec["priorityClassName"]
    for volume in pod.spec.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for source in _sources(pod):
        if "configMapKeyRef" in source:
            yield "ConfigMap", source["configMapKeyRef"]["name"]
        if "secretKeyRef" in source:
            yield "Secret", source["secretKeyRef"]["name"]


def _sources(pod: Pod) -> Iterator[Object]:
    return (entry["valueFrom"] for container in pod.containers for entry in container.get("env", ()) if "valueFrom" in entry)


def _key_problems(manifests: Manifests, pod: Pod) -> list[str]:
    """Keys that are named are in the ConfigMap."""
    data = {item["metadata"]["name"]: set(item["data"]) for item in manifests.of("ConfigMap")}
    wanted = [
        (source["configMapKeyRef"]["name"], source["configMapKeyRef"]["key"]) for source in _sources(pod) if "configMapKeyRef" in source
    ]
    for volume in pod.spec.get("volumes", ()):
        wanted += [(volume["configMap"]["name"], item["key"]) for item in volume.get("configMap", {}).get("items", ())]
    return [f"ConfigMap {name} has no {key}" for name, key in wanted if key not in data.get(name, {key})]


def routes(manifests: Manifests) -> list[str]:
    """Routes belong to a listener of the Gateway that takes their kind and host name, and lead to ports of Services; nothing cuts a stream."""
    problems = []
    listeners = {one["name"]: one for item in manifests.of("Gateway") for one in item["spec"]["listeners"]}
    for kind in ("HTTPRoute", "GRPCRoute"):
        for route in manifests.of(kind):
            spec = route["spec"]
            listener = listeners.get(spec["parentRefs"][0]["sectionName"], {})
            if kind not in {one["kind"] for one in listener.get("allowedRoutes", {}).get("kinds", ())}:
                problems.append(f"{kind} belongs to a listener that takes none")
            if spec["hostnames"] != [listener.get("hostname")]:
                problems.append(f"{kind} is for {spec['hostnames']}, its listener for {listener.get('hostname')}")
            for rule in spec["rules"]:
                problems += [problem for backend in rule["backendRefs"] for problem in _backend_problems(manifests, kind, backend)]
                if kind == "HTTPRoute" and rule.get("timeouts") != {"request": "0s", "backendRequest": "0s"}:
                    problems.append(f"{kind} cuts streams: {rule.get('timeouts')}")
    hosts = [one["hostname"] for one in listeners.values()]
    return problems + [f"{host} is for HTTP and gRPC, which the Gateway API forbids" for host in set(hosts) if hosts.count(host) > 1]


def _backend_problems(manifests: Manifests, kind: str, backend: Object) -> list[str]:
    found = [one for one in manifests.of("Service") if one["metadata"]["name"] == backend["name"]]
    wanted = {"HTTPRoute": "http", "GRPCRoute": "grpc"}[kind]
    ports = {port["port"]: port["name"] for one in found for port in one["spec"]["ports"]}
    return [] if ports.get(backend["port"]) == wanted else [f"{kind} leads to {backend['name']}:{backend['port']}"]


def certificates(manifests: Manifests) -> list[str]:
    """With TLS: each stage requires it and mounts a certificate that has its Service's name, from an issuer that is there."""
    problems = []
    issuers = {one["metadata"]["name"] for one in manifests.of("Issuer")}
    certificates = {one["spec"]["secretName"]: one["spec"] for one in manifests.of("Certificate")}
    problems += [f"{secret} is of an unknown issuer" for secret, one in certificates.items() if one["issuerRef"]["name"] not in issuers]
    for pod in manifests.pods():
        if not certificates or pod.name not in STAGES:
            continue
        prefix, values = pod.name.upper(), variables(pod.main)
        files = {f"{prefix}_TLS_CERT_FILE": "tls.crt", f"{prefix}_TLS_KEY_FILE": "tls.key", f"{prefix}_TLS_CA_FILE": "ca.crt"}
        folders = {values.get(name, "").removesuffix(f"/{file}") for name, file in files.items()}
        if values.get(f"{prefix}_REQUIRE_TLS") != "true" or len(folders) != 1:
            problems.append(f"{pod.name} would serve without TLS")
            continue
        volume = {mount["mountPath"]: mount["name"] for mount in pod.main["volumeMounts"]}.get(folders.pop())
        secrets = {one["name"]: one["secret"]["secretName"] for one in pod.spec["volumes"] if "secret" in one}
        if pod.name not in certificates.get(secrets.get(volume or "", ""), {}).get("dnsNames", ()):
            problems.append(f"{pod.name} has a certificate without its name")
    return problems
