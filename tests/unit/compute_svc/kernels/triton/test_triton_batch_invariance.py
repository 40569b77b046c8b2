"""Where bits may not depend on the batch, a row gets the same from Triton's kernels alone, among others and in chunks; in the interpreter without a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.attention.attention_spec import AttentionSpec  # isort: skip
from compute_svc.kernels.backend import TritonKernelsError, is_batch_invariant, use_batch_invariance  # isort: skip
from compute_svc.kernels.decode_attention import plan_decode_on_device, triton_plan as decode_plan  # isort: skip
from compute_svc.kernels.decode_attention.triton_kernel import decode_attention  # isort: skip
from compute_svc.kernels.fp8_linear import fp8_linear, pack_fp8  # isort: skip
from compute_svc.kernels.gated_linear.joined import join  # isort: skip
from compute_svc.kernels.gated_linear.triton_kernel import gated_linear  # isort: skip
from compute_svc.kernels.group_linear import group_linear, pack_groups  # isort: skip
from compute_svc.kernels.grouped_mlp.aten import takes_groups  # isort: skip
from compute_svc.kernels.int_linear import triton_kernel as int_kernel  # isort: skip
from compute_svc.kernels.attention.kv_chunks import CHUNK_TOKENS  # isort: skip
from compute_svc.kernels.linear import LinearWeight, linear, reference, triton_kernel  # isort: skip
from compute_svc.kernels.linear.triton_kernel import multiply, segments_for, tiles_for  # isort: skip
from compute_svc.kernels.prefill_attention import prefill_attention  # isort: skip
from compute_svc.kernels.prefill_attention.triton_plan import plan_triton  # isort: skip
from compute_svc.kernels.quantise_rows import QuantisedRows  # isort: skip
from compute_svc.kernels.rms_norm.triton_kernel import rms_norm  # isort: skip
from compute_svc.models.loading import kernel_names  # isort: skip
from tests.fakes.attention_cases import Shape, Store, moved, queries_of, store_of  # isort: skip
from tests.fakes.batch_invariance import batch_invariance  # isort: skip

# Largest error, relative to the reference's largest number.
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 8e-3}
# Every tile there is of the dense product, and numbers of rows between.
ROWS = (1, 2, 17, 64, 130)


@pytest.fixture(autouse=True)
def _invariant() -> Iterator[None]:
    with batch_invariance():
        yield


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_rows_alike(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, counts: tuple[int, ...] = ROWS) -> None:
    """Rows of the first so many, and the last row alone, have the bits that they have among all."""
    whole = compute(x)
    assert not whole.isnan().any()
    for count in counts:
        got = compute(x[:count])
        assert torch.equal(got, whole[:count]), f"{count} rows: {int((got != whole[:count]).sum())} numbers of {got.numel()} differ"
    assert torch.equal(compute(x[-1:]), whole[-1:])


@pytest.mark.parametrize(
    ("outputs", "inputs", "dtype"), [(40, 1030, torch.float32), (40, 1024, torch.bfloat16), (130, 72, torch.bfloat16)], ids=str
)
def test_a_product_gives_a_row_the_same_bits_whatever_the_number_of_rows(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    x, weight = random(max(ROWS), inputs, seed=1, dtype=dtype), random(outputs, inputs, seed=2, dtype=dtype)
    bias = random(outputs, seed=3, dtype=dtype)
    assert_rows_alike(lambda some: multiply(some, weight, bias, "silu"), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [17, 65])
def test_a_product_is_the_reference(rows: int, dtype: torch.dtype) -> None:
    weight = LinearWeight.plain(random(70, 1030, seed=2, dtype=dtype), random(70, seed=3, dtype=dtype))
    # Rows that lie apart.
    x, add = random(rows, 1040, seed=1, dtype=dtype)[:, :1030], random(rows, 70, seed=4, dtype=dtype)
    got = multiply(x, weight.data, weight.bias, "none", add)
    wanted = reference.linear(x.double().float(), _wide(weight), "none", add.float()).double()
    error = (got.double() - wanted).abs() / wanted.abs().max()
    assert bool((error <= TOLERANCES[dtype]).all()), f"{dtype}: off by {error.max():.1e}"


def _wide(weight: LinearWeight) -> LinearWeight:
    return LinearWeight.plain(weight.data.float(), None if weight.bias is None else weight.bias.float())


def test_segments_follow_from_the_weight_and_every_kind_of_launch_is_tested() -> None:
    assert segments_for(64, 1024) == 2 and segments_for(130, 200) == 1 and segments_for(128256, 4096) == 1
    assert len({tiles_for(rows, torch.bfloat16) for rows in ROWS}) == 4


def test_few_rows_in_splits_and_many_in_one_program_are_summed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random(130, 1024, seed=1, dtype=torch.bfloat16), random(40, 1024, seed=2, dtype=torch.bfloat16)
    in_splits = multiply(x, weight, None)
    # No number of tiles is few.
    monkeypatch.setattr(triton_kernel, "_FEW_TILES", 0)
    assert torch.equal(multiply(x, weight, None), in_splits)
    assert torch.equal(multiply(x[:1], weight, None), in_splits[:1])


def test_gate_and_up_are_products_of_that_kind() -> None:
    gate, up = (LinearWeight.plain(random(40, 96, seed=seed, dtype=torch.bfloat16), None) for seed in (1, 2))
    x = random(20, 96, seed=3, dtype=torch.bfloat16)
    apart = gated_linear(x, gate, up, "silu")
    together = join(gate, up)
    assert torch.equal(gated_linear(x, *together, "silu"), apart)
    assert_rows_alike(lambda some: gated_linear(some, *together, "silu"), x, (1,))


@pytest.mark.parametrize(("bits", "offsets", "dtype"), [(4, True, torch.bfloat16), (8, False, torch.bfloat16), (4, False, torch.float32)])
def test_products_with_codes_in_groups_are_summed_in_one_order(bits: int, offsets: bool, dtype: torch.dtype) -> None:
    low, inputs = -(1 << (bits - 1)), 4096 // bits
    codes = torch.randint(low, -low, (20, inputs), generator=torch.Generator().manual_seed(bits), dtype=torch.int8)
    scales = random(20, inputs // 64, seed=4).abs() * 0.02
    packed = pack_groups(codes.to(DEVICE), bits, 64, scales, random(*scales.shape, seed=5) if offsets else None, None)
    assert_rows_alike(lambda some: group_linear(some, packed), random(34, inputs, seed=6, dtype=dtype), (1, 17))


def test_more_rows_than_a_launch_counts_tiles_of_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(-8, 8, (70, 1024), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = pack_groups(codes.to(DEVICE), 4, 64, random(70, 16, seed=4).abs(), None, None)
    x, add = random(70, 1024, seed=6, dtype=torch.bfloat16), random(70, 70, seed=7, dtype=torch.bfloat16)
    whole = group_linear(x, packed, add=add)
    # Two tiles of outputs, and one of rows.
    monkeypatch.setattr(int_kernel, "_MOST_SHARED_TILES", 2)
    assert torch.equal(group_linear(x, packed, add=add), whole)


@pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="the device has no instructions for float8"
)
@pytest.mark.parametrize("group", [1 << 20, 128])
def test_products_of_float8_are_summed_in_one_order(group: int) -> None:
    codes = (random(20, 512, seed=1) * 50.0).to(torch.float8_e4m3fn)
    packed = pack_fp8(codes, group, random(20, -(-512 // group), seed=2).abs())
    assert_rows_alike(lambda some: fp8_linear(some, packed), random(70, 512, seed=3, dtype=torch.bfloat16), (1, 17))


def test_products_of_integers_in_groups_are_summed_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, rows = (
        torch.randint(-127, 128, (count, 512), generator=torch.Generator().manual_seed(count), dtype=torch.int8).to(DEVICE)
        for count in (66, 130)
    )
    counters = int_kernel.new_counters(DEVICE)
    weight = int_kernel.Codes(codes, 256, random(66, 2, seed=2).abs(), None, None, counters)
    scales, add = random(130, 2, seed=3).abs(), random(130, 66, seed=5)

    def compute(some: torch.Tensor) -> torch.Tensor:
        first = len(rows) - 1 if len(some) == 1 and torch.equal(some[0], rows[-1]) else 0
        at = slice(first, first + len(some))
        return int_kernel.multiply(QuantisedRows(some, scales[at]), weight, "none", add[at], torch.float32)

    assert_rows_alike(compute, rows, (1, 17))
    whole = compute(rows)
    monkeypatch.setattr(int_kernel, "_MOST_SHARED_TILES", 2)
    assert torch.equal(compute(rows), whole), "more rows than a launch counts tiles of go in pieces"


@pytest.mark.parametrize("columns", [64, 500])
def test_few_rows_are_normalised_in_blocks_of_the_same_shape(columns: int) -> None:
    x, weight = random(40, columns, seed=1, dtype=torch.bfloat16), random(columns, seed=2)
    assert_rows_alike(lambda some: rms_norm(some, weight, 1e-6), x, (1, 2, 17))


SHAPES = [
    pytest.param(Shape(4, 2, 16, 16, None), id="gqa"),
    pytest.param(Shape(4, 1, 16, 24, 40), id="window"),
    pytest.param(Shape(2, 1, 16, 16, 50, (0.5, 0.25), 2.0), id="slopes-softcap-window"),
]


def prefilled(store: Store, q: torch.Tensor, chunks: list[tuple[int, int, int]]) -> torch.Tensor:
    """Of chunks (request, first query, end) side by side in one launch: what the queries [first, end) of each get, [rows, heads * D]."""
    starts = list(itertools.accumulate((end - first for _, first, end in chunks), initial=0))
    rows = [request for request, _, _ in chunks]
    queries = torch.cat([q[request, first:end] for request, first, end in chunks])
    plan = plan_triton(store.page_table[rows], [end for _, _, end in chunks], starts, store.spec)
    out = torch.full((len(queries), queries.shape[1] * queries.shape[2]), torch.nan, dtype=q.dtype, device=DEVICE)
    prefill_attention(queries, store.kv, plan, out)
    return out


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(pytest.param(*shape.values, torch.bfloat16, id=f"{shape.id}-bfloat16") for shape in SHAPES),
        pytest.param(*SHAPES[0].values, torch.float32, id=f"{SHAPES[0].id}-float32", marks=pytest.mark.slow),
    ],
)
def test_a_prompt_gets_the_same_bits_whole_in_chunks_behind_a_prefix_and_among_others(shape: Shape, dtype: torch.dtype) -> None:
    length = 150
    store = store_of(shape, [length, 90, 17], dtype)
    store = store._replace(kv=moved(store.kv, str(DEVICE)), page_table=store.page_table.to(DEVICE))
    q = torch.stack([queries_of(length, shape, dtype) * (1 + index) for index in range(3)]).to(DEVICE)
    whole = prefilled(store, q, [(0, 0, length)])
    for ends in ([1, 80], [37]):
        borders = [0, *ends, length]
        parts = [prefilled(store, q, [(0, first, end)]) for first, end in itertools.pairwise(borders)]
        assert torch.equal(torch.cat(parts), whole), f"chunks that end at {ends}"
    among = prefilled(store, q, [(2, 16, 17), (1, 3, 90), (0, 64, length), (2, 0, 9)])
    assert torch.equal(among[88 : 88 + length - 64], whole[64:])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decode_row_gets_the_same_bits_alone_and_among_others(shape: Shape) -> None:
    lengths = [600, 17, 64, 530]
    store = store_of(shape, lengths, torch.bfloat16)
    store = store._replace(kv=moved(store.kv, str(DEVICE)), page_table=store.page_table.to(DEVICE))
    q = queries_of(4, shape, torch.bfloat16).to(DEVICE)
    together = decoded(store, q, lengths, 600)
    for row, length in enumerate(lengths):
        alone = store._replace(page_table=store.page_table[row : row + 1])
        assert torch.equal(decoded(alone, q[row : row + 1], [length], 1200)[0], together[row])


def decoded(store: Store, q: torch.Tensor, lengths: list[int], most: int) -> torch.Tensor:
    plan = plan_decode_on_device(store.page_table, torch.tensor(lengths, dtype=torch.int32, device=DEVICE), most, store.spec)
    out = torch.full((len(q), store.spec.num_heads * store.spec.head_dim), torch.nan, dtype=q.dtype, device=DEVICE)
    decode_attention(q, store.kv, plan, out)
    assert not out.isnan().any()
    return out


def test_tokens_that_a_window_drops_move_no_split() -> None:
    shape, length = Shape(2, 1, 16, 16, 40), 300
    store = store_of(shape, [length], torch.bfloat16)
    store = store._replace(kv=moved(store.kv, str(DEVICE)), page_table=store.page_table.to(DEVICE))
    q = queries_of(1, shape, torch.bfloat16).to(DEVICE)
    kept = store._replace(page_table=store.page_table[:, CHUNK_TOKENS // 16 :])
    assert torch.equal(decoded(kept, q, [length - CHUNK_TOKENS], 600), decoded(store, q, [length], 600))


def test_splits_are_whole_tiles_of_every_model() -> None:
    for stored, head_dim, window in itertools.product((torch.float32, torch.bfloat16, torch.int8), (64, 128, 256), (None, 100)):
        spec = AttentionSpec(8, 2, head_dim, 16, 100, 0.1, window, stored=stored)
        assert decode_plan.invariant_split_tokens(spec) % decode_plan.tile_shape(spec).tokens == 0


def test_on_a_cpu_the_products_stay_what_they_are() -> None:
    weight = LinearWeight.plain(torch.randn(8, 16), None)
    x = torch.randn(3, 16)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight.data))


def test_it_is_refused_where_no_triton_kernels_compute_and_a_cpu_needs_none() -> None:
    use_batch_invariance(True, "cpu")
    assert not is_batch_invariant()
    with pytest.raises(TritonKernelsError, match="COMPUTE_BATCH_INVARIANT is set, but there is no Triton kernel for mps"):
        use_batch_invariance(True, "mps")


def test_replicas_tell_it_of_each_other_and_torch_does_not_multiply_experts_in_groups() -> None:
    assert kernel_names("cuda", torch.bfloat16, has_ints=True) == "Triton kernels, one order of sums, integer products"
    assert not takes_groups(torch.device("cuda"), torch.bfloat16, (64, 64))
    use_batch_invariance(False, "cuda")
    assert kernel_names("cuda", torch.bfloat16, has_ints=False) == "Triton kernels"
