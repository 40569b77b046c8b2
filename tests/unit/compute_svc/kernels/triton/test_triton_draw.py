"""The draw's Triton kernels choose the specification's token of each row; in the interpreter where there is no GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.triton_device import DEVICE

from compute_svc.kernels.draw import BROKEN, DRAWN, DrawNumbers, reference  # isort: skip
from compute_svc.kernels.draw.triton_kernel import draw_into, likeliest  # isort: skip

Rows = npt.NDArray[np.float32]
INFINITE = float("inf")


def _draw(
    logits: torch.Tensor, seeds: list[int], positions: list[int], temperatures: list[float], min_ps: list[float] | None = None
) -> list[int | None]:
    """The tokens of rows, None of broken ones."""
    words = torch.from_numpy(np.array(seeds, dtype=np.uint64).view(np.int64)).to(DEVICE)
    numbers = DrawNumbers(
        words,
        torch.tensor(positions, device=DEVICE),
        torch.tensor(temperatures, dtype=torch.float64, device=DEVICE),
        None if min_ps is None else torch.tensor(min_ps, dtype=torch.float64, device=DEVICE),
    )
    tokens, flags = (torch.full((len(seeds),), -7, dtype=torch.int64, device=DEVICE) for _ in range(2))
    draw_into(logits.to(DEVICE), numbers, tokens, flags)
    assert all(0 <= token < logits.shape[1] for token in tokens.tolist()) and set(flags.tolist()) <= {DRAWN, BROKEN}
    return [None if flag == BROKEN else token for token, flag in zip(tokens.tolist(), flags.tolist(), strict=True)]


def _expected(
    logits: Rows, seeds: list[int], positions: list[int], temperatures: list[float], min_ps: list[float] | None = None
) -> list[int | None]:
    return [reference.draw(*row) for row in zip(logits, seeds, positions, temperatures, min_ps or [0.0] * len(seeds), strict=True)]


def _logits(seed: int, rows: int, width: int, scale: float = 3.0) -> Rows:
    return np.random.default_rng(seed).normal(0, scale, (rows, width)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 5, 129, 1000, 4096, 4097])
@settings(max_examples=6, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2),
    position=st.integers(0, 2**31 - 1),
    temperatures=st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0, 100.0]), min_size=2, max_size=2),
    scale=st.sampled_from([0.0, 1.0, 5.0, 1e30]),
    step=st.sampled_from([0.0, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 1.0]),
)
def test_rows_draw_what_the_specification_says(
    width: int, seeds: list[int], position: int, temperatures: list[float], scale: float, step: float, min_p: float | None
) -> None:
    logits = _logits(seeds[0] % 1000, 2, width, 2.0)
    logits = ((np.round(logits) if step else logits) * np.float32(scale)).astype(np.float32)
    positions, min_ps = [position, 0], None if min_p is None else [min_p, 0.1]
    arguments = (seeds, positions, temperatures, min_ps)
    assert _draw(torch.from_numpy(logits), *arguments) == _expected(logits, *arguments)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = np.round(_logits(0, 4, 5000, 1.0))
    logits[3] = -1e30
    tokens, bests = likeliest(torch.from_numpy(logits).to(DEVICE))
    assert tokens[:, 0].tolist() == logits.argmax(axis=1).tolist() and bests[:, 0].tolist() == logits.max(axis=1).tolist()


@pytest.mark.parametrize("value", [float("nan"), INFINITE])
@pytest.mark.parametrize("place", [0, 4095, 4999])
def test_a_broken_row_is_said_and_hurts_no_other(place: int, value: float) -> None:
    logits = _logits(1, 4, 5000)
    logits[1, place] = logits[2, place] = value
    arguments = ([5, 6, 7, 8], [1, 2, 3, 4], [1.0, 1.0, 0.0, 0.0])
    drawn = _draw(torch.from_numpy(logits), *arguments)
    assert drawn == _expected(logits, *arguments) and drawn[1] is drawn[2] is None
    assert not np.isfinite(likeliest(torch.from_numpy(logits).to(DEVICE))[1][:, 0].tolist()[1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_chance_is_broken(temperature: float) -> None:
    logits = np.full((2, 4100), -np.inf, dtype=np.float32)
    logits[1, 4099] = -3.0
    assert _draw(torch.from_numpy(logits), [1, 2], [0, 0], [temperature] * 2) == [None, 4099]


@pytest.mark.parametrize("temperature", [1e-40, 1e-6])
def test_noise_that_vanishes_beside_scores_leaves_the_lowest_id_of_equals(temperature: float) -> None:
    logits = np.zeros((2, 300), dtype=np.float32)
    logits[0, [7, 290, 299]] = 1000.0
    logits[1, [260, 299]] = -1e30
    logits[1, :260] = -np.inf
    arguments = ([3, 4], [0, 9], [float(np.float32(temperature))] * 2)
    assert _draw(torch.from_numpy(logits), *arguments) == _expected(logits, *arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_may_lie_apart_and_have_fewer_bits(dtype: torch.dtype) -> None:
    wide = torch.from_numpy(_logits(2, 3, 4500)).to(dtype)
    some = wide[:, 3:4403]
    arguments = ([1, 2**63, 2**64 - 1], [0, 1, 2**31 - 1], [0.0, 0.7, 2.0])
    assert _draw(some, *arguments) == _expected(some.float().numpy(), *arguments)


def test_many_blocks_that_may_hold_the_largest_sum_are_all_looked_at() -> None:
    # Equal scores so high that no noise counts, but in one row: the lowest id wins, and all blocks have to be looked at.
    logits = np.full((2, 4500), 1e20, dtype=np.float32)
    logits[1] = 1.0
    arguments = ([11, 12], [0, 0], [1.0, 1.0])
    drawn = _draw(torch.from_numpy(logits), *arguments)
    assert drawn == _expected(logits, *arguments) and drawn[0] == 0


@pytest.mark.parametrize("width", [41000, *(pytest.param(one, marks=pytest.mark.gpu) for one in (32000, 128256, 151936, 262144))])
def test_wide_rows_draw_what_the_specification_says(width: int) -> None:
    if DEVICE.type != "cuda" and width != 41000:
        pytest.skip("there is no CUDA device")
    rows, random = 64 if DEVICE.type == "cuda" else 2, np.random.default_rng(width)
    logits = _logits(width, rows, width, 1.0) * np.float32(random.uniform(0.5, 5, (rows, 1)))
    logits[::2, random.integers(0, width, 40)] += 8
    logits.view(np.uint32)[::3] &= np.uint32(0xFFFF0000)  # many equals
    seeds, positions = [int(one) for one in random.integers(0, 2**64, rows, dtype=np.uint64)], list(range(rows))
    temperatures = [float(one) for one in random.choice([0.0, 0.01, 0.25, 0.5, 1.0, 2.0, 100.0], rows)]
    min_ps = [float(one) for one in random.choice([0.0, 0.0625, 0.5, 1.0], rows)]
    for some in (None, min_ps):
        arguments = (seeds, positions, temperatures, some)
        assert _draw(torch.from_numpy(logits), *arguments) == _expected(logits, *arguments)


@pytest.mark.gpu
def test_a_graph_draws_again_from_what_its_tensors_hold_then() -> None:
    if DEVICE.type != "cuda":
        pytest.skip("there is no CUDA device")
    rows, width = 5, 128256
    logits = torch.empty((rows, width), device=DEVICE)
    seeds, positions = (torch.zeros(rows, dtype=torch.int64, device=DEVICE) for _ in range(2))
    temperatures = torch.zeros(rows, dtype=torch.float64, device=DEVICE)
    tokens, flags = torch.empty_like(seeds), torch.empty_like(seeds)
    numbers = DrawNumbers(seeds, positions, temperatures)
    draw_into(logits.zero_(), numbers, tokens, flags)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw_into(logits, numbers, tokens, flags)
    for turn in range(3):
        values, given = _logits(turn, rows, width), [1.0, 0.0, 0.3, 0.0, 2.0][turn:] + [0.5] * turn
        arguments = ([turn, 2, 3, 4, 5], [turn] * rows, given)
        logits.copy_(torch.from_numpy(values))
        seeds.copy_(torch.tensor(arguments[0]))
        positions.fill_(turn)
        temperatures.copy_(torch.tensor(given, dtype=torch.float64))
        graph.replay()
        assert tokens.tolist() == _expected(values, *arguments) and not flags.any()
