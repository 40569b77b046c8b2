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


def test_a_closed_row_is_used_again_and_starts_empty() -> None:
    tables = PageTables(1, 4)
    table = tables.open()
    table.append(np.array([1, 2]))
    tables.close(table)
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
    assert table.owned.tolist() == [3, 4]


def test_sharing_replaces_the_first_owned_pages() -> None:
    tables = PageTables(1, 6)
    table = tables.open()
    table.share(np.array([10]))
    table.append(np.array([3, 4]))
    table.share(np.array([20]))
    assert tables.entries[0, :3].tolist() == [10, 20, 4]
    assert table.owned.tolist() == [4]


def test_owned_pages_are_a_copy() -> None:
    table = PageTables(1, 6).open()
    table.append(np.array([3, 4]))
    owned = table.owned
    table.share(np.array([9]))
    assert owned.tolist() == [3, 4]
