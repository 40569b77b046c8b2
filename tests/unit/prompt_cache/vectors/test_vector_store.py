"""Limits, names and entries that no store takes are refused with the field and its range."""

from __future__ import annotations

from typing import Any

import pytest

from prompt_cache.vectors.keyspace import Keyspace, checked_id
from prompt_cache.vectors.vector_store import StoreLimits


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_entries", 0), ("max_bytes", 0), ("max_entry_bytes", -1), ("policy", "mru"), ("ttl_jitter", 1.0), ("ttl_jitter", -0.1)],
)
def test_a_limit_out_of_its_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {value!r}, "):
        StoreLimits(**{field: value})


@pytest.mark.parametrize("scope", ["", "A", "0g", "0} x", "{0", "a" * 129, "0\n", "*"])
def test_a_scope_that_is_not_lower_case_hex_is_refused(scope: str) -> None:
    with pytest.raises(ValueError, match=r"^scope is "):
        Keyspace("x").scope(scope)


@pytest.mark.parametrize("entry_id", ["", "#bytes", "a:b", "a b", "a" * 129, "a\n", "\u00e4"])
def test_an_entry_id_that_could_be_taken_for_something_else_is_refused(entry_id: str) -> None:
    with pytest.raises(ValueError, match=r"^entry id is "):
        checked_id(entry_id)


def test_all_keys_of_a_scope_have_the_scope_as_their_only_hash_tag() -> None:
    keys = Keyspace("x").scope("00ff")
    assert {name[name.index("{") + 1 : name.index("}")] for name in keys} == {"00ff"}
    assert len(set(keys)) == len(keys)
