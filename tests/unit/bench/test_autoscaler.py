"""The autoscaler of the benchmark of elasticity does what Kubernetes documents of its own, with the numbers of the committed manifests."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.elastic.autoscaler import Autoscaler, Behavior, PodMetric, Policy, Rules, wanted_by_average, wanted_by_utilization
from tests.bench.elastic.manifest import Average, Utilization, hurried, millicores, pod_spec, scaling
from tests.deploy.manifests import K8S

AT_ONCE = Rules(0, (Policy("Percent", 1000, 15),))
COUNTS = st.integers(1, 40)


def _wanted(*usages_m: int | None, target_percent: int = 100, unready: int = 0, request_m: int = 100) -> int:
    pods = [PodMetric(usage, True) for usage in usages_m] + [PodMetric(None, False)] * unready
    return wanted_by_utilization(pods, request_m=request_m, target_percent=target_percent, current=len(pods))


def _behavior(*, up: Rules = AT_ONCE, down: Rules = AT_ONCE, least: int = 1, most: int = 100) -> Behavior:
    return Behavior(least, most, up, down)


def test_twice_the_target_doubles_and_half_of_it_halves() -> None:
    assert _wanted(200, 200) == 4
    assert _wanted(50, 50) == 1


@pytest.mark.parametrize(("usage_m", "wanted"), [(89, 9), (90, 10), (100, 10), (110, 10), (111, 12)])
def test_what_is_within_a_tenth_of_the_target_changes_nothing_and_what_is_not_is_rounded_up(usage_m: int, wanted: int) -> None:
    assert _wanted(*[usage_m] * 10) == wanted


def test_utilization_is_of_what_pods_ask_for_in_whole_percent() -> None:
    # 71.9 % of 1000 are 71 % to Kubernetes, and 71 / 65 is within the tolerance.
    assert _wanted(719, 719, target_percent=65, request_m=1000) == 2
    assert _wanted(720, 720, target_percent=65, request_m=1000) == 3


def test_a_pod_that_is_not_ready_counts_as_idle_where_more_are_wanted_and_not_at_all_where_fewer_are() -> None:
    assert _wanted(300, 300) == 6
    assert _wanted(300, 300, unready=1) == 6
    assert _wanted(300, 300, unready=4) == 6
    # 150 % of two pods is the target of three: what is on its way is enough.
    assert _wanted(150, 150, unready=1) == 3
    assert _wanted(50, 50, unready=2) == 1


def test_a_pod_that_was_not_measured_never_makes_the_change_larger() -> None:
    assert _wanted(200, 200, None) == 4
    # Busy, where fewer are wanted: (20 + 20 + 100) % of three.
    assert _wanted(20, 20, None) == 2
    # It would turn the direction.
    assert _wanted(80, None, target_percent=89) == 2
    assert _wanted(100, None) == 2


def test_without_any_measure_nothing_changes() -> None:
    assert _wanted(None, None) == 2
    assert _wanted(unready=3) == 3


def test_a_sum_for_all_pods_is_shared_among_them() -> None:
    assert wanted_by_average(2.6, target=0.25, current=2) == 11
    assert wanted_by_average(0.0, target=0.25, current=5) == 0
    assert wanted_by_average(0.54, target=0.25, current=2) == 2


def test_the_largest_of_what_metrics_want_counts_within_minimum_and_maximum() -> None:
    scaler = Autoscaler(_behavior(least=2, most=9))
    assert scaler.decide(0, current=3, wanted=[1, 7, 4]) == 7
    assert scaler.decide(1, current=7, wanted=[70, 7]) == 9
    assert scaler.decide(2, current=9, wanted=[0]) == 2
    assert scaler.decide(3, current=1, wanted=[1]) == 2
    assert scaler.decide(4, current=12, wanted=[12]) == 9


def test_on_the_way_down_the_most_that_was_wanted_within_the_window_counts() -> None:
    scaler = Autoscaler(_behavior(down=Rules(300, (Policy("Percent", 100, 15),))))
    assert scaler.decide(0, current=8, wanted=[8]) == 8
    assert scaler.decide(100, current=8, wanted=[3]) == 8
    assert scaler.decide(250, current=8, wanted=[5]) == 8
    assert scaler.decide(299, current=8, wanted=[2]) == 8
    assert scaler.decide(301, current=8, wanted=[2]) == 5
    assert scaler.decide(551, current=5, wanted=[2]) == 2


def test_on_the_way_up_the_least_that_was_wanted_within_the_window_counts() -> None:
    scaler = Autoscaler(_behavior(up=Rules(60, (Policy("Percent", 1000, 15),))))
    assert scaler.decide(0, current=2, wanted=[2]) == 2
    assert scaler.decide(30, current=2, wanted=[9]) == 2
    assert scaler.decide(61, current=2, wanted=[6]) == 6


def test_what_a_new_controller_finds_is_not_taken_away_before_the_window_has_passed() -> None:
    scaler = Autoscaler(_behavior(down=Rules(300, (Policy("Percent", 100, 15),))))
    assert scaler.decide(0, current=6, wanted=[1]) == 6


def test_a_percentage_counts_from_what_there_was_when_its_period_began() -> None:
    scaler = Autoscaler(_behavior(up=Rules(0, (Policy("Percent", 100, 15),))))
    assert scaler.decide(0, current=2, wanted=[20]) == 4
    assert scaler.decide(5, current=4, wanted=[20]) == 4
    assert scaler.decide(14, current=4, wanted=[20]) == 4
    assert scaler.decide(15, current=4, wanted=[20]) == 8


@pytest.mark.parametrize(("current", "select", "left"), [(80, "Max", 72), (30, "Max", 26), (80, "Min", 76), (80, "Disabled", 80)])
def test_of_two_policies_the_one_that_allows_most_counts_unless_it_says_otherwise(current: int, select: str, left: int) -> None:
    rules = Rules(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60)), select)  # type: ignore[arg-type]
    scaler = Autoscaler(_behavior(down=rules))
    # The first time, what it finds is what was wanted.
    scaler.decide(0, current=current, wanted=[current])
    assert scaler.decide(1, current=current, wanted=[1]) == left


@given(wanted=st.lists(st.tuples(st.integers(1, 60), COUNTS), min_size=2, max_size=30), pods=st.integers(1, 5), period_s=st.integers(5, 90))
def test_no_more_pods_change_within_a_period_than_its_policy_says(wanted: list[tuple[int, int]], pods: int, period_s: int) -> None:
    rules = Rules(0, (Policy("Pods", pods, period_s),))
    scaler, now, counts = Autoscaler(_behavior(up=rules, down=rules, most=30)), 0, [(-period_s, 5)]
    for gap_s, count in wanted:
        now += gap_s
        current = counts[-1][1]
        decided = scaler.decide(now, current=current, wanted=[count])
        before = next(there for at, there in reversed(counts) if at <= now - period_s)
        assert current <= decided <= max(current, before + pods) or current >= decided >= min(current, before - pods)
        assert 1 <= decided <= 30
        assert (decided - current) * (count - current) >= 0, "it never goes the other way"
        counts.append((now, decided))


@given(wanted=COUNTS, current=COUNTS)
def test_what_is_wanted_all_the_time_comes(wanted: int, current: int) -> None:
    scaler = Autoscaler(_behavior(up=Rules(0, (Policy("Percent", 100, 15),)), down=Rules(300, (Policy("Pods", 1, 60),))))
    for now in range(0, 60 * 60, 30):
        current = scaler.decide(now, current=current, wanted=[wanted])
    assert current == wanted


@given(usages_m=st.lists(st.integers(0, 2000), min_size=1, max_size=20), target_percent=st.integers(10, 100))
def test_with_what_is_wanted_the_mean_is_at_its_target_or_just_below(usages_m: list[int], target_percent: int) -> None:
    wanted, total_m = _wanted(*usages_m, target_percent=target_percent, request_m=1000), sum(usages_m)
    if wanted != len(usages_m) and wanted:
        percent = total_m / (10 * wanted)
        one_less = total_m / (10 * (wanted - 1)) if wanted > 1 else float("inf")
        # Kubernetes drops fractions of a percent of each pod.
        assert percent <= target_percent + len(usages_m) / wanted and one_less > target_percent - 1


@pytest.mark.parametrize("stage", ["tokenizer", "sampler", "gateway"])
def test_the_numbers_are_those_of_the_committed_autoscaler(stage: str) -> None:
    spec = yaml.safe_load((K8S / "components" / "hpa" / f"{stage}.yaml").read_text())["spec"]
    read = scaling(stage, "hpa")
    assert read.behavior[:2] == (spec["minReplicas"], spec["maxReplicas"])
    for rules, written in ((read.behavior.up, spec["behavior"]["scaleUp"]), (read.behavior.down, spec["behavior"]["scaleDown"])):
        assert rules.window_s == written["stabilizationWindowSeconds"]
        assert [list(policy) for policy in rules.policies] == [list(policy.values()) for policy in written["policies"]]
        assert rules.select == "Max"
    assert read.metrics == (Utilization(spec["metrics"][0]["resource"]["target"]["averageUtilization"]),)


def test_the_numbers_are_those_of_the_committed_scaled_objects() -> None:
    read = scaling("tokenizer", "keda")
    assert read.metrics == (
        Average("triserve_tokenizer_queued_seconds", None, 0.25, "tokenizer"),
        Average("triserve_peer_in_flight", None, 8, "gateway", frozenset({'stage="tokenizer"'})),
        Average("process_cpu_seconds_total", 20, 0.65, "tokenizer"),
    )
    assert scaling("sampler", "keda").metrics[0] == Average("triserve_sampler_oldest_frame_seconds", None, 0.05, "sampler")
    spec = yaml.safe_load((K8S / "components" / "keda" / "tokenizer.yaml").read_text())["spec"]
    assert read.behavior[:2] == (spec["minReplicaCount"], spec["maxReplicaCount"])
    assert read.behavior.up.policies == (Policy("Percent", 100, 15),)


def test_a_hurried_autoscaler_is_hurried_on_the_way_down_alone() -> None:
    committed = scaling("sampler", "hpa").behavior
    fast = hurried(committed, down=30)
    assert fast.up == committed.up and fast[:2] == committed[:2]
    assert fast.down == Rules(committed.down.window_s / 30, (Policy("Pods", 1, committed.down.policies[0].period_s / 30),))


def test_pods_are_those_of_the_committed_deployment() -> None:
    spec = pod_spec("sampler", "cpu")
    assert (spec.request_m, spec.limit_m, spec.pre_stop_s, spec.grace_s) == (1000, 2000, 10, 640)
    assert spec.drain == {"SAMPLER_DRAIN_TIMEOUT_S": "600"}


def test_quantities_of_cpu() -> None:
    assert (millicores("2"), millicores("250m")) == (2000, 250)
    with pytest.raises(ValueError, match=r"'0\.5'"):
        millicores("0.5")
