"""Prompts and answers in one step, against prompts for which every answer stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import NamedTuple

import torch

from compute_svc.engine.engine import Engine
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import Plan
from tests.bench.ablations.comparison import Comparison, Figures, Subject, in_turns
from tests.bench.ablations.engines import CPU, PAGE_SIZE_TOKENS, EngineSizes, Load, Outcome, Setup, make_engine, plan_requests

_MAX_RUNNING = 8
_MAX_PROMPT, _MAX_OUTPUT = 192, 32
# How fast requests come, of how fast they are answered where all come at once.
_LOADS = (0.7, 1.5)


class StopTheWorldEngine(Engine):
    """Leaves answers alone while there are prompts to compute, as engines did before steps were merged."""

    def plan(self, now: float) -> Plan:
        """See `Engine`."""
        plan = super().plan(now)
        if plan.prefills:
            plan.rows, plan.decodes = plan.rows[:0], []
        return plan


def merge_step(setup: Setup) -> Iterator[Comparison]:
    """Requests a second, and the longest gaps between tokens, below capacity and above it."""
    model = load_model(setup.folder, dtype=setup.dtype, device=CPU, activations="float")
    asked = AskedFor(setup.size(24, 12), _MAX_PROMPT, _MAX_OUTPUT, _MAX_RUNNING)
    yield from compare_merge_step(model, asked, setup.rounds, has_equal_bits=True)


class AskedFor(NamedTuple):
    """A load.

    Attributes:
        num_requests: In all.
        max_prompt: Tokens of the longest prompt.
        max_output: Tokens of the longest answer.
        max_running: Requests at once.
        step_budget_tokens: Most tokens of a step.
    """

    num_requests: int
    max_prompt: int
    max_output: int
    max_running: int
    step_budget_tokens: int = 512


def compare_merge_step(model: CausalLM, asked: AskedFor, rounds: int, *, has_equal_bits: bool) -> Iterator[Comparison]:
    """Steps merged and prompts apart, under loads that the engine keeps up with and does not.

    Args:
        model: On any device.
        asked: Of the engine.
        rounds: How often both take turns.
        has_equal_bits: Whether an answer may not depend on what shares its steps; then this is checked first.
    """
    tokens = asked.max_prompt + asked.max_output
    num_pages = asked.max_running * -(-tokens // PAGE_SIZE_TOKENS) * 2
    sizes = EngineSizes(num_pages, tokens, asked.max_running, asked.step_budget_tokens)
    kinds: dict[str, type[Engine]] = {"prompts apart": StopTheWorldEngine, "merged": Engine}
    # Kept from run to run: a device's engine makes its graphs once.
    engines = {name: make_engine(model, sizes, kind=kind) for name, kind in kinds.items()}
    numbers = count()

    def load(name: str, rate: float | None = None) -> Outcome:
        planned = plan_requests(model, asked.num_requests, max_prompt=asked.max_prompt, max_output=asked.max_output, rate=rate)
        # Numbers of their own, and so tenants: no prompt of an earlier run is found in the prefix cache.
        return Load(engines[name], [replace(one, index=next(numbers)) for one in planned]).run()

    def figures(name: str, rate: float) -> Figures:
        return load(name, rate).figures

    apart, merged = [load(name) for name in kinds]
    checked = "each answer has its exact length"
    if has_equal_bits:
        assert list(apart.tokens.values()) == list(merged.tokens.values()), "the same tokens either way"
        checked = "the same tokens"
    for share in _LOADS:
        rate = share * merged.figures["requests_per_s"]
        runs = in_turns({name: partial(figures, name, rate) for name in kinds}, rounds)
        case = f"{_named(model.dtype)}, {asked.num_requests} requests that come at {share:.1f} of capacity, {asked.max_running} at once"
        subject = Subject("merge step", case, "PPL: QPS +100 %", checked)
        yield from subject.rows(runs, ("requests_per_s", "token_gap_p99_ms", "ttft_p50_ms"))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
