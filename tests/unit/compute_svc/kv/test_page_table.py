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
    assert tables.entries.tolist() == [[0, 0, 0, 0]]
    again = tables.open()
    assert (again.row, again.length, again.last) == (table.row, 0, None)


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
    assert (table.length, table.shared, table.last) == (4, 2, 4)
    assert (table.shared_pages.tolist(), table.owned.tolist()) == ([10, 11], [3, 4])


def test_sharing_replaces_the_first_owned_pages() -> None:
    tables = PageTables(1, 6)
    table = tables.open()
    table.share(np.array([10]))
    table.append(np.array([3, 4]))
    table.share(np.array([20]))
    assert tables.entries[0, :3].tolist() == [10, 20, 4]
    assert table.owned.tolist() == [4]


def test_room_is_not_owned_and_not_in_the_row() -> None:
    tables = PageTables(1, 8)
    table = tables.open()
    table.append(np.array([3]))
    table.room = np.array([4, 5, 6])
    assert (table.length, table.last, table.owned.tolist()) == (1, 3, [3])
    assert tables.entries.tolist() == [[3, 0, 0, 0, 0, 0, 0, 0]]


def test_room_is_used_from_the_front_and_cut_from_the_end() -> None:
    tables = PageTables(1, 8)
    table = tables.open()
    table.append(np.array([3]))
    table.room = np.array([4, 5, 6])
    assert table.use_room().tolist() == [4]
    assert table.cut_room(1).tolist() == [6]
    assert (table.owned.tolist(), table.room.tolist()) == ([3, 4], [5])
    assert tables.entries.tolist() == [[3, 4, 0, 0, 0, 0, 0, 0]]


def test_cutting_more_than_the_room_leaves_the_pages() -> None:
    table = PageTables(1, 8).open()
    table.append(np.array([3]))
    table.room = np.array([4])
    assert table.cut_room(5).tolist() == [4]
    assert table.cut_room(5).tolist() == []
    assert (table.owned.tolist(), table.room.size, table.last) == ([3], 0, 3)


def test_room_is_cut_from_its_end_as_far_as_it_goes() -> None:
    table = PageTables(1, 8).open()
    table.room = np.array([4, 5, 6, 7])
    assert table.cut_room(1).tolist() == [7]
    assert table.cut_room(0).tolist() == []
    assert (table.cut_room(4).tolist(), table.room.size) == ([4, 5, 6], 0)


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


def test_pages_are_not_added_in_front_of_room() -> None:
    table = PageTables(1, 8).open()
    table.room = np.array([4])
    with pytest.raises(AssertionError, match="room is used before"):
        table.append(np.array([5]))
    with pytest.raises(AssertionError, match="in front of the room"):
        table.share(np.array([6]))
    table.use_room()
    with pytest.raises(AssertionError, match="there is room"):
        table.use_room()


@pytest.mark.parametrize(
    ("pages", "extents"),
    [([], 0), ([7], 1), ([7, 8, 9], 1), ([7, 9], 2), ([9, 8], 2), ([3, 4, 7, 8, 0], 3)],
)
def test_extents_are_contiguous_runs_in_order(pages: list[int], extents: int) -> None:
    table = PageTables(1, 8).open()
    table.append(np.array(pages, dtype=np.int64))
    table.room = np.array([30, 40])
    assert table.num_extents == extents


def test_owned_pages_are_a_copy() -> None:
    table = PageTables(1, 6).open()
    table.append(np.array([3, 4]))
    owned = table.owned
    table.share(np.array([9]))
    assert owned.tolist() == [3, 4]
