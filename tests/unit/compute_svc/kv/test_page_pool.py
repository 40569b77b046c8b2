"""The page allocator: one owner per page, contiguous where it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kv.page_pool import PagePool, Pages


def test_a_new_pool_gives_one_contiguous_run() -> None:
    pool = PagePool(10)
    assert pool.reserve(10).tolist() == list(range(10))
    assert pool.num_free == 0


def test_reserving_nothing_takes_nothing() -> None:
    pool = PagePool(3)
    assert pool.reserve(0).size == 0
    assert pool.num_free == 3


def test_growth_continues_behind_the_owners_last_page() -> None:
    pool = PagePool(10)
    first = pool.reserve(3)
    other = pool.reserve(2)
    pool.release(other)
    assert pool.reserve(1, after=int(first[-1])).tolist() == [3]


def test_growth_goes_elsewhere_when_the_next_page_is_taken() -> None:
    pool = PagePool(10)
    first = pool.reserve(3)
    pool.reserve(2)
    assert pool.reserve(1, after=int(first[-1])).tolist() == [5]


def test_a_run_that_fits_is_preferred_to_pieces() -> None:
    pool = PagePool(16)
    everything = pool.reserve(16)
    pool.release(everything[[1, 3, 5]])
    pool.release(everything[8:13])
    assert pool.reserve(4).tolist() == [8, 9, 10, 11]


def test_pieces_are_used_when_no_run_is_long_enough() -> None:
    pool = PagePool(8)
    everything = pool.reserve(8)
    pool.release(everything[[0, 2, 3, 6]])
    assert sorted(pool.reserve(4).tolist()) == [0, 2, 3, 6]


def test_released_neighbours_become_one_run_again() -> None:
    pool = PagePool(9)
    parts = [pool.reserve(3) for _ in range(3)]
    for part in (parts[0], parts[2], parts[1]):
        pool.release(part)
    assert pool.reserve(9).tolist() == list(range(9))


def test_releasing_a_page_twice_is_noticed() -> None:
    pool = PagePool(4)
    pages = pool.reserve(2)
    pool.release(pages)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(pages[:1])


def test_the_check_notices_leaks_and_double_owners() -> None:
    pool = PagePool(4)
    pages = pool.reserve(2)
    with pytest.raises(AssertionError, match="leaked"):
        pool.assert_owned_once([pages[:1]])
    with pytest.raises(AssertionError, match="two owners"):
        pool.assert_owned_once([pages, pages[1:]])
    with pytest.raises(AssertionError, match="that are free"):
        pool.assert_owned_once([pages, np.array([3])])


@given(st.data())
def test_any_sequence_of_operations_keeps_every_page_owned_once(data: st.DataObject) -> None:
    pool = PagePool(data.draw(st.integers(1, 40), label="pages"))
    owned: list[Pages] = []
    for _ in range(data.draw(st.integers(0, 30), label="operations")):
        releases: bool = data.draw(st.booleans(), label="release")
        if owned and releases:
            index = data.draw(st.integers(0, len(owned) - 1), label="owner")
            cut = data.draw(st.integers(0, owned[index].size), label="kept")
            shuffled = data.draw(st.permutations(owned[index][cut:].tolist()), label="order")
            pool.release(np.array(shuffled, dtype=np.int64))
            owned[index] = owned[index][:cut]
        else:
            behind_last: bool = data.draw(st.booleans(), label="after")
            after = int(owned[-1][-1]) if owned and owned[-1].size and behind_last else None
            pages = pool.reserve(data.draw(st.integers(0, pool.num_free), label="count"), after=after)
            assert np.unique(pages).size == pages.size
            owned.append(pages)
        pool.assert_owned_once(owned)
