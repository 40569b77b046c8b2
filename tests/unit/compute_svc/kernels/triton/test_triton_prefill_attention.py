"""Triton's prefill attention gives what the reference gives; in the interpreter where there is no GPU."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.attention.attention_spec import AttentionSpec  # isort: skip
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention, reference  # isort: skip
from compute_svc.kernels.prefill_attention.triton_plan import Tiles, TritonPrefillPlan, covers, flops, plan_triton  # isort: skip
from tests.fakes.attention_cases import Shape, Store, moved, queries_of, store_of  # isort: skip
from tests.fakes.batch_invariance import batch_invariance  # isort: skip

# (relative, absolute). Numbers of 16 bits are rounded where the reference does not: weights, and what codes stand for.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2), torch.float16: (2e-3, 2e-3)}

# Chunks of requests: a first token, a whole prompt, one query behind others, some behind others, many.
LENGTHS = [1, 15, 17, 63, 140]
COUNTS = [1, 15, 1, 5, 50]
STARTS = list(itertools.accumulate(COUNTS, initial=3))

SHAPES = [
    pytest.param(Shape(2, 2, 16, 16, None), id="mha"),
    pytest.param(Shape(8, 2, 64, 16, None), id="gqa"),
    pytest.param(Shape(7, 1, 32, 16, None), id="group-of-7"),
    pytest.param(Shape(4, 2, 16, 16, 20), id="window"),
    pytest.param(Shape(2, 1, 16, 16, 1), id="narrowest-window"),
    pytest.param(Shape(2, 1, 16, 16, 80), id="window-over-tiles"),
    pytest.param(Shape(2, 1, 16, 1, None), id="one-token-pages"),
    pytest.param(Shape(4, 1, 16, 24, 40), id="odd-pages"),
    pytest.param(Shape(4, 2, 16, 256, None), id="pages-longer-than-tiles"),
    pytest.param(Shape(4, 2, 16, 16, None, (0.5, 0.25, 0.125, 0.01)), id="slopes"),
    pytest.param(Shape(4, 2, 16, 16, None, None, 1.5), id="softcap"),
    pytest.param(Shape(2, 1, 16, 16, 50, (0.5, 0.25), 2.0), id="slopes-softcap-window"),
    pytest.param(Shape(4, 1, 80, 16, None), id="heads-of-80"),
    pytest.param(Shape(4, 1, 256, 16, None), id="heads-of-256"),
]
SMALL_TILES = Tiles(64, 64, 4, 2)


def run(q: torch.Tensor, store: Store, tiles: Tiles | None = None, sink_logits: torch.Tensor | None = None) -> torch.Tensor:
    """What the kernel writes into NaN: [rows, num_heads * D] on the CPU."""
    out = torch.full((len(q), store.spec.num_heads * store.spec.head_dim), torch.nan, dtype=q.dtype, device=DEVICE)
    plan = plan_triton(store.page_table.to(DEVICE), LENGTHS, STARTS, store.spec, tiles=tiles)
    logits = None if sink_logits is None else sink_logits.to(DEVICE)
    prefill_attention(q.to(DEVICE), moved(store.kv, str(DEVICE)), plan, out, sink_logits=logits)
    return out.cpu()


def assert_reference(q: torch.Tensor, store: Store, tiles: Tiles | None = None, sink_logits: torch.Tensor | None = None) -> None:
    """Tells dtype, largest error and where it is; no row but the requests' is written."""
    got = run(q, store, tiles, sink_logits)
    expected = torch.empty(got.shape)
    plan = reference.plan_prefill(store.page_table, LENGTHS, STARTS, store.spec)
    reference.prefill_attention(q, store.kv, plan, expected, None, sink_logits)
    own = slice(STARTS[0], STARTS[-1])
    relative, absolute = TOLERANCES[q.dtype]
    torch.testing.assert_close(
        *(got[own].float(), expected[own]), rtol=relative, atol=absolute, msg=lambda text: f"prefill_attention in {q.dtype}: {text}"
    )
    assert got[: STARTS[0]].isnan().all() and got[STARTS[-1] :].isnan().all(), "rows of no request were written"


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_in_bfloat16_is_the_reference(shape: Shape) -> None:
    assert_reference(queries_of(STARTS[-1] + 2, shape, torch.bfloat16), store_of(shape, LENGTHS, torch.bfloat16), SMALL_TILES)


