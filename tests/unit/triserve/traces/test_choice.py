"""What operators say of traces is taken or refused at the start, and without a word of theirs nothing of it is even imported."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from compute_svc.settings import Settings as ComputeSettings
from gateway.settings import Settings as GatewaySettings
from sampler_svc.settings import Settings as SamplerSettings
from tokenizer_svc.settings import Settings as TokenizerSettings
from triserve.rpc.server import run_service

SERVICES = (GatewaySettings, TokenizerSettings, ComputeSettings, SamplerSettings)
TINY = Path(__file__).parents[3] / "tiny_model"


def prefix_of(settings: type[BaseSettings]) -> str:
    return str(settings.model_config["env_prefix"])


@pytest.fixture(params=SERVICES, ids=prefix_of)
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[BaseSettings]:
    """Settings that lack nothing but what a test sets."""
    settings: type[BaseSettings] = request.param
    if settings is not GatewaySettings:
        monkeypatch.setenv(f"{prefix_of(settings)}MODEL", str(TINY))
    return settings


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4317", "https://collector.monitoring.svc:4317", "http://[::1]:4317/"])
def test_a_collector_is_an_address_with_a_scheme_and_a_port(
    service: type[BaseSettings], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service().model_dump()["otlp_endpoint"] is None
    monkeypatch.setenv(f"{prefix_of(service)}OTLP_ENDPOINT", endpoint)
    assert service().model_dump()["otlp_endpoint"] == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["", "collector:4317", "http://collector", "grpc://collector:4317", "http://me:secret@collector:4317", "http://c:4317/v1/traces"],
)
def test_anything_else_is_refused_by_name(service: type[BaseSettings], endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{prefix_of(service)}OTLP_ENDPOINT", endpoint)
    with pytest.raises(ValidationError) as refused:
        service()
    assert [error["loc"] for error in refused.value.errors()] == [("otlp_endpoint",)]


@pytest.mark.parametrize(("endpoint", "is_refused"), [("http://collector:4317", True), ("https://collector:4317", False)])
def test_where_plain_text_is_refused_that_to_a_collector_is_too(
    service: type[BaseSettings], endpoint: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OTLP_ENDPOINT", endpoint), ("REQUIRE_TLS", "true")):
        monkeypatch.setenv(f"{prefix_of(service)}{name}", value)
    if not is_refused:
        service()
        return
    with pytest.raises(ValidationError, match=f"{prefix_of(service)}OTLP_ENDPOINT is http://collector:4317, beyond loopback"):
        service()


def test_without_the_extra_a_service_that_is_to_trace_does_not_start(
    service: type[BaseSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "triserve.rpc.traces.otlp", raising=False)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv(f"{prefix_of(service)}OTLP_ENDPOINT", "http://127.0.0.1:4317")
    with pytest.raises(SystemExit) as ended:
        run_service("x", service, lambda settings, tracer: pytest.fail("it has started"))
    assert ended.value.code == 2
    assert re.fullmatch(
        rf"{prefix_of(service)}OTLP_ENDPOINT is set, and opentelemetry[\w.]* is not installed: pip install 'triserve\[otel\]'\n",
        capsys.readouterr().err,
    )
