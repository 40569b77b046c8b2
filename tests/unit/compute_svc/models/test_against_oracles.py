"""Every family gives what an implementation that is not ours gives: the oracle's table as tests."""

from __future__ import annotations

import pytest

from tests.oracle.cases import all_cases
from tests.oracle.checks import CHECKS, Trial, checks_of

CASES = all_cases()


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(CASES[request.param], tmp_path_factory.mktemp("checkpoint"))


# All of them together take a minute; each by itself is quick.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "check"),
    [pytest.param(index, check, id=f"{case.name}-{check}") for index, case in enumerate(CASES) for check in checks_of(case)],
    indirect=["trial"],
)
def test_a_checkpoint_is_served_as_another_implementation_computes_it(trial: Trial, check: str) -> None:
    CHECKS[check](trial)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
