"""Engines that differ in one thing, and requests that come to them over time."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.decode_graphs import decode_graphs
from compute_svc.kv.kv_format import KvFormat
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.length_predictor import WindowedLengthPredictor
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import StepOutput
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, PlannedRequest, WorkloadConfig, make_workload, read_lengths
from tests.bench.ablations.comparison import Figures

PAGE_SIZE_TOKENS = 16
CPU = torch.device("cpu")


class Setup(NamedTuple):
    """What all ablations are run on.

    Attributes:
        folder: Of a float checkpoint or a GGUF file.
        dtype: What is computed in where that is not what is switched.
        rounds: How often all ways take turns.
        is_quick: Whether sizes are those of a trial.
        scratch: A folder for models that are made.
    """

    folder: Path
    dtype: torch.dtype
    rounds: int
    is_quick: bool
    scratch: Path

    def size(self, usual: int, quick: int) -> int:
        """One of two."""
        return quick if self.is_quick else usual


class EngineSizes(NamedTuple):
    """Of an engine; see `SchedulerConfig`."""

    num_pages: int
    max_tokens: int
    max_running: int
    step_budget_tokens: int = 512


def make_engine(
    model: CausalLM,
    sizes: EngineSizes,
    kv_format: KvFormat | None = None,
    *,
    make_memory: Callable[[SchedulerConfig], KvMemory] = KvMemory,
    kind: type[Engine] = Engine,
) -> Engine:
    """An empty engine; on a device its decode steps are graphs.

    Args:
        model: Computes, wherever it is.
        sizes: Of the engine.
        kv_format: What keys and values are stored as; None = what the model computes in.
        make_memory: See `Engine`.
        kind: Of engine.
    """
    config = SchedulerConfig(
        PAGE_SIZE_TOKENS,
        sizes.num_pages,
        sizes.max_tokens,
        max(sizes.step_budget_tokens, sizes.max_running),
        sizes.max_running,
        max_waiting_requests=1 << 16,
    )
    format_ = kv_format or KvFormat(model.dtype)
    shape = (model.config.num_layers, sizes.num_pages, PAGE_SIZE_TOKENS, model.config.num_kv_heads, model.config.kv_head_dim)
    kv = KvPageStore(*shape, format_.dtype, model.device, group=format_.group)
    return kind(
        model,
        kv,
        config,
        logits_width=model.config.vocab_size,
        device=model.device,
        predictor=WindowedLengthPredictor(),
        make_memory=make_memory,
        dtype=model.dtype,
        make_graphs=decode_graphs(model, kv, config),
    )


def plan_requests(
    model: CausalLM, num: int, *, max_prompt: int, max_output: int, rate: float | None = None, seed: int = 0
) -> list[PlannedRequest]:
    """Requests of the lengths file, which come at a rate (a second), or all at once where there is none."""
    config = WorkloadConfig(num_requests=num, seed=seed, rate=rate, max_prompt=max_prompt, max_output=max_output)
    return make_workload(config, read_lengths(BUNDLED_LENGTHS), vocab_size=model.config.vocab_size)


class Outcome(NamedTuple):
    """What a load gave.

    Attributes:
        tokens: Of each request, by number.
        figures: Its speed.
    """

    tokens: dict[int, list[int]]
    figures: Figures


class Load:
    """Requests that come to an engine at their times, however far behind it is; answers are greedy and have their exact lengths.

    Args:
        engine: Empty.
        planned: In the order of arrival.
        max_tokens: What all ask for at most while their client ends the answer where it does; None = what the answer has.
    """

    def __init__(self, engine: Engine, planned: Sequence[PlannedRequest], max_tokens: int | None = None) -> None:
        self._engine = engine
        self._arrivals = deque(planned)
        self._planned = {one.index: one for one in planned}
        self._max_tokens = max_tokens
        self._live: set[int] = set()
        self._times: dict[int, list[float]] = {one.index: [] for one in planned}
        self._tokens: dict[int, list[int]] = {one.index: [] for one in planned}
        self._running: list[int] = []

    def run(self) -> Outcome:
        """Computes everything.

        Raises:
            AssertionError: An answer is not what it must be.
        """
        began = time.perf_counter()
        while self._arrivals or self._live:
            self._submit(time.perf_counter() - began)
            if not self._live:
                time.sleep(max(0.0, self._arrivals[0].arrival_s - (time.perf_counter() - began)))
                continue
            output = self._engine.step(time.perf_counter())
            if output is not None:
                self._take(output, time.perf_counter() - began)
        seconds = time.perf_counter() - began
        self._engine.assert_consistent()
        lengths = {number: len(tokens) for number, tokens in self._tokens.items()}
        assert lengths == {number: one.output_tokens for number, one in self._planned.items()}, "each answer has its exact length"
        return Outcome(self._tokens, self._figures(seconds))

    def _submit(self, now_s: float) -> None:
        while self._arrivals and self._arrivals[0].arrival_s <= now_s:
            one = self._arrivals.popleft()
            prompt, room = np.array(one.prompt_token_ids, dtype=np.int64), self._engine.config.max_request_tokens
            asked = one.output_tokens if self._max_tokens is None else min(self._max_tokens, room - prompt.size)
            # A tenant for each: nothing is found in the prefix cache.
            self._engine.submit(Request(one.index, str(one.index), prompt, np.empty(0, dtype=np.int64), asked, now_s))
            self._live.add(one.index)

    def _take(self, output: StepOutput, now_s: float) -> None:
        self._running.append(output.load.running_requests)
        if output.rows is not None:
            for number, token in zip(output.rows.numbers.tolist(), output.rows.tokens.tolist(), strict=True):
                # One whose client has ended it may have had another row under way.
                if number in self._live:
                    self._times[number].append(now_s)
                    self._tokens[number].append(token)
                    if len(self._tokens[number]) == self._planned[number].output_tokens:
                        self._live.discard(number)
                        self._engine.release(number)
        for released in output.released:
            assert released.error is None, f"request {released.number} fails: {released.error}"

    def _figures(self, seconds: float) -> Figures:
        gaps = sorted(later - sooner for times in self._times.values() for sooner, later in pairwise(times))
        waits = [times[0] - self._planned[number].arrival_s for number, times in self._times.items()]
        return {
            "requests_per_s": len(self._planned) / seconds,
            "tokens_per_s": sum(map(len, self._tokens.values())) / seconds,
            "ttft_p50_ms": 1e3 * statistics.median(waits),
            "token_gap_p99_ms": 1e3 * gaps[len(gaps) * 99 // 100],
            "requests_at_once": statistics.mean(self._running),
        }
