"""The Triton kernel of decode attention gives what the reference gives; in the interpreter where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.decode_attention import plan_decode_on_device  # isort: skip
from compute_svc.kernels.decode_attention import reference  # isort: skip
from compute_svc.kernels.decode_attention.triton_kernel import decode_attention  # isort: skip
from compute_svc.kernels.decode_attention.triton_plan import TritonDecodePlan, bytes_read, covers, tile_shape  # isort: skip
from compute_svc.kernels.attention.attention_spec import AttentionSpec  # isort: skip
from tests.fakes.attention_cases import Shape, Store, moved, queries_of, store_of  # isort: skip

LENGTHS = [1, 63, 150]

# Largest error, relative to the reference's largest number; bfloat16 and float16 round weights and decoded codes, too.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}

SHAPES = [
    pytest.param(Shape(6, 2, 64, 16, None), id="gqa"),
    pytest.param(Shape(2, 2, 80, 16, None), id="mha-80-wide"),
    pytest.param(Shape(6, 1, 96, 24, 40), id="mqa-window-odd-pages"),
    pytest.param(Shape(17, 1, 16, 1, None), id="more-heads-than-a-block-one-token-pages"),
    pytest.param(Shape(2, 1, 128, 256, 100, (0.5, 0.01), 1.5), id="slopes-softcap-window-long-pages"),
    pytest.param(Shape(2, 1, 256, 16, None, None, 30.0), id="softcap-256-wide"),
]

CASES = [
    *(pytest.param(*shape.values, torch.float32, id=f"{shape.id}-float32") for shape in SHAPES),
    *(pytest.param(*shape.values, torch.bfloat16, id=f"{shape.id}-bfloat16") for shape in SHAPES[:3]),
]

CODES = [
    pytest.param(torch.int8, 8, id="int8-g8"),
    pytest.param(torch.int8, 32, id="int8-g32"),
    pytest.param(torch.int8, 128, id="int8-whole-heads"),
    pytest.param(torch.int8, 12, id="int8-g12"),
    pytest.param(torch.float8_e4m3fn, 32, id="fp8-g32"),
]


def on_device(store: Store) -> Store:
    return store._replace(kv=moved(store.kv, str(DEVICE)), page_table=store.page_table.to(DEVICE))


def lengths_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor(lengths, dtype=torch.int32, device=DEVICE)


def run(store: Store, plan: TritonDecodePlan, q: torch.Tensor, sink_logits: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.full((len(q), store.spec.num_heads * store.spec.head_dim), torch.nan, dtype=q.dtype, device=DEVICE)
    decode_attention(q, store.kv, plan, out, sink_logits)
    return out


def decoded(
    store: Store, lengths: list[int], q: torch.Tensor, sink_logits: torch.Tensor | None = None, *, fixed: int | None = None
) -> torch.Tensor:
    plan = plan_decode_on_device(store.page_table, lengths_of(lengths), max(lengths), store.spec, fixed_split_tokens=fixed)
    return run(store, plan, q, sink_logits)


def defined(store: Store, lengths: list[int], q: torch.Tensor, sink_logits: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.empty((len(q), store.spec.num_heads * store.spec.head_dim), dtype=torch.float32, device=DEVICE)
    plan = reference.plan_decode(store.page_table, lengths, store.spec)
    reference.decode_attention(q, store.kv, plan, out, None, sink_logits)
    return out


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Tells dtype, largest error and where it is."""
    error = (got.float() - wanted).abs() / wanted.abs().max()
    worst = int(error.nan_to_num(math.inf).argmax())
    place = divmod(worst, got.shape[1])
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"decode_attention {got.dtype}: off by {error.max():.1e} at {place}"


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_requests_of_odd_lengths_get_what_the_reference_gives(shape: Shape, dtype: torch.dtype) -> None:
    store, q = on_device(store_of(shape, LENGTHS, dtype)), queries_of(len(LENGTHS), shape, dtype).to(DEVICE)
    assert_close(decoded(store, LENGTHS, q), defined(store, LENGTHS, q))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("codes", "group"), CODES)
