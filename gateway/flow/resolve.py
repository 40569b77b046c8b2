"""Turns a client's wishes into parameters in which nothing is left to default; the one place where they are checked.

Pure. Every limit is checked on resolved values and every error names the field, so HTTP and gRPC refuse the same things in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.flow.call import Call, Wishes
from gateway.flow.generations.system2_attention import check_rewritable
from gateway.flow.limits import Limits
from gateway.flow.search.rules import check_search
from gateway.flow.served_model import ServedModel
from gateway.flow.token_rules import check_token_ids, set_token_rules
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest, PromptTooLong
from triserve.rpc.limits import shown
from triserve.rpc.sampling import Grammar
from triserve.v1 import chat_pb2, common_pb2, tokenizer_pb2

# The contract has no 0: no set of tokens has so little probability. Clients mean the likeliest alone.
TOP_P = contract.TOP_P._replace(excludes_low=False)
_FILTERS = {
    "top_p": TOP_P,
    "min_p": contract.MIN_P,
    "typical_p": contract.TYPICAL_P,
    "xtc_probability": contract.XTC_PROBABILITY,
    "xtc_threshold": contract.XTC_THRESHOLD,
}
# The least number of a float's full precision: the contract refuses the 0 that smaller ones become.
_LEAST = 2.0**-126
# What it comes to unset, in the precision of the contract.
_XTC_THRESHOLD = common_pb2.SamplingParams(xtc_threshold=0.1).xtc_threshold


def check_shape(call: Call, limits: Limits) -> None:
    """Refuses a call that asks for too much, before any work is done for it.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    _within("n", call.n, 1, limits.max_n)
    if call.truncate_prompt_tokens not in (None, -1) and not 1 <= call.truncate_prompt_tokens < 2**32:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {shown(call.truncate_prompt_tokens)}, it must be -1 or at least 1", field="truncate_prompt_tokens"
        )
    field = call.prompt_field
    if not call.prompts:
        raise InvalidRequest(f"{field} is empty", field=field)
    if len(call.prompts) > limits.max_prompts:
        raise InvalidRequest(f"{field} has {len(call.prompts)} prompts, the limit is {limits.max_prompts}", field=field)
    check_search(call, limits)
    check_rewritable(call)
    num_choices = len(call.prompts) * call.num_made
    if num_choices > limits.max_choices:
        name = "n" if call.search is None else call.search.field
        raise InvalidRequest(
            f"{name} is {call.num_made} for {len(call.prompts)} prompts, the limit on answers is {limits.max_choices}", field=name
        )
    for prompt in call.prompts:
        if isinstance(prompt, tokenizer_pb2.EncodeRequest):
            check_messages(prompt.chat, field, limits)
        elif not prompt:
            raise InvalidRequest(f"{field} has no tokens", field=field)


def check_messages(chat: tokenizer_pb2.ChatInput | chat_pb2.ChatRequest, field: str, limits: Limits) -> None:
    """Refuses a chat with too many messages, tool calls or template arguments.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    if len(chat.messages) > limits.max_messages:
        raise InvalidRequest(f"{field} has {len(chat.messages)} messages, the limit is {limits.max_messages}", field=field)
    for index, message in enumerate(chat.messages):
        if len(message.tool_calls) > contract.MAX_TOOL_CALLS:
            where = f"{field}[{index}].tool_calls"
            raise InvalidRequest(f"{where} has {len(message.tool_calls)} calls, the limit is {contract.MAX_TOOL_CALLS}", field=where)
    if len(chat.template_arguments) > limits.max_template_arguments:
        raise InvalidRequest(
            f"chat_template_kwargs has {len(chat.template_arguments)} entries, the limit is {limits.max_template_arguments}",
            field="chat_template_kwargs",
        )


def check_priority(call: Call, model: ServedModel) -> None:
    """Refuses a priority that nobody, not this client, or no replica could honour.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    contract.PRIORITY.check("priority", call.priority)
    if call.priority < call.lowest_priority:
        raise InvalidRequest(f"priority is {call.priority}, the lowest this client may ask for is {call.lowest_priority}", field="priority")
    if call.priority and not model.serves_by_priority:
        raise InvalidRequest(f"priority is {call.priority}, no compute replica here serves by priority: it must be 0", field="priority")


