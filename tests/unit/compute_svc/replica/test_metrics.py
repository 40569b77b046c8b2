"""What autoscalers go by is what it says: seconds of prefill at the pace that was measured, and not at the pace that was asked for."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from compute_svc.replica.metrics import LoadCollector, PrefillPace, StepMetrics, tell_kv_sizes
from compute_svc.wire.step_output import EngineInfo, Load


def test_before_anything_was_measured_the_queue_is_as_long_as_the_oldest_waits() -> None:
    pace = PrefillPace()
    assert pace.seconds(1000, 2.5) == 2.5
    assert pace.seconds(0, 0.0) == 0.0


def test_seconds_are_tokens_at_the_pace_of_the_last_steps() -> None:
    pace = PrefillPace()
    pace.observe(0.0, 0, is_busy=True)
    pace.observe(1.0, 2000, is_busy=True)
    assert pace.seconds(4000, 9.0) == pytest.approx(2.0)
    for second in range(2, 60):
        pace.observe(float(second), 2000 + 500 * (second - 1), is_busy=True)
    assert pace.seconds(4000, 9.0) == pytest.approx(8.0, rel=0.01)


def test_a_step_that_takes_longer_than_a_look_is_not_taken_for_a_fast_one() -> None:
    pace = PrefillPace()
    for look in range(21):
        pace.observe(look / 10, 512 * (look // 10), is_busy=True)
    assert pace.seconds(512, 0.0) == pytest.approx(1.0)


def test_a_pause_says_nothing_of_the_pace() -> None:
    pace = PrefillPace()
    pace.observe(0.0, 0, is_busy=True)
    pace.observe(1.0, 1000, is_busy=False)
    pace.observe(100.0, 1000, is_busy=True)
    pace.observe(101.0, 2000, is_busy=True)
    assert pace.seconds(1000, 0.0) == pytest.approx(1.0)


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(name, labels)
    assert value is not None, name
    return value


def test_load_is_told_under_our_names_and_under_those_that_dashboards_know() -> None:
    load = Load.nothing()._replace(running_requests=3, used_pages=30, free_pages=60, cached_pages=10, cached_tokens=40, prefill_tokens=60)
    registry = CollectorRegistry()
    registry.register(LoadCollector(lambda: load, lambda: 1.5, "tiny"))
    assert _value(registry, "triserve_compute_queued_prefill_seconds") == 1.5
    assert _value(registry, "triserve_compute_kv_used_ratio") == _value(registry, "vllm:kv_cache_usage_perc", model_name="tiny") == 0.3
    assert _value(registry, "triserve_compute_running_requests") == _value(registry, "vllm:num_requests_running", model_name="tiny") == 3
    assert _value(registry, "triserve_compute_prefix_hit_tokens_total") == 40
    assert _value(registry, "vllm:prefix_cache_queries_total", model_name="tiny") == 100


def test_what_keys_and_values_take_is_told_with_their_format() -> None:
    registry = CollectorRegistry()
    tell_kv_sizes(registry, EngineInfo(97, 64, 16, 40, 8, "bfloat16", 48, "int8-g32", 1920, ""))
    labels = {"kv_format": "int8-g32"}
    assert _value(registry, "triserve_compute_kv_pages", **labels) == 40
    assert _value(registry, "triserve_compute_kv_page_bytes", **labels) == 1920
    assert _value(registry, "triserve_compute_kv_token_bytes", **labels) == 120


def test_a_step_is_measured_from_the_one_before_and_a_pause_is_none() -> None:
    registry = CollectorRegistry()
    steps = StepMetrics(registry)
    load = Load.nothing()._replace(running_requests=1)
    for number, (ended_at, running) in enumerate([(1.0, 1), (1.02, 1), (1.04, 0), (9.0, 1)]):
        load = load._replace(steps=number, decode_tokens=4 * number, running_requests=running)
        steps.observe(load, ended_at, num_started=number == 1)
    assert _value(registry, "triserve_compute_batch_tokens_count") == 3
    assert _value(registry, "triserve_compute_batch_tokens_sum") == 11
    assert _value(registry, "triserve_compute_step_seconds_count") == 2
    assert _value(registry, "triserve_compute_step_seconds_sum") == pytest.approx(0.04)
