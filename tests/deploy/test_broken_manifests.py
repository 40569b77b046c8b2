"""Each check finds what it is for: manifests that are broken in one place, and the check that says so."""

from __future__ import annotations

import pytest

from tests.deploy.breaking import Broken
from tests.deploy.broken_objects import BROKEN_OBJECTS
from tests.deploy.broken_pods import BROKEN_PODS
from tests.deploy.checks import CHECKS
from tests.deploy.checks.queries import query_problems
from tests.deploy.manifests import load

BROKEN = (*BROKEN_PODS, *BROKEN_OBJECTS)


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{one.check}: {one.says}" for one in BROKEN])
def test_what_is_broken_is_found(broken: Broken) -> None:
    manifests = load(broken.overlay).copied()
    broken.change(manifests)
    assert any(broken.says in problem for problem in CHECKS[broken.check](manifests))


def test_every_check_is_shown_to_find_something() -> None:
    assert {one.check for one in BROKEN} == set(CHECKS)


@pytest.mark.parametrize(
    "text",
    [
        'sum by (le, pod) (rate(triserve_compute_step_seconds_bucket{namespace="x", job="compute"}[5m]))',
        'up{job="gateway"} == 1 unless on (pod) triserve_peer_ready{job="gateway", stage="a{b"} == 1',
        "count by (service) (triserve_build_info) > 1",
        'histogram_quantile(0.99, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{job="gateway"}[5m])))',
    ],
)
def test_a_query_of_metrics_that_are_told_is_none_to_complain_of(text: str) -> None:
    assert query_problems(text) == []


@pytest.mark.parametrize(
    "text", ["vector(1)", 'sum(rate(triserve_step_seconds_bucket{job="compute"}[5m]))', 'triserve_peer_ready{job="compute"}']
)
def test_a_query_of_anything_else_is(text: str) -> None:
    assert query_problems(text)