def check_template_reads(call: Call, model: ServedModel) -> None:
    """Refuses an argument of the chat template that the client gave a field of its own and the template does not read.

    Raises:
        InvalidRequest: naming the field.
    """
    for name in call.template_must_read:
        if name not in model.template_arguments:
            raise InvalidRequest(f"{name} is not supported: the model's chat template does not read it", field=name)


def resolve_sampling(
    wishes: Wishes, model: ServedModel, limits: Limits, ids: tokenizer_pb2.SamplingIds | None = None
) -> common_pb2.SamplingParams:
    """Sampling parameters without a seed, in canonical form: what would change nothing is left unset.

    Unset wishes take the model author's defaults, then the contract's.

    Args:
        wishes: what the client asked.
        model: what is served.
        limits: bounds.
        ids: what the tokenizer made of `token_rules.sampling_strings`; None = there were none.

    Raises:
        InvalidRequest: naming the field and its range.
    """
    params = common_pb2.SamplingParams(temperature=_temperature(wishes, model))
    if params.temperature:
        _set_truncation(params, wishes, model)
    else:
        _check_truncation(wishes)
    _set_penalties(params, wishes, model)
    _set_logit_bias(params, wishes, model, limits)
    set_token_rules(params, wishes, model, tokenizer_pb2.SamplingIds() if ids is None else ids)
    if wishes.seed is not None:
        _within("seed", wishes.seed, -(2**63), 2**64 - 1)
    if wishes.top_logprobs is not None:
        _within(wishes.spelled("top_logprobs"), wishes.top_logprobs, 0, limits.max_top_logprobs)
        params.top_logprobs = wishes.top_logprobs
    if wishes.prompt_logprobs is not None:
        _within(wishes.spelled("prompt_logprobs"), wishes.prompt_logprobs, 0, limits.max_top_logprobs)
        params.prompt_logprobs = wishes.prompt_logprobs
    if wishes.grammar is not None:
        try:
            Grammar.read(wishes.grammar)
        except InvalidRequest as error:
            raise wishes.reworded(error) from None
        params.grammar.CopyFrom(wishes.grammar)
    return params


def _temperature(wishes: Wishes, model: ServedModel) -> float:
    if wishes.temperature is not None:
        contract.TEMPERATURE.check("temperature", wishes.temperature)
    if wishes.top_p is not None and not wishes.top_p:
        return 0.0
    if wishes.temperature is None:
        return 1.0 if model.default_temperature is None else model.default_temperature
    return wishes.temperature


def _check_truncation(wishes: Wishes) -> None:
    if wishes.top_k is not None:
        _within("top_k", wishes.top_k, -1, 2**32 - 1)
    if wishes.top_n_sigma not in (None, 0, -1):
        contract.TOP_N_SIGMA.check("top_n_sigma", wishes.top_n_sigma)
    for name, allowed in _FILTERS.items():
        if (value := getattr(wishes, name)) is not None:
            allowed.check(name, value)


def _set_truncation(params: common_pb2.SamplingParams, wishes: Wishes, model: ServedModel) -> None:
    _check_truncation(wishes)
    top_k = model.default_top_k if wishes.top_k is None else wishes.top_k
    top_p = model.default_top_p if wishes.top_p is None else wishes.top_p
    if top_k is not None and top_k > 0:
        params.top_k = top_k
    if top_p is not None and top_p < 1:
        params.top_p = _above_zero(top_p)
    min_p = model.default_min_p if wishes.min_p is None else wishes.min_p
    if min_p:
        params.min_p = min_p
    typical_p = model.default_typical_p if wishes.typical_p is None else wishes.typical_p
    if typical_p is not None and typical_p < 1:
        params.typical_p = _above_zero(typical_p)
    if wishes.top_n_sigma not in (None, 0, -1):
        params.top_n_sigma = _above_zero(wishes.top_n_sigma)
    if wishes.xtc_probability:
        params.xtc_probability = wishes.xtc_probability
        if wishes.xtc_threshold is not None:
            params.xtc_threshold = _above_zero(wishes.xtc_threshold)
            if params.xtc_threshold == _XTC_THRESHOLD:
                params.ClearField("xtc_threshold")


