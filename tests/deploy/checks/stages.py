"""Of the four stages: their probes, ports, peers and how they come by a model."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator

from gateway.chat_service import SERVICE_NAME as CHAT_SERVICE
from gateway.cli import fetch
from tests.deploy.kustomize import Object
from tests.deploy.manifests import STAGES, Manifests, Pod, variables
from triserve.v1 import compute_pb2, sampler_pb2, tokenizer_pb2

READY = {
    "gateway": CHAT_SERVICE,
    "tokenizer": tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name,
    "compute": compute_pb2.DESCRIPTOR.services_by_name["ComputeService"].full_name,
    "sampler": sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].full_name,
}
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_LISTENS = {
    "gateway": {"http": "GATEWAY_LISTEN", "grpc": "GATEWAY_GRPC_LISTEN", "metrics": "GATEWAY_METRICS_LISTEN"},
    **{name: {"grpc": f"{name.upper()}_LISTEN", "metrics": f"{name.upper()}_METRICS_LISTEN"} for name in STAGES[1:]},
}
_NAME = re.compile(r"dns:///([\w.-]+):(\d+)")
_PEERS = {"gateway": ("GATEWAY_TOKENIZERS", "GATEWAY_COMPUTES"), "compute": ("COMPUTE_SAMPLERS",)}
_MODULES = {"gateway": "gateway", **{name: f"{name}_svc" for name in STAGES[1:]}}


def _stages(manifests: Manifests) -> Iterator[Pod]:
    return (pod for pod in manifests.pods() if pod.name in STAGES)


def probes(manifests: Manifests) -> list[str]:
    """Started and alive is the empty service, ready the stage's own; with TLS, which the kubelet's gRPC does not speak, HTTP says the same."""
    problems = []
    for pod in _stages(manifests):
        ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
        has_tls = f"{pod.name.upper()}_TLS_CERT_FILE" in variables(pod.main)
        for name in _PROBES:
            probe = pod.main.get(name, {})
            ready = name == "readinessProbe"
            grpc = {"port": ports["grpc"], **({"service": READY[pod.name]} if ready else {})}
            wanted = {"httpGet": {"path": "/readyz" if ready else "/livez", "port": "metrics"}} if has_tls else {"grpc": grpc}
            handler = {key: value for key, value in probe.items() if key in ("grpc", "httpGet", "exec", "tcpSocket")}
            if handler != wanted:
                problems.append(f"{pod.name}: {name} asks {handler}, not {wanted}")
            if probe.get("timeoutSeconds", 1) < 2:
                problems.append(f"{pod.name}: {name} gives a busy machine a second")
    return problems


def ports(manifests: Manifests) -> list[str]:
    """A container's ports are the ones that its variables have it listen on, on every address of the pod, and its command is the stage's."""
    problems = []
    for pod in _stages(manifests):
        values = variables(pod.main)
        listens = {name: values.get(variable) for name, variable in _LISTENS[pod.name].items()}
        declared = {port["name"]: f"0.0.0.0:{port['containerPort']}" for port in pod.main["ports"]}
        if listens != declared:
            problems.append(f"{pod.name} listens on {listens}, its ports are {declared}")
        if pod.main.get("command") != ["python", "-m", _MODULES[pod.name]] or "args" in pod.main:
            problems.append(f"{pod.name} runs {pod.main.get('command')} {pod.main.get('args', '')}")
    return problems


def peers(manifests: Manifests) -> list[str]:
    """Names of peers are those of headless Services, with the ports that these have."""
    problems = []
    services = {one["metadata"]["name"]: one["spec"] for one in manifests.of("Service")}
    for stage, names in _PEERS.items():
        values = variables(manifests.pod(stage).main)
        for name in names:
            match = _NAME.fullmatch(values.get(name, ""))
            service = services.get(match[1]) if match else None
            if match is None or service is None:
                problems.append(f"{name}={values.get(name)} is no Service")
            elif service.get("clusterIP") != "None":
                problems.append(f"{name}: {match[1]} has one address for all its pods")
            elif int(match[2]) not in {port["port"] for port in service["ports"]}:
                problems.append(f"{name}: {match[1]} has no port {match[2]}")
    return problems


def model_commands(manifests: Manifests) -> list[str]:
    """A stage that loads a model has it put into the volume it reads, by a command that there is, or mounts an image of it."""
    problems = []
    for pod in _stages(manifests):
        volume: Object = next((one for one in pod.spec["volumes"] if one["name"] == "model"), {})
        before = [one for one in pod.spec.get("initContainers", ()) if one["name"] == "model"]
        if pod.name == "gateway" or "image" in volume:
            problems += [f"{pod.name} needs no init container" for _ in before]
        elif len(before) != 1:
            problems.append(f"{pod.name} has {len(before)} init containers that bring a model")
        else:
            problems += [
                f"{pod.name}: {problem}" for problem in _init_problems(before[0], variables(pod.main)[f"{pod.name.upper()}_MODEL"])
            ]
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                problems.append(f"{pod.name}: a model may fill the node's disk")
    return problems


def _init_problems(container: Object, model: str) -> list[str]:
    if container["command"][0] == "cp":
        return [] if model == "/model" else [f"the model is put into /model and looked for in {model}"]
    if container["command"] != ["python", "-m", "gateway.cli", "fetch"]:
        return [f"{container['command']} is no command that brings a model"]
    parser, said = argparse.ArgumentParser(exit_on_error=False), io.StringIO()
    fetch.add_arguments(parser)
    words = [word.replace("$(MODEL_SOURCE)", "org/name@main") for word in container["args"]]
    try:
        with contextlib.redirect_stderr(said):
            parsed = parser.parse_args(words)
    except (argparse.ArgumentError, argparse.ArgumentTypeError, SystemExit) as error:
        return [f"triserve fetch refuses {words}: {error} {said.getvalue()}"]
    return [] if str(parsed.folder) == model else [f"the model is put into {parsed.folder} and looked for in {model}"]
