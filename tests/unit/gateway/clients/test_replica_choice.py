"""Requests go where they cost least, and nobody gets much more than its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.clients.prefix_index import PageBudget, PrefixIndex, prompt_pages
from gateway.clients.replica_choice import LeastLoad, LeastWork, Random

SIZE = 4
PROMPT = list(range(41))


@dataclass(frozen=True)
class Replica:
    in_flight: int = 0
    others: int = 0
    submitted: int = 0
    waiting: int = 0
    mean_prefill_tokens: float = 40.0
    page_size_tokens: int = SIZE
    prefixes: PrefixIndex = field(default_factory=lambda: PrefixIndex(PageBudget(1 << 20)), compare=False)


def holding(num_pages: int, prompt: Sequence[int] = PROMPT, **fields: Any) -> Replica:
    """A replica that has the first pages of a prompt."""
    replica = Replica(**fields)
    replica.prefixes.change(removed=[], stored=prompt_pages("acme", prompt, SIZE)[:num_pages])
    return replica


def least_work(replicas: Sequence[Replica], prompt: Sequence[int] = PROMPT, tenant: str = "acme") -> int:
    return LeastWork(lambda: 0.0, seed=0).best(replicas, prompt, tenant)


def best(replicas: list[Replica]) -> int:
    return LeastLoad().best(replicas, [1], "acme")


@given(st.lists(st.builds(Replica, st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)), min_size=1))
def test_nobody_has_less_than_the_chosen(replicas: list[Replica]) -> None:
    chosen = replicas[best(replicas)]
    assert all(chosen.in_flight + chosen.others <= one.in_flight + one.others for one in replicas)


def test_idle_replicas_take_turns() -> None:
    replicas = [Replica()] * 3
    turns = []
    for _ in range(6):
        index = best(replicas)
        turns.append(index)
        replicas[index] = replace(replicas[index], submitted=replicas[index].submitted + 1)
    assert turns == [0, 1, 2, 0, 1, 2]


def test_other_gateways_requests_count() -> None:
    assert best([Replica(1, 5, 0), Replica(3, 0, 9)]) == 1


def test_a_prompt_goes_where_most_of_it_is_cached() -> None:
    assert least_work([Replica(), holding(4), holding(9), holding(2)]) == 2


def test_another_tenant_s_pages_are_not_cached() -> None:
    assert {least_work([Replica(submitted=1), holding(9, submitted=number)], tenant="zorg") for number in (0, 2)} == {0, 1}


def test_what_waits_counts_as_much_as_what_is_computed() -> None:
    assert least_work([holding(9, waiting=1, in_flight=1, mean_prefill_tokens=200), Replica()]) == 1
    assert least_work([holding(9, waiting=1, in_flight=1, mean_prefill_tokens=4), Replica()]) == 0


def test_what_is_given_to_a_replica_is_expected_there_before_it_says_so() -> None:
    policy, replicas = LeastWork(lambda: 0.0, seed=0), [Replica(), Replica(), Replica()]
    first = policy.best(replicas, PROMPT, "acme")
    assert [policy.best(replicas, PROMPT, "acme") for _ in range(8)] == [first] * 8


def test_what_everybody_asks_for_does_not_all_go_to_one() -> None:
    """A thousand requests that begin alike, none of which ends: no replica has more than its bounded share."""
    policy = LeastWork(lambda: 0.0, seed=0)
    replicas = [Replica() for _ in range(4)]
    for number in range(1000):
        index = policy.best(replicas, PROMPT, "acme")
        replicas[index] = replace(replicas[index], in_flight=replicas[index].in_flight + 1)
        loads = [replica.in_flight for replica in replicas]
        assert max(loads) <= 1.25 * (number + 1) / 4 + 4
    assert min(loads) > 100


def test_equals_are_spread_by_load() -> None:
    policy, prompts = LeastWork(lambda: 0.0, seed=0), [[number * 100 + place for place in range(41)] for number in range(400)]
    replicas = [Replica() for _ in range(4)]
    for prompt in prompts:
        index = policy.best(replicas, prompt, "acme")
        replicas[index] = replace(replicas[index], in_flight=replicas[index].in_flight + 1)
    loads = [replica.in_flight for replica in replicas]
    assert max(loads) - min(loads) <= 8


def test_a_replica_that_tells_nothing_is_chosen_by_what_it_has_to_do() -> None:
    assert least_work([Replica(in_flight=3, page_size_tokens=0), Replica(page_size_tokens=0)]) == 1


def test_at_random_everybody_gets_some() -> None:
    policy = Random(seed=1)
    assert {policy.best([Replica()] * 3, PROMPT, "acme") for _ in range(50)} == {0, 1, 2}
