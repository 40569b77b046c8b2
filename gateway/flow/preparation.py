"""From what is asked to what compute is given: prompts encoded, parameters resolved, nothing left to default."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gateway.flow.answer_forms import AnswerForms
from gateway.flow.call import Call, Prompt
from gateway.flow.generations.generation import Choice, EncodedPrompt
from gateway.flow.limits import Limits
from gateway.flow.resolve import (
    check_prompt_ids,
    check_prompt_logprobs,
    in_openais_words,
    kept_prompt_tokens,
    longest_prompt,
    resolve_sampling,
    resolve_stopping,
)
from gateway.flow.search.rules import bounded_max_tokens, check_candidates
from gateway.flow.served_model import ServedModel
from gateway.flow.token_rules import check_something_is_left, sampling_strings
from gateway.metrics import Metrics
from triserve.rpc.errors import InvalidRequest, PromptTooLong
from triserve.rpc.sampling import choice_seed
from triserve.v1 import tokenizer_pb2


class Tokenizers(Protocol):
    """The tokenizer stage as a request needs it."""

    @property
    def model(self) -> ServedModel:
        """What is served."""

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        """Encodes a text or chat."""


class Preparation:
    """Makes choices of calls.

    Args:
        limits: bounds on one request.
        metrics: where to count.
        forms: how answers are taken apart.
    """

    def __init__(self, limits: Limits, metrics: Metrics, forms: AnswerForms) -> None:
        self._forms = forms
        self._limits = limits
        self._metrics = metrics

    async def choices(self, call: Call, stages: Tokenizers) -> list[Choice]:
        """The answers to be made.

        Args:
            call: what is asked.
            stages: the model that is to answer, and what encodes for it.

        Raises:
            ServiceError: a field is wrong, or no tokenizer is there.
        """
        prompts, ids = await self._tokenize(call, stages, sampling_strings(call.wishes))
        return self._choices(call, stages.model, prompts, ids)

    async def _tokenize(
        self, call: Call, stages: Tokenizers, strings: tokenizer_pb2.SamplingStrings | None
    ) -> tuple[list[EncodedPrompt], tokenizer_pb2.SamplingIds]:
        """The prompts, and what the strings come to, which go with the first of them."""
        first, *others = call.prompts
        if not others:
            prompt, ids = await self._encode(call, first, stages, strings)
            return [prompt], ids
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._encode(call, first, stages, strings))]
                tasks += [group.create_task(self._encode(call, prompt, stages)) for prompt in others]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result()[0] for task in tasks], tasks[0].result()[1]

    async def _encode(
        self, call: Call, prompt: Prompt, stages: Tokenizers, strings: tokenizer_pb2.SamplingStrings | None = None
    ) -> tuple[EncodedPrompt, tokenizer_pb2.SamplingIds]:
        model = stages.model
        keep_last = kept_prompt_tokens(call, model)
        if not isinstance(prompt, tokenizer_pb2.EncodeRequest):
            if keep_last is not None:
                prompt = prompt[-keep_last:]
            check_prompt_ids(prompt, call.wishes, model, field=call.prompt_field)
            ids = tokenizer_pb2.SamplingIds()
            if strings is not None:
                ids = (await self._ask_tokenizer(call, stages, tokenizer_pb2.EncodeRequest(sampling=strings))).sampling
            return EncodedPrompt(token_ids=prompt, system_tokens=0, encode_us=0), ids
        if prompt.HasField("chat") and not model.has_chat_template:
            raise InvalidRequest("the model has no chat template: use /v1/completions", field=call.prompt_field)
        request = tokenizer_pb2.EncodeRequest(max_tokens=longest_prompt(call.wishes, model), keep_last_tokens=keep_last, sampling=strings)
        request.MergeFrom(prompt)
        encoded = await self._ask_tokenizer(call, stages, request)
        if not encoded.token_ids:
            raise InvalidRequest(f"{call.prompt_field} has no tokens", field=call.prompt_field)
        self._metrics.tokenize.observe(encoded.encode_us / 1e6)
        prompt_ids = EncodedPrompt(
            token_ids=encoded.token_ids, system_tokens=encoded.system_tokens, encode_us=encoded.encode_us, end=encoded.prompt_end
        )
        return prompt_ids, encoded.sampling

    async def _ask_tokenizer(self, call: Call, stages: Tokenizers, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        try:
            if call.span is None:
                return await stages.encode(request)
            with call.span.child("tokenize", kind="client") as span:
                request.traceparent = span.context.traceparent
                return await stages.encode(request)
        except InvalidRequest as error:
            said = in_clients_words(error, call.prompt_field)
            raise (in_openais_words(said, stages.model) if isinstance(said, PromptTooLong) else said) from error

    def _choices(self, call: Call, model: ServedModel, prompts: Sequence[EncodedPrompt], ids: tokenizer_pb2.SamplingIds) -> list[Choice]:
        # Only a chat has a form, and it is one prompt.
        wishes = replace(call.wishes, grammar=self._forms.grammar(call, model, prompt_end=prompts[0].end))
        sampling = resolve_sampling(wishes, model, self._limits, ids)
        check_prompt_logprobs(call, sum(len(prompt.token_ids) for prompt in prompts), self._limits)
        choices: list[Choice] = []
        for prompt_index, prompt in enumerate(prompts):
            # A client's seed gives each prompt the answer it would get alone; without one, equal prompts get answers of their own.
            seed = int.from_bytes(secrets.token_bytes()) if call.wishes.seed is None else call.wishes.seed
            stopping = resolve_stopping(
                wishes,
                model,
                self._limits,
                prompt_tokens=len(prompt.token_ids),
                prompt_field=call.prompt_field,
                default_max_tokens=bounded_max_tokens(call, model, self._limits, len(prompt.token_ids)),
            )
            stopping.spoken_tokens.extend(self._forms.spoken_tokens(call, model))
            check_something_is_left(sampling, stopping, model)
            check_candidates(call, len(stopping.stop_token_ids))
            for number in range(call.num_drawn):
                own = type(sampling)()
                own.CopyFrom(sampling)
                if call.search is not None and not own.HasField("top_logprobs"):
                    own.top_logprobs = 0
                own.seed = choice_seed(seed, number)
                choices.append(Choice(number=len(choices), prompt=prompt, prompt_index=prompt_index, sampling=own, stopping=stopping))
        return choices


def in_clients_words(error: InvalidRequest, prompt_field: str) -> InvalidRequest:
    """A tokenizer's refusal, with the field as the gateway's clients call it."""
    field = {"template_arguments": "chat_template_kwargs", "token_ids": "tokens", "prompt": prompt_field, "messages": prompt_field}.get(
        error.field, error.field or prompt_field
    )
    message = error.message
    if error.field and message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    return type(error)(message, field=field)
