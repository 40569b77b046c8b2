from __future__ import annotations

import pytest

from compute_svc.scheduler.base import SchedulerConfig

SIZES = {
    "page_size_tokens": 4,
    "num_pages": 8,
    "max_model_len_tokens": 32,
    "step_budget_tokens": 16,
    "max_running_requests": 4,
    "max_waiting_requests": 4,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_running_requests": 17}, "max_running_requests is 17, the limit is step_budget_tokens, 16"),
        ({"num_pages": 0}, "num_pages is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_the_configuration(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**{**SIZES, **changes})
