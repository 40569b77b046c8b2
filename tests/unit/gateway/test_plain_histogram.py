"""A histogram that costs little tells Prometheus what prometheus-client's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from gateway.plain_histogram import PlainHistogram

BUCKETS = (0.001, 0.01, 0.5, 1.0, 2.5)
AMOUNTS = st.one_of(st.floats(0, 5), st.sampled_from(BUCKETS))


@given(st.lists(AMOUNTS, max_size=30))
def test_what_is_told_is_what_prometheus_clients_own_tells(amounts: list[float]) -> None:
    plain, own = CollectorRegistry(), CollectorRegistry()
    cheap = PlainHistogram("gap_seconds", "Between two", BUCKETS)
    plain.register(cheap)
    dear = Histogram("gap_seconds", "Between two", buckets=BUCKETS, registry=own)
    for amount in amounts:
        cheap.observe(amount)
        dear.observe(amount)
    told = generate_latest(plain).decode()
    assert told.splitlines() == [line for line in generate_latest(own).decode().splitlines() if "_created" not in line]
