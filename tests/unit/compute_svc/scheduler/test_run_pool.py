"""The allocator of runs: one owner per page, contiguous where it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kv.page_pool import Pages
from compute_svc.scheduler.reservation import RunPool, count_extents


def test_a_new_pool_gives_one_contiguous_run() -> None:
    pool = RunPool(10)
    pages = pool.allocate(10)
    assert pages.tolist() == list(range(10))
    assert pool.num_free == 0
    pool.assert_owned_once([pages])


def test_reserving_nothing_takes_nothing() -> None:
    pool = RunPool(3)
    assert pool.allocate(0).size == 0
    assert pool.num_free == 3


def test_growth_continues_behind_the_owners_last_page() -> None:
    pool = RunPool(10)
    first = pool.allocate(3)
    other = pool.allocate(2)
    pool.release(other)
    assert pool.allocate(1, after=int(first[-1])).tolist() == [3]


def test_growth_goes_elsewhere_when_the_next_page_is_taken() -> None:
    pool = RunPool(10)
    first = pool.allocate(3)
    pool.allocate(2)
    assert pool.allocate(1, after=int(first[-1])).tolist() == [5]


def test_growth_prefers_the_next_page_to_the_shortest_run() -> None:
    pool = RunPool(12)
    everything = pool.allocate(12)
    pool.release(everything[[1, 2, 3, 5]])
    pool.release(everything[8:])
    assert pool.allocate(1, after=7).tolist() == [8]
    assert pool.allocate(2, after=8).tolist() == [9, 10]
    assert pool.allocate(1, after=3).tolist() == [5], "what is behind the next page is not the next page"
    assert pool.allocate(4, after=0).tolist() == [1, 2, 3, 11], "what the next pages lack comes from elsewhere"


def test_pages_released_in_any_order_are_runs_again() -> None:
    pool = RunPool(12)
    everything = pool.allocate(12)
    assert pool.longest_run == 0
    pool.release(everything[[9, 2, 4, 3, 7, 8]])
    pool.assert_owned_once([everything[[0, 1, 5, 6, 10, 11]]])
    assert (pool.num_free, pool.longest_run) == (6, 3)
    assert pool.allocate(3).tolist() == [2, 3, 4]


def test_a_run_at_the_very_front_is_as_good_as_any() -> None:
    pool = RunPool(10)
    everything = pool.allocate(10)
    pool.release(everything[[0, 1, 4, 5, 6]])
    assert pool.allocate(2).tolist() == [0, 1]


def test_a_run_that_fits_is_preferred_to_pieces() -> None:
    pool = RunPool(16)
    everything = pool.allocate(16)
    pool.release(everything[[1, 3, 5]])
    pool.release(everything[8:13])
    assert pool.allocate(4).tolist() == [8, 9, 10, 11]


def test_pieces_are_used_when_no_run_is_long_enough() -> None:
    pool = RunPool(8)
    everything = pool.allocate(8)
    pool.release(everything[[0, 2, 3, 6]])
    assert sorted(pool.allocate(4).tolist()) == [0, 2, 3, 6]


def test_released_neighbours_become_one_run_again() -> None:
    pool = RunPool(9)
    parts = [pool.allocate(3) for _ in range(3)]
    for part in (parts[0], parts[2], parts[1]):
        pool.release(part)
    assert pool.allocate(9).tolist() == list(range(9))


def test_releasing_a_page_twice_is_noticed() -> None:
    pool = RunPool(4)
    pages = pool.allocate(2)
    pool.release(pages)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(pages[:1])


def test_the_check_notices_leaks_and_double_owners() -> None:
    pool = RunPool(4)
    pages = pool.allocate(2)
    with pytest.raises(AssertionError, match="leaked"):
        pool.assert_owned_once([pages[:1]])
    with pytest.raises(AssertionError, match="two owners"):
        pool.assert_owned_once([pages, pages[1:]])
    with pytest.raises(AssertionError, match="that are free"):
        pool.assert_owned_once([pages, np.array([3])])


def test_the_shortest_run_that_fits_is_taken() -> None:
    pool = RunPool(20)
    everything = pool.allocate(20)
    pool.release(everything[0:7])
    pool.release(everything[8:12])
    pool.release(everything[13:18])
    assert pool.longest_run == 7
    assert pool.allocate(4).tolist() == [8, 9, 10, 11]
    assert pool.allocate(4).tolist() == [13, 14, 15, 16]


def test_reserved_pages_are_free_and_not_handed_out() -> None:
    pool = RunPool(6)
    pages = pool.allocate(5)
    pool.reserve(pages[2:])
    assert (pool.num_free, pool.num_reserved, pool.num_allocatable, pool.longest_run) == (4, 3, 1, 1)
    assert pool.allocate(1).tolist() == [5]
    with pytest.raises(AssertionError, match="1 pages wanted, 0 allocatable"):
        pool.allocate(1)


def test_reserved_pages_are_claimed_or_given_back() -> None:
    pool = RunPool(6)
    pages = pool.allocate(6)
    pool.reserve(pages[2:])
    pool.claim(pages[2:3])
    pool.unreserve(pages[4:])
    pool.assert_owned_once([pages[:3]])
    pool.assert_reserved([pages[3:4]])
    assert (pool.num_free, pool.num_reserved, pool.num_allocatable) == (3, 1, 2)


def test_only_owned_pages_are_reserved_and_only_those_come_back() -> None:
    pool = RunPool(4)
    pages = pool.allocate(2)
    with pytest.raises(AssertionError, match="owned pages are reserved"):
        pool.reserve(np.array([3]))
    with pytest.raises(AssertionError, match="what is claimed"):
        pool.claim(pages)
    with pytest.raises(AssertionError, match="what is unreserved"):
        pool.unreserve(pages)
    pool.reserve(pages)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(pages)
    with pytest.raises(AssertionError, match="reserved not once"):
        pool.assert_reserved([pages[:1]])


@given(st.data())
def test_any_sequence_of_operations_keeps_every_page_in_one_place(data: st.DataObject) -> None:
    pool = RunPool(data.draw(st.integers(1, 40), label="pages"))
    owned: list[Pages] = []
    reserved: list[Pages] = []
    for _ in range(data.draw(st.integers(0, 40), label="operations")):
        operation = data.draw(st.sampled_from(["allocate", "release", "reserve", "claim", "unreserve"]), label="operation")
        source = {"allocate": None, "release": owned, "reserve": owned, "claim": reserved, "unreserve": reserved}[operation]
        if source is None:
            after = data.draw(st.none() | st.integers(0, pool.num_pages - 1), label="after")
            count = data.draw(st.integers(0, pool.num_allocatable), label="count")
            fits = count <= pool.longest_run and (after is None or pool.num_free == 0)
            owned.append(pool.allocate(count, after=after))
            assert owned[-1].size == count
            assert not fits or (np.diff(owned[-1]) == 1).all()
        elif source:
            pages = source.pop(data.draw(st.integers(0, len(source) - 1), label="whose"))
            cut = data.draw(st.integers(0, pages.size), label="kept")
            source.append(pages[:cut])
            moved = np.array(data.draw(st.permutations(pages[cut:].tolist()), label="order"), dtype=np.int64)
            {"release": pool.release, "reserve": pool.reserve, "claim": pool.claim, "unreserve": pool.unreserve}[operation](moved)
            if operation == "reserve":
                reserved.append(moved)
            elif operation == "claim":
                owned.append(moved)
        pool.assert_owned_once(owned)
        pool.assert_reserved(reserved)


@pytest.mark.parametrize(
    ("pages", "extents"),
    [([], 0), ([7], 1), ([7, 8, 9], 1), ([7, 9], 2), ([9, 8], 2), ([3, 4, 7, 8, 0], 3)],
)
def test_extents_are_contiguous_runs_in_order(pages: list[int], extents: int) -> None:
    assert count_extents(np.array(pages, dtype=np.int64)) == extents
