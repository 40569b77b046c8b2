"""Simulated servers: time adds up, every request gets exactly its tokens, and the cost model is asked about what is computed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.policies import POLICIES, make_policy
from compute_svc.simulator.cost_model import CostModel, StepWork
from compute_svc.simulator.servers import ScheduledServer, StaticBatchingServer, StopTheWorldServer
from compute_svc.simulator.simulation import Outcome, Server, simulate
from compute_svc.simulator.workload import Workload, log_normal_lengths, poisson_workload
from compute_svc.wire.request import Request
from tests.examples import examples
from triserve.rpc.errors import PromptTooLong

ROOT = Path(__file__).parents[4]
COST = CostModel(step_s=1.0, decode_row_s=0.1, prefill_token_s=0.01, context_token_s=0.001)


def _config(**changes: int) -> SchedulerConfig:
    sizes = {
        "page_size_tokens": 4,
        "num_pages": 40,
        "max_model_len_tokens": 160,
        "step_budget_tokens": 16,
        "max_running_requests": 4,
        "max_waiting_requests": 10_000,
    }
    return SchedulerConfig(**{**sizes, **changes})


SERVERS: dict[str, Callable[[], Server]] = {
    **{name: lambda name=name: ScheduledServer(_config(), make_policy(name)) for name in POLICIES},  # type: ignore[misc]
    "static": lambda: StaticBatchingServer(4),
    "stop the world": lambda: StopTheWorldServer(4, 160),
}


def _workload(*requests: tuple[float, int, int]) -> Workload:
    arrivals, prompts, answers = zip(*requests, strict=True)
    zeros = np.zeros(len(requests), np.int64)
    return Workload(
        arrivals_s=np.array(arrivals),
        prompt_tokens=np.array(prompts),
        answer_tokens=np.array(answers),
        tenants=zeros,
        priorities=zeros,
        groups=zeros - 1,
    )


def _run(server: Server, workload: Workload) -> Outcome:
    outcome = simulate(server, workload, COST)
    outcome.require_exact()
    return outcome


def test_a_request_alone_takes_the_time_of_its_steps() -> None:
    outcome = _run(ScheduledServer(_config()), _workload((5.0, 20, 3)))
    # 16 prompt tokens; 4 more behind 16; rows with 20 and 21 tokens of context.
    assert outcome.first_token_s[0] == pytest.approx(5 + 1.16 + 1.04 + 0.016)
    assert outcome.end_s[0] == pytest.approx(outcome.first_token_s[0] + 1.1 + 0.020 + 1.1 + 0.021)
    assert (outcome.num_steps, outcome.num_step_tokens) == (4, 3)


def test_a_prompt_merges_with_rows_under_way() -> None:
    outcome = _run(ScheduledServer(_config()), _workload((0.0, 4, 3), (0.5, 8, 1)))
    assert outcome.end_s[1] == pytest.approx(1.04 + 1.1 + 0.08 + 0.004)


def test_a_static_batch_is_answered_when_its_longest_answer_ends_and_keeps_its_rows() -> None:
    outcome = _run(StaticBatchingServer(2), _workload((0.0, 4, 2), (0.0, 6, 4), (0.1, 5, 1)))
    end = 1.10 + (1.2 + 0.010) + (1.2 + 0.012) + (1.2 + 0.013)
    assert outcome.end_s[:2] == pytest.approx([end, end])
    assert outcome.first_token_s[:2] == pytest.approx([end, end])
    assert outcome.end_s[2] == pytest.approx(end + 1.05)


def test_the_world_stops_for_a_prompt() -> None:
    outcome = _run(StopTheWorldServer(4, 160), _workload((0.0, 4, 3), (0.5, 8, 2)))
    assert outcome.first_token_s == pytest.approx([1.04, 1.04 + 1.08])
    assert outcome.end_s[0] == pytest.approx(2.12 + 1.2 + 0.012 + 1.1 + 0.005)
    assert outcome.end_s[1] == pytest.approx(2.12 + 1.2 + 0.012)


def test_a_place_needs_kv_for_the_whole_answer() -> None:
    outcome = _run(StopTheWorldServer(4, 20), _workload((0.0, 8, 4), (0.0, 8, 4)))
    assert outcome.first_token_s[1] > outcome.end_s[0]


@given(
    requests=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=12),
    name=st.sampled_from(sorted(SERVERS)),
)
@examples(150)
def test_every_server_gives_every_request_exactly_its_tokens_and_time_only_for_work(
    requests: list[tuple[float, int, int]], name: str
) -> None:
    server = SERVERS[name]()
    workload = _workload(*sorted(requests))
    outcome = _run(server, workload)
    assert (outcome.latency_s > 0).all() and (outcome.ttft_s > 0).all()
    # Nobody is faster than alone, nor is anything faster than all its rows in full batches.
    assert (outcome.latency_s >= COST.step_s * workload.answer_tokens - 1e-9).all()
    if isinstance(server, ScheduledServer):
        server.scheduler.assert_consistent()
        assert server.scheduler.memory.num_available == 40


@pytest.mark.parametrize("name", SERVERS)
def test_a_simulation_depends_on_its_arguments_alone(name: str) -> None:
    lengths = log_normal_lengths(100, prompt_median=8, answer_median=8, sigma=1.0, max_prompt=60, max_answer=60, seed=0)
    workload = poisson_workload(lengths, num_requests=60, rate=0.5, seed=1)
    one, two = (_run(SERVERS[name](), workload) for _ in range(2))
    assert (one.end_s == two.end_s).all() and (one.first_token_s == two.first_token_s).all()


def test_shared_prefixes_are_computed_once() -> None:
    zeros = np.zeros(5, np.int64)
    lengths = np.full(5, 30), np.full(5, 2)
    shared = Workload(
        arrivals_s=np.arange(0.0, 500.0, 100.0),
        prompt_tokens=lengths[0],
        answer_tokens=lengths[1],
        tenants=zeros,
        priorities=zeros,
        groups=zeros,
        shared_tokens=24,
    )
    server = ScheduledServer(_config())
    outcome = _run(server, shared)
    assert server.scheduler.num_cached_tokens == 4 * 24
    assert (outcome.ttft_s[1:] < outcome.ttft_s[0]).all()


def test_a_request_that_can_never_fit_is_refused_as_by_the_service() -> None:
    with pytest.raises(PromptTooLong):
        simulate(ScheduledServer(_config()), _workload((0.0, 200, 1)), COST)


def test_wrong_outcomes_are_told_from_right_ones() -> None:
    outcome = _run(ScheduledServer(_config()), _workload((0.0, 4, 3), (0.0, 4, 2)))
    with pytest.raises(ValueError, match="request 1 got 3 tokens of 2"):
        outcome._replace(answer_tokens=np.array([3, 3])).require_exact()
    with pytest.raises(ValueError, match="the steps gave 6 tokens, 5 were wanted"):
        outcome._replace(num_step_tokens=6).require_exact()
    with pytest.raises(ValueError, match="before its time"):
        outcome._replace(end_s=outcome.first_token_s - 1).require_exact()
    with pytest.raises(ValueError, match="before its time"):
        outcome._replace(first_token_s=np.array([np.nan, 1.0])).require_exact()


def test_figures_of_an_outcome() -> None:
    outcome = Outcome(_workload((1.0, 4, 2), (2.0, 4, 4)), np.array([2.0, 4.0]), np.array([3.0, 6.0]), np.array([2, 4]), 4, 6)
    assert outcome.latency_s.tolist() == [2.0, 4.0] and outcome.ttft_s.tolist() == [1.0, 2.0]
    assert outcome.normalized_latency_s.tolist() == [1.0, 1.0]
    assert outcome.requests_per_s == pytest.approx(2 / 5)


def test_work_is_a_plain_triple() -> None:
    assert COST.seconds(StepWork(1, 0, 10)) == pytest.approx(1.11)


def test_simulating_needs_no_torch() -> None:
    modules = "compute_svc.simulator.simulation, compute_svc.simulator.servers, compute_svc.simulator.workload"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_request_that_no_server_can_hold_is_refused() -> None:
    server = StopTheWorldServer(2, 10)
    server.submit(Request(1, "", np.arange(6), np.empty(0, np.int64), 4, 0.0))
    with pytest.raises(PromptTooLong, match="11"):
        server.submit(Request(2, "", np.arange(7), np.empty(0, np.int64), 4, 0.0))
    with pytest.raises(ValueError, match="max_batch_requests is 0, it must be at least 1"):
        StaticBatchingServer(0)
