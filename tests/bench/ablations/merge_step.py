"""Prompts and answers in one step, against prompts for which every answer stops."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from compute_svc.engine.engine import Engine
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
    num = setup.size(24, 12)
    tokens = _MAX_PROMPT + _MAX_OUTPUT
    sizes = EngineSizes(_MAX_RUNNING * -(-tokens // PAGE_SIZE_TOKENS) * 2, tokens, _MAX_RUNNING)
    kinds: dict[str, type[Engine]] = {"prompts apart": StopTheWorldEngine, "merged": Engine}

    def load(kind: type[Engine], rate: float | None = None) -> Outcome:
        planned = plan_requests(model, num, max_prompt=_MAX_PROMPT, max_output=_MAX_OUTPUT, rate=rate)
        return Load(make_engine(model, sizes, kind=kind), planned).run()

    def figures(kind: type[Engine], rate: float) -> Figures:
        return load(kind, rate).figures

    apart, merged = [load(kind) for kind in kinds.values()]
    assert apart.tokens == merged.tokens, "the same tokens either way"
    for share in _LOADS:
        rate = share * merged.figures["requests_per_s"]
        runs = in_turns({name: partial(figures, kind, rate) for name, kind in kinds.items()}, setup.rounds)
        case = f"{_named(model.dtype)}, {num} requests that come at {share:.1f} of capacity, {_MAX_RUNNING} at once"
        subject = Subject("merge step", case, "PPL: QPS +100 %", "the same tokens")
        yield from subject.rows(runs, ("requests_per_s", "token_gap_p99_ms", "ttft_p50_ms"))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
