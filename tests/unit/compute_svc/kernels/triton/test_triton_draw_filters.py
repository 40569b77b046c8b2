"""Top-k and top-p in the draw's Triton kernels leave what the specification says, or say that they cannot tell; in the interpreter without a GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.triton_device import DEVICE

from compute_svc.kernels.draw import BROKEN, DRAWN, UNDECIDED, DrawNumbers, reference  # isort: skip
from compute_svc.kernels.draw.triton_kernel import draw_into  # isort: skip

Rows = npt.NDArray[np.float32]


class _Draws:
    """What rows draw with; what is not given is as if it were not there.

    Args:
        temperatures: [rows].
        top_ks: [rows], 0 = all.
        top_ps: [rows].
        min_ps: [rows] or None.
        seeds: [rows].
    """

    def __init__(
        self,
        temperatures: list[float],
        top_ks: list[int],
        top_ps: list[float],
        min_ps: list[float] | None = None,
        seeds: list[int] | None = None,
    ) -> None:
        rows = len(temperatures)
        self.temperatures, self.top_ks, self.top_ps, self.min_ps = temperatures, top_ks, top_ps, min_ps
        self.seeds = seeds or [2**63 + 7 * row for row in range(rows)]
        self.positions = list(range(rows))

    def draw(self, logits: torch.Tensor) -> tuple[list[int], list[int]]:
        """Tokens and flags."""
        words = torch.from_numpy(np.array(self.seeds, dtype=np.uint64).view(np.int64)).to(DEVICE)
        floats = [
            None if one is None else torch.tensor(one, dtype=torch.float64, device=DEVICE)
            for one in (self.temperatures, self.min_ps, self.top_ps)
        ]
        temperatures, min_ps, top_ps = floats
        assert temperatures is not None
        numbers = DrawNumbers(
            words, torch.tensor(self.positions, device=DEVICE), temperatures, min_ps, torch.tensor(self.top_ks, device=DEVICE), top_ps
        )
        tokens, flags = (torch.full((len(self.seeds),), -7, dtype=torch.int64, device=DEVICE) for _ in range(2))
        draw_into(logits.to(DEVICE), numbers, tokens, flags)
        assert all(0 <= token < logits.shape[1] for token in tokens.tolist())
        return tokens.tolist(), flags.tolist()

    def expected(self, logits: Rows) -> list[int | None]:
        """As the reference draws."""
        min_ps = self.min_ps or [0.0] * len(self.seeds)
        rows = zip(logits, self.seeds, self.positions, self.temperatures, min_ps, self.top_ks, self.top_ps, strict=True)
        return [reference.draw(*row) for row in rows]

    def undecided(self, logits: Rows) -> list[int]:
        """Checks that rows which are decided draw what the reference draws; returns the others."""
        tokens, flags = self.draw(torch.from_numpy(logits))
        for token, flag, expected in zip(tokens, flags, self.expected(logits), strict=True):
            assert flag == BROKEN if expected is None else flag == UNDECIDED or (flag, token) == (DRAWN, expected)
        return [row for row, flag in enumerate(flags) if flag == UNDECIDED]


def _logits(seed: int, rows: int, width: int, scale: float = 3.0) -> Rows:
    return np.random.default_rng(seed).normal(0, scale, (rows, width)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 5, 300, 4097])
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    temperatures=st.lists(st.sampled_from([0.0, 0.01, 0.7, 1.0, 1.5, 100.0]), min_size=3, max_size=3),
    top_ks=st.lists(st.sampled_from([0, 2, 3, 50, 290, 5000]), min_size=3, max_size=3),
    top_ps=st.lists(st.sampled_from([1.0, 0.9, 0.999, 0.3, 1e-6]), min_size=3, max_size=3),
    min_ps=st.sampled_from([None, [0.0, 0.05, 1.0]]),
    scale=st.sampled_from([0.0, 1.0, 5.0]),
    is_rounded=st.booleans(),
)
def test_rows_draw_what_the_specification_says(
    width: int,
    seed: int,
    temperatures: list[float],
    top_ks: list[int],
    top_ps: list[float],
    min_ps: list[float] | None,
    scale: float,
    is_rounded: bool,
) -> None:
    logits = _logits(seed % 1000, 3, width, 2.0)
    logits = ((np.round(logits) if is_rounded else logits) * np.float32(scale)).astype(np.float32)
    undecided = _Draws(temperatures, top_ks, top_ps, min_ps, [seed, 1, 2**64 - 1]).undecided(logits)
    # Without top_k more ids may be left than there is room for; and shares of equals may end at one of them.
    assert scale == 0 or is_rounded or not undecided or width > 4096


@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_equals_at_the_border_are_left_by_their_ids(top_p: float) -> None:
    rows, width = 3, 9000
    # As a head in bfloat16 gives them: hundreds of ids of each logit.
    logits: Rows = (np.round(_logits(5, rows, width, 1.0) * 8) / 8).astype(np.float32)
    logits[:, ::700] += 2
    draws = _Draws([1.0] * rows, [2, 20, 399], [top_p] * rows)
    assert not draws.undecided(logits)


def test_shares_that_end_at_a_rank_are_not_decided() -> None:
    logits = np.full((3, 40), -5.0, dtype=np.float32)
    logits[:, :4] = 3.0
    # Two of four equals are half of them; all of them are all.
    draws = _Draws([1.0, 1.0, 1.0], [4, 4, 4], [0.5, 0.75, 0.6])
    assert draws.undecided(logits) == [0, 1]


def test_a_share_that_many_ids_have_is_not_decided_and_top_k_is_there() -> None:
    logits = _logits(6, 3, 41000, 0.5)
    draws = _Draws([1.0, 1.0, 1.0], [0, 64, 1100], [0.95, 0.95, 0.5])
    assert draws.undecided(logits) == [0, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_broken_rows_and_ids_without_a_chance(value: float | None) -> None:
    logits = _logits(7, 2, 4500)
    logits[:, 20:] = -np.inf
    logits[1] = -np.inf if value is None else logits[1]
    logits[1, 3] = -np.inf if value is None else value
    draws = _Draws([1.0, 1.0], [30, 30], [0.99, 0.9])
    tokens, flags = draws.draw(torch.from_numpy(logits))
    assert (flags, tokens[0]) == ([DRAWN, BROKEN], draws.expected(logits)[0])
    # More than there are are all.
    assert not _Draws([1.0], [400], [1.0]).undecided(logits[:1])


@pytest.mark.parametrize("width", [41000, *(pytest.param(one, marks=pytest.mark.gpu) for one in (32000, 128256, 151936, 262144))])
def test_wide_rows_are_decided_where_they_are_as_models_give_them(width: int) -> None:
    if DEVICE.type != "cuda" and width != 41000:
        pytest.skip("there is no CUDA device")
    rows, random = 64 if DEVICE.type == "cuda" else 3, np.random.default_rng(width)
    logits = _logits(width, rows, width, 1.0) * np.float32(2.0)
    # Few likely ids, as many a context has them.
    logits[:, random.integers(0, width, 200)] += random.gamma(2, 3, (rows, 200)).astype(np.float32) + 6
    logits.view(np.uint32)[::3] &= np.uint32(0xFFFF0000)
    top_ks = [int(one) for one in random.choice([0, 20, 50, 500], rows)]
    top_ps = [float(one) for one in random.choice([0.8, 0.9, 0.95], rows)]
    draws = _Draws([float(one) for one in random.choice([0.6, 0.8, 1.0], rows)], top_ks, top_ps, [0.0] * rows)
    assert not draws.undecided(logits)
