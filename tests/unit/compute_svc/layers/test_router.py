"""Which experts a token gets, and with what weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute_svc.kernels.linear import LinearWeight
from compute_svc.layers.router import GroupLimit, Router
from tests.fakes.wait_detector import no_waiting

SCORES = torch.tensor([[2.0, 1.0, -1.0, 0.5, 1.5, 1.4], [-3.0, 0.0, 0.1, 0.2, -1.0, 4.0]])


def routed(**options: Any) -> list[dict[int, float]]:
    """Weights of each token's experts by number, of tokens whose hidden states are the scores."""
    weights, chosen = Router(LinearWeight.plain(torch.eye(6), None), 2, **options).forward(SCORES)
    return [dict(zip(numbers, row, strict=True)) for numbers, row in zip(chosen.tolist(), weights.tolist(), strict=True)]


def test_a_softmax_weighs_the_best_of_all_experts() -> None:
    whole = SCORES.softmax(1).tolist()

    assert routed() == [pytest.approx({0: whole[0][0], 4: whole[0][4]}), pytest.approx({5: whole[1][5], 3: whole[1][3]})]


def test_weights_are_scaled_to_one_and_then_by_the_scale() -> None:
    assert [sum(row.values()) for row in routed(normalise=True, scale=2.5)] == pytest.approx([2.5, 2.5])
    assert [sum(row.values()) for row in routed(scoring="softmax_of_chosen")] == pytest.approx([1.0, 1.0])


def test_a_correction_chooses_and_does_not_weigh() -> None:
    correction = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, 0.0])

    first, second = routed(scoring="sigmoid", correction=correction)

    assert first == pytest.approx({2: float(SCORES[0, 2].sigmoid()), 0: float(SCORES[0, 0].sigmoid())})
    assert second == pytest.approx({2: float(SCORES[1, 2].sigmoid()), 5: float(SCORES[1, 5].sigmoid())})


@pytest.mark.parametrize(("best", "groups"), [(1, [{0, 1}, {4, 5}]), (2, [{0, 1}, {4, 5}])])
def test_experts_come_from_the_best_groups_alone(best: int, groups: list[set[int]]) -> None:
    # Three groups of two; the first token's best are in two of them.
    assert [set(row) for row in routed(limit=GroupLimit(3, 1, best))] == groups


def test_a_group_is_as_good_as_the_sum_of_its_best() -> None:
    # In groups of three the first token's best expert is in the first (0.88, 0.73), its best two in the second (0.82, 0.80).
    by_one, by_two = (routed(scoring="sigmoid", limit=GroupLimit(2, 1, best))[0] for best in (1, 2))

    assert set(by_one) == {0, 1} and set(by_two) == {4, 5}


def test_routing_waits_for_nothing() -> None:
    weight = LinearWeight.plain(torch.empty((6, 8), device="meta"), None)
    router = Router(weight, 2, "sigmoid", True, 2.5, torch.empty(6, device="meta"), GroupLimit(3, 2, 2))

    with no_waiting():
        weights, chosen = router.forward(torch.empty((9, 8), device="meta"))

    assert weights.shape == chosen.shape == (9, 2)
