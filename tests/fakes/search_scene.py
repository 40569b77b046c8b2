"""A pipeline on stages that are plain objects, for tests of searches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.flow.admission import Admission
from gateway.flow.answer_cache import AnswerCache
from gateway.flow.call import Call
from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import Generation, Usage
from gateway.flow.limits import Limits
from gateway.flow.pipeline import Pipeline
from gateway.flow.served_model import ServedModel, ServedNames
from gateway.metrics import Metrics
from prompt_cache import CacheConfig, PromptCache
from tests.fakes.fake_stages import MODEL, FakeReplica, FakeStages
from triserve.rpc.errors import ServiceError


@dataclass
class Answered:
    """What a call got.

    Attributes:
        answers: of each choice, as one delta.
        deliveries: how many deltas they came in.
        usage: at the end.
        cache: what the prompt cache did.
    """

    answers: dict[int, Delta] = field(default_factory=dict)
    deliveries: int = 0
    usage: Usage | None = None
    cache: str = ""

    @property
    def completion_tokens(self) -> int:
        """That the usage counts."""
        assert self.usage is not None
        return self.usage.completion_tokens

    @property
    def texts(self) -> list[str]:
        """Of all choices."""
        return [self.answers[index].text for index in range(len(self.answers))]


class SearchScene:
    """A pipeline with a prompt cache.

    Args:
        replicas: that serve.
        model: they serve.
        places: answers that may be under way.
        limits: that differ from the usual ones.
    """

    def __init__(self, *replicas: FakeReplica, model: ServedModel = MODEL, places: int = 64, **limits: Any) -> None:
        self.stages = FakeStages(*replicas, model=model)
        self.admission = Admission(places)
        self.metrics = Metrics()
        self.kept = PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef"))
        self.pipeline = Pipeline(
            fleet=self.stages,
            cache=AnswerCache(self.kept, None, "tiny"),
            names=ServedNames(name="tiny"),
            limits=Limits(**limits),
            metrics=self.metrics,
        )

    async def answer(self, *prompts: Any, **fields: Any) -> Answered:
        """Asks and reads to the end."""
        answered = Answered()
        with self.admission.enter("acme") as ticket:
            async with self.pipeline.open(call(*prompts, **fields), ticket) as generation:
                await _read(generation, answered)
        return answered

    async def refusal(self, *prompts: Any, **fields: Any) -> ServiceError:
        """The error instead of an answer. Nothing is left of the request."""
        with pytest.raises(ServiceError) as caught:
            await self.answer(*prompts, **fields)
        assert self.admission.active == 0
        return caught.value

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def _read(generation: Generation, answered: Answered) -> None:
    while not generation.finished:
        for index, delta in await generation.next():
            before = answered.answers.get(index, Delta("", [], [], None))
            answered.deliveries += 1
            answered.answers[index] = Delta(
                before.text + delta.text,
                [*before.token_ids, *delta.token_ids],
                [*before.logprobs, *delta.logprobs],
                delta.finish_reason,
            )
    answered.usage, answered.cache = generation.usage(), generation.cache.status


def call(*prompts: Any, **fields: Any) -> Call:
    """A call of a client's."""
    known = {"request_id": "cmpl-1", "tenant": "acme", "route": "completions", "model": "", "prompts": prompts, "prompt_field": "prompt"}
    return Call(**{**known, **fields})
