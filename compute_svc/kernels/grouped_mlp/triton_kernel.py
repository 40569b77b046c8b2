"""Products of tokens with the weights of their own experts, in four launches whose sizes the host knows.

A plan sorts tokens by expert and cuts each expert's into tiles of rows; as many tiles as there can be are launched, and those that are not
there end at once. Gate and up are one product: a program has the same outputs of both, and what is made of them. Down writes its rows where
the tokens' choices stand, and the last launch sums these in the order of experts' numbers.

As in kernels/int_linear, a tile of the result lies on its side: a weight is the left operand. No two programs share a tile: where there are few,
tiles have fewer outputs. So each sum is in one order; where `backend.is_batch_invariant`, blocks and instructions are the same, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from compute_svc.kernels.device_features import has_wgmma
from compute_svc.kernels.fp8_linear import quantise_rows_to_fp8
from compute_svc.kernels.group_linear.triton_kernel import add_block, first_input, scales_of, unpacked
from compute_svc.kernels.grouped_mlp.cuts import cut_for, rows_of_tile
from compute_svc.kernels.grouped_mlp.packed import GroupedMlps, GroupedWeight
from compute_svc.kernels.int_linear.triton_kernel import product
from compute_svc.kernels.quantise_rows import quantise_rows
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, activated, dot, rounded, sigmoid, tile_of

# Tiles whose places a program of the plan writes at once.
_TILES_AT_ONCE = tl.constexpr(32)


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def plan_kernel(
    chosen, order, tiles, num_rows, num_tiles,
    EXPERTS: tl.constexpr, BINS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where one expert's rows and tiles are; a grid of experts.

    chosen [num_rows] int64, experts' numbers; order [num_rows] int32, which of these each sorted row is, in their order for each expert; tiles
    [3, num_tiles] int32: expert, first row, and where its rows end, which is 0 for tiles that are not there. More than EXPERTS bins.
    """
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    places = tl.arange(0, BLOCK)
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for first in range(0, num_rows, BLOCK):
        numbers = tl.load(chosen + first + places, mask=first + places < num_rows, other=EXPERTS).to(tl.int32)
        counts += tl.histogram(numbers, BINS)
    is_before = bins < expert
    row = tl.sum(tl.where(is_before, counts, 0))
    tile = tl.sum(tl.where(is_before, (counts + (BLOCK_M - 1)) // BLOCK_M, 0))
    count = tl.sum(tl.where(bins == expert, counts, 0))
    end_tile = tile + tl.cdiv(count, BLOCK_M)
    last = tl.where(expert == EXPERTS - 1, num_tiles, end_tile)
    for first in range(tile, last, _TILES_AT_ONCE):
        index = first + tl.arange(0, _TILES_AT_ONCE)
        tl.store(tiles + index, expert, mask=index < last)
        tl.store(tiles + num_tiles + index, row + (index - tile) * BLOCK_M, mask=index < last)
        tl.store(tiles + 2 * num_tiles + index, tl.where(index < end_tile, row + count, 0), mask=index < last)
    if count > 0:
        for first in range(0, num_rows, BLOCK):
            numbers = tl.load(chosen + first + places, mask=first + places < num_rows, other=EXPERTS).to(tl.int32)
            is_mine = (numbers == expert).to(tl.int32)
            tl.store(order + row + tl.cumsum(is_mine, axis=0) - 1, first + places, mask=is_mine != 0)
            row += tl.sum(is_mine)


@triton.jit
def scales_ahead(
    row_scales, scales, up_scales, begin, K, group, row_groups, is_row, is_output,
    GROUPED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Of rows, outputs and ups, for a block of inputs, a block before they are used, which would wait; None where all inputs share one."""
    if GROUPED:
        index = begin // group
        of_rows = tl.load(row_scales + index % row_groups, mask=is_row & (begin < K), other=0.0)
        of_outputs = tl.load(scales + index, mask=is_output & (begin < K), other=0.0)
        found = of_rows, of_outputs, (tl.load(up_scales + index, mask=is_output & (begin < K), other=0.0) if GATED else None)
    else:
        found = None, None, None
    return found


@triton.jit
def block_sum(
    total, weights, rows, row_scale, scale,
    FORMAT: tl.constexpr, GROUPED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """total + weights rows, of one block of inputs; scaled if GROUPED."""
    if FORMAT == "float":
        total = dot(weights, rows, total, INTERPRETED)
    elif GROUPED:
        zeros = tl.zeros((total.shape[0], total.shape[1]), dtype=tl.int32 if FORMAT == "int8" else tl.float32)
        part = product(weights, rows, zeros, FORMAT == "int8", INTERPRETED).to(tl.float32)
        total += part * row_scale[None, :] * scale[:, None]
    elif FORMAT == "fp8":
        # As in kernels/int_linear: not over more than a block.
        total += product(weights, rows, tl.zeros_like(total), False, INTERPRETED)
    else:
        total = product(weights, rows, total, True, INTERPRETED)
    return total


@triton.jit
def scaled(total, row_scale_places, scale_places, bias_places, is_row, is_output, SCALED: tl.constexpr):
    """[n, m] float32: sums times their scales, and the bias added."""
    total = total.to(tl.float32)
    if SCALED:
        total *= tl.load(row_scale_places, mask=is_row, other=0.0)[None, :]
        total *= tl.load(scale_places, mask=is_output, other=0.0)[:, None]
    if bias_places is not None:
        total += tl.load(bias_places, mask=is_output, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def gated(gate, up, alpha, limit, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr):
    """What becomes of gate and up; see `Clamp`."""
    if CLAMPED:
        # What is not a number stays so.
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        gate = gate * sigmoid(alpha * gate) * (up + 1.0)
    else:
        gate = activated(gate, ACTIVATION) * up
    return gate


@triton.jit
def rows_of(tiles, tile, num_tiles):
    """The expert of a tile, int64, its first row and the one behind its last; none if they are the same."""
    return tl.load(tiles + tile).to(tl.int64), tl.load(tiles + num_tiles + tile), tl.load(tiles + 2 * num_tiles + tile)


@triton.jit
def places_of(order, m, is_row, GATED: tl.constexpr, PER_TOKEN: tl.constexpr):
    """Where rows m are in x, and in what is computed: tokens and sorted rows, or the other way round, int64."""
    source = tl.load(order + m, mask=is_row, other=0)
    x_row = source // PER_TOKEN if GATED else m
    out_row = m if GATED else source
    return x_row.to(tl.int64), out_row.to(tl.int64)


@triton.jit
def weights_of(places, is_output, is_input, EVEN: tl.constexpr):
    """A block of a weight [outputs, inputs], zeros where there is none; EVEN: all inputs are there."""
    if EVEN:
        return tl.load(places, mask=is_output[:, None], other=0.0)
    return tl.load(places, mask=is_output[:, None] & is_input[None, :], other=0.0)


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_linear_kernel(
    x, row_scales, weight, scales, bias, order, tiles, out,
    num_tiles, N, K, x_stride, group, num_groups, row_groups, alpha, limit,
    FORMAT: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr, PER_TOKEN: tl.constexpr,
    GROUPED: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of rows by one of outputs; a grid of both.

    GATED: x has tokens, of which each is PER_TOKEN rows; out [rows, N] has what is made of gate and up, sorted rows; weight [E, 2N, K]. Else x
    has sorted rows, out has them where they were before; weight [E, N, K]. Rows of x are x_stride apart; row_scales [len(x), row_groups],
    scales as weight, [..., num_groups]; bias as weight; order and tiles: see `plan_kernel`. GROUPED: more than one group of scales, which blocks
    of inputs do not cross. EVEN: K is whole blocks.
    """
    tile, tile_n = tile_of(tl.program_id(0), num_tiles, tl.cdiv(N, BLOCK_N), 8)
    expert, first, end = rows_of(tiles, tile, num_tiles)
    if first < end:
        m = first + tl.arange(0, BLOCK_M)
        is_row = m < end
        x_row, out_row = places_of(order, m, is_row, GATED, PER_TOKEN)
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        is_output = n < N
        k = tl.arange(0, BLOCK_K)
        # Outputs of all experts, one behind the other.
        output = expert * (2 * N if GATED else N) + n
        begin_of_tile = expert * (2 * N if GATED else N) + tile_n * BLOCK_N
        # Within a tile 32 bits are enough.
        weight_places = weight + begin_of_tile * K + (tl.arange(0, BLOCK_N)[:, None] * K + k[None, :])
        up_places = weight + (begin_of_tile + N) * K + (tl.arange(0, BLOCK_N)[:, None] * K + k[None, :])
        x_places = x + x_row[None, :] * x_stride + k[:, None]
        row_scale_places = row_scales
        scale_places = scales
        up_scale_places = scales
        if FORMAT != "float":
            row_scale_places = row_scales + x_row * row_groups
            scale_places = scales + output * num_groups
            up_scale_places = scales + (output + N) * num_groups
        total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32 if FORMAT == "int8" and not GROUPED else tl.float32)
        ups = tl.zeros_like(total)
        ahead = scales_ahead(
            row_scale_places, scale_places, up_scale_places, 0, K, group, row_groups, is_row, is_output, GROUPED, GATED
        )  # fmt: skip
        for begin in range(0, K, BLOCK_K):
            following = scales_ahead(
                row_scale_places, scale_places, up_scale_places, begin + BLOCK_K, K, group, row_groups, is_row, is_output, GROUPED, GATED
            )
            rows = tl.load(x_places, mask=is_row[None, :] if EVEN else is_row[None, :] & (begin + k < K)[:, None], other=0.0)
            weights = weights_of(weight_places, is_output, begin + k < K, EVEN)
            total = block_sum(total, weights, rows, ahead[0], ahead[1], FORMAT, GROUPED, INTERPRETED)
            if GATED:
                weights = weights_of(up_places, is_output, begin + k < K, EVEN)
                ups = block_sum(ups, weights, rows, ahead[0], ahead[2], FORMAT, GROUPED, INTERPRETED)
            ahead = following
            x_places += BLOCK_K
            weight_places += BLOCK_K
            up_places += BLOCK_K
        SCALED: tl.constexpr = FORMAT != "float" and not GROUPED
        result = scaled(total, row_scale_places, scale_places, None if bias is None else bias + output, is_row, is_output, SCALED)
        if GATED:
            up_bias = None if bias is None else bias + output + N
            ups = scaled(ups, row_scale_places, up_scale_places, up_bias, is_row, is_output, SCALED)
            result = gated(result, ups, alpha, limit, ACTIVATION, CLAMPED)
        tl.store(out + out_row[None, :] * N + n[:, None], rounded(result, DTYPE, INTERPRETED), mask=is_output[:, None] & is_row[None, :])


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_codes_kernel(
    x, weight, table, scales, offsets, bias, order, tiles, out,
    num_tiles, N, K, x_stride, weight_stride, num_groups, alpha, limit,
    BITS: tl.constexpr, LOOKUP: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, CLAMPED: tl.constexpr, PER_TOKEN: tl.constexpr,
    X_DTYPE: tl.constexpr, DTYPE: tl.constexpr, PLAIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """As `grouped_linear_kernel`, of codes that become numbers in registers; see kernels/group_linear.

    weight [E, N or 2N, weight_stride], scales and offsets [E, num_groups, N or 2N].
    """
    tile, tile_n = tile_of(tl.program_id(0), num_tiles, tl.cdiv(N, BLOCK_N), 8)
    expert, first, end = rows_of(tiles, tile, num_tiles)
    if first < end:
        m = first + tl.arange(0, BLOCK_M)
        is_row = m < end
        x_row, out_row = places_of(order, m, is_row, GATED, PER_TOKEN)
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        is_output = n < N
        k = tl.arange(0, BLOCK_K)
        outputs = 2 * N if GATED else N
        begin_of_tile = expert * outputs + tile_n * BLOCK_N
        weight_places = weight + begin_of_tile * weight_stride + (tl.arange(0, BLOCK_N)[:, None] * weight_stride + k[None, :])
        up_places = weight + (begin_of_tile + N) * weight_stride + (tl.arange(0, BLOCK_N)[:, None] * weight_stride + k[None, :])
        x_places = x + x_row[None, :] * x_stride + k[:, None]
        of_expert = scales + expert * num_groups * outputs
        added_of_expert = None if offsets is None else offsets + expert * num_groups * outputs
        total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        ups = tl.zeros_like(total)
        of_parts = scales_of(of_expert, 0, n, outputs, K, GROUP, RUN, BITS)
        added = scales_of(added_of_expert, 0, n, outputs, K, GROUP, RUN, BITS)
        of_ups = scales_of(of_expert, 0, n + N, outputs, K, GROUP, RUN, BITS)
        added_to_ups = scales_of(added_of_expert, 0, n + N, outputs, K, GROUP, RUN, BITS)
        begin = 0
        for block in range(weight_stride // BLOCK_K):
            packed = tl.load(weight_places + block * BLOCK_K, mask=is_output[:, None], other=0)
            parts = unpacked(packed, table, BITS, LOOKUP, X_DTYPE, PLAIN, INTERPRETED)
            following = first_input(block + 1, RUN, BLOCK_K, BITS)
            next_of_parts = scales_of(of_expert, following, n, outputs, K, GROUP, RUN, BITS)
            next_added = scales_of(added_of_expert, following, n, outputs, K, GROUP, RUN, BITS)
            for part in tl.static_range(16 // BITS):
                first_k = begin + part * RUN
                total = add_block(
                    total, parts[part], x_places + first_k, of_parts[part], added[part], first_k, m, end, K, EVEN, BLOCK_K, INTERPRETED
                )
            of_parts = next_of_parts
            added = next_added
            if GATED:
                packed = tl.load(up_places + block * BLOCK_K, mask=is_output[:, None], other=0)
                parts = unpacked(packed, table, BITS, LOOKUP, X_DTYPE, PLAIN, INTERPRETED)
                next_of_ups = scales_of(of_expert, following, n + N, outputs, K, GROUP, RUN, BITS)
                next_added = scales_of(added_of_expert, following, n + N, outputs, K, GROUP, RUN, BITS)
                for part in tl.static_range(16 // BITS):
                    first_k = begin + part * RUN
                    ups = add_block(
                        ups, parts[part], x_places + first_k, of_ups[part], added_to_ups[part], first_k, m, end, K, EVEN, BLOCK_K, INTERPRETED
                    )  # fmt: skip
                of_ups = next_of_ups
                added_to_ups = next_added
            begin = following
        output = expert * outputs + n
        result = scaled(total, None, None, None if bias is None else bias + output, is_row, is_output, False)
        if GATED:
            ups = scaled(ups, None, None, None if bias is None else bias + output + N, is_row, is_output, False)
            result = gated(result, ups, alpha, limit, ACTIVATION, CLAMPED)
        tl.store(out + out_row[None, :] * N + n[:, None], rounded(result, DTYPE, INTERPRETED), mask=is_output[:, None] & is_row[None, :])


@triton.jit
def sum_kernel(
    answers, weights, chosen, out, columns,
    PER_TOKEN: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [P, columns] float32: answers [P, PER_TOKEN, columns] weighted and summed in the order of chosen; a grid of tokens and blocks of columns.

    weights [P, PER_TOKEN] float32; chosen [P, PER_TOKEN] int64, numbers that differ within a token; SLOTS: a power of two, at least PER_TOKEN.
    """
    token = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    numbers = tl.load(chosen + token * PER_TOKEN + slots, mask=slots < PER_TOKEN, other=1 << 40)
    shares = tl.load(weights + token * PER_TOKEN + slots, mask=slots < PER_TOKEN, other=0.0)
    rank = tl.sum((numbers[None, :] < numbers[:, None]).to(tl.int32), axis=1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for index in tl.static_range(PER_TOKEN):
        slot = tl.sum(tl.where(rank == index, slots, 0))
        share = tl.sum(tl.where(rank == index, shares, 0.0))
        answer = tl.load(answers + (token * PER_TOKEN + slot) * columns + column, mask=inside, other=0.0)
        total += answer.to(tl.float32) * share
    tl.store(out + token * columns + column, total, mask=inside)


class Plan(NamedTuple):
    """Rows sorted by expert; see `plan_kernel`.

    Attributes:
        order: [R] int32.
        tiles: [3, T] int32.
        rows_of_tile: BLOCK_M.
        per_token: Rows of a token.
    """

    order: torch.Tensor
    tiles: torch.Tensor
    rows_of_tile: int
    per_token: int


def plan(chosen: torch.Tensor, num_experts: int, tile: int) -> Plan:
    """Of chosen [P, per_token], at least one; so many rows of a tile."""
    num_rows = chosen.numel()
    # Every expert that has rows has one at least, and may leave its last tile unfilled.
    most = min(num_experts, num_rows)
    num_tiles = (num_rows - most) // tile + most
    order = torch.empty(num_rows, dtype=torch.int32, device=chosen.device)
    tiles = torch.empty((3, num_tiles), dtype=torch.int32, device=chosen.device)
    # As many as a program has threads, so that none counts what another does.
    block = min(max(triton.next_power_of_2(num_rows), 128), 4096)
    plan_kernel[(num_experts,)](
        chosen, order, tiles, num_rows, num_tiles,
        EXPERTS=num_experts, BINS=max(triton.next_power_of_2(num_experts + 1), 32), BLOCK_M=tile, BLOCK=block, num_warps=4 if block <= 1024 else 8,
    )  # fmt: skip
    return Plan(order, tiles, tile, chosen.shape[1])


def grouped_mlp(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, mlps: GroupedMlps) -> torch.Tensor:
    """See the public function."""
    num_tokens, columns = len(x), mlps.down.out_features
    total = torch.empty((num_tokens, columns), dtype=torch.float32, device=x.device)
    if num_tokens == 0:
        return total
    chosen = chosen.contiguous()
    plan_of = plan(chosen, mlps.count, rows_of_tile(chosen.numel(), mlps, x.dtype))
    width = mlps.into.out_features // 2
    hidden = torch.empty((chosen.numel(), width), dtype=x.dtype, device=x.device)
    _multiply(x, mlps.into, plan_of, hidden, mlps)
    answers = torch.empty((chosen.numel(), columns), dtype=x.dtype, device=x.device)
    _multiply(hidden, mlps.down, plan_of, answers, None)
    block = min(triton.next_power_of_2(columns), 1024)
    sum_kernel[(num_tokens, triton.cdiv(columns, block))](
        answers, weights.contiguous(), chosen, total, columns,
        PER_TOKEN=chosen.shape[1], SLOTS=triton.next_power_of_2(chosen.shape[1]), BLOCK=block, num_warps=4,
    )  # fmt: skip
    return total


def _multiply(x: torch.Tensor, weight: GroupedWeight, plan_of: Plan, out: torch.Tensor, gates: GroupedMlps | None) -> None:
    """One product into out; that of gate and up if there are gates."""
    outputs, num_tiles = out.shape[1], plan_of.tiles.shape[1]
    rows, row_scales = x if x.stride(1) == 1 else x.contiguous(), None
    if weight.format == "int8":
        rows, row_scales = quantise_rows(x, weight.row_group)
    elif weight.format == "fp8":
        rows, row_scales = quantise_rows_to_fp8(x, weight.row_group)
    kind = {"is_gated": gates is not None, "is_hopper": has_wgmma(x.device)}
    cut = cut_for(weight, plan_of.rows_of_tile, num_tiles, outputs, x.dtype, **kind)
    grid = (num_tiles * triton.cdiv(outputs, cut.n),)
    clamp = None if gates is None else gates.clamp
    alpha, limit = (0.0, 0.0) if clamp is None else clamp
    common = {
        "GATED": gates is not None, "ACTIVATION": "none" if gates is None else gates.activation, "CLAMPED": clamp is not None,
        "PER_TOKEN": plan_of.per_token, "DTYPE": TL_DTYPES[out.dtype], "INTERPRETED": INTERPRETED,
        "BLOCK_M": plan_of.rows_of_tile, "BLOCK_N": cut.n, "BLOCK_K": cut.k, "num_warps": cut.warps, "num_stages": cut.stages,
    }  # fmt: skip
    if weight.format == "groups":
        assert weight.scales is not None, "codes have scales"
        length = weight.data.shape[2]
        grouped_codes_kernel[grid](
            rows, weight.data, weight.table, weight.scales, weight.offsets, weight.bias, plan_of.order, plan_of.tiles, out,
            num_tiles, outputs, weight.in_features, rows.stride(0), length, weight.scales.shape[1], alpha, limit,
            BITS=weight.bits, LOOKUP=weight.lookup, RUN=weight.block, GROUP=weight.group if weight.scales.shape[1] > 1 else 0,
            EVEN=weight.in_features % (16 // weight.bits * weight.block) == 0, X_DTYPE=TL_DTYPES[x.dtype], PLAIN=INTERPRETED or x.dtype != torch.bfloat16, **common,
        )  # fmt: skip
        return
    num_groups = 1 if weight.scales is None else weight.scales.shape[2]
    row_groups = 1 if row_scales is None else row_scales.shape[1]
    grouped_linear_kernel[grid](
        rows, row_scales, weight.data, weight.scales, weight.bias, plan_of.order, plan_of.tiles, out,
        num_tiles, outputs, weight.in_features, rows.stride(0), weight.group, num_groups, row_groups, alpha, limit,
        FORMAT=weight.format, GROUPED=num_groups > 1, EVEN=weight.in_features % cut.k == 0, **common,
    )  # fmt: skip
