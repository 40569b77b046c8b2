"""Every family gives what an implementation that is not ours gives: the oracle's table as tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from tests.oracle.cases import all_cases
from tests.oracle.checks import CHECKS, Trial, checks_of

CASES = all_cases()


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trial]:
    """Of a case by its index; the one asked for last is kept for its other checks."""

    @lru_cache(maxsize=1)
    def trial(index: int) -> Trial:
        return Trial(CASES[index], tmp_path_factory.mktemp("checkpoint"))

    return trial


# All of them together take a minute; each by itself is quick.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "check"),
    [pytest.param(index, check, id=f"{case.name}-{check}") for index, case in enumerate(CASES) for check in checks_of(case)],
)
def test_a_checkpoint_is_served_as_another_implementation_computes_it(trial_of: Callable[[int], Trial], index: int, check: str) -> None:
    trial = trial_of(index)
    trial.restart()
    CHECKS[check](trial)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
