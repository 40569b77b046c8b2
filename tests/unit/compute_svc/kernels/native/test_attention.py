"""Native attention: its definition bit for bit, on every instruction set, however queries, pages and threads are cut."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.native.attention import covers, native_attention, plan_native
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from tests.fakes.attention_arithmetic import attended, fma
from tests.fakes.attention_cases import Shape, Store, queries_of, sink_queries_of, store_of
from tests.fakes.native_libraries import INSTRUCTION_SETS, native_libraries, native_library_for

LENGTHS = [1, 16, 63, 128, 129, 300]
STARTS = list(itertools.accumulate(LENGTHS, initial=0))
LAST = [end - 1 for end in STARTS[1:]]


class Case(NamedTuple):
    """A shape, what the store holds, and whether heads have sink logits."""

    shape: Shape
    stored: torch.dtype = torch.float32
    group: int | None = None
    with_sink_logits: bool = False

    def store(self) -> Store:
        return store_of(self.shape, LENGTHS, self.stored, group=self.group)

    def sink_logits(self) -> torch.Tensor | None:
        return torch.linspace(-2, 4, self.shape.num_heads) if self.with_sink_logits else None


CASES = {
    "gqa": Case(Shape(6, 2, 32, 16, None)),
    "mqa-narrow-heads-odd-pages": Case(Shape(5, 1, 10, 24, 150)),
    "wide-groups-bfloat16": Case(Shape(18, 2, 80, 1, None), torch.bfloat16),
    "slopes-softcap-window": Case(Shape(4, 2, 16, 16, 40, (0.5, 0.25, 0.125, 0.01), 2.0)),
    "sinks": Case(Shape(6, 2, 16, 16, 20, sinks=4)),
    "sink-logits": Case(Shape(4, 4, 12, 16, None), with_sink_logits=True),
    "int8-g8": Case(Shape(6, 2, 32, 16, None), torch.int8, 8),
    "int8-g64": Case(Shape(4, 2, 64, 16, None), torch.int8, 64),
    "int8-last-group-narrower": Case(Shape(3, 1, 20, 16, 150), torch.int8, 12),
}


class Queries(NamedTuple):
    """Some rows, and what stands for them before the keys of sinks."""

    q: torch.Tensor
    sink_q: torch.Tensor | None

    def rows(self, rows: list[int]) -> Queries:
        return Queries(self.q[rows], None if self.sink_q is None else self.sink_q[rows])


def all_queries(case: Case) -> Queries:
    q = queries_of(STARTS[-1], case.shape, torch.float32)
    return Queries(q, sink_queries_of(q, case.shape))


def attend(
    case: Case, store: Store, lengths: Sequence[int], starts: Sequence[int], asked: Queries, built_for: InstructionSet | None = None
) -> torch.Tensor:
    out = torch.full((len(asked.q), case.shape.num_heads * case.shape.head_dim), torch.nan, dtype=asked.q.dtype)
    library = native_libraries()[0] if built_for is None else native_library_for(built_for)
    plan = plan_native(library, store.page_table, lengths, starts, store.spec)
    native_attention(asked.q, store.kv, plan, out, asked.sink_q, case.sink_logits())
    return out


@cache
def defined(name: str) -> torch.Tensor:
    """What each request's last query gets by the definition."""
    case = CASES[name]
    store, (q, sink_q) = case.store(), all_queries(case)
    rows = [
        attended(store, request, length - 1, q[row], None if sink_q is None else sink_q[row], case.sink_logits())
        for request, (length, row) in enumerate(zip(LENGTHS, LAST, strict=True))
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("built_for", INSTRUCTION_SETS)
def test_decode_rows_and_prompts_get_the_bits_of_the_definition(built_for: InstructionSet, name: str) -> None:
    case, expected = CASES[name], defined(name)
    store, asked = case.store(), all_queries(case)

    as_bfloat16 = Queries(asked.q.bfloat16(), None if asked.sink_q is None else asked.sink_q.bfloat16())

    decoded = attend(case, store, LENGTHS, range(len(LENGTHS) + 1), asked.rows(LAST), built_for)
    prefilled = attend(case, store, LENGTHS, STARTS, asked, built_for)
    narrow = attend(case, store, LENGTHS, STARTS, as_bfloat16, built_for)

    assert torch.equal(decoded, expected)
    assert torch.equal(prefilled[LAST], expected)
    torch.testing.assert_close(narrow.float(), prefilled, rtol=1.6e-2, atol=1.6e-2)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(name: str) -> None:
    """With more of them long contexts are cut into more stretches."""
    case = CASES[name]
    store, asked = case.store(), all_queries(case)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        decoded = attend(case, store, LENGTHS, range(len(LENGTHS) + 1), asked.rows(LAST))
        results.append((decoded, attend(case, store, LENGTHS, STARTS, asked)))

    for decoded, prefilled in results[1:]:
        assert torch.equal(decoded, results[0][0]) and torch.equal(prefilled, results[0][1])


@given(st.data())
def test_a_query_gets_the_same_in_whatever_chunk_it_comes(data: st.DataObject) -> None:
    case = CASES[data.draw(st.sampled_from(sorted(CASES)))]
    store, asked = case.store(), all_queries(case)
    whole = attend(case, store, LENGTHS, STARTS, asked)
    ends = [data.draw(st.integers(1, length)) for length in LENGTHS]
    counts = [data.draw(st.integers(1, end)) for end in ends]
    rows = [row for start, end, count in zip(STARTS, ends, counts, strict=False) for row in range(start + end - count, start + end)]

    chunk = attend(case, store, ends, list(itertools.accumulate(counts, initial=0)), asked.rows(rows))

    assert torch.equal(chunk, whole[rows])


@pytest.mark.parametrize("name", ["gqa", "mqa-narrow-heads-odd-pages", "sinks"])
def test_what_a_query_does_not_see_does_not_touch_it(name: str) -> None:
    """Not even numbers that are not finite, in later tokens of its own prompt or past its request's end."""
    case = CASES[name]
    store, asked = case.store(), all_queries(case)
    expected = attend(case, store, LENGTHS, STARTS, asked)
    size, length = case.shape.page_size_tokens, 200
    poisoned = store.kv.data.clone()
    for token in range(length, LENGTHS[-1]):
        poisoned[:, store.page_table[-1, token // size], token % size] = torch.nan

    out = attend(case, store._replace(kv=KvLayer(poisoned)), LENGTHS, STARTS, asked)

    seen = STARTS[-2] + length
    assert torch.equal(out[:seen], expected[:seen])
    assert out[seen:].isnan().all(), "and where they are seen they show"


def test_whole_chunks_before_a_window_may_be_left_out() -> None:
    case = CASES["sinks"]
    store, asked = case.store(), all_queries(case).rows([0])
    table = store.page_table[-1:]
    expected = attend(case, store._replace(page_table=table), [300], [0, 1], asked)
    pages = 128 // case.shape.page_size_tokens
    shorter = store._replace(page_table=torch.cat((table[:, :pages], table[:, 2 * pages :]), dim=1))

    assert torch.equal(attend(case, shorter, [300 - 128], [0, 1], asked), expected)


def test_pages_that_are_not_in_the_store_are_refused() -> None:
    case = CASES["gqa"]
    store, library = case.store(), native_libraries()[0]
    for page in (-1, store.spec.num_pages):
        table = store.page_table.clone()
        table[2, 1] = page
        with pytest.raises(IndexError, match="the pages of request 2 are not all in the store, or too few for its 63 tokens"):
            plan_native(library, table, LENGTHS, STARTS, store.spec)
    with pytest.raises(IndexError, match="request 5"):
        plan_native(library, store.page_table[:, :10], LENGTHS, STARTS, store.spec)


def test_heads_of_any_strides_are_read() -> None:
    case = CASES["sinks"]
    store, asked = case.store(), all_queries(case)
    turned = Queries(*(one.transpose(1, 2).contiguous().transpose(1, 2) for one in asked if one is not None))

    assert torch.equal(attend(case, store, LENGTHS, STARTS, turned), attend(case, store, LENGTHS, STARTS, asked))


def test_what_is_not_covered_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert not covers(AttentionSpec(97, 1, 8, 16, 4, 1.0, None))
        assert not covers(AttentionSpec(4, 1, 8, 16, 4, 1.0, None, stored=torch.float8_e4m3fn))

    assert covers(AttentionSpec(96, 1, 8, 16, 4, 1.0, None, stored=torch.int8))
    assert "97 query heads share a key head, more than 96" in caplog.text
    assert "native kernels read no torch.float8_e4m3fn" in caplog.text


def test_the_oracle_rounds_a_product_and_a_sum_once() -> None:
    """By exact fractions; a sum rounded twice would be off in some of these."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn((3, 1 << 16), generator=generator).double() * torch.tensor([[1.0], [1.0], [2.0**-8]])).float()
    once = torch.addcmul(c.double(), a.double(), b.double())  # right but where it is rounded in float64 to a half of float32
    found = torch.from_numpy(fma(a.numpy(), b.numpy(), c.numpy()))

    assert (found.double() - once).abs().max() <= (torch.nextafter(found.abs(), torch.tensor(torch.inf)) - found.abs()).max() / 2
    exact = 1.0 + 2.0**-24  # half of a unit above 1, and a little more than float64 keeps
    tiny = torch.tensor([2.0**-60])
    assert fma(tiny.numpy(), torch.ones(1).numpy(), torch.tensor([exact - 2.0**-24]).numpy())[0] == 1.0
    halves = fma(torch.tensor([1 + 2.0**-12]).numpy(), torch.tensor([1 + 2.0**-12]).numpy(), torch.tensor([2.0**-60]).numpy())
    assert halves[0] == 1 + 2.0**-11 + 2.0**-23, "2^-24 is half of a unit, and 2^-60 more makes it round up"
