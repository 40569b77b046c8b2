"""Keys and values get what weights, steps and graphs leave of a device, and no more."""

from __future__ import annotations

import pytest

from compute_svc.engine.start.device_memory import MemoryFigures, graph_bytes, kept_bytes, kv_bytes_of
from compute_svc.engine.steps.decode_graphs import graph_sizes

FIGURES = MemoryFigures(total_bytes=1000, taken_bytes=300, step_bytes=200, graph_bytes=50)


def test_the_room_is_what_the_share_of_the_memory_has_left() -> None:
    assert FIGURES.room(0.9) == 350 and FIGURES.room(1.0) == 450
    assert FIGURES._replace(taken_bytes=900).room(0.9) == -250


def test_what_is_not_set_is_all_the_room_and_what_is_set_is_left() -> None:
    assert kv_bytes_of(None, FIGURES, 0.9) == 350
    assert kv_bytes_of(350, FIGURES, 0.9) == 350
    assert kv_bytes_of(7, FIGURES, 0.9) == 7


def test_more_than_the_room_is_refused_with_the_figures() -> None:
    with pytest.raises(
        ValueError,
        match=r"COMPUTE_KV_CACHE_BYTES is 351, the limit is the room on the device, 350: 0\.9 \(COMPUTE_DEVICE_MEMORY_SHARE\) of 1000 bytes, "
        "less 300 that weights and others take, 200 for a step, 50 for CUDA graphs",
    ):
        kv_bytes_of(351, FIGURES, 0.9)


@pytest.mark.parametrize("wanted", [None, 1])
def test_a_device_that_is_full_before_is_refused_with_what_can_be_lowered(wanted: int | None) -> None:
    full = FIGURES._replace(taken_bytes=700, graph_bytes=0)
    with pytest.raises(ValueError, match=r"no room for keys and values: .* 200 for a step\. Lower COMPUTE_STEP_BUDGET_TOKENS"):
        kv_bytes_of(wanted, full, 0.9)


def test_graphs_keep_the_results_of_all_sizes_and_share_the_rest() -> None:
    sizes = graph_sizes(20)
    assert sizes == (1, 2, 4, 8, 16, 24)
    assert graph_bytes(10_000, sizes, 100, 7) == 10_000 + (1 + 2 + 4 + 8 + 16) * 400 + 24 * ((12 + 7) * 8 + 200)
    assert graph_bytes(10_000, (1,), 100, 7) == 10_000 + 152 + 200


def test_what_outlives_steps_grows_with_requests_and_logits() -> None:
    assert kept_bytes(256, 1000) == 2 * kept_bytes(128, 1000) == 4 * kept_bytes(128, 500) > 0
