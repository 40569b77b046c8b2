"""A variable that has a service's prefix and is no setting of it stops the start, in every service."""

from __future__ import annotations

import pytest
from pydantic_settings import BaseSettings

from compute_svc.settings import Settings as ComputeSettings
from gateway.settings import Settings as GatewaySettings
from sampler_svc.settings import Settings as SamplerSettings
from tokenizer_svc.settings import Settings as TokenizerSettings
from triserve.rpc.server import load_settings

SERVICES = (GatewaySettings, TokenizerSettings, ComputeSettings, SamplerSettings)


@pytest.mark.parametrize("settings", SERVICES, ids=lambda settings: str(settings.model_config["env_prefix"]))
@pytest.mark.parametrize("spelt", [str.upper, str.lower])
def test_a_misspelt_variable_stops_the_start_naming_the_closest(
    settings: type[BaseSettings], spelt: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(spelt)
    prefix = settings.model_config.get("env_prefix", "")
    name = spelt(f"{prefix}DRAIN_TIMEOUTS")
    monkeypatch.setenv(name, "3")
    with pytest.raises(SystemExit) as caught:
        load_settings(settings)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"{name} is no setting of this service, the closest is {prefix}DRAIN_TIMEOUT_S\n"
