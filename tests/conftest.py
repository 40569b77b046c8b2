"""What all tests share: property tests judge what is right, never how fast a busy machine is."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=10)
# For tests.mutants: that a test fails is all it asks, and not for which smallest example.
settings.register_profile(
    "no shrinking", deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.explicit, Phase.generate], database=None
)
settings.load_profile("any machine")

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core: a second thread of torch in each would wait for another's core, and spin meanwhile.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if not Path("/dev/nvidiactl").exists():
    # Read when Triton is imported, which some libraries do: its kernels run in its interpreter here (tests/triton_device.py).
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it has in the background. Processes that tests start would ignore Ctrl-C too, of which some are tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start hundreds of processes, each of which would compile every module of ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What imports and collecting have left is there until the end: no garbage collection has to look through it, which takes half a second."""
    gc.collect()
    gc.freeze()