def test_codes_are_the_numbers_that_they_stand_for(codes: torch.dtype, group: int, dtype: torch.dtype) -> None:
    shape, lengths = Shape(4, 1, 128, 16, None), [1, 130]
    store = on_device(store_of(shape, lengths, codes, group=group))
    if not covers(store.spec, DEVICE):
        pytest.skip("the device knows no float8")
    q = queries_of(len(lengths), shape, dtype).to(DEVICE)
    assert_close(decoded(store, lengths, q), defined(store, lengths, q))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape(4, 2, 80, 16, None), id="80-wide"),
        pytest.param(Shape(4, 2, 96, 24, 40), id="96-wide-window-odd-pages"),
        pytest.param(Shape(3, 1, 32, 256, 100, (0.5, 0.25, 0.01), 1.5), id="slopes-softcap-window-long-pages-one-scale"),
    ],
)
def test_codes_of_models_with_everything_else(shape: Shape) -> None:
    lengths = [17, 270]
    store = on_device(store_of(shape, lengths, torch.int8, group=32))
    q = queries_of(len(lengths), shape, torch.bfloat16).to(DEVICE)
    assert_close(decoded(store, lengths, q), defined(store, lengths, q))


@pytest.mark.parametrize("group", [32, 64])
def test_codes_of_the_largest_numbers_are_cut_off_where_float16_ends_and_those_of_none_are_none(group: int) -> None:
    shape, length = Shape(2, 2, 64, 16, None), 20
    store = on_device(store_of(shape, [length], torch.int8, group=group))
    assert store.kv.scales is not None
    store.kv.data[2] = 127
    store.kv.scales[2] = 60000.0
    store.kv.scales[3, store.page_table[0, 0], 0, 0] = torch.nan
    q = queries_of(1, shape, torch.bfloat16).to(DEVICE)
    out = decoded(store, [length], q).view(2, 64).float()
    assert torch.allclose(out[0], torch.tensor(65468.5, device=DEVICE), rtol=1e-2)
    assert out[1, :group].isnan().all() and out[1, group:].isfinite().all()