@pytest.mark.parametrize("shape", SHAPES[::3])
def test_attention_in_float32_is_the_reference(shape: Shape) -> None:
    assert_reference(queries_of(STARTS[-1] + 2, shape, torch.float32), store_of(shape, LENGTHS, torch.float32), SMALL_TILES)


@pytest.mark.parametrize(
    ("numbers", "stored"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)], ids=str
)
def test_queries_and_keys_of_any_dtypes_are_multiplied(numbers: torch.dtype, stored: torch.dtype) -> None:
    shape = Shape(6, 2, 16, 16, None)
    store = store_of(shape, LENGTHS, torch.float32 if stored == torch.float16 else stored)
    if stored == torch.float16:
        # 1e30, which stands behind the last token, is not finite in it.
        store.kv.data.clamp_(-1e4, 1e4)
        store = Store(type(store.kv)(store.kv.data.half()), store.page_table, store.spec)
    assert_reference(queries_of(STARTS[-1], shape, numbers), store)


@pytest.mark.parametrize(
    ("codes", "group"),
    [(torch.int8, 8), (torch.int8, 12), (torch.int8, 64), (torch.int8, 80), (torch.float8_e4m3fn, 32)],
    ids=["int8-g8", "int8-last-group-narrower", "int8-g64", "int8-whole-heads", "fp8-last-group-narrower"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_over_codes_is_the_reference(codes: torch.dtype, group: int, dtype: torch.dtype) -> None:
    shape = Shape(4, 1, 80, 16, 40)
    store = store_of(shape, LENGTHS, codes, group=group)
    if not covers(store.spec, DEVICE):
        pytest.skip("this device has no such numbers")
    assert_reference(queries_of(STARTS[-1], shape, dtype), store, SMALL_TILES)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[11]])
def test_a_sink_logit_takes_its_share(shape: Shape) -> None:
    logits = torch.linspace(-2, 4, shape.num_heads)
    logits[0] = -torch.inf
    assert_reference(queries_of(STARTS[-1], shape, torch.bfloat16), store_of(shape, LENGTHS, torch.bfloat16), SMALL_TILES, logits)


def test_scores_far_beyond_the_cap_are_the_cap() -> None:
    shape = Shape(2, 1, 16, 16, None, None, 1.5)
    assert_reference(300 * queries_of(STARTS[-1], shape, torch.float32), store_of(shape, LENGTHS, torch.float32), SMALL_TILES)


def test_heads_that_are_not_next_to_each_other_are_copied() -> None:
    shape = Shape(4, 2, 16, 16, None)
    q = queries_of(STARTS[-1], shape, torch.bfloat16).transpose(1, 2).contiguous().transpose(1, 2)
    assert_reference(q, store_of(shape, LENGTHS, torch.bfloat16), SMALL_TILES)


def test_blocks_larger_than_a_program_are_computed_in_parts() -> None:
    """A plan does not know that queries are float32."""
    shape, lengths = Shape(4, 1, 16, 16, None), [130]
    store, q = store_of(shape, lengths, torch.bfloat16), queries_of(130, shape, torch.float32)
    plan = plan_triton(store.page_table.to(DEVICE), lengths, [0, 130], store.spec, tiles=Tiles(128, 32, 4, 1))
    out, expected = torch.full((130, 64), torch.nan, device=DEVICE), torch.empty((130, 64))

    in_parts = type(plan)(plan.blocks, plan.block_tokens, plan.rows, plan.page_table, plan.spec, plan.slopes, plan.device)
    prefill_attention(q.to(DEVICE), moved(store.kv, str(DEVICE)), in_parts, out)

    reference.prefill_attention(q, store.kv, reference.plan_prefill(store.page_table, lengths, [0, 130], store.spec), expected)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [1, 4, 7, 71])
@pytest.mark.parametrize("counts", [[1], [5000, 1, 300], [2] * 40])
def test_blocks_are_all_queries_once_and_the_longest_come_first(counts: list[int], group: int) -> None:
    spec = store_of(Shape(group, 1, 16, 16, None), [1], torch.bfloat16).spec
    starts = list(itertools.accumulate(counts, initial=7))
    lengths = [count + 3 * index for index, count in enumerate(counts)]
    plan = plan_triton(torch.zeros((len(counts), 400), dtype=torch.int64), lengths, starts, spec, split_tokens=1 << 20)

    blocks = plan.blocks.tolist()
    assert sorted(row + index for _, row, count, _ in blocks for index in range(count)) == list(range(7, starts[-1]))
    for request, row, count, position in blocks:
        assert starts[request] <= row and row + count <= starts[request + 1] and 0 < count <= plan.block_tokens
        assert position == lengths[request] - (starts[request + 1] - row)
    ends = [(lengths[request], position + count) for request, _, count, position in blocks]
    assert ends == sorted(ends, reverse=True)


