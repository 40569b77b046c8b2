"""The names of cached pages: as the contract says, and different for everything that differs."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from triserve.rpc.page_hash import page_hashes, tenant_hash

IDS = st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8)


def _pack(ids: list[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def test_a_router_that_reads_the_contract_finds_the_same_names() -> None:
    tenant = hashlib.blake2b("größe".encode(), digest_size=8, person=b"triserve.tenant").digest()
    first = hashlib.blake2b(tenant + bytes.fromhex("0100000002000000"), digest_size=8).digest()
    second = hashlib.blake2b(first + bytes.fromhex("ffffffff00000000"), digest_size=8).digest()
    names = page_hashes(tenant_hash("größe"), _pack([1, 2, 2**32 - 1, 0]), 2)
    assert names == [struct.unpack("<Q", first)[0], struct.unpack("<Q", second)[0]]


@given(st.text(max_size=5), IDS, st.text(max_size=5), IDS)
def test_pages_have_one_name_exactly_as_far_as_they_agree(tenant: str, ids: list[int], other_tenant: str, other_ids: list[int]) -> None:
    names = page_hashes(tenant_hash(tenant), _pack(ids), 4)
    others = page_hashes(tenant_hash(other_tenant), _pack(other_ids), 4)
    agree = [tenant == other_tenant and ids[:end] == other_ids[:end] for end in (4, 8)]
    assert [name == other for name, other in zip(names, others, strict=True)] == agree


@given(IDS)
def test_pages_can_be_named_one_after_the_other(ids: list[int]) -> None:
    first = page_hashes(tenant_hash(""), _pack(ids[:4]), 4)
    assert first + page_hashes(first[-1], _pack(ids[4:]), 4) == page_hashes(tenant_hash(""), _pack(ids), 4)
