"""Which answers the prompt cache may give and keep, and under what name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.flow.call import Call
from gateway.flow.generations.answer import FinishReason, Tee
from gateway.flow.generations.generation import CacheReport, Choice
from gateway.flow.served_model import ServedModel
from prompt_cache import CachedAnswer, CachedDelta, CacheKey, CacheScope, PromptCache, SemanticScope
from prompt_cache.flights import Maker
from prompt_cache.semantic.lookup import Explained, Found, NotExplained, Terms
from triserve.rpc.errors import InvalidRequest, Unavailable
from triserve.v1 import common_pb2, tokenizer_pb2

# Packages of an extra, which a gateway without a semantic cache does without.
if TYPE_CHECKING:
    from prompt_cache.semantic.semantic_cache import SemanticCache

_USER = "user"
# What a clock that is set makes of a request's time is no more than this.
_MAX_MS = 86_400_000


class Kept(NamedTuple):
    """An answer that may be given."""

    answer: CachedAnswer
    report: CacheReport


class AnswerCache:
    """The gateway's use of the prompt cache.

    Args:
        cache: started and closed by the caller, as the next.
        semantic: finds answers to questions that mean the same; None = exact repeats alone.
        model_name: the name under which the model is served.
        similar_sampled: whether answers that were drawn at random, without a seed of the client's, may serve similar questions.
        not_kept: counts an answer that is not kept for similar questions, by the reason.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        cache: PromptCache,
        semantic: SemanticCache | None,
        model_name: str,
        *,
        similar_sampled: bool = True,
        not_kept: Callable[[str], None] = lambda reason: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.cache = cache
        self.semantic = semantic
        self.model_name = model_name
        self.similar_sampled = similar_sampled
        self.not_kept = not_kept
        self.wall = wall

    def begin(self, call: Call) -> Inquiry:
        """What the cache has to do with a call. The question's vector is begun at once, while the prompt is tokenized.

        Raises:
            InvalidRequest: the client asks for what only a semantic cache can do, and there is none.
        """
        if call.cache.threshold is not None and self.semantic is None:
            raise InvalidRequest("cache.threshold is set, and there is no semantic cache here", field="cache.threshold")
        return Inquiry(self, call)

    async def explain(self, call: Call, model: ServedModel, choices: Sequence[Choice]) -> list[Explained]:
        """What is said of every entry near a call's question.

        Raises:
            InvalidRequest: there is no semantic cache, or the call has no question for it.
            Unavailable: the question has no vector, or Redis does not answer.
        """
        question = last_question(call) if len(choices) == 1 else None
        if self.semantic is None or not self.semantic.is_open:
            raise InvalidRequest("there is no semantic cache here", field="cache")
        if question is None:
            raise InvalidRequest("messages must end with what a user asks, and n must be 1", field="messages")
        terms = Terms(threshold=call.cache.threshold, max_age_s=call.cache.max_age_s, most_tokens=choices[0].stopping.max_tokens)
        generation = await self.cache.generation(call.tenant)
        try:
            return await self.semantic.explain(self.scope(call, model, choices[0], generation), question, terms)
        except NotExplained as error:
            raise Unavailable(str(error)) from error

    def key(self, call: Call, model: ServedModel, choice: Choice, generation: int) -> CacheKey | None:
        """The name of the answer; None if the same request would not get it again: greedy ones do, and those with a seed of the client's."""
        greedy = choice.sampling.temperature == 0
        if not greedy and call.wishes.seed is None:
            return None
        scope = CacheScope(
            tenant=call.tenant,
            model=self.model_name,
            weights_revision=model.weights_revision,
            computation=model.computation,
            tokenizer_sha256=model.tokenizer_sha256,
            sampling=_canonical(choice.sampling, choice.stopping, without_seed=greedy),
            salt=call.cache.salt,
            generation=generation,
        )
        return self.cache.key(scope, choice.prompt.token_ids)

    def scope(self, call: Call, model: ServedModel, choice: Choice, generation: int) -> SemanticScope:
        """Within what an answer may serve a question of a call that was asked in other words."""
        assert self.semantic is not None, "only a semantic cache has such scopes"
        (prompt,) = call.prompts
        assert isinstance(prompt, tokenizer_pb2.EncodeRequest), "only chats have a last question"
        context = tokenizer_pb2.EncodeRequest()
        context.CopyFrom(prompt)
        context.chat.messages[-1].ClearField("content")
        stopping = common_pb2.StoppingParams()
        stopping.CopyFrom(choice.stopping)
        stopping.ClearField("max_tokens")
        return SemanticScope(
            tenant=call.tenant,
            model=self.model_name,
            weights_revision=model.weights_revision,
            computation=model.computation,
            tokenizer_sha256=model.tokenizer_sha256,
            sampling=_canonical(choice.sampling, stopping, without_seed=True),
            context=context.SerializeToString(deterministic=True),
            embedder=self.semantic.embedder.id,
            salt=call.cache.salt,
            generation=generation,
        )


