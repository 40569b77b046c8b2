"""What tenants share is bounded, comes back, and is never all one tenant's."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.shares import Shares
from triserve.rpc.errors import Overloaded


def fill(shares: Shares, stack: ExitStack, tenant: str) -> int:
    """Takes one after another until refused; how many."""
    holding = stack.enter_context(shares.hold(tenant))
    count = 0
    while True:
        try:
            holding.add(1)
        except Overloaded:
            return count
        count += 1


def test_a_lone_tenant_has_all_but_a_small_reserve() -> None:
    with ExitStack() as stack:
        assert fill(Shares(1024, noun="answers", shared=True), stack, "greedy") == 1024 - 1024 // 8
        assert fill(Shares(1024, noun="answers", shared=False), stack, "only") == 1024


@given(st.integers(2, 2000), st.integers(1, 12))
def test_however_greedy_those_before_were_a_newcomer_finds_a_place(limit: int, num_greedy: int) -> None:
    shares = Shares(limit, noun="answers", shared=True)
    with ExitStack() as stack:
        # Each leaves half of the reserve: it takes more than so many to leave nothing.
        taken = [fill(shares, stack, f"greedy {number}") for number in range(min(num_greedy, limit.bit_length() - 3, 5))]
        newcomer = fill(shares, stack, "newcomer")
        assert newcomer >= 1
        assert sum(taken) + newcomer == shares.used <= limit
    assert shares.used == 0


def test_a_refusal_names_what_the_tenant_has_what_all_have_and_the_limit() -> None:
    shares = Shares(16, noun="answers", shared=True)
    with ExitStack() as stack:
        assert fill(shares, stack, "a") == 14
        with pytest.raises(Overloaded, match=r"^14 answers are under way for this tenant and 14 for all, the limit for all is 16 "):
            shares.take("a", 1)
        shares.take("b", 1)
        with pytest.raises(Overloaded, match=r"^15 answers are under way, the limit is 16; try again$"):
            shares.take("b", 2)
        shares.give_back("b", 1)


def test_up_to_the_least_everybody_may_hold_what_is_free() -> None:
    shares = Shares(100, noun="bytes", least=10, shared=True)
    with ExitStack() as stack:
        assert fill(shares, stack, "a") == 88
        shares.take("b", 10)
        with pytest.raises(Overloaded):
            shares.take("b", 1)
        shares.take("c", 2)
        for tenant, count in (("b", 10), ("c", 2)):
            shares.give_back(tenant, count)


def test_what_a_request_holds_comes_back_however_it_ends() -> None:
    shares = Shares(10, noun="bytes", shared=False)
    with pytest.raises(Overloaded), shares.hold("a") as held:
        held.add(7)
        held.add(4)
    assert shares.used == 0


def test_a_second_tenant_finds_a_reserve_as_soon_as_there_is_one() -> None:
    shares = Shares(64, noun="answers", shared=False)
    with ExitStack() as stack:
        assert fill(shares, stack, "first") == 64
    shares.set_shared(True)
    with ExitStack() as stack:
        assert fill(shares, stack, "first") == 64 - 64 // 8
        shares.set_shared(False)
        assert fill(shares, stack, "first") == 64 // 8
