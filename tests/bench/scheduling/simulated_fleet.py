"""Many replicas in simulated time behind the gateway's own choice of one: chats of several turns over shared system prompts."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.policies import make_policy
from compute_svc.simulator.cost_model import CostModel
from compute_svc.simulator.servers import ScheduledServer
from compute_svc.wire.request import Request
from gateway.clients.prefix_index import PageBudget, PrefixIndex
from gateway.clients.replica_choice import ChoicePolicy

_NO_TOKENS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Chats:
    """What users do.

    Attributes:
        users: That are there at once; each begins a new chat when one has ended.
        chats: In all.
        turns: Of each.
        system_prompts: There are; some are used much more often than others (Zipf).
        system_tokens: Of each.
        question_tokens: Mean, of each turn.
        answer_tokens: Mean.
        think_s: Mean, between an answer and the next question.
    """

    users: int
    chats: int
    turns: int = 4
    system_prompts: int = 20
    system_tokens: int = 1024
    question_tokens: int = 96
    answer_tokens: int = 128
    think_s: float = 5.0


class SimulatedReplica:
    """A replica as a policy sees it, and the server behind it."""

    def __init__(self, config: SchedulerConfig, budget: PageBudget) -> None:
        self.server = ScheduledServer(config, make_policy("fcfs"))
        self.prefixes = PrefixIndex(budget)
        self.page_size_tokens = config.page_size_tokens
        self.others = self.submitted = 0
        self.in_flight = self.waiting = 0
        self.mean_prefill_tokens = 0.0
        self.num_started = 0
        self.is_stepping = False
        self.prefixes.change(removed=[], stored=self.server.scheduler.memory.tree.watch())

    def tell(self) -> None:
        """What its prefix cache holds now."""
        stored, removed = self.server.scheduler.memory.tree.take_changes()
        self.prefixes.change(removed=removed, stored=stored)


@dataclass
class _Chat:
    """Drawn in advance, so that every policy has the same chats."""

    prompt: list[int]
    questions: list[int]
    answers: list[int]
    thinks_s: list[float]


@dataclass
class FleetRun:
    """Simulates until all chats have ended.

    Args:
        replicas: All alike.
        policy: Chooses.
        chats: What is asked.
        cost: Of a step.
        seed: Of everything random; the same chats for the same seed, whatever the policy.

    Attributes:
        ttft_s: Of each request.
    """

    replicas: Sequence[SimulatedReplica]
    policy: ChoicePolicy
    chats: Chats
    cost: CostModel
    seed: int
    ttft_s: list[float] = field(default_factory=list)

    @property
    def hit_rate(self) -> float:
        """Of all prompt tokens, those that were in the prefix cache."""
        memories = [replica.server.scheduler.memory for replica in self.replicas]
        return sum(memory.hit_tokens for memory in memories) / sum(memory.looked_up_tokens for memory in memories)

    def run(self) -> FleetRun:
        """Itself, at the end."""
        random, chats = np.random.default_rng(self.seed), self.chats
        weights = 1 / np.arange(1, chats.system_prompts + 1)
        systems = random.choice(chats.system_prompts, chats.chats, p=weights / weights.sum()).tolist()
        self._numbers, self._order = itertools.count(), itertools.count()
        self._events: list[tuple[float, int, Any]] = []
        self._waiting = [
            _Chat(
                [-1 - system] * chats.system_tokens,
                (1 + random.poisson(chats.question_tokens, chats.turns)).tolist(),
                (1 + random.poisson(chats.answer_tokens, chats.turns)).tolist(),
                random.exponential(chats.think_s, chats.turns).tolist(),
            )
            for system in systems
        ]
        self._asked: dict[int, tuple[_Chat, SimulatedReplica, float, int]] = {}
        for _ in range(min(chats.users, chats.chats)):
            self._think(self._waiting.pop(), 0.0)
        while self._events:
            now, _, what = heapq.heappop(self._events)
            if isinstance(what, _Chat):
                self._ask(what, now)
            else:
                replica, step = what
                self._end_step(replica, step, now)
        return self

    def _at(self, when: float, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def _think(self, chat: _Chat, now: float) -> None:
        self._at(now + chat.thinks_s.pop(), chat)

    def _ask(self, chat: _Chat, now: float) -> None:
        number = next(self._numbers)
        # No two questions go on alike; answers of the simulated engine are zeros.
        chat.prompt += [number + 1] * chat.questions.pop()
        wanted = chat.answers.pop()
        ids = [token & 0xFFFFFFFF for token in chat.prompt]
        replica = self.replicas[self.policy.best(self.replicas, ids, "a")]
        replica.submitted += 1
        replica.in_flight += 1
        replica.waiting += 1
        self._asked[number] = (chat, replica, now, wanted)
        replica.server.submit(Request(number, "a", np.array(ids, dtype=np.int64), _NO_TOKENS, wanted, now))
        self._step(replica, now)

    def _step(self, replica: SimulatedReplica, now: float) -> None:
        if replica.is_stepping:
            return
        events = replica.server.step(now)
        replica.is_stepping = events is not None
        if events is not None:
            self._at(now + self.cost.seconds(events.work), (replica, events))

    def _end_step(self, replica: SimulatedReplica, events: Any, now: float) -> None:
        replica.is_stepping = False
        for number in events.started:
            chat, _, asked_at, _ = self._asked[number]
            replica.waiting -= 1
            self.ttft_s.append(now - asked_at)
            replica.num_started += 1
            memory = replica.server.scheduler.memory
            replica.mean_prefill_tokens = (memory.looked_up_tokens - memory.hit_tokens) / replica.num_started
        for number, tokens in events.ended:
            chat, _, _, wanted = self._asked.pop(number)
            if tokens != wanted:
                raise ValueError(f"request {number} got {tokens} tokens of {wanted}")
            replica.in_flight -= 1
            chat.prompt += [0] * tokens
            if chat.thinks_s:
                self._think(chat, now)
            elif self._waiting:
                self._think(self._waiting.pop(), now)
        replica.tell()
        self._step(replica, now)
