"""Pipelines of real processes with the tiny model, shared by the tests of a session where they do no harm to it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until
from tests.ports import free_port


@pytest.fixture(scope="session")
def shared_pipeline() -> Iterator[Pipeline]:
    """One pipeline for all tests that leave it as they found it. Stopping it proves that nothing outlives Ctrl-C."""
    doors = {"COMPUTE_VLLM_LISTEN": f"127.0.0.1:{free_port()}"} if find_spec("smg_grpc_proto") is not None else {}
    pipeline = Pipeline(["--dtype", "float32"], environment=doors)
    pipeline.start()
    yield pipeline
    pipeline.stop()


@pytest.fixture
def pipeline(shared_pipeline: Pipeline) -> Iterator[Pipeline]:
    """The shared pipeline; each test must leave no request, page or sampler state behind."""
    yield shared_pipeline
    wait_until(shared_pipeline.is_idle, "no stage holds anything of any request")
