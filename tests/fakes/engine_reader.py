"""A small engine over a hashing model, and a reader of its steps that also plays the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.model import Model
from compute_svc.engine.steps.step_drawing import DrawConfig, DrawPlace
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.wire.request import GREEDY as GREEDY
from compute_svc.wire.request import HiddenStates, Request
from compute_svc.wire.step_output import Rows, StepOutput
from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.draw import draw_token
from tests.fakes.eager_graphs import eager_graphs
from tests.fakes.hash_model import HashModel, hash_kv
from triserve.rpc.sampling import Sampling

WIDTH = 24
SERVICE = DrawConfig(DrawPlace.SERVICE)
DEVICE = DrawConfig(DrawPlace.DEVICE)
TOP_3 = Sampling(temperature=1.0, top_k=3, seed=7)


def small_engine(
    model: Model | None = None,
    drawing: DrawConfig = SERVICE,
    make_memory: type[KvMemory] = KvMemory,
    *,
    runs_ahead: bool = False,
    draws_ahead: bool = True,
    **changes: int,
) -> Engine:
    """An engine with a few small pages, whose rows the reader draws unless `drawing` says otherwise; `changes` are sizes of its scheduler."""
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
    device = torch.device("cpu")
    model = model or HashModel(WIDTH)
    hidden = model if isinstance(model, HashModel) else None
    return Engine(
        model,
        kv,
        config,
        logits_width=WIDTH,
        device=device,
        make_memory=make_memory,
        drawing=drawing,
        hidden_states=hidden,
        make_graphs=eager_graphs(model, kv, config, WIDTH, draws=draws_ahead) if runs_ahead else None,
    )


def request_of(number: int, prompt: Sequence[int], max_tokens: int = 8, **changes: Any) -> Request:
    """A greedy request, unless `changes` say otherwise; of a prefix to pin nothing is drawn."""
    max_tokens = 0 if changes.get("pins") else max_tokens
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
        prompt_logprobs: Of each request that wants them: rank, log-probability and the likeliest ids of each token from the second on.
        hidden: Of each request that wants them, its vectors in order.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.given: dict[int, int] = {}
        self.awaiting: dict[int, tuple[int, int]] = {}
        self.errors: dict[int, Exception | None] = {}
        self.outputs: list[StepOutput] = []
        self.admitted: set[int] = set()
        self.prompt_logprobs: dict[int, list[tuple[int, float, list[int]]]] = {}
        self.hidden: dict[int, list[list[float]]] = {}

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
        for vectors in output.hidden:
            known = self.hidden.setdefault(vectors.number, [])
            assert not known or vectors.first_position == len(known), "vectors have no gap and no repetition"
            known += np.frombuffer(vectors.vectors, "<f4").reshape(-1, vectors.width).tolist()
        if rows is not None:
            self._read_prompts(rows)
            numbers = rows.numbers.tolist()
            logits = {one.row: np.frombuffer(one.logits, "<f4") for one in rows.logits}
            tokens = iter(rows.tokens.tolist())
            assert len(set(numbers)) == len(numbers), "a request has one row in a step"
            for row, (number, position, count) in enumerate(zip(numbers, rows.positions.tolist(), rows.counts.tolist(), strict=True)):
                answer = self.tokens.setdefault(number, [])
                assert position == len(answer) + self.given.get(number, 0), "positions have no gap and no repetition"
                if count == 0:
                    # A sampler that draws by position alone, the same however the request is batched.
                    self.awaiting[number] = (position, ranking_of(logits[row])[position % 3])
                answer.extend(islice(tokens, count))
        for released in output.released:
            assert released.number not in self.errors, "a request leaves once"
            self.errors[released.number] = released.error
            self.awaiting.pop(released.number, None)

    def _read_prompts(self, rows: Rows) -> None:
        for part in rows.prompt_logprobs:
            known = self.prompt_logprobs.setdefault(part.request, [])
            assert part.request not in self.tokens, "a prompt is told of before what is drawn behind it"
            assert part.first_position == 1 + len(known), "tokens of a prompt have no gap and no repetition"
            k = len(part.top_token) // len(part.logprob)
            tops = [list(part.top_token[index * k : (index + 1) * k]) for index in range(len(part.logprob))]
            known += list(zip(part.rank, part.logprob, tops, strict=True))
        for number in rows.computed:
            assert self.tokens.setdefault(number, []) == [], "of one that draws nothing there is no row"

    def answer(self, number: int) -> None:
        """Gives the verdict a request awaits."""
        position, token = self.awaiting.pop(number)
        self.tokens[number].append(token)
        self.engine.verdict(number, position, [token])

    def run(self, steps: int = 100) -> None:
        """Steps, with a verdict after each step, until nothing happens."""
        for _ in range(steps):
            if self.step() is None and not self.awaiting:
                return
            for number in list(self.awaiting):
                self.answer(number)
        raise AssertionError("the engine does not come to rest")


def assert_read_as_alone(model: HashModel, request: Request, reader: Reader) -> None:
    """What was told of a request that has come to its end is what the model says of its tokens without KV, batch or scheduler."""
    known = [*request.prompt.tolist(), *request.generated.tolist()]
    k = request.sampling.prompt_logprobs
    told = reader.prompt_logprobs.get(request.number, [])
    assert len(told) == (0 if k is None else request.prompt.size - 1)
    for position, (rank, logprob, top) in enumerate(told, start=1):
        logits = model.logits_of(known[:position]).astype(np.float64)
        ranking = ranking_of(logits.astype(np.float32))
        assert (rank, top) == (1 + ranking.index(known[position]), ranking[:k])
        assert abs(logprob - (logits[known[position]] - np.log(np.exp(logits).sum()))) < 1e-5
    vectors = [model.logits_of(known[: position + 1])[: model.hidden_size] for position in range(len(known))]
    expected = {
        HiddenStates.NONE: [],
        HiddenStates.LAST: vectors[-1:],
        HiddenStates.MEAN: [np.cumsum(np.array(vectors, dtype=np.float64), axis=0)[-1] / len(vectors)],
        HiddenStates.ALL: vectors,
    }[request.hidden_states]
    numbers: list[list[float]] = [np.asarray(vector, dtype=np.float32).tolist() for vector in expected]
    assert reader.hidden.get(request.number, []) == numbers


def ranking_of(logits: npt.NDArray[np.float32]) -> list[int]:
    """All ids by falling logit, then by rising id."""
    ranking: list[int] = np.lexsort((np.arange(logits.size), -logits)).tolist()
    return ranking


def answer_alone(model: HashModel, request: Request, place: DrawPlace = DrawPlace.SERVICE) -> list[int]:
    """What a request is answered, computed without KV, batch or scheduler."""
    prompt, sampling = request.prompt.tolist(), request.sampling
    changes = Changes(sampling, request.min_tokens, request.stop_token_ids, prompt, WIDTH)
    for token in request.generated.tolist():
        changes.count(token)
    context = [*request.prompt.tolist(), *request.generated.tolist()]
    if request.draws_nothing:
        return []
    while True:
        position = len(context) - request.prompt.size
        logits = model.logits_of(context)
        banned = position < request.min_tokens and bool(request.stop_token_ids)
        if place is DrawPlace.DEVICE:
            drawn = draw_token(logits, sampling, changes, position)
            assert drawn is not None, "something can be drawn"
            token = drawn
        else:
            # What is not simply the likeliest is drawn by the stand-in sampler.
            token = ranking_of(logits)[position % 3 if banned or not sampling.greedy or sampling.changes_logits else 0]
        changes.count(token)
        context.append(token)
        if position + 1 >= request.max_tokens or (token in request.stop_token_ids and position + 1 > request.min_tokens):
            return context[request.prompt.size + request.generated.size :]
