"""The parts of a pipeline on one machine: what to start, with which settings, in which order to stop it. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.cli.local.hang_watch import Answers, HangLimits
from gateway.cli.local.part import Part
from gateway.cli.local.ports import HOST
from gateway.cli.local.readiness import grpc_answers, http_answers, redis_answers, until_grpc_ready, until_http_ready, until_redis_ready
from gateway.cli.local.redis_server import redis_command
from gateway.cli.model_files.model_folder import ModelFolder

# A client's request is ended with an error by the stage before the one that stops: the gateway goes first.
_GATEWAY, _COMPUTE, _TOKENIZER_AND_SAMPLER, _REDIS = range(4)
_TLS_FILE = re.compile(r"(GATEWAY|TOKENIZER|COMPUTE|SAMPLER)_(HTTP_)?TLS_(CERT|KEY|CA)_FILE")
# Less than its share of the time in which all parts have to end.
_SEMANTIC_TIMEOUT_MS = "250"
_DRAIN_S = "0.5"
# The longest that can be set.
_NEVER_S = "86400"


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What to run.

    Raises:
        ValueError: there is to be less than one of some part.
    """

    model: ModelFolder
    port: int
    grpc_port: int
    num_tokenizers: int
    num_samplers: int
    num_computes: int
    # "float32" or "bfloat16", and most tokens of prompt and answer together; None = the compute stage decides.
    dtype: str | None
    max_model_len: int | None
    # Whether to remember answers at all.
    cache: bool
    # The Redis server to run; None = answers are remembered in the gateway's memory alone.
    redis_program: str | None
    # Key that names and encrypts what the prompt cache keeps.
    cache_secret: str
    # Cores for the compute replicas together.
    num_cores: int
    # A folder of this pipeline's own, for its sockets.
    runtime: Path
    # How long a part, or the engine, may keep silent before it is replaced; None = for ever.
    hang: HangLimits | None = None
    # The gateway's embedder for a semantic cache; None = there is none.
    embedder: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_tokenizers", "num_samplers", "num_computes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.removeprefix('num_')} is {getattr(self, name)}, the least is 1")

    @property
    def num_internal_ports(self) -> int:
        """Ports needed beside the two of the gateway."""
        return self.num_tokenizers + self.num_samplers + self.num_computes


def plan_parts(config: PipelineConfig, internal_ports: Sequence[int], environment: Mapping[str, str]) -> list[Part]:
    """The parts, in the order in which they are shown.

    Args:
        config: what to run.
        internal_ports: free ones, `config.num_internal_ports` of them.
        environment: what every part inherits. What the plan needs to hold together is set over it; what is only a preference, such as
            the number of threads, is not.

    Raises:
        ValueError: the environment has files for TLS: the parts speak plain text, and on loopback alone.
    """
    if given := sorted(name for name in environment if _TLS_FILE.fullmatch(name)):
        raise ValueError(
            f"its parts speak plain text, on loopback alone, and {', '.join(given)} would change that: unset it, or start services alone"
        )
    inherited = {**environment, "PYTHONUNBUFFERED": "1"}
    addresses = [f"{HOST}:{port}" for port in internal_ports]
    tokenizers = addresses[: config.num_tokenizers]
    samplers = addresses[config.num_tokenizers : config.num_tokenizers + config.num_samplers]
    computes = addresses[config.num_tokenizers + config.num_samplers :]
    parts = [_tokenizer(config, inherited, name, address) for name, address in _named("tokenizer", tokenizers)]
    parts += [_sampler(config, inherited, name, address) for name, address in _named("sampler", samplers)]
    parts += [_compute(config, inherited, name, address, samplers) for name, address in _named("compute", computes)]
    if config.redis_program is not None:
        parts.append(_redis(config, inherited, config.redis_program))
    return [*parts, _gateway(config, inherited, tokenizers, computes)]


def _named(kind: str, addresses: Sequence[str]) -> list[tuple[str, str]]:
    return [(kind if len(addresses) == 1 else f"{kind}-{index}", address) for index, address in enumerate(addresses)]


def _part(
    name: str,
    command: tuple[str, ...],
    inherited: Mapping[str, str],
    *,
    settings: Mapping[str, str],
    defaults: Mapping[str, str],
    wait_ready: Callable[[], Awaitable[None]],
    answers: Answers,
    stop_rank: int,
) -> Part:
    """A part whose settings win over inherited variables, which win over its defaults."""
    environment = {**defaults, **inherited, **settings}
    return Part(name=name, command=command, environment=environment, wait_ready=wait_ready, answers=answers, stop_rank=stop_rank)


def _module(name: str) -> tuple[str, ...]:
    # -P: a folder of the same name where the command was called is not taken for the stage.
    return (sys.executable, "-P", "-m", name)


