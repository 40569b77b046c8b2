"""The compute process: says in one line why it cannot start, is alive before it is ready, and leaves on SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.local_pipeline import wait_until
from tests.fakes.checkpoints import save_checkpoint
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, "llama")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _environment(model_folder: Path, **settings: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": path,
        "COMPUTE_MODEL": str(model_folder),
        "COMPUTE_THREADS": "1",
        "COMPUTE_KV_CACHE_BYTES": str(1 << 22),
        **settings,
    }


def _ended(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compute_svc"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("COMPUTE_DTYPE", "float17"),
        ("COMPUTE_PAGE_SIZE_TOKENS", "0"),
        ("COMPUTE_MODEL", "/nowhere/at/all"),
        ("COMPUTE_SAMPLERS", "no-port"),
    ],
)
def test_a_wrong_setting_ends_the_process_naming_the_variable(model_folder: Path, variable: str, value: str) -> None:
    ended = _ended(_environment(model_folder, **{variable: value}))
    assert ended.returncode == 2
    assert variable in ended.stderr
    assert value in ended.stderr


def test_a_checkpoint_that_is_not_supported_ends_the_process_by_name(model_folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    ended = _ended(_environment(tmp_path, COMPUTE_LISTEN=f"127.0.0.1:{free_port()}"))
    assert ended.returncode == 1
    assert "MambaForCausalLM" in ended.stderr


@pytest.fixture
def process(model_folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    address = f"127.0.0.1:{free_port()}"
    # Nobody samples there, so that the process cannot become ready.
    environment = _environment(model_folder, COMPUTE_LISTEN=address, COMPUTE_SAMPLERS=f"127.0.0.1:{free_port()}")
    running = subprocess.Popen([sys.executable, "-m", "compute_svc"], env=environment, stderr=subprocess.DEVNULL)
    yield running, address
    running.kill()
    running.wait()


def test_a_replica_without_a_sampler_is_alive_and_not_ready_and_leaves_on_sigterm(process: tuple[subprocess.Popen[bytes], str]) -> None:
    running, address = process
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def is_alive() -> bool:
            try:
                status = health.Check(health_pb2.HealthCheckRequest(service=""), timeout=PATIENCE_S).status
            except grpc.RpcError:
                return False
            return bool(status == health_pb2.HealthCheckResponse.SERVING)

        wait_until(is_alive, "the process answers", timeout_s=PATIENCE_S)
        ready = health.Check(health_pb2.HealthCheckRequest(service="triserve.v1.ComputeService"), timeout=PATIENCE_S)
        assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=PATIENCE_S) == 0
