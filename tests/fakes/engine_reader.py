"""A small engine over a hashing model, and a reader of its steps that also plays the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compute_svc.engine.engine import Engine, Model
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.wire.request import Request, SamplingOptions
from compute_svc.wire.step_output import StepOutput
from tests.fakes.hash_model import HashModel, hash_kv

WIDTH = 24
GREEDY = SamplingOptions()
TOP_3 = SamplingOptions(temperature=1.0, top_k=3)


def small_engine(model: Model | None = None, **changes: int) -> Engine:
    """An engine with a few small pages; `changes` are sizes of its scheduler."""
    sizes = {
        "page_size_tokens": 4,
        "num_pages": 16,
        "max_model_len_tokens": 64,
        "step_budget_tokens": 16,
        "max_running_requests": 4,
        "max_waiting_requests": 8,
    }
    config = SchedulerConfig(**{**sizes, **changes})
    kv = hash_kv(config.num_pages, config.page_size_tokens)
    return Engine(model or HashModel(WIDTH), kv, config, logits_width=WIDTH, device=torch.device("cpu"))


def request_of(number: int, prompt: Sequence[int], max_tokens: int = 8, **changes: Any) -> Request:
    """A greedy request, unless `changes` say otherwise."""
    generated = np.array(changes.pop("generated", ()), dtype=np.int64)
    return Request(number, changes.pop("tenant", ""), np.array(prompt, dtype=np.int64), generated, max_tokens, 0.0, **changes)


class Reader:
    """Reads step outputs, and checks what holds for all of them.

    Args:
        engine: Whose.

    Attributes:
        tokens: Of each request, in order.
        given: How many answer tokens a request brought along.
        awaiting: Position and token of the verdict a request waits for.
        errors: Of each request that has left; None = it came to its end or was released.
        outputs: All of them.
        admitted: Requests that have left the queue.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.given: dict[int, int] = {}
        self.awaiting: dict[int, tuple[int, int]] = {}
        self.errors: dict[int, Exception | None] = {}
        self.outputs: list[StepOutput] = []
        self.admitted: set[int] = set()

    def step(self, now: float = 0.0) -> StepOutput | None:
        """One step of the engine, read."""
        plan = self.engine.plan(now)
        self.admitted.update(state.request.number for state in plan.admitted)
        output = self.engine.run(plan)
        if output is not None:
            self.read(output)
        return output

    def read(self, output: StepOutput) -> None:
        """Takes an output in."""
        self.outputs.append(output)
        rows = output.rows
        if rows is not None:
            start = 0
            assert len(set(rows.numbers)) == len(rows.numbers), "a request has one row in a step"
            for number, position, token, count in zip(rows.numbers, rows.positions, rows.tokens, rows.num_candidates, strict=True):
                ids = rows.candidate_ids[start : start + count].tolist()
                start += count
                answer = self.tokens.setdefault(number, [])
                assert position == len(answer) + self.given.get(number, 0), "positions have no gap and no repetition"
                if token is None:
                    # A sampler that draws by position alone, the same however the request is batched.
                    self.awaiting[number] = (position, ids[position % min(3, count)])
                else:
                    answer.append(token)
        for released in output.released:
            assert released.number not in self.errors, "a request leaves once"
            self.errors[released.number] = released.error
            self.awaiting.pop(released.number, None)

    def answer(self, number: int) -> None:
        """Gives the verdict a request awaits."""
        position, token = self.awaiting.pop(number)
        self.tokens[number].append(token)
        self.engine.verdict(number, position, token)

    def run(self, steps: int = 100) -> None:
        """Steps, with a verdict after each step, until nothing happens."""
        for _ in range(steps):
            if self.step() is None and not self.awaiting:
                return
            for number in list(self.awaiting):
                self.answer(number)
        raise AssertionError("the engine does not come to rest")


def answer_alone(model: HashModel, request: Request) -> list[int]:
    """What a request is answered, computed without KV, batch or scheduler."""
    context = [*request.prompt.tolist(), *request.generated.tolist()]
    while True:
        position = len(context) - request.prompt.size
        logits = model.logits_of(context)
        ranking = np.lexsort((np.arange(WIDTH), -logits)).tolist()
        if request.sampling.temperature:
            token = ranking[position % 3]
        else:
            # A banned stop id makes a greedy row go to the stand-in sampler, which draws among what it gets.
            banned = position < request.min_tokens and bool(request.stop_token_ids)
            token = ranking[position % 3 if banned else 0]
        context.append(token)
        if position + 1 >= request.max_tokens or (token in request.stop_token_ids and position + 1 > request.min_tokens):
            return context[request.prompt.size + request.generated.size :]
