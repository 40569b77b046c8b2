"""A pytest plugin: one of several processes runs its share of the tests; `TEST_SHARD=2/14 pytest -p tests.bench.gpu.shard`.

Shares are contiguous, for neighbours compile the same kernels.
"""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the share and deselects the rest."""
    number, count = map(int, os.environ.get("TEST_SHARD", "1/1").split("/"))
    first, last = (len(items) * part // count for part in (number - 1, number))
    config.hook.pytest_deselected(items=items[:first] + items[last:])
    items[:] = items[first:last]
