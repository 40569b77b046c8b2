"""Asks replicas what may follow sequences of tokens: a request of one token for each, which reports the likeliest."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

from gateway.flow.call import Call
from gateway.flow.generations.answer import Started
from gateway.flow.generations.generation import CacheReport, Choice, Timeline, Usage
from gateway.flow.generations.live_generation import LiveGeneration, Observer, Replica, Replicas
from gateway.flow.limits import Limits
from gateway.flow.search.steps import Candidate, Probe
from triserve.rpc.errors import Internal, Overloaded, Unavailable
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

# Before probes that no replica took are sent again; doubled each time.
_FIRST_BACKOFF_S = 0.05


class Prober:
    """Probes for one prompt.

    What is known of a sequence beyond the prompt goes into the request's prompt: probes of one search then find each other's KV in the prefix
    cache of their replica, which they all go to as long as it is there. A probe that is lost is tried again like any attempt; nothing of the
    search is lost with it.

    Args:
        choice: the prompt, and how tokens are drawn.
        call: what they are made for.
        replicas: who makes them.
        limits: bounds on the request.
        remaining_ms: gives the time the request has left.
        observer: is told of retries.
        clock: seconds, never falling.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        choice: Choice,
        *,
        call: Call,
        replicas: Replicas,
        limits: Limits,
        remaining_ms: Callable[[], int],
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.num_probes = 0
        self._choice = choice
        # Nobody reads a probe's deltas, and its spans would be a trace's by the hundred.
        self._call = replace(call, stream=False, span=None)
        self._replicas = _Sticky(replicas)
        self._limits = limits
        self._remaining_ms = remaining_ms
        self._observer = observer
        self._clock = clock
        self._sleep = sleep
        self._started: Started | None = None
        self._first_at = self._last_at = 0.0

    async def ask(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        most: int,
        hidden: compute_pb2.HiddenStates.ValueType = compute_pb2.HIDDEN_STATES_UNSPECIFIED,
    ) -> list[Probe]:
        """What is to be said of the prompt with each of some sequences behind it.

        Args:
            sequences: tokens of answers so far.
            most: how many of the likeliest tokens are wanted; there are fewer only in a smaller vocabulary. 0 = no token is drawn.
            hidden: vectors that are wanted.

        Raises:
            ServiceError: a probe failed for good.
        """
        waited_s, backoff_s = 0.0, _FIRST_BACKOFF_S
        while True:
            try:
                return await self._ask_once(sequences, most, replace(self._call, hidden_states=hidden))
            except (Overloaded, Unavailable):
                # A client is told at once; a search that is under way has more to lose.
                if self._started is None or waited_s + backoff_s > self._limits.retry_wait_s:
                    raise
                await self._sleep(backoff_s)
                waited_s, backoff_s = waited_s + backoff_s, 2 * backoff_s

    async def _ask_once(self, sequences: Sequence[Sequence[int]], most: int, call: Call) -> list[Probe]:
        sampling = common_pb2.SamplingParams(temperature=0, seed=self._choice.sampling.seed, top_logprobs=most or None)
        stopping = common_pb2.StoppingParams(max_tokens=1 if most else 0)
        prompt = self._choice.prompt
        probes = [
            Choice(number, prompt._replace(token_ids=[*prompt.token_ids, *sequence]), number, sampling, stopping)
            for number, sequence in enumerate(sequences)
        ]
        generation = LiveGeneration(
            probes,
            call=call,
            replicas=self._replicas,
            limits=self._limits,
            remaining_ms=self._remaining_ms,
            cache=CacheReport("bypass"),
            observer=self._observer,
            clock=self._clock,
            sleep=self._sleep,
        )
        self.num_probes += len(probes)
        found: dict[int, Probe] = {}
        with contextlib.closing(generation):
            generation.submit()
            while not generation.finished:
                for piece in await generation.next():
                    candidates = _candidates(piece.delta.logprobs) if most else []
                    found[piece.choice] = Probe(candidates, piece.delta.hidden_states)
        self._note(generation)
        return [found[number] for number in range(len(probes))]

    def _note(self, generation: LiveGeneration) -> None:
        first = generation.answers[0]
        if self._started is None:
            self._started, self._first_at = first.started or Started(0, 0, 0), first.first_at
        self._last_at = max(answer.last_at for answer in generation.answers)

    def usage(self) -> Usage:
        """The prompt, once, and a token for each probe."""
        cached = self._started.cached_tokens if self._started is not None else 0
        return Usage(len(self._choice.prompt.token_ids), self.num_probes, cached)

    def timeline(self) -> Timeline:
        """The first probe's queue and prefill; all others are the search's decoding."""
        started = self._started or Started(0, 0, 0)
        encode_ms, decode_ms = self._choice.prompt.encode_us / 1000, (self._last_at - self._first_at) * 1000
        return Timeline(encode_ms, started.queue_us / 1000, started.prefill_us / 1000, decode_ms)


class _Sticky:
    """Replicas of which the one that was chosen last is chosen again as long as it is ready. Implements `Replicas`."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._last: Replica | None = None

    def choose(
        self, token_ids: Sequence[int], tenant: str, *, by_priority: bool = False, without: Collection[object] = ()
    ) -> Replica | None:
        """See `Replicas`."""
        if self._last is None or not self._last.ready or self._last in without:
            self._last = self._replicas.choose(token_ids, tenant, by_priority=by_priority, without=without)
        return self._last

    async def changed(self) -> None:
        """See `Replicas`."""
        await self._replicas.changed()


def _candidates(logprobs: Sequence[sampler_pb2.TokenLogprobs]) -> list[Candidate]:
    if len(logprobs) != 1:
        raise Internal("a probe came without its log-probabilities")
    return [Candidate(top.token, top.logprob, top.token_bytes) for top in logprobs[0].top]
