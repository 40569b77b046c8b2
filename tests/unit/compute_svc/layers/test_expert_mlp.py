"""Both ways to compute a mixture of experts: the chosen ones alone, and all of them where the host must not wait to learn which were chosen."""

from __future__ import annotations

import pytest
import torch

from compute_svc.kernels.linear import LinearWeight
from compute_svc.layers.mlp import ExpertMlp, Mlp

HIDDEN, WIDTH, EXPERTS, PER_TOKEN = 12, 20, 5, 2


def _weight(rows: int, columns: int, generator: torch.Generator) -> LinearWeight:
    data = torch.randn((rows, columns), generator=generator) * columns**-0.5
    return LinearWeight("plain", data, None, in_features=columns, out_features=rows)


def _experts() -> ExpertMlp:
    generator = torch.Generator().manual_seed(0)
    experts = tuple(
        Mlp(_weight(WIDTH, HIDDEN, generator), _weight(WIDTH, HIDDEN, generator), _weight(HIDDEN, WIDTH, generator), "silu")
        for _ in range(EXPERTS)
    )
    return ExpertMlp(_weight(EXPERTS, HIDDEN, generator), experts, PER_TOKEN, True, None, None)


@pytest.mark.parametrize("num_tokens", [2, 9, 40])
def test_all_experts_add_what_the_chosen_ones_add(num_tokens: int) -> None:
    mlp = _experts()
    x = torch.randn((num_tokens, HIDDEN), generator=torch.Generator().manual_seed(1))
    chosen = torch.rand((num_tokens, EXPERTS), generator=torch.Generator().manual_seed(2)).topk(PER_TOKEN).indices
    is_chosen = torch.zeros((num_tokens, EXPERTS), dtype=torch.bool).scatter_(1, chosen, True)
    shares = torch.rand((num_tokens, EXPERTS), generator=torch.Generator().manual_seed(3)) * is_chosen
    by_choice, by_all = torch.zeros_like(x), torch.zeros_like(x)

    mlp._add_chosen(by_choice, x, shares, is_chosen)
    mlp._add_all(by_all, x, shares, is_chosen)

    torch.testing.assert_close(by_all, by_choice, rtol=1e-5, atol=1e-6)
    assert by_all.abs().max() > 0.1


def test_what_an_expert_makes_of_a_token_it_was_not_chosen_for_counts_for_nothing() -> None:
    mlp = _experts()
    mlp.experts[3].down.data.fill_(torch.inf)
    x = torch.ones((2, HIDDEN))
    is_chosen = torch.zeros((2, EXPERTS), dtype=torch.bool)
    is_chosen[:, :2] = True
    total = torch.zeros_like(x)

    mlp._add_all(total, x, is_chosen * 0.5, is_chosen)

    assert torch.isfinite(total).all() and total.any()
