"""Of pods: what they may do, what they may use, how they end and are replaced."""

from __future__ import annotations

import re

from tests.deploy.checks.variables import SETTINGS, drain_setting
from tests.deploy.kustomize import Object
from tests.deploy.manifests import Manifests, variables

# Pod Security Standards, restricted: all kinds of volumes it allows.
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
# From the end of the drain to that of the process.
_TO_LEAVE_S = 15
_UID = 10001


def restricted(manifests: Manifests) -> list[str]:
    """Pod Security Standard `restricted`, and a root file system that is read-only."""
    problems = []
    enforced = manifests.of("Namespace")[0]["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
    if enforced != "restricted":
        problems.append(f"the namespace enforces {enforced}")
    for pod in manifests.pods():
        context = pod.spec.get("securityContext", {})
        for field, wanted in (
            ("runAsNonRoot", True),
            ("runAsUser", _UID),
            ("runAsGroup", _UID),
            ("seccompProfile", {"type": "RuntimeDefault"}),
        ):
            if context.get(field) != wanted:
                problems.append(f"{pod.name}: {field} is {context.get(field)}, not {wanted}")
        problems += [f"{pod.name} has {field}" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(field)]
        kinds = {kind for volume in pod.spec.get("volumes", ()) for kind in volume if kind != "name"}
        problems += [f"{pod.name} has a volume of kind {kind}" for kind in sorted(kinds - _VOLUMES)]
        for container in pod.containers:
            problems += [f"{pod.name}/{container['name']}: {problem}" for problem in _container_problems(container)]
    return problems


def _container_problems(container: Object) -> list[str]:
    context = container.get("securityContext", {})
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    problems = [f"{name} is {context.get(name)}, not {value}" for name, value in wanted.items() if context.get(name) != value]
    problems += [f"{name} is set" for name in ("runAsUser", "runAsNonRoot", "privileged", "seccompProfile", "procMount") if name in context]
    return problems + ["it takes a port of the node" for port in container.get("ports", ()) if "hostPort" in port]


def resources(manifests: Manifests) -> list[str]:
    """Every container asks for CPU and memory and is limited in both; a GPU is asked for by its limit."""
    problems = []
    for pod in manifests.pods():
        for container in pod.containers:
            given = container.get("resources", {})
            requests, limits = given.get("requests", {}), given.get("limits", {})
            where = f"{pod.name}/{container['name']}"
            problems += [
                f"{where}: no {kind} of {name}"
                for kind in ("requests", "limits")
                for name in ("cpu", "memory")
                if name not in given.get(kind, {})
            ]
            problems += [
                f"{where}: requests {requests[name]} {name}, limited to {limits[name]}"
                for name in requests
                if name in limits and amount(requests[name]) > amount(limits[name])
            ]
    return problems


def amount(text: str) -> float:
    """A quantity of Kubernetes, such as 250m or 1Gi, in units or bytes."""
    match = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", str(text))
    assert match is not None, f"{text!r} is no quantity that the tests know"
    return float(match[1]) * _UNITS[match[2] or ""]


def grace(manifests: Manifests) -> list[str]:
    """A pod that is told to leave can wait for peers to hear of it, drain, and end, before it is killed."""
    problems = []
    for pod in manifests.pods():
        if pod.name not in SETTINGS:
            continue
        sleep = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if sleep < 5:
            problems.append(f"{pod.name} leaves after {sleep} s, before its peers have heard of it")
        name, default = drain_setting(pod.name)
        drain = float(variables(pod.main).get(name, default))
        least = sleep + drain + _TO_LEAVE_S
        if pod.spec.get("terminationGracePeriodSeconds", 30) < least:
            problems.append(f"{pod.name} is killed after {pod.spec.get('terminationGracePeriodSeconds', 30)} s and needs {least:g}")
        if pod.name != "tokenizer" and drain < 600:
            problems.append(f"{pod.name} cuts streams after {drain:g} s: {name}")
    return problems


def tokens(manifests: Manifests) -> list[str]:
    """Every Deployment has a ServiceAccount of its own, and no pod gets its token, or variables of other Services."""
    problems = []
    for pod in manifests.pods():
        account = pod.spec.get("serviceAccountName")
        if account != pod.name:
            problems.append(f"{pod.name} has the service account {account}")
        if pod.spec.get("automountServiceAccountToken") is not False:
            problems.append(f"{pod.name} gets a token")
        if pod.spec.get("enableServiceLinks") is not False:
            problems.append(f"{pod.name} gets a variable for every Service, which may read like a setting")
    accounts = manifests.of("ServiceAccount")
    return problems + [
        f"account {one['metadata']['name']} gives tokens" for one in accounts if one.get("automountServiceAccountToken") is not False
    ]


def rollout(manifests: Manifests) -> list[str]:
    """Stages are replaced one by one, the new pod first."""
    problems = []
    for item in manifests.of("Deployment"):
        name, strategy = item["metadata"]["name"], item["spec"].get("strategy", {})
        if name in SETTINGS and strategy.get("rollingUpdate") != {"maxUnavailable": 0, "maxSurge": 1}:
            problems.append(f"{name} is rolled out with {strategy}")
        if name not in SETTINGS and strategy.get("type") != "Recreate":
            problems.append(f"{name} would have two stores behind one name")
        if not item["spec"]["template"]["spec"].get("priorityClassName"):
            problems.append(f"{name} has no priority class")
    return problems


def spread(manifests: Manifests) -> list[str]:
    """Stages lie on different nodes and zones where they can; nodes can be drained, of pods too that are not ready."""
    problems = []
    for pod in manifests.pods():
        constraints = {one["topologyKey"]: one for one in pod.spec.get("topologySpreadConstraints", ())}
        if pod.name in SETTINGS and set(constraints) != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
            problems.append(f"{pod.name} is spread over {sorted(constraints)}")
        for key, one in constraints.items():
            if not one["labelSelector"]["matchLabels"].items() <= pod.labels.items():
                problems.append(f"{pod.name}: the spread over {key} counts other pods")
        budgets = [
            one for one in manifests.of("PodDisruptionBudget") if one["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()
        ]
        if len(budgets) != 1:
            problems.append(f"{pod.name} has {len(budgets)} disruption budgets")
        problems += [
            f"the budget of {pod.name} keeps nodes from being drained: {one['spec']}"
            for one in budgets
            if one["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow" or one["spec"].get("maxUnavailable") != 1
        ]
    return problems
