"""The page allocator: one owner per page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kv.page_pool import PagePool, Pages


def test_a_new_pool_gives_all_its_pages_in_order() -> None:
    pool = PagePool(10)
    first, others = pool.allocate(4), pool.allocate(6)
    assert (first.tolist(), others.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    assert (pool.num_pages, pool.num_free) == (10, 0)
    pool.assert_owned_once([others, first])


def test_what_was_released_last_is_handed_out_first_and_in_the_same_order() -> None:
    pool = PagePool(10)
    pages = pool.allocate(6)
    pool.release(pages[:2])
    pool.release(pages[3:])
    assert pool.allocate(4).tolist() == [3, 4, 5, 0]


def test_more_than_is_free_is_not_handed_out() -> None:
    pool = PagePool(3)
    assert pool.allocate(0).size == 0
    assert pool.num_free == 3
    with pytest.raises(AssertionError, match="4 pages wanted, 3 free"):
        pool.allocate(4)


def test_releasing_a_page_twice_is_noticed() -> None:
    pool = PagePool(4)
    pages = pool.allocate(2)
    pool.release(pages)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(pages[:1])
    assert pool.num_free == 4, "and nothing has changed"


def test_pages_handed_out_are_the_owners_to_change() -> None:
    pool = PagePool(4)
    pool.allocate(2)[:] = 3
    assert pool.allocate(2).tolist() == [2, 3]


def test_the_check_notices_a_stack_of_free_pages_that_is_off() -> None:
    pool = PagePool(4)
    pages = pool.allocate(1)
    pool.num_free = 2
    with pytest.raises(AssertionError, match="the stack of free pages is off"):
        pool.assert_owned_once([pages])


@pytest.mark.parametrize("num_pages", [0, -1])
def test_a_pool_has_pages(num_pages: int) -> None:
    with pytest.raises(AssertionError, match="a pool has pages"):
        PagePool(num_pages)


def test_the_check_notices_leaks_and_double_owners() -> None:
    pool = PagePool(4)
    pages = pool.allocate(2)
    with pytest.raises(AssertionError, match="leaked"):
        pool.assert_owned_once([pages[:1]])
    with pytest.raises(AssertionError, match="two owners"):
        pool.assert_owned_once([pages, pages[1:]])
    with pytest.raises(AssertionError, match="that are free"):
        pool.assert_owned_once([pages, np.array([3])])


@given(st.data())
def test_any_sequence_of_operations_keeps_every_page_in_one_place(data: st.DataObject) -> None:
    pool = PagePool(data.draw(st.integers(1, 40), label="pages"))
    owned: list[Pages] = []
    for _ in range(data.draw(st.integers(0, 40), label="operations")):
        if data.draw(st.booleans(), label="allocates"):
            owned.append(pool.allocate(data.draw(st.integers(0, pool.num_free), label="count")))
        elif owned:
            pages = owned.pop(data.draw(st.integers(0, len(owned) - 1), label="whose"))
            cut = data.draw(st.integers(0, pages.size), label="kept")
            owned.append(pages[:cut])
            pool.release(np.array(data.draw(st.permutations(pages[cut:].tolist()), label="order"), dtype=np.int64))
        pool.assert_owned_once(owned)
        assert pool.num_free == pool.num_pages - sum(pages.size for pages in owned)