SPLIT_LENGTHS = [290, 17]
SPLIT_STARTS = [3, 12, 15]


def assert_split_reference(
    q: torch.Tensor, store: Store, plan: TritonPrefillPlan, sink_logits: torch.Tensor | None = None, launches: int = 1
) -> None:
    """Launches find the counters as the one before left them, and no partial results of it."""
    expected = torch.empty((len(q), store.spec.num_heads * store.spec.head_dim))
    defined = reference.plan_prefill(store.page_table, SPLIT_LENGTHS, SPLIT_STARTS, store.spec)
    reference.prefill_attention(q, store.kv, defined, expected, None, sink_logits)
    own = slice(SPLIT_STARTS[0], SPLIT_STARTS[-1])
    relative, absolute = TOLERANCES[q.dtype]
    assert plan.splits is not None
    for _ in range(launches):
        out = torch.full(expected.shape, torch.nan, dtype=q.dtype, device=DEVICE)
        plan.splits.partials.fill_(torch.nan)
        plan.splits.stats.fill_(torch.nan)
        logits = None if sink_logits is None else sink_logits.to(DEVICE)
        prefill_attention(q.to(DEVICE), moved(store.kv, str(DEVICE)), plan, out, sink_logits=logits)
        torch.testing.assert_close(out.cpu()[own].float(), expected[own], rtol=relative, atol=absolute)
        assert out[: own.start].isnan().all() and out[own.stop :].isnan().all(), "rows of no request were written"
        assert not plan.splits.counters.any()


@pytest.mark.parametrize(
    ("shape", "stored", "group", "sink_logits"),
    [
        pytest.param(Shape(7, 1, 32, 16, None), torch.bfloat16, None, None, id="group-of-7"),
        pytest.param(Shape(4, 2, 16, 16, 150, (0.5, 0.25, 0.125, 0.01), 2.0), torch.bfloat16, None, None, id="slopes-softcap-window"),
        pytest.param(Shape(4, 1, 80, 24, 40), torch.int8, 12, None, id="int8-window-heads-of-80"),
        pytest.param(Shape(2, 1, 256, 16, None), torch.float8_e4m3fn, 64, [-torch.inf, 40.0], id="fp8-heads-of-256-sink-logits"),
    ],
)
def test_what_splits_of_the_tokens_have_is_added_up(
    shape: Shape, stored: torch.dtype, group: int | None, sink_logits: list[float] | None
) -> None:
    store = store_of(shape, SPLIT_LENGTHS, stored, group=group)
    if not covers(store.spec, DEVICE):
        pytest.skip("this device has no such numbers")
    plan = plan_triton(store.page_table.to(DEVICE), SPLIT_LENGTHS, SPLIT_STARTS, store.spec, tiles=SMALL_TILES, split_tokens=128)
    logits = None if sink_logits is None else torch.tensor(sink_logits)
    launches = 2 if stored == torch.bfloat16 else 1
    assert_split_reference(queries_of(SPLIT_STARTS[-1] + 2, shape, torch.bfloat16), store, plan, logits, launches)


def test_parts_of_a_block_have_splits_of_their_own() -> None:
    """A plan does not know that queries are float32, of which a program has fewer."""
    shape = Shape(4, 1, 16, 16, None)
    store, q = store_of(shape, SPLIT_LENGTHS, torch.bfloat16), queries_of(SPLIT_STARTS[-1], shape, torch.float32)
    plan = plan_triton(store.page_table.to(DEVICE), SPLIT_LENGTHS, SPLIT_STARTS, store.spec, tiles=SMALL_TILES, split_tokens=256)
    assert plan.block_tokens == 16
    assert_split_reference(q, store, replace(plan, tiles=None, rows=64))


