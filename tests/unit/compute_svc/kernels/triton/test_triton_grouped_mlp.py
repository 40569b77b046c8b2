"""Triton's products with experts' weights are the definition's, whatever tokens choose; in the interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.activation import Activation  # isort: skip
from compute_svc.kernels.grouped_mlp import Clamp, GroupedMlps, group_weights, reference  # isort: skip
from compute_svc.kernels.grouped_mlp import cuts  # isort: skip
from compute_svc.kernels.grouped_mlp.cuts import cut_for, rows_of_tile  # isort: skip
from compute_svc.kernels.grouped_mlp import triton_kernel  # isort: skip
from compute_svc.kernels.grouped_mlp.triton_kernel import grouped_mlp, plan  # isort: skip
from compute_svc.kernels.group_linear import pack_groups  # isort: skip
from compute_svc.kernels.fp8_linear import pack_fp8  # isort: skip
from compute_svc.kernels.int_linear import plain_ints  # isort: skip
from compute_svc.kernels.int_linear.triton_kernel import lay_out  # isort: skip
from compute_svc.kernels.linear import LinearWeight  # isort: skip
from compute_svc.stored_weights.codes import NF4  # isort: skip
from tests.fakes.batch_invariance import batch_invariance  # isort: skip

# Largest error, relative to the reference's largest number: rows are rounded to 8 bits twice for the last two formats.
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
ROUNDED = {"int8": 3e-2, "int8 in groups": 3e-2, "fp8": 1e-1, "fp8 in groups": 1e-1}
Expert = list[tuple[torch.Tensor, torch.Tensor | None]]


class Case(NamedTuple):
    """Experts, and the numbers that they stand for."""

    mlps: GroupedMlps
    numbers: list[Expert]

    def exact(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return reference.grouped_mlp(x, weights, chosen, self.numbers, self.mlps.activation, self.mlps.clamp)


@pytest.fixture(autouse=True)
def _fat_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter wants few programs, a device many."""
    monkeypatch.setattr(cuts, "_PROGRAMS", 1)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(kind: str, outputs: int, inputs: int, seed: int, dtype: torch.dtype, *, bias: bool) -> tuple[LinearWeight, torch.Tensor]:
    """A weight as the engine has it, and its numbers."""
    added = random(outputs, seed=seed + 1).to(dtype).to(DEVICE) if bias else None
    numbers = random(outputs, inputs, seed=seed) * inputs**-0.5
    if kind == "float":
        data = numbers.to(dtype).to(DEVICE)
        return LinearWeight.plain(data, added), data.cpu()
    group = 64 if kind.endswith("groups") else inputs
    most = {"int4": 7.0, "nf4": 7.0, "int8": 127.0, "fp8": 448.0}[kind.split()[0]]
    scales = (numbers.abs().amax() / most * (random(outputs, -(-inputs // group), seed=seed + 2).abs() * 0.1 + 0.9)).half().float()
    by_input = scales.repeat_interleave(group, dim=1)[:, :inputs]
    codes = (numbers / by_input).clamp(-most, most)
    codes = codes.to(torch.float8_e4m3fn) if kind.startswith("fp8") else codes.round().to(torch.int8)
    exact = codes.float() * by_input
    codes, scales = codes.to(DEVICE), scales.to(DEVICE)
    if kind == "nf4 in groups":
        # Any codes will do.
        table = torch.tensor(NF4)
        groups = pack_groups(codes & 15, 4, group, scales * 7.0, None, added, table=table.to(DEVICE))
        return LinearWeight("groups", groups.data, added, inputs, outputs, groups=groups), table[codes.cpu().long() & 15] * by_input * 7.0
    if kind.startswith("fp8"):
        fp8 = pack_fp8(codes, group, scales, added)
        return LinearWeight("fp8", fp8.data, added, inputs, outputs, fp8=fp8), exact
    if kind == "int4 in groups":
        offsets = (random(outputs, scales.shape[1], seed=seed + 3) * 0.01).to(DEVICE)
        groups = pack_groups(codes, 4, group, scales.half(), offsets, added)
        exact += offsets.cpu().repeat_interleave(group, dim=1)[:, :inputs]
        return LinearWeight("groups", groups.data, added, inputs, outputs, groups=groups), exact
    ints = lay_out(plain_ints(codes, 8, group, scales, None, added, rows_in_groups=kind.endswith("groups")))
    return LinearWeight("ints", ints.data, added, inputs, outputs, ints=ints), exact


def experts(
    kind: str = "float",
    count: int = 5,
    hidden: int = 48,
    width: int = 40,
    *,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = False,
    activation: Activation = "silu",
    clamp: Clamp | None = None,
) -> Case:
    sizes = ((width, hidden), (width, hidden), (hidden, width))
    drawn = [
        [packed(kind, *size, seed=100 * number + 10 * place, dtype=dtype, bias=bias) for place, size in enumerate(sizes)]
        for number in range(count)
    ]
    into, down = group_weights([[one[0] for one in three[:2]] for three in drawn]), group_weights([[three[2][0]] for three in drawn])
    assert into is not None and down is not None
    numbers = [[(exact, None if one.bias is None else one.bias.cpu()) for one, exact in three] for three in drawn]
    return Case(GroupedMlps(into, down, activation, clamp), numbers)


def tokens(
    count: int, num_experts: int, per_token: int, hidden: int, dtype: torch.dtype, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, and of each the weights and numbers of its experts, of which the third is nobody's."""
    scores = random(count, num_experts, seed=seed)
    scores[:, 2] = -100.0
    weights, chosen = scores.topk(per_token)
    return random(count, hidden, seed=seed + 1).to(dtype), weights.softmax(dim=1), chosen


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    error = (got.cpu() - wanted).abs() / wanted.abs().max()
    assert got.dtype == torch.float32 and bool((error <= tolerance).all()), f"off by {error.max():.1e} at {int(error.argmax())}"


@pytest.mark.parametrize(
    ("count", "num_experts", "per_token", "hidden", "width", "dtype"),
    [
        (1, 5, 2, 48, 40, torch.bfloat16),
        (3, 6, 3, 64, 17, torch.float16),
        (17, 4, 1, 40, 70, torch.float32),
        (15, 3, 2, 130, 64, torch.bfloat16),
        (63, 3, 2, 33, 31, torch.bfloat16),
    ],
)
def test_sums_of_all_shapes(count: int, num_experts: int, per_token: int, hidden: int, width: int, dtype: torch.dtype) -> None:
    case = experts("float", num_experts, hidden, width, dtype=dtype)
    x, weights, chosen = tokens(count, num_experts, per_token, hidden, dtype)
    got = grouped_mlp(x.to(DEVICE), weights.to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert_close(got, case.exact(x, weights, chosen), TOLERANCES[dtype])


@pytest.mark.parametrize("kind", ["int8", "int8 in groups", "fp8", "fp8 in groups", "int4 in groups", "nf4 in groups"])
def test_codes_of_all_kinds(kind: str) -> None:
    if kind.startswith("fp8") and DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no instructions for float8")
    case = experts(kind, 3, 128, 64)
    x, weights, chosen = tokens(7, 3, 2, 128, torch.bfloat16)
    got = grouped_mlp(x.to(DEVICE), weights.to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert_close(got, case.exact(x, weights, chosen), ROUNDED.get(kind, TOLERANCES[torch.bfloat16]))


@pytest.mark.parametrize("kind", ["float", "int4 in groups"])
def test_biases_are_added_and_gates_are_clamped(kind: str) -> None:
    case = experts(kind, 3, 64, 64, bias=True, clamp=Clamp(1.702, 1.5))
    x, weights, chosen = tokens(3, 3, 2, 64, torch.bfloat16)
    got = grouped_mlp(x.to(DEVICE), weights.to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert_close(got, case.exact(x, weights, chosen), ROUNDED.get(kind, TOLERANCES[torch.bfloat16]))


@pytest.mark.parametrize("activation", ["gelu"])
def test_gates_are_activated(activation: Activation) -> None:
    case = experts(dtype=torch.float32, activation=activation)
    x, weights, chosen = tokens(3, 5, 2, 48, torch.float32)
    got = grouped_mlp(x.to(DEVICE), weights.to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert_close(got, case.exact(x, weights, chosen), TOLERANCES[torch.float32])


def test_tokens_may_lie_apart_and_all_choose_the_same() -> None:
    case, wide = experts(), random(17, 64, seed=5).bfloat16()
    weights, chosen = torch.full((17, 2), 0.5), torch.tensor([[4, 1]]).expand(17, 2)
    got = grouped_mlp(wide.to(DEVICE)[:, :48], weights.to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert_close(got, case.exact(wide[:, :48], weights, chosen), TOLERANCES[torch.bfloat16])
    assert grouped_mlp(wide[:0, :48].to(DEVICE), weights[:0].to(DEVICE), chosen[:0].to(DEVICE), case.mlps).shape == (0, 48)


def test_weights_that_nobody_chose_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # Programs with few outputs.
    monkeypatch.setattr(cuts, "_PROGRAMS", 264)
    case = experts()
    for weight in (case.mlps.into, case.mlps.down):
        weight.data[2].fill_(torch.nan)
    x, weights, chosen = tokens(9, 5, 2, 48, torch.bfloat16)
    got = grouped_mlp(x.to(DEVICE), weights.to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert_close(got, case.exact(x, weights, chosen), TOLERANCES[torch.bfloat16])


def test_what_an_expert_makes_of_a_token_it_was_not_chosen_for_counts_for_nothing() -> None:
    case = experts(dtype=torch.float32)
    case.mlps.down.data[3].fill_(torch.nan)
    chosen = torch.tensor([[1, 0], [0, 4], [3, 1]])
    got = grouped_mlp(random(3, 48, seed=5).to(DEVICE), torch.full((3, 2), 0.5).to(DEVICE), chosen.to(DEVICE), case.mlps)
    assert bool(got[:2].isfinite().all()) and bool(got[:2].any()) and not bool(got[2].isfinite().all())


@pytest.mark.parametrize(("count", "num_experts", "per_token"), [(1, 40, 8), (50, 8, 2), (2500, 3, 2)])
def test_a_plan_has_each_row_once_in_a_tile_of_its_expert(count: int, num_experts: int, per_token: int) -> None:
    _, _, chosen = tokens(count, num_experts, per_token, 1, torch.float32, seed=7)
    found = plan(chosen.to(DEVICE), num_experts, 64 if count > 1000 else 16)
    order, tiles = found.order.cpu().long(), found.tiles.cpu()
    numbers = chosen.flatten()
    assert torch.equal(order, numbers.argsort(stable=True))
    covered = torch.zeros(len(order), dtype=torch.int64)
    for expert, first, end in tiles.t().tolist():
        rows = slice(first, min(first + found.rows_of_tile, end))
        if first < end:
            covered[rows] += 1
            assert bool((numbers[order[rows]] == expert).all()) and (end == len(order) or int(numbers[order[end]]) > expert)
    assert bool((covered == 1).all())


def test_few_tokens_take_as_many_tiles_as_they_have_choices_and_many_take_full_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_PROGRAMS", 264)
    assert plan(torch.arange(8)[None].to(DEVICE), 32, 16).tiles.shape == (3, 8)
    mlps, coded = experts().mlps, experts("int4 in groups").mlps
    assert rows_of_tile(8, mlps, torch.bfloat16) == 16 and rows_of_tile(8192, mlps, torch.bfloat16) == 128
    assert rows_of_tile(8192, coded, torch.bfloat16) == 64 and rows_of_tile(8192, mlps, torch.float32) == 16
    few, many = (cut_for(mlps.into, 16, 8, width, torch.bfloat16, is_gated=True, is_hopper=True) for width in (768, 14336))
    assert few.n < many.n


@pytest.mark.parametrize("kind", ["float", "fp8", pytest.param("int4 in groups", marks=pytest.mark.slow)])
def test_a_token_gets_the_same_bits_in_tiles_of_all_sizes_where_sums_are_in_one_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its blocks are longer.
    monkeypatch.setattr(triton_kernel, "has_wgmma", lambda device: True)
    case = experts(kind, 2, 64, 64)
    x, weights, chosen = (one.to(DEVICE) for one in tokens(4, 3, 1, 64, torch.bfloat16))
    with batch_invariance():
        alone = grouped_mlp(x[-1:], weights[-1:], chosen[-1:], case.mlps)
        for rows in (16, 64):
            monkeypatch.setattr(triton_kernel, "rows_of_tile", lambda *_, rows=rows: rows)
            assert torch.equal(grouped_mlp(x, weights, chosen, case.mlps)[-1:], alone), f"{rows} rows of a tile"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["float", "int8", "int8 in groups", "fp8", "int4 in groups"])
def test_blocks_and_instructions_are_the_same_for_any_number_of_rows_where_sums_are_in_one_order(kind: str, dtype: torch.dtype) -> None:
    weight = experts(kind, 3, 192, 64).mlps.into
    with batch_invariance():
        for kinds in ({"is_gated": False, "is_hopper": True}, {"is_gated": True, "is_hopper": False}):
            rows = (16,) if dtype == torch.float32 else (16, 32, 64) if kind == "int4 in groups" else (16, 32, 64, 128)
            cuts = [cut_for(weight, few, count, 14336, dtype, **kinds) for few in rows for count in (1, 5000)]
            assert len({cut.k for cut in cuts}) == 1
            assert all(cut.n >= 64 for cut in cuts) or len({cut.n for cut in cuts}) == 1


@pytest.mark.parametrize("change", ["another dtype", "another length", "reordered inputs", "offsets"])
def test_weights_that_are_not_alike_or_not_taken_stay_apart(change: str) -> None:
    made: dict[str, Callable[[], list[LinearWeight]]] = {
        "another dtype": lambda: [
            packed("float", 8, 32, 1, torch.bfloat16, bias=False)[0],
            packed("float", 8, 32, 2, torch.float16, bias=False)[0],
        ],
        "another length": lambda: [packed("int8", outputs, 32, 1, torch.bfloat16, bias=False)[0] for outputs in (8, 9)],
        "reordered inputs": lambda: [
            LinearWeight("groups", one.data, None, 64, 8, groups=one.groups, inputs=torch.arange(64))
            for one in [packed("int4 in groups", 8, 64, 1, torch.bfloat16, bias=False)[0]]
        ],
        "offsets": lambda: [
            LinearWeight("ints", one.data, None, 32, 8, ints=one)
            for one in [lay_out(plain_ints(torch.ones((8, 32), dtype=torch.int8), 8, 32, torch.ones((8, 1)), torch.ones((8, 1))))]
        ],
    }
    assert group_weights([[one] for one in made[change]()]) is None
