"""Pipelines of real processes with the tiny model, shared by the tests of a session where they do no harm to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until


@pytest.fixture(scope="session")
def shared_pipeline() -> Iterator[Pipeline]:
    """One pipeline for all tests that leave it as they found it. Stopping it proves that nothing outlives Ctrl-C."""
    pipeline = Pipeline(["--dtype", "float32"])
    pipeline.start()
    yield pipeline
    pipeline.stop()


@pytest.fixture
def pipeline(shared_pipeline: Pipeline) -> Iterator[Pipeline]:
    """The shared pipeline; each test must leave no request, page or sampler state behind."""
    yield shared_pipeline
    wait_until(shared_pipeline.is_idle, "no stage holds anything of any request")