def _above_zero(value: float) -> float:
    """A number above 0 as one that is so in the precision of the contract too."""
    return max(value, _LEAST)


def _set_penalties(params: common_pb2.SamplingParams, wishes: Wishes, model: ServedModel) -> None:
    if wishes.repetition_penalty is not None:
        contract.REPETITION_PENALTY.check("repetition_penalty", wishes.repetition_penalty)
    penalty = model.default_repetition_penalty if wishes.repetition_penalty is None else wishes.repetition_penalty
    if penalty is not None and penalty != 1:
        params.repetition_penalty = _above_zero(penalty)
    for name, allowed in (("presence_penalty", contract.PRESENCE_PENALTY), ("frequency_penalty", contract.FREQUENCY_PENALTY)):
        value = getattr(wishes, name)
        if value is not None:
            allowed.check(name, value)
        if value:
            setattr(params, name, value)


def _set_logit_bias(params: common_pb2.SamplingParams, wishes: Wishes, model: ServedModel, limits: Limits) -> None:
    if len(wishes.logit_bias) > limits.max_logit_bias:
        raise InvalidRequest(f"logit_bias has {len(wishes.logit_bias)} entries, the limit is {limits.max_logit_bias}", field="logit_bias")
    seen: set[int] = set()
    for token, _ in wishes.logit_bias:
        if token in seen:
            raise InvalidRequest(f"logit_bias has token id {shown(token)} twice", field="logit_bias")
        seen.add(token)
    check_token_ids("logit_bias", [token for token, _ in wishes.logit_bias], model)
    for token, value in sorted(wishes.logit_bias):
        contract.LOGIT_BIAS.check("logit_bias", value)
        if value != 0:
            params.logit_bias_ids.append(token)
            params.logit_bias_values.append(value)


def check_prompt_logprobs(call: Call, num_tokens: int, limits: Limits) -> None:
    """Refuses a call whose prompts there would be too much to tell of.

    Args:
        call: what is asked.
        num_tokens: of all its prompts.
        limits: bounds.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    wishes = call.wishes
    if wishes.prompt_logprobs is not None and (count := num_tokens * call.n * (1 + wishes.prompt_logprobs)) > limits.max_prompt_logprobs:
        name = wishes.spelled("prompt_logprobs")
        raise InvalidRequest(
            f"{name} is {wishes.prompt_logprobs} for {num_tokens} tokens of prompts and {call.n} answers to each: {count} log-probabilities, "
            f"the limit is {limits.max_prompt_logprobs}",
            field=name,
        )


def kept_prompt_tokens(call: Call, model: ServedModel) -> int | None:
    """How many of a prompt's last ids are kept; None = all."""
    if call.truncate_prompt_tokens != -1:
        return call.truncate_prompt_tokens
    answer = call.default_max_tokens if call.wishes.max_tokens is None else call.wishes.max_tokens
    return max(1, model.max_model_len_tokens - max(call.wishes.least_tokens, 1 if answer is None else answer))


def longest_prompt(wishes: Wishes, model: ServedModel) -> int:
    """Most tokens of a prompt: there must be room for one of the answer, if one is wanted."""
    return model.max_model_len_tokens - (wishes.max_tokens != 0)


