"""What may be asked together with a search. Pure; errors name the field, as those of `gateway.flow.resolve`."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.flow.call import Call, Wishes
from gateway.flow.limits import Limits
from gateway.flow.search.kinds import Beams, BestOf, Contrast
from gateway.flow.served_model import ServedModel
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.limits import Range, shown

# Twice as many likeliest tokens as replicas report would be needed for more.
MAX_BEAMS = contract.MAX_TOP_LOGPROBS // 2
LENGTH_PENALTY = Range(-10, 10)
# With 0 there is no contrastive search.
PENALTY_ALPHA = Range(0, 1)
MIN_CANDIDATES = 2

# Wishes that would change the likelihoods by which a search goes, which are the model's own, and the values with which they ask for nothing.
_CHANGES: Mapping[str, tuple[object, ...]] = {
    "temperature": (None, 0),
    "top_p": (None, 1, 0),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "top_n_sigma": (None, 0, -1),
    "xtc_probability": (None, 0),
    "repetition_penalty": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "dry_multiplier": (None, 0),
    "logit_bias": ((),),
    "allowed_token_ids": (None,),
    "banned_token_ids": ((),),
    "bad_words": ((),),
    "bad_word_ids": ((),),
    "grammar": (None,),
    "logprob_token_ids": ((),),
    # These are found in text, and a search goes by tokens.
    "stop_strings": ((),),
}
_SPELLED = {"bad_word_ids": "bad_words", "stop_strings": "stop"}


def check_search(call: Call, limits: Limits) -> None:
    """Refuses a search for too much, or beside what it cannot be done with.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    search = call.search
    if search is not None:
        # Entries of the prompt come with answers that are drawn alone.
        if call.wishes.prompt_logprobs is not None:
            raise _not_beside(call.wishes.spelled("prompt_logprobs"), "a search")
        if call.wishes.max_tokens == 0:
            raise InvalidRequest(
                f"{call.wishes.spelled('max_tokens')} is 0, the least for a search is 1", field=call.wishes.spelled("max_tokens")
            )
    if isinstance(search, BestOf):
        _check_width(search.field, search.width, call, limits.max_n)
        if call.stream:
            raise InvalidRequest("best_of is not supported with stream: which answers are best is known at the end", field="best_of")
    elif isinstance(search, Beams):
        _check_width(search.field, search.width, call, min(MAX_BEAMS, limits.max_n))
        LENGTH_PENALTY.check("length_penalty", search.length_penalty)
        _check_unchanged("use_beam_search", call)
        if call.wishes.top_k not in (None, 0, -1):
            raise _not_beside("top_k", "use_beam_search")
    elif isinstance(search, Contrast):
        PENALTY_ALPHA.check("penalty_alpha", search.alpha)
        if not MIN_CANDIDATES <= search.width <= contract.MAX_TOP_LOGPROBS:
            limits_of_k = f"[{MIN_CANDIDATES}, {contract.MAX_TOP_LOGPROBS}]"
            raise InvalidRequest(f"top_k is {shown(search.width)}, the range beside penalty_alpha is {limits_of_k}", field="top_k")
        if call.n != 1:
            raise InvalidRequest(f"n is {call.n}, beside penalty_alpha it must be 1: there is one answer", field="n")
        _check_unchanged("penalty_alpha", call)
        if call.wishes.min_tokens:
            raise _not_beside("min_tokens", "penalty_alpha")


def check_candidates(call: Call, num_stop_token_ids: int) -> None:
    """Refuses a beam search that would need more likeliest tokens than replicas report: as many as beams, none of which ends an answer.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    if isinstance(call.search, Beams) and call.search.width + num_stop_token_ids > contract.MAX_TOP_LOGPROBS:
        most = contract.MAX_TOP_LOGPROBS - call.search.width
        raise InvalidRequest(
            f"stop_token_ids has {num_stop_token_ids} ids, end-of-text ids included; with {call.search.width} beams the limit is {most}",
            field="stop_token_ids",
        )


def bounded_max_tokens(call: Call, model: ServedModel, limits: Limits, prompt_tokens: int) -> int | None:
    """Tokens to generate when the client does not say; None = as many as fit. Hidden states of a contrastive search are kept, up to a limit.

    Raises:
        InvalidRequest: there would be more, or no replica gives any; names the field and the limit.
    """
    if not isinstance(call.search, Contrast):
        return call.default_max_tokens
    if not model.hidden_size:
        raise InvalidRequest("penalty_alpha is not supported: the replicas give no hidden states", field="penalty_alpha")
    room = limits.max_contrastive_tokens - prompt_tokens
    wanted = call.wishes.max_tokens
    if room < (wanted or 1):
        field = call.prompt_field if wanted is None else call.wishes.spelled("max_tokens")
        asked = "" if wanted is None else f" and {field} is {shown(wanted)}"
        raise InvalidRequest(
            f"{call.prompt_field} has {prompt_tokens} tokens{asked}, beside penalty_alpha the limit on both is {limits.max_contrastive_tokens}",
            field=field,
        )
    return room if call.default_max_tokens is None else min(room, call.default_max_tokens)


def _check_width(name: str, width: int, call: Call, most: int) -> None:
    if not call.n <= width <= most:
        raise InvalidRequest(f"{name} is {shown(width)}, the range is [{call.n}, {most}]: from n to the limit", field=name)


def _check_unchanged(search: str, call: Call) -> None:
    wishes: Wishes = call.wishes
    for name, idle in _CHANGES.items():
        if getattr(wishes, name) not in idle:
            raise _not_beside(wishes.spelled(_SPELLED.get(name, name)), search)
    if call.reading is not None and call.reading.tools:
        raise _not_beside("tools", search)


def _not_beside(field: str, search: str) -> InvalidRequest:
    return InvalidRequest(f"{field} is not supported beside {search}", field=field)