def _tokenizer(config: PipelineConfig, inherited: Mapping[str, str], name: str, address: str) -> Part:
    return _part(
        name,
        _module("tokenizer_svc"),
        inherited,
        settings={"TOKENIZER_LISTEN": address, "TOKENIZER_MODEL": str(config.model.folder)},
        defaults={"TOKENIZER_DRAIN_TIMEOUT_S": _DRAIN_S},
        wait_ready=partial(until_grpc_ready, address, "triserve.v1.TokenizerService"),
        # It is ready from the start, and stops being so when an encoding never ends: no thread of it can be ended otherwise.
        answers=partial(grpc_answers, address, "triserve.v1.TokenizerService"),
        stop_rank=_TOKENIZER_AND_SAMPLER,
    )


def _sampler(config: PipelineConfig, inherited: Mapping[str, str], name: str, address: str) -> Part:
    return _part(
        name,
        _module("sampler_svc"),
        inherited,
        settings={"SAMPLER_LISTEN": address, "SAMPLER_MODEL": str(config.model.folder)},
        # The cores belong to compute.
        defaults={"SAMPLER_DRAIN_TIMEOUT_S": _DRAIN_S, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        wait_ready=partial(until_grpc_ready, address, "triserve.v1.SamplerService"),
        answers=partial(grpc_answers, address, ""),
        stop_rank=_TOKENIZER_AND_SAMPLER,
    )


def _compute(config: PipelineConfig, inherited: Mapping[str, str], name: str, address: str, samplers: Sequence[str]) -> Part:
    settings = {
        "COMPUTE_LISTEN": address,
        "COMPUTE_NAME": name,
        "COMPUTE_MODEL": str(config.model.folder),
        "COMPUTE_SAMPLERS": ",".join(samplers),
    }
    if config.dtype is not None:
        settings["COMPUTE_DTYPE"] = config.dtype
    if config.max_model_len is not None:
        settings["COMPUTE_MAX_MODEL_LEN_TOKENS"] = str(config.max_model_len)
    defaults = {
        "COMPUTE_DRAIN_TIMEOUT_S": _DRAIN_S,
        "COMPUTE_VLLM_MODEL_NAME": config.model.name,
        # One core is everybody else's. Threads of a product spin until the last one has its share: one that has to give way to another
        # process holds up all, ten times as long as the core it would have added saves.
        "COMPUTE_THREADS": str(max(1, (config.num_cores - 1) // config.num_computes)),
    }
    # The engine has no port of its own to be asked at: its replica watches it.
    defaults["COMPUTE_FREEZE_TIMEOUT_S"] = _NEVER_S if config.hang is None else f"{config.hang.silence_s:g}"
    return _part(
        name,
        _module("compute_svc"),
        inherited,
        settings=settings,
        defaults=defaults,
        wait_ready=partial(until_grpc_ready, address, "triserve.v1.ComputeService"),
        answers=partial(grpc_answers, address, ""),
        stop_rank=_COMPUTE,
    )


def _redis(config: PipelineConfig, inherited: Mapping[str, str], program: str) -> Part:
    socket_path = config.runtime / "redis.sock"
    return _part(
        "redis",
        redis_command(program, socket_path),
        inherited,
        settings={},
        defaults={},
        wait_ready=partial(until_redis_ready, socket_path),
        answers=partial(redis_answers, socket_path),
        stop_rank=_REDIS,
    )


def _gateway(config: PipelineConfig, inherited: Mapping[str, str], tokenizers: Sequence[str], computes: Sequence[str]) -> Part:
    settings = {
        "GATEWAY_LISTEN": f"{HOST}:{config.port}",
        "GATEWAY_GRPC_LISTEN": f"{HOST}:{config.grpc_port}",
        "GATEWAY_TOKENIZERS": ",".join(tokenizers),
        "GATEWAY_COMPUTES": ",".join(computes),
        "GATEWAY_MODEL_NAME": config.model.name,
        "GATEWAY_CACHE": str(config.cache).lower(),
    }
    if config.redis_program is not None:
        settings["GATEWAY_REDIS_URL"] = f"unix://{config.runtime / 'redis.sock'}"
        settings["GATEWAY_CACHE_SECRET"] = config.cache_secret
    if config.embedder is not None:
        settings["GATEWAY_EMBEDDER"] = config.embedder
    defaults = {"GATEWAY_DRAIN_TIMEOUT_S": _DRAIN_S}
    if config.embedder is not None:
        # One machine computes, embeds and waits: what is worth a wait of a moment there differs from a gateway's with cores of its own.
        defaults |= {"GATEWAY_SEMANTIC_CACHE": "on", "GATEWAY_SEMANTIC_TIMEOUT_MS": _SEMANTIC_TIMEOUT_MS}
    health = f"http://{HOST}:{config.port}/health"
    return _part(
        "gateway",
        _module("gateway"),
        inherited,
        settings=settings,
        defaults=defaults,
        wait_ready=partial(until_http_ready, health),
        answers=partial(http_answers, health),
        stop_rank=_GATEWAY,
    )