@pytest.mark.parametrize(("stored", "asked"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_queries_may_have_another_dtype_than_the_store(stored: torch.dtype, asked: torch.dtype) -> None:
    shape = Shape(4, 2, 64, 16, None)
    store, q = on_device(store_of(shape, LENGTHS, stored)), queries_of(len(LENGTHS), shape, asked).to(DEVICE)
    assert_close(decoded(store, LENGTHS, q), defined(store, LENGTHS, q))


@pytest.mark.parametrize("fixed", [None, 128])
def test_a_sink_logit_takes_its_share_once_however_many_splits_there_are(fixed: int | None) -> None:
    shape = Shape(4, 1, 64, 16, None)
    store, q = on_device(store_of(shape, LENGTHS, torch.float32)), queries_of(len(LENGTHS), shape, torch.float32).to(DEVICE)
    logits = torch.tensor([-3.0, 0.0, 2.0, 5.0], device=DEVICE)
    assert_close(decoded(store, LENGTHS, q, logits, fixed=fixed), defined(store, LENGTHS, q, logits))


def test_rows_without_a_request_become_zeros() -> None:
    shape, lengths = Shape(4, 1, 64, 16, None), [0, 40, 0, 130, 0]
    filled = on_device(store_of(shape, [max(length, 1) for length in lengths], torch.float32))
    table = filled.page_table.clone()
    table[[0, 2, 4]] = 1 << 40
    store, q = filled._replace(page_table=table), queries_of(len(lengths), shape, torch.float32).to(DEVICE)
    for logits in (None, torch.ones(4, device=DEVICE)):
        out = decoded(store, lengths, q, logits)
        assert not out[[0, 2, 4]].any()
        rows = filled._replace(page_table=filled.page_table[[1, 3]])
        assert_close(out[[1, 3]], defined(rows, [40, 130], q[[1, 3]], logits))


@pytest.mark.parametrize("fixed", [None, 64], ids=["by-load", "fixed"])
def test_a_plan_is_right_for_lengths_and_pages_that_are_written_after_it_was_recorded(fixed: int | None) -> None:
    shape = Shape(2, 1, 64, 16, None)
    store, q = on_device(store_of(shape, [150, 140, 130], torch.float32)), queries_of(3, shape, torch.float32).to(DEVICE)
    table, lengths = store.page_table.clone(), lengths_of([1, 1, 1])
    for wanted in ([150, 2, 65], [0, 128, 130]):
        lengths.copy_(lengths_of(wanted))
        # What a recorded launch does: it derives the splits again, with the same grid, from the same tensors.
        plan = plan_decode_on_device(table, lengths, 150, store.spec, fixed_split_tokens=fixed)
        out = run(store, plan, q)
        alone = [row for row, length in enumerate(wanted) if length]
        rows = store._replace(page_table=store.page_table[alone])
        assert_close(out[alone], defined(rows, [wanted[row] for row in alone], q[alone]))
        assert torch.equal(run(store, plan, q), out), "a second layer finds the plan as the first did"


def test_a_window_reads_only_the_tiles_that_it_touches() -> None:
    shape, length = Shape(2, 1, 64, 16, 20), 150
    store, q = on_device(store_of(shape, [length], torch.float32)), queries_of(1, shape, torch.float32).to(DEVICE)
    whole = decoded(store, [length], q)
    begin = (length - 20) // tile_shape(store.spec).tokens * tile_shape(store.spec).tokens
    store.page_table[0, : begin // 16] = 1 << 40
    assert torch.equal(decoded(store, [length], q), whole)


@pytest.mark.parametrize("window", [None, 150])
def test_fixed_splits_give_a_request_the_same_bits_in_whatever_batch(window: int | None) -> None:
    shape, lengths = Shape(2, 1, 64, 16, window), [300, 17, 128, 140]
    store, q = on_device(store_of(shape, lengths, torch.bfloat16)), queries_of(4, shape, torch.bfloat16).to(DEVICE)
    together = decoded(store, lengths, q, fixed=128)
    for row, length in enumerate(lengths):
        alone = store._replace(page_table=store.page_table[row : row + 1])
        assert torch.equal(decoded(alone, [length], q[row : row + 1], fixed=128)[0], together[row])
        bounded = plan_decode_on_device(alone.page_table, lengths_of([length]), 1000, store.spec, fixed_split_tokens=128)
        assert torch.equal(run(alone, bounded, q[row : row + 1])[0], together[row])


def test_splits_cover_every_token_once_and_are_no_more_than_the_device_holds() -> None:
    spec = AttentionSpec(8, 2, 64, 16, 100, 0.125, None, stored=torch.bfloat16)
    tile = tile_shape(spec).tokens
    for lengths in ([5000], [700, 650, 0, 3000], [100] * 9, [2000] + [10] * 12, [0], [30] * 200):
        table = torch.zeros((len(lengths), 400), dtype=torch.int64, device=DEVICE)
        for fixed in (None, 4 * tile):
            items = plan_decode_on_device(table, lengths_of(lengths), 6000, spec, fixed_split_tokens=fixed).items.tolist()
            used = [item for item in items if item[0] >= 0]
            assert used == items[: len(used)]
            for request, length in enumerate(lengths):
                mine = [item for item in used if item[0] == request]
                tiles = [tile for item in mine for tile in range(item[1], item[2])]
                assert tiles == list(range(math.ceil(length / tile)))
                assert [item[5:7] for item in mine] == [[used.index(mine[0]), len(mine)]] * len(mine)
                assert all(item[3] == length for item in mine)


def test_a_split_that_is_no_multiple_of_the_tile_is_refused() -> None:
    spec = AttentionSpec(8, 2, 64, 16, 100, 0.125, None, stored=torch.bfloat16)
    with pytest.raises(ValueError, match="must be a multiple of"):
        plan_decode_on_device(torch.zeros((1, 4), dtype=torch.int64), lengths_of([20]), 60, spec, fixed_split_tokens=40)


def test_what_the_kernel_does_not_compute_is_not_covered() -> None:
    fine = AttentionSpec(8, 2, 64, 16, 100, 0.125, 50, stored=torch.bfloat16)
    sinks = AttentionSpec(8, 2, 64, 16, 100, 0.125, 50, sinks=4, stored=torch.bfloat16)
    wide = AttentionSpec(8, 2, 576, 16, 100, 0.125, 50, stored=torch.bfloat16)
    rounded = AttentionSpec(2, 2, 64, 16, 100, 0.125, None, (0.5, 0.25), rounded_slopes=True, stored=torch.bfloat16)
    assert [covers(spec, DEVICE) for spec in (fine, sinks, wide, rounded)] == [True, False, False, False]


def test_bytes_read_are_those_of_visible_tokens() -> None:
    plain = AttentionSpec(8, 2, 64, 16, 100, 0.125, None, stored=torch.bfloat16)
    windowed = AttentionSpec(8, 2, 80, 16, 100, 0.125, 50, stored=torch.int8)
    assert bytes_read([10, 0, 3], plain, 0) == 13 * 2 * 2 * 64 * 2
    assert bytes_read([100, 20], windowed, 32) == 70 * 2 * 2 * (80 + 2 * 3)
