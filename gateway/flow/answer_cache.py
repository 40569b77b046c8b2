"""Which answers the prompt cache may give and keep, and under what name."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.flow.answer import Answer
from gateway.flow.call import Call
from gateway.flow.generation import Choice
from gateway.flow.served_model import ServedModel
from prompt_cache import CachedAnswer, CachedDelta, CacheKey, CacheScope, PromptCache
from triserve.v1 import common_pb2


class AnswerCache:
    """The gateway's use of the prompt cache.

    Args:
        cache: started and closed by the caller.
        model_name: the name under which the model is served.
    """

    def __init__(self, cache: PromptCache, model_name: str) -> None:
        self._cache = cache
        self._model_name = model_name

    def key(self, call: Call, model: ServedModel, choices: Sequence[Choice]) -> CacheKey | None:
        """The name of the call's answer; None if it is not one that is kept.

        Kept are single answers without log-probabilities that the same request would get again: greedy ones and those with a seed of
        the client's. Load generators, known by ignore_eos, are to meet the engine and not the cache.
        """
        wishes = call.wishes
        if not (call.cache.read or call.cache.write) or len(choices) != 1 or wishes.top_logprobs is not None or wishes.ignore_eos:
            return None
        choice = choices[0]
        greedy = choice.sampling.temperature == 0
        if not greedy and wishes.seed is None:
            return None
        scope = CacheScope(
            tenant=call.tenant,
            model=self._model_name,
            weights_revision=model.weights_revision,
            computation=model.computation,
            tokenizer_sha256=model.tokenizer_sha256,
            sampling=_canonical(choice, with_seed=not greedy),
        )
        return self._cache.key(scope, choice.prompt.token_ids)

    async def get(self, key: CacheKey) -> CachedAnswer | None:
        """The answer, if there is one."""
        answer = await self._cache.get(key)
        return answer if answer is not None and answer.deltas else None

    def put(self, call: Call, key: CacheKey, answer: Answer, *, prompt_tokens: int) -> None:
        """Keeps a finished answer, unless the client objects."""
        if not call.cache.write or answer.finish_reason is None or answer.deltas is None:
            return
        deltas = tuple(CachedDelta(text, token_ids) for text, token_ids in answer.deltas)
        self._cache.put(key, CachedAnswer(deltas=deltas, finish_reason=answer.finish_reason, prompt_tokens=prompt_tokens))


def _canonical(choice: Choice, *, with_seed: bool) -> bytes:
    """Bytes of all parameters that bear on the answer; a greedy one does not depend on its seed."""
    sampling = common_pb2.SamplingParams()
    sampling.CopyFrom(choice.sampling)
    if not with_seed:
        sampling.ClearField("seed")
    first = sampling.SerializeToString(deterministic=True)
    return len(first).to_bytes(4, "little") + first + choice.stopping.SerializeToString(deterministic=True)
