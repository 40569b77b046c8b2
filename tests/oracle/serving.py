"""Runs requests through a real engine and keeps everything that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.step_drawing import DrawConfig
from compute_svc.kv.kv_format import choose_kv_format
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.scheduler.base import Plan, SchedulerConfig
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import StepOutput
from tests.fakes.engine_reader import Reader
from tests.fakes.poisoned_kv import poison

PAGE_SIZE_TOKENS = 8
_STEP_BUDGET_TOKENS = 29
_MAX_REQUESTS = 8
_MAX_REQUEST_TOKENS = 320
_MAX_STEPS = 1000


class Served(NamedTuple):
    """What came of requests.

    Attributes:
        tokens: Of each request, in order.
        logits: [answer tokens, vocab] of each request.
        cached_tokens: How many tokens of each request's prompt had their KV before.
        num_preemptions: Of all.
        num_merged: Steps that computed decode rows and prompts.
        num_partial: Chunks that ended before their prompt did.
    """

    tokens: dict[int, list[int]]
    logits: dict[int, torch.Tensor]
    cached_tokens: dict[int, int]
    num_preemptions: int
    num_merged: int
    num_partial: int


def small_engine(model: CausalLM, num_pages: int, kv_format: str = "auto") -> Engine:
    """An engine whose steps are short and give all logits out, over KV that is poisoned until it is written."""
    config = SchedulerConfig(
        page_size_tokens=PAGE_SIZE_TOKENS,
        num_pages=num_pages,
        max_model_len_tokens=min(_MAX_REQUEST_TOKENS, model.config.max_position_embeddings),
        step_budget_tokens=_STEP_BUDGET_TOKENS,
        max_running_requests=_MAX_REQUESTS,
        max_waiting_requests=_MAX_REQUESTS,
    )
    sizes = (model.config.num_layers, num_pages, PAGE_SIZE_TOKENS, model.config.num_kv_heads, model.config.kv_head_dim)
    format_ = choose_kv_format(kv_format, None, model.dtype)
    kv = KvPageStore(*sizes, format_.dtype, model.device, group=format_.group)
    poison(kv)
    drawing = DrawConfig(audited_share=1.0)
    return Engine(model, kv, config, logits_width=model.config.vocab_size, device=model.device, drawing=drawing)


class Serving:
    """Serves waves of requests, each after the one before has begun.

    Args:
        engine: What serves; nobody else's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = Reader(engine)
        self._rows: dict[int, list[torch.Tensor]] = {}
        self._cached_tokens: dict[int, int] = {}
        self._num_merged = 0
        self._num_partial = 0

    def serve(self, *waves: Sequence[Request]) -> Served:
        """Submits the first wave, each other one as soon as all requests before it have a token, and steps until all have ended.

        Raises:
            AssertionError: The engine does not come to rest, loses pages, or fails a request.
        """
        waiting = list(waves)
        begun: set[int] = set()
        for _ in range(_MAX_STEPS):
            if waiting and begun <= self._reader.tokens.keys():
                for request in waiting.pop(0):
                    begun.add(request.number)
                    self._engine.submit(request)
            plan = self._engine.plan(0.0)
            self._count(plan)
            output = self._engine.run(plan)
            if output is None:
                break
            self._read(output)
        failed = {number: error for number, error in self._reader.errors.items() if error is not None}
        assert not failed, f"requests fail: {failed}"
        assert begun <= self._reader.errors.keys() and not waiting, "the engine does not come to rest"
        self._engine.assert_consistent()
        assert self._engine.load.used_pages == 0, "pages are lost"
        logits = {number: torch.stack(rows) for number, rows in self._rows.items()}
        preemptions = self._engine.load.preemptions
        return Served(self._reader.tokens, logits, self._cached_tokens, preemptions, self._num_merged, self._num_partial)

    def _count(self, plan: Plan) -> None:
        self._num_merged += bool(plan.decodes and plan.prefills)
        self._num_partial += sum(not chunk.completes for chunk in plan.prefills)

    def _read(self, output: StepOutput) -> None:
        self._reader.read(output)
        self._cached_tokens.update({started.number: started.cached_tokens for started in output.started})
        rows = output.rows
        if rows is None:
            return
        numbers = rows.numbers.tolist()
        for one in rows.logits:
            self._rows.setdefault(numbers[one.row], []).append(torch.frombuffer(bytearray(one.logits), dtype=torch.float32))
