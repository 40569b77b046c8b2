"""Settings: what an operator may say, and what is refused with the variable's name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.scheduler.policies import POLICIES
from compute_svc.settings import Settings
from triserve.rpc.machine import usable_cores


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a model, named in the environment."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    return tmp_path


def test_the_model_is_all_that_must_be_said(folder: Path) -> None:
    settings = Settings()
    assert (settings.model, settings.listen, settings.page_size_tokens) == (folder, "127.0.0.1:7300", 16)


def test_samplers_are_separated_by_commas(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_SAMPLERS", "10.0.0.1:7400, sampler-1.sampler:7400")
    assert Settings().samplers == ("10.0.0.1:7400", "sampler-1.sampler:7400")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("COMPUTE_SAMPLERS", "", "at least 1 item"),
        ("COMPUTE_SAMPLERS", "nowhere", "no host:port"),
        ("COMPUTE_DTYPE", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("COMPUTE_DEVICE", "tpu", "pattern"),
        ("COMPUTE_STEP_BUDGET_TOKENS", "0", "greater than or equal to 1"),
        ("COMPUTE_STEP_BUDGET_TOKENS", "100", "the limit is step_budget_tokens, 100"),
        ("COMPUTE_KV_CACHE_BYTES", "much", "valid integer"),
        ("COMPUTE_MODEL", "/nowhere", "directory"),
        ("COMPUTE_STREAMING_WINDOW_TOKENS", "0", "greater than or equal to 1"),
        ("COMPUTE_STREAMING_SINKS", "0", "greater than or equal to 1"),
        ("COMPUTE_STREAMING_SINKS", "33", "less than or equal to 32"),
        ("COMPUTE_STREAMING_SINKS", "4", "there are no sinks without streaming_window_tokens"),
    ],
)
def test_a_bad_value_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError, match=words):
        Settings()


def test_vllm_s_messages_must_be_installed_where_they_are_spoken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_VLLM_LISTEN", "127.0.0.1:0")
    with monkeypatch.context() as without:
        # What the import system says of a module that is not there.
        without.setitem(sys.modules, "smg_grpc_proto", None)
        with pytest.raises(ValidationError, match=r"smg-grpc-proto is not installed: pip install 'triserve\[vllm-grpc\]'"):
            Settings()


def test_plain_text_beyond_this_machine_is_refused_at_vllm_s_door_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("smg_grpc_proto", reason="smg-grpc-proto is not installed")
    monkeypatch.setenv("COMPUTE_REQUIRE_TLS", "true")
    monkeypatch.setenv("COMPUTE_VLLM_LISTEN", "127.0.0.1:0")
    Settings()
    monkeypatch.setenv("COMPUTE_VLLM_LISTEN", "0.0.0.0:7500")
    with pytest.raises(ValidationError, match=r"COMPUTE_VLLM_LISTEN is 0\.0\.0\.0:7500"):
        Settings()


def test_more_requests_than_the_budget_has_tokens_are_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_STEP_BUDGET_TOKENS", "16")
    monkeypatch.setenv("COMPUTE_MAX_RUNNING_REQUESTS", "17")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [("max_running_requests",)]


def test_a_streaming_window_has_four_sinks_unless_another_number_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().streaming_window_tokens is None
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "1024")
    assert (Settings().streaming_window_tokens, Settings().num_sinks) == (1024, 4)
    monkeypatch.setenv("COMPUTE_STREAMING_SINKS", "1")
    assert (Settings().streaming_window_tokens, Settings().num_sinks) == (1024, 1)


@pytest.mark.parametrize("window", [None, "1024"])
def test_settings_reach_the_engines_process_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch, window: str | None) -> None:
    if window is not None:
        monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", window)
    settings = Settings()
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_all_that_changes_the_bits_of_logits_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().computation("float32", "float32", "") == "float32 on cpu"
    assert Settings().computation("float32", "float32", "integer products") == "float32 on cpu, integer products"
    assert Settings().computation("float32", "int8-g8", "") == "float32 on cpu, KV int8-g8"
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "1024")
    assert Settings().computation("bfloat16", "bfloat16", "") == "bfloat16 on cpu, window 1024 and 4 sinks"
    assert Settings().computation("bfloat16", "float32", "") == "bfloat16 on cpu, KV float32, window 1024 and 4 sinks"


def test_every_format_of_the_store_can_be_set_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().kv_format == "auto"
    for name in KV_FORMATS:
        monkeypatch.setenv("COMPUTE_KV_FORMAT", name)
        assert Settings().kv_format == name
    monkeypatch.setenv("COMPUTE_KV_FORMAT", "int8")
    with pytest.raises(
        ValidationError, match=r"kv_format\n.*'auto', 'float32', 'bfloat16', 'int8-g8', 'int8-g32', 'int8-g64' or 'fp8-g64'"
    ):
        Settings()


def test_a_wrong_window_is_the_only_error_when_sinks_are_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "0")
    monkeypatch.setenv("COMPUTE_STREAMING_SINKS", "4")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [("streaming_window_tokens",)]


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValidationError, match=r"the folder has no tokenizer\.json"):
        Settings()


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_every_policy_that_can_be_chosen_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = set()
    for name in POLICIES:
        monkeypatch.setenv("COMPUTE_POLICY", name)
        chosen.add(Settings().policy)
    assert chosen == set(get_args(Settings.model_fields["policy"].annotation))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, str(Settings.model_fields["openmp_spins"].default)),
        ({"COMPUTE_OPENMP_SPINS": "77"}, "77"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "passive"}, None),
        ({"GOMP_SPINCOUNT": "5", "COMPUTE_OPENMP_SPINS": "77"}, "77"),
    ],
)
def test_the_engine_is_started_with_how_its_threads_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own = Settings().engine_environment()
    assert own.get("GOMP_SPINCOUNT") == expected
    assert own["COMPUTE_MODEL"] == str(folder)


def test_ranks_meet_on_this_machine_alone_unless_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    assert "GLOO_SOCKET_IFNAME" not in Settings().engine_environment()
    monkeypatch.setenv("COMPUTE_TENSOR_PARALLEL", "2")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    own = Settings().engine_environment()
    assert (own["GLOO_SOCKET_IFNAME"], own["NCCL_SOCKET_IFNAME"]) == ("lo", "eth7")


def test_ranks_share_the_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_THREADS", "7")
    for ranks, stages, threads in ((1, 1, 7), (2, 1, 3), (1, 2, 3), (3, 2, 1), (8, 1, 1)):
        monkeypatch.setenv("COMPUTE_TENSOR_PARALLEL", str(ranks))
        monkeypatch.setenv("COMPUTE_PIPELINE_PARALLEL", str(stages))
        assert Settings().threads_per_rank == threads


def test_threads_are_the_cores_that_are_granted_unless_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().threads == usable_cores()
    monkeypatch.setenv("COMPUTE_THREADS", "3")
    assert Settings().threads == 3
