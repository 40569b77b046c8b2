"""The plan of a pipeline: who listens where, who is told of whom, who stops first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from compute_svc.settings import Settings as ComputeSettings
from gateway.cli.local.local_parts import PipelineConfig, plan_parts
from gateway.cli.local.part import Part
from gateway.cli.model_files.model_folder import ModelFolder
from gateway.settings import Settings as GatewaySettings
from sampler_svc.settings import Settings as SamplerSettings
from tokenizer_svc.settings import Settings as TokenizerSettings

CONFIG = PipelineConfig(
    model=ModelFolder(Path("/models/tiny"), "tiny"),
    port=8000,
    grpc_port=8001,
    num_tokenizers=1,
    num_samplers=2,
    num_computes=2,
    dtype="float32",
    max_model_len=512,
    cache=True,
    redis_program="/redis-server",
    cache_secret="s" * 64,
    num_cores=4,
    runtime=Path("/run/here"),
)
PORTS = [1, 2, 3, 4, 5]


def plan(config: PipelineConfig = CONFIG, environment: dict[str, str] | None = None) -> dict[str, Part]:
    return {part.name: part for part in plan_parts(config, PORTS[: config.num_internal_ports], environment or {})}


def test_there_is_a_process_for_each_part() -> None:
    assert list(plan()) == ["tokenizer", "sampler-0", "sampler-1", "compute-0", "compute-1", "redis", "gateway"]


def test_every_stage_is_told_where_the_next_one_is() -> None:
    parts = plan()
    assert parts["gateway"].environment["GATEWAY_TOKENIZERS"] == parts["tokenizer"].environment["TOKENIZER_LISTEN"]
    computes = [parts[name].environment["COMPUTE_LISTEN"] for name in ("compute-0", "compute-1")]
    assert parts["gateway"].environment["GATEWAY_COMPUTES"] == ",".join(computes)
    samplers = [parts[name].environment["SAMPLER_LISTEN"] for name in ("sampler-0", "sampler-1")]
    assert parts["compute-0"].environment["COMPUTE_SAMPLERS"] == parts["compute-1"].environment["COMPUTE_SAMPLERS"] == ",".join(samplers)


def test_all_addresses_are_different_and_on_loopback() -> None:
    addresses = [value for part in plan().values() for name, value in part.environment.items() if name.endswith("LISTEN")]
    assert len(set(addresses)) == 7
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_compute_replicas_share_all_cores_but_one() -> None:
    assert {
        part.environment["COMPUTE_THREADS"]
        for name, part in plan(dataclasses.replace(CONFIG, num_cores=7, num_computes=2)).items()
        if name.startswith("compute")
    } == {"3"}
    assert plan(dataclasses.replace(CONFIG, num_cores=1))["compute-0"].environment["COMPUTE_THREADS"] == "1"


def test_the_gateway_stops_first_and_redis_last() -> None:
    ranks = {name: part.stop_rank for name, part in plan().items()}
    assert ranks["gateway"] < ranks["compute-0"] < ranks["sampler-0"] == ranks["tokenizer"] < ranks["redis"]


def test_options_that_are_not_given_are_left_to_the_stage() -> None:
    environment = plan(dataclasses.replace(CONFIG, dtype=None, max_model_len=None))["compute-0"].environment
    assert "COMPUTE_DTYPE" not in environment and "COMPUTE_MAX_MODEL_LEN_TOKENS" not in environment


def test_without_a_redis_the_gateway_is_told_of_none() -> None:
    parts = plan(dataclasses.replace(CONFIG, redis_program=None))
    assert "redis" not in parts
    assert "GATEWAY_REDIS_URL" not in parts["gateway"].environment


def test_variables_of_the_user_reach_every_part_and_do_not_undo_the_plan() -> None:
    parts = plan(environment={"COMPUTE_LISTEN": "0.0.0.0:1", "HOME": "/home", "COMPUTE_THREADS": "3"})
    assert parts["compute-0"].environment["COMPUTE_LISTEN"].startswith("127.0.0.1:")
    assert {part.environment["HOME"] for part in parts.values()} == {"/home"}
    assert parts["compute-0"].environment["COMPUTE_THREADS"] == "3"


@pytest.mark.parametrize("name", ["tokenizers", "samplers", "computes"])
def test_less_than_one_of_a_part_is_refused_by_the_options_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name} is 0, the least is 1"):
        dataclasses.replace(CONFIG, **{f"num_{name}": 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [TokenizerSettings, SamplerSettings, ComputeSettings, GatewaySettings], ids=lambda settings: settings.__module__
)
@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, cache=False, redis_program=None)], ids=["all", "no cache"])
def test_every_variable_is_a_setting_of_its_stage(settings: type[BaseSettings], config: PipelineConfig) -> None:
    prefix = settings.model_config["env_prefix"]
    given = {name.removeprefix(prefix).lower() for part in plan(config).values() for name in part.environment if name.startswith(prefix)}
    assert given and given <= settings.model_fields.keys()


@pytest.mark.parametrize("name", ["GATEWAY_HTTP_TLS_CERT_FILE", "SAMPLER_TLS_CA_FILE"])
def test_files_for_tls_in_the_environment_are_refused_and_not_passed_over(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} would change that"):
        plan(environment={name: "/x.pem"})
    assert plan(environment={"COMPUTE_TLS_CLIENTS": "gateway", "GATEWAY_REQUIRE_TLS": "true"})