class Inquiry:
    """One call and the prompt cache.

    Args:
        owner: the cache.
        call: what is asked.
    """

    def __init__(self, owner: AnswerCache, call: Call) -> None:
        self._owner = owner
        self._call = call
        # Kept are single answers without log-probabilities, those of the prompt included, that have tokens. Load generators, known by ignore_eos, are
        # to meet the engine and not the cache.
        wishes = call.wishes
        is_one = len(call.prompts) * call.n == 1 and call.search is None and not call.system2_attention
        is_text_alone = wishes.top_logprobs is None and wishes.prompt_logprobs is None and wishes.max_tokens != 0 and not call.hidden_states
        self._is_kept = is_one and (call.cache.read or call.cache.write) and is_text_alone and not wishes.ignore_eos
        self._question = last_question(call) if self._is_kept and owner.semantic is not None else None
        self._vector = None
        if self._question is not None and owner.semantic is not None:
            self._vector = asyncio.create_task(owner.semantic.embed(self._question), name="embedding")
        self._began_at = owner.wall()
        self.key: CacheKey | None = None
        self.found: Found | None = None
        # Whether Redis has failed while this request waited for it.
        self.redis_fails = False

    @property
    def keeps(self) -> bool:
        """Whether the answer will be kept, or compared with one that is."""
        return (self._call.cache.write and self.key is not None) or self.found is not None

    @property
    def shares(self) -> bool:
        """Whether the answer may be another client's who asks the same at the same time."""
        return self.key is not None and self._call.cache.read and self._call.cache.write and self._call.cache.max_age_s is None

    @property
    def asked(self) -> bool:
        """Whether the cache was asked at all."""
        return self._call.cache.read and (self.key is not None or self.found is not None)

    async def look(self, model: ServedModel, choices: Sequence[Choice]) -> Kept | None:
        """The answer, if there is one that may be given."""
        if not self._is_kept:
            return None
        (choice,) = choices
        errors = self._owner.cache.errors
        generation = await self._owner.cache.generation(self._call.tenant)
        self.key = self._owner.key(self._call, model, choice, generation)
        # A Redis that hangs costs a request one wait and not one for each thing that it is asked.
        self.redis_fails = self._owner.cache.errors > errors
        kept = await self._look_exactly() if self.key is not None else None
        self.redis_fails = self._owner.cache.errors > errors
        if kept is None and self._may_be_similar(choice):
            kept = await self._look_similarly(model, choice, generation)
            self.redis_fails = self._owner.cache.errors > errors
        return kept

    def tee(self, prompt_tokens: int, maker: Maker | None = None, begun: Iterable[CachedDelta] = ()) -> Tee:
        """What is to get the answer's deltas beside the client: they are kept when it is whole, and given to all who follow.

        Args:
            prompt_tokens: of the question.
            maker: of the answer that others follow.
            begun: what was made of it before.
        """
        deltas = list(begun)

        def take(text: str, token_ids: tuple[int, ...], finish_reason: FinishReason | None) -> None:
            delta = CachedDelta(text, token_ids)
            deltas.append(delta)
            if finish_reason is not None:
                # First, so that who comes when nobody can follow any more finds it.
                self._keep(deltas, finish_reason, prompt_tokens=prompt_tokens)
            if maker is not None:
                maker.put([delta])
                if finish_reason is not None:
                    maker.finish(finish_reason, prompt_tokens)

        return take

    def _keep(self, deltas: Sequence[CachedDelta], finish_reason: FinishReason, *, prompt_tokens: int) -> None:
        """Keeps a finished answer, unless the client objects, and compares it with what was kept for a similar question."""
        now = self._owner.wall()
        made = CachedAnswer(
            deltas=tuple(deltas),
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            created_at=int(now),
            took_ms=min(max(0, round(1000 * (now - self._began_at))), _MAX_MS),
        )
        if self.key is not None and self._call.cache.write:
            self._owner.cache.put(self.key, made)
        if self.found is not None and self._owner.semantic is not None:
            self._owner.semantic.compare(self.found, made.text)
            if self._call.cache.write:
                reason = self._owner.semantic.keep(self.found, made)
                if reason is not None:
                    self._owner.not_kept(reason)

    def close(self) -> None:
        """Lets go of the vector if it is still being made."""
        if self._vector is not None:
            self._vector.cancel()

    async def _look_exactly(self) -> Kept | None:
        if not self._call.cache.read or self.key is None:
            return None
        answer = await self._owner.cache.get(self.key, ask_redis=not self.redis_fails)
        if answer is None or not answer.deltas:
            return None
        report = CacheReport("hit-exact", self._age_s(answer))
        return Kept(answer, report) if self._is_fresh(answer) else None

    async def _look_similarly(self, model: ServedModel, choice: Choice, generation: int) -> Kept | None:
        semantic, question, vector = self._owner.semantic, self._question, self._vector
        assert semantic is not None and question is not None and vector is not None, "the caller has looked"
        policy = self._call.cache
        terms = Terms(threshold=policy.threshold, max_age_s=policy.max_age_s, most_tokens=choice.stopping.max_tokens)
        if not policy.read:
            self.found = await semantic.prepare(self._owner.scope(self._call, model, choice, generation), question, vector)
            return None
        self.found = await semantic.look(self._owner.scope(self._call, model, choice, generation), question, vector, terms)
        served = self.found.served
        if served is None or not served.record.answer.deltas:
            return None
        answer = served.record.answer
        return Kept(answer, CacheReport("hit-semantic", self._age_s(answer), served.cosine))

    def _may_be_similar(self, choice: Choice) -> bool:
        """A client that gives a seed wants the answer of that seed."""
        semantic = self._owner.semantic
        if (
            semantic is None
            or not semantic.is_open
            or (self.redis_fails and semantic.uses_redis)
            or self._question is None
            or self._call.wishes.seed is not None
        ):
            return False
        return choice.sampling.temperature == 0 or self._owner.similar_sampled

    def _is_fresh(self, answer: CachedAnswer) -> bool:
        limit = self._call.cache.max_age_s
        return limit is None or self._age_s(answer) <= limit

    def _age_s(self, answer: CachedAnswer) -> int:
        return max(0, int(self._owner.wall()) - answer.created_at)


def last_question(call: Call) -> str | None:
    """What the user says last in a chat; None where it is not the user's turn, or no chat.

    Nor where there are tools: a call is an act, and its result of this moment; one is not right for a question that only means the same.
    """
    (prompt,) = call.prompts
    if not isinstance(prompt, tokenizer_pb2.EncodeRequest) or not prompt.HasField("chat"):
        return None
    # Of a prompt that is cut nobody knows here what the model is asked.
    if prompt.chat.tools or call.truncate_prompt_tokens is not None:
        return None
    last = prompt.chat.messages[-1]
    return last.content if last.role == _USER and last.content.strip() else None


def _canonical(sampling: common_pb2.SamplingParams, stopping: common_pb2.StoppingParams, *, without_seed: bool) -> bytes:
    """Bytes of all parameters that bear on the answer; a greedy one does not depend on its seed."""
    if without_seed:
        own = common_pb2.SamplingParams()
        own.CopyFrom(sampling)
        own.ClearField("seed")
        sampling = own
    first = sampling.SerializeToString(deterministic=True)
    return len(first).to_bytes(4, "little") + first + stopping.SerializeToString(deterministic=True)