def resolve_stopping(
    wishes: Wishes, model: ServedModel, limits: Limits, *, prompt_tokens: int, prompt_field: str, default_max_tokens: int | None
) -> common_pb2.StoppingParams:
    """Stopping parameters of one prompt; max_tokens is what was asked for, or what fits.

    Args:
        wishes: what the client asked.
        model: what is served.
        limits: bounds.
        prompt_tokens: length of the prompt.
        prompt_field: the request's field that holds it, for errors.
        default_max_tokens: used when the client does not say; None = as many as fit.

    Raises:
        PromptTooLong: there is no room for one token, or not for max_tokens.
        InvalidRequest: naming the field and the limit.
    """
    room = model.max_model_len_tokens - prompt_tokens
    if prompt_tokens > (longest := longest_prompt(wishes, model)):
        raise _too_long(prompt_tokens, longest, model, field=prompt_field)
    if wishes.max_tokens is None:
        max_tokens = room if default_max_tokens is None else min(room, default_max_tokens)
    else:
        max_tokens, name = wishes.max_tokens, wishes.spelled("max_tokens")
        if max_tokens < wishes.least_tokens:
            raise InvalidRequest(f"{name} is {shown(max_tokens)}, the least is {wishes.least_tokens}", field=name)
        if max_tokens > room:
            what = PromptTooLong(f"{name} is {shown(max_tokens)} and {prompt_field} has {prompt_tokens} tokens", field=name)
            raise in_openais_words(what, model)
    min_tokens = wishes.min_tokens or 0
    if min_tokens < 0:
        raise InvalidRequest(f"min_tokens is {shown(min_tokens)}, the least is 0", field="min_tokens")
    if min_tokens and wishes.grammar is not None:
        raise InvalidRequest(
            f"min_tokens is {shown(min_tokens)}, and {wishes.spelled('grammar')} says when a text is whole", field="min_tokens"
        )
    if min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {shown(min_tokens)}, but at most {max_tokens} tokens can be generated", field="min_tokens")
    return common_pb2.StoppingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens or None,
        stop_token_ids=_stop_token_ids(wishes, model, limits),
        stop_strings=_stop_strings(wishes, limits),
        # What changes nothing is left unset.
        include_stop_string=True if wishes.include_stop_string and wishes.stop_strings else None,
        skip_special_tokens=None if wishes.skip_special_tokens else False,
        spaces_between_special_tokens=None if wishes.skip_special_tokens or wishes.spaces_between_special_tokens else False,
    )


def in_openais_words(error: PromptTooLong, model: ServedModel) -> PromptTooLong:
    """The error, beginning with the words by which clients know that a prompt must be shortened."""
    limit = model.max_model_len_tokens
    return PromptTooLong(f"This model's maximum context length is {limit} tokens. However, {error.message}.", field=error.field)


def _too_long(num_tokens: int, limit: int, model: ServedModel, *, field: str) -> PromptTooLong:
    return in_openais_words(PromptTooLong.of(got=num_tokens, limit=limit, field=field), model)


def _stop_token_ids(wishes: Wishes, model: ServedModel, limits: Limits) -> list[int]:
    if len(wishes.stop_token_ids) > limits.max_stop_token_ids:
        raise InvalidRequest(
            f"stop_token_ids has {len(wishes.stop_token_ids)} ids, the limit is {limits.max_stop_token_ids}", field="stop_token_ids"
        )
    check_token_ids("stop_token_ids", wishes.stop_token_ids, model)
    return sorted({*wishes.stop_token_ids, *(() if wishes.ignore_eos else model.eos_token_ids)})


def _stop_strings(wishes: Wishes, limits: Limits) -> list[str]:
    name = wishes.spelled("stop")
    if len(wishes.stop_strings) > limits.max_stop_strings:
        raise InvalidRequest(f"{name} has {len(wishes.stop_strings)} strings, the limit is {limits.max_stop_strings}", field=name)
    for stop in wishes.stop_strings:
        if not 1 <= len(stop) <= limits.max_stop_string_chars:
            raise InvalidRequest(
                f"{name} has a string of {len(stop)} characters, the range is [1, {limits.max_stop_string_chars}]", field=name
            )
    return list(wishes.stop_strings)


def check_prompt_ids(token_ids: Sequence[int], wishes: Wishes, model: ServedModel, *, field: str) -> None:
    """Refuses more token ids than fit, before it looks at them, and ids that the model has no row for.

    Raises:
        PromptTooLong: there is no room for one token of an answer that is to have some.
        InvalidRequest: naming the first such id and the limit.
    """
    if len(token_ids) > (longest := longest_prompt(wishes, model)):
        raise _too_long(len(token_ids), longest, model, field=field)
    check_token_ids(field, token_ids, model)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is {shown(value)}, the range is [{low}, {high}]", field=name)
