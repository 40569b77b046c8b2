"""Times the engine on prompts that are all there at once; knows no service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.decode_graphs import decode_graphs
from compute_svc.kv.kv_format import KvFormat
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import StepOutput

PAGE_SIZE_TOKENS = 16


class EngineRunner:
    """One engine, empty between the measurements; its prefix cache keeps the prompts' KV for the next.

    Args:
        engine: What computes.
        max_tokens: Most tokens of one request, answer included.
    """

    name = "engine"

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self.step_budget_tokens = engine.config.step_budget_tokens
        self._max_tokens = max_tokens
        self._next_number = 0

    @classmethod
    def around(
        cls,
        model: CausalLM,
        *,
        max_requests: int,
        max_tokens: int,
        kv_tokens: int,
        step_budget_tokens: int,
        kv_format: KvFormat | None = None,
        graphs: bool = True,
        kind: type[Engine] = Engine,
    ) -> EngineRunner:
        """An engine of just the size that measurements need.

        Args:
            model: What computes.
            max_requests: Most at once.
            max_tokens: Most tokens of one, answer included.
            kv_tokens: Tokens of all at once.
            step_budget_tokens: Most tokens of one step; at least max_requests.
            kv_format: What keys and values are stored as; None = numbers of the model's dtype.
            graphs: Whether decode steps are CUDA graphs, where they can be.
            kind: Of engine.
        """
        kv_format = kv_format or KvFormat(model.dtype)
        # Two pages more for each: the one that is begun, and one that the prefix cache still holds from before.
        num_pages = -(-kv_tokens // PAGE_SIZE_TOKENS) + 2 * max_requests
        config = SchedulerConfig(PAGE_SIZE_TOKENS, num_pages, max_tokens, max(step_budget_tokens, max_requests), max_requests, max_requests)
        sizes = (model.config.num_layers, num_pages, PAGE_SIZE_TOKENS, model.config.num_kv_heads, model.config.kv_head_dim)
        kv = KvPageStore(*sizes, kv_format.dtype, model.device, group=kv_format.group)
        make_graphs = decode_graphs(model, kv, config) if graphs else None
        width = model.config.vocab_size
        return cls(kind(model, kv, config, logits_width=width, device=model.device, make_graphs=make_graphs), max_tokens)

    def decode(self, prompts: torch.Tensor, warm_up: int, steps: int, watching: AbstractContextManager[object] | None = None) -> float:
        """Seconds for `steps` greedy tokens of each of [requests, tokens] prompts, behind some that warm up; `watching` is entered for them alone."""
        numbers = self._submit(prompts, self._max_tokens - prompts.shape[1])
        begun: set[int] = set()
        while len(begun) < len(numbers):
            drawn = self._step()
            begun.update(drawn)
            # Who has begun waits for the others, so that all have the same context.
            self._engine.pause(drawn, paused=True)
        self._engine.pause(numbers, paused=False)
        for _ in range(warm_up):
            self._step()
        with watching or nullcontext():
            began = time.perf_counter()
            for _ in range(steps):
                drawn = self._step()
                assert len(drawn) == len(numbers), "every request gets a token at every step"
            seconds = time.perf_counter() - began
        for number in numbers:
            assert self._engine.release(number), "no answer has come to its end"
        self._engine.step(0.0)
        return seconds

    def answers(self, prompts: torch.Tensor, num_tokens: int) -> list[list[int]]:
        """Greedy answers to [requests, tokens] prompts."""
        numbers = self._submit(prompts, num_tokens)
        answers: dict[int, list[int]] = {number: [] for number in numbers}
        while any(len(answer) < num_tokens for answer in answers.values()):
            output = self._engine.step(0.0)
            assert output is not None and output.rows is not None, "requests are under way"
            for number, token in zip(output.rows.numbers.tolist(), output.rows.tokens.tolist(), strict=True):
                answers[number].append(token)
        return list(answers.values())

    def prefill(self, prompts: torch.Tensor) -> float:
        """Seconds from [requests, tokens] prompts, none seen before, to the first token of each."""
        numbers = self._submit(prompts, 1)
        before = self._engine.load.cached_tokens
        began = time.perf_counter()
        drawn: set[int] = set()
        while len(drawn) < len(numbers):
            drawn.update(self._step())
        seconds = time.perf_counter() - began
        assert self._engine.load.cached_tokens == before, "no prompt was there before"
        return seconds

    def forget(self) -> None:
        """Nothing to do: the KV is the engine's for its life."""

    def _submit(self, prompts: torch.Tensor, max_tokens: int) -> Sequence[int]:
        numbers = range(self._next_number, self._next_number + len(prompts))
        self._next_number = numbers.stop
        for number, prompt in zip(numbers, prompts.numpy(), strict=True):
            # A tenant for each: random prompts may begin with the same token or two, which would be found in the prefix cache.
            self._engine.submit(Request(number, str(number), prompt.astype(np.int64), np.empty(0, np.int64), max_tokens, 0.0))
        return numbers

    def _step(self) -> list[int]:
        output: StepOutput | None = self._engine.step(0.0)
        assert output is not None, "requests are under way"
        assert all(released.error is None for released in output.released), "no request fails"
        return [] if output.rows is None else output.rows.numbers.tolist()
