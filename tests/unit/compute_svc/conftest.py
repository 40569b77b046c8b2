"""A replica for the tests of the compute service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.compute_replica import Replica


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    """A replica that is not started; whatever the test starts is stopped."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    replica = Replica(tmp_path)
    yield replica
    await replica.stop()