@pytest.mark.parametrize(
    ("lengths", "counts", "rows", "programs"),
    [
        pytest.param([32768 + 128], [128], 128, (120, 132), id="a-turn-behind-a-prefix"),
        pytest.param([8192 + 64] * 8, [64] * 8, 128, (128, 128), id="turns-that-fill-a-device"),
        pytest.param([32768 + 128] * 6, [128] * 6, 128, (376, 396), id="turns-that-leave-half-of-a-second-wave"),
        pytest.param([131072 + 3], [3], 16, (120, 132), id="a-speculative-step"),
        pytest.param([131072 + 16], [16], 64, (230, 264), id="a-short-chunk"),
        pytest.param([65536 + 16, *[700] * 40], [16, *[700] * 40], 128, (7050, 7200), id="one-long-among-many"),
        pytest.param([8192], [8192], 128, (2048, 2048), id="a-whole-prompt"),
        pytest.param([40], [40], 16, (80, 80), id="a-short-prompt"),
    ],
)
def test_tokens_are_split_where_queries_leave_a_device_idle(
    lengths: list[int], counts: list[int], rows: int, programs: tuple[int, int]
) -> None:
    spec = AttentionSpec(32, 8, 128, 16, 20000, 0.1, None, stored=torch.bfloat16)
    table = torch.zeros((len(counts), 8200), dtype=torch.int64)
    plan = plan_triton(table, lengths, list(itertools.accumulate(counts, initial=0)), spec)

    assert plan.rows == rows and programs[0] <= 8 * len(plan.blocks) <= programs[1]
    if plan.splits is None:
        assert len({tuple(block) for block in plan.blocks.tolist()}) == len(plan.blocks)
        return
    seen: dict[int, int] = {}
    for (_, row, count, position), (first, end, place, split, splits) in zip(plan.blocks.tolist(), plan.splits.items.tolist(), strict=True):
        assert 0 <= split < splits and first % 128 == 0 and first < position + count
        assert splits == 1 or place + splits * count <= len(plan.splits.partials) == len(plan.splits.counters)
        seen[row] = seen.get(row, 0) + min(end, position + count) - first
    starts = {row: position + count for _, row, count, position in plan.blocks.tolist()}
    assert seen == starts, "splits of a block are all of what it sees"


def test_nothing_is_split_where_bits_may_not_depend_on_the_batch() -> None:
    spec = AttentionSpec(32, 8, 128, 16, 20000, 0.1, None, stored=torch.bfloat16)
    with batch_invariance():
        assert plan_triton(torch.zeros((1, 2100), dtype=torch.int64), [32896], [0, 128], spec).splits is None


def test_what_is_not_covered() -> None:
    plain = store_of(Shape(2, 2, 16, 16, 40), [1], torch.float32).spec
    sinks = store_of(Shape(2, 2, 16, 16, 40, sinks=4), [1], torch.float32).spec
    rounded = store_of(Shape(2, 2, 16, 16, None, (0.5, 0.25), rounded_slopes=True), [1], torch.float32).spec
    wide = store_of(Shape(1, 1, 512, 16, None), [1], torch.float32).spec

    assert [covers(spec, torch.device("cpu")) for spec in (plain, sinks, rounded, wide)] == [True, False, False, False]


def test_plans_for_a_gpu_are_for_the_kernel_that_covers_them() -> None:
    if DEVICE.type != "cuda":
        pytest.skip("there is no CUDA device")
    for shape, covered in ((Shape(4, 2, 16, 16, 40), True), (Shape(4, 2, 16, 16, 40, sinks=4), False)):
        store = store_of(shape, LENGTHS, torch.bfloat16)
        plan = plan_prefill(store.page_table.to(DEVICE), LENGTHS, STARTS, store.spec)
        assert isinstance(plan, TritonPrefillPlan) == covered


def test_operations_are_counted_by_what_queries_see() -> None:
    windowed, sinks = (store_of(Shape(2, 1, 16, 16, 3, sinks=sinks), [1], torch.float32).spec for sinks in (0, 2))
    plain = store_of(Shape(2, 1, 16, 16, None), [1], torch.float32).spec

    # Positions 0 and 1 of one request, 4 to 6 of another.
    assert flops([2, 7], [0, 2, 5], plain) == 4 * 16 * 2 * (1 + 2 + 5 + 6 + 7)
    assert flops([2, 7], [0, 2, 5], windowed) == 4 * 16 * 2 * (1 + 2 + 3 + 3 + 3)
    assert flops([2, 7], [0, 2, 5], sinks) == 4 * 16 * 2 * (1 + 2 + 5 + 5 + 5)
