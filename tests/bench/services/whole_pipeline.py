"""The default model through one process of each service, for benchmarks that change what `triserve up` runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.cli.local.local_parts import PipelineConfig, plan_parts
from gateway.cli.local.part import Part
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
_READY_S = 180


def plan_one_of_each(port: int, runtime: Path, variables: Mapping[str, str], **changes: Any) -> list[Part]:
    """Parts of a pipeline without a cache.

    Args:
        port: Of the gateway's HTTP.
        runtime: A folder of its own, for its sockets.
        variables: Of the environment, for all parts.
        changes: What `PipelineConfig` is to say otherwise.
    """
    usual: dict[str, Any] = {
        "model": resolve_model(None, download_from_hub, os.environ),
        "port": port,
        "grpc_port": free_port(),
        "num_tokenizers": 1,
        "num_samplers": 1,
        "num_computes": 1,
        "dtype": None,
        "max_model_len": None,
        "cache": False,
        "redis_program": None,
        "cache_secret": "",
        "num_cores": 2,
        "runtime": runtime,
    }
    config = PipelineConfig(**{**usual, **changes})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]), **variables}
    return plan_parts(config, [free_port() for _ in range(config.num_internal_ports)], environment)


@contextmanager
def running(parts: Sequence[Part]) -> Iterator[None]:
    """Runs the parts. Returns when all are ready, and ends them in reverse.

    Raises:
        TimeoutError: a part does not get ready.
    """
    processes = [subprocess.Popen(part.command, env=dict(part.environment), stdout=subprocess.DEVNULL) for part in parts]
    try:
        asyncio.run(_ready(parts))
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


async def _ready(parts: Sequence[Part]) -> None:
    async with asyncio.timeout(_READY_S):
        await asyncio.gather(*(part.wait_ready() for part in parts))
