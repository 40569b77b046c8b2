"""Page tables: rows of one array, with the owner of each page known by its place."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.kv.page_table import PageTables


def test_open_tables_have_rows_of_their_own() -> None:
    tables = PageTables(2, 4)
    one, two = tables.open(), tables.open()
    one.append(np.array([5, 6]))
    two.append(np.array([7]))
    assert tables.entries[one.row, :2].tolist() == [5, 6]
    assert tables.entries[two.row, :1].tolist() == [7]


def test_there_are_as_many_rows_as_requests_may_run() -> None:
    tables = PageTables(3, 4)
    assert tables.entries.shape == (3, 4) and not tables.entries.any()
    assert [tables.open().row for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AssertionError, match="a row for every request"):
        tables.open()


def test_a_closed_row_is_used_again_and_starts_empty() -> None:
    tables = PageTables(1, 4)
    table = tables.open()
    table.append(np.array([1, 2]))
    tables.close(table)
    assert (tables.entries.tolist(), tables.lengths.tolist()) == ([[0, 0, 0, 0]], [0])
    again = tables.open()
    assert (again.row, again.length, again.shared) == (table.row, 0, 0)


def test_closing_twice_is_noticed() -> None:
    tables = PageTables(2, 4)
    table = tables.open()
    tables.close(table)
    with pytest.raises(AssertionError, match="closed once"):
        tables.close(table)


def test_shared_pages_come_first_and_are_not_owned() -> None:
    table = PageTables(1, 6).open()
    table.share(np.array([10, 11]))
    table.append(np.array([3, 4]))
    assert (table.length, table.shared) == (4, 2)
    assert (table.shared_pages.tolist(), table.owned.tolist(), table.owned_to(3).tolist()) == ([10, 11], [3, 4], [3])


def test_sharing_replaces_the_first_owned_pages() -> None:
    tables = PageTables(1, 6)
    table = tables.open()
    table.share(np.array([10]))
    table.append(np.array([3, 4]))
    table.share(np.array([20]))
    assert tables.entries[0, :3].tolist() == [10, 20, 4]
    assert (table.length, table.owned.tolist()) == (3, [4])


def test_the_lengths_of_all_tables_are_in_one_array() -> None:
    tables = PageTables(2, 6)
    one, two = tables.open(), tables.open()
    one.append(np.array([3, 4]))
    two.share(np.array([10]))
    assert (tables.lengths.tolist(), one.length, two.length) == ([2, 1], 2, 1)
    tables.lengths[one.row] += 1
    assert one.length == 3, "whoever adds a page to many rows at once"


@pytest.mark.parametrize(
    ("shared", "first", "count", "given_up", "left", "owned"),
    [
        pytest.param(0, 1, 2, 0, [10, 13, 14, 11, 12], [10, 13, 14, 11, 12], id="its own pages take the tokens to come"),
        pytest.param(2, 2, 1, 0, [10, 11, 13, 14, 12], [13, 14, 12], id="behind what is shared"),
        pytest.param(4, 1, 3, 3, [10, 14], [14], id="shared ones are given up"),
        pytest.param(3, 2, 3, 1, [10, 11, 13, 14], [13, 14], id="some shared and some its own"),
        pytest.param(1, 2, 3, 0, [10, 11, 12, 13, 14], [11, 12, 13, 14], id="up to the end"),
    ],
)
def test_pages_taken_out_of_the_middle(shared: int, first: int, count: int, given_up: int, left: list[int], owned: list[int]) -> None:
    tables = PageTables(1, 7)
    table = tables.open()
    table.share(np.arange(10, 10 + shared))
    table.append(np.arange(10 + shared, 15))
    table.slide(first, count, given_up)
    assert tables.entries.tolist() == [left + [0] * (7 - len(left))]
    assert (table.length, table.owned.tolist()) == (len(left), owned)
    assert (table.shared, table.shared_pages.tolist()) == (min(shared, first), left[: min(shared, first)])


def test_only_pages_that_are_there_are_taken_out() -> None:
    for shared, first, count, given_up in ((0, 1, 5, 0), (3, 1, 2, 1), (3, 1, 1, 2), (1, 2, 1, 1)):
        table = PageTables(1, 7).open()
        table.share(np.arange(shared))
        table.append(np.arange(shared, 5))
        with pytest.raises(AssertionError, match="what is taken out is there"):
            table.slide(first, count, given_up)


def test_pages_that_are_asked_for_are_a_copy() -> None:
    table = PageTables(1, 6).open()
    table.append(np.array([3, 4]))
    owned, first = table.owned, table.owned_to(1)
    table.share(np.array([9]))
    shared = table.shared_pages
    table.share(np.array([8]))
    shared[0] = 5
    assert (owned.tolist(), first.tolist(), table.shared_pages.tolist()) == ([3, 4], [3], [9, 8])
