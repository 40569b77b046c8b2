"""Which tokens an answer may have and repeat: allowed and banned ids, bad words, DRY. Strings among them become ids in the tokenizer.

Pure, and of one kind with `resolve`, which calls it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.flow.call import Wishes
from gateway.flow.served_model import ServedModel
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.limits import shown
from triserve.v1 import common_pb2, tokenizer_pb2

# Where sentences, lines, speeches and items end: what stands on both sides of one is no repetition.
DEFAULT_BREAKERS = ("\n", ":", '"', "*")
_DRY = {
    "dry_multiplier": contract.DRY_MULTIPLIER,
    "dry_base": contract.DRY_BASE,
    "dry_allowed_length": contract.DRY_ALLOWED_LENGTH,
}
# What these come to unset.
_DRY_DEFAULTS = {"dry_base": 1.75, "dry_allowed_length": 2}


def sampling_strings(wishes: Wishes) -> tokenizer_pb2.SamplingStrings | None:
    """The strings that the tokenizer must turn into ids; None = there are none.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    breakers = wishes.dry_sequence_breakers
    _check_strings("bad_words", wishes.bad_words, contract.MAX_BAD_WORD_STRINGS, contract.MAX_BAD_WORD_CHARS)
    _check_strings("dry_sequence_breakers", breakers or (), contract.MAX_DRY_BREAKERS, contract.MAX_DRY_BREAKER_CHARS)
    if wishes.dry_multiplier is not None:
        contract.DRY_MULTIPLIER.check("dry_multiplier", wishes.dry_multiplier)
    if not wishes.dry_multiplier:
        breakers = ()
    elif breakers is None:
        breakers = () if wishes.dry_breaker_ids else DEFAULT_BREAKERS
    if not wishes.bad_words and not breakers:
        return None
    return tokenizer_pb2.SamplingStrings(bad_words=wishes.bad_words, dry_sequence_breakers=breakers)


def set_token_rules(params: common_pb2.SamplingParams, wishes: Wishes, model: ServedModel, ids: tokenizer_pb2.SamplingIds) -> None:
    """Sets what the wishes say of tokens.

    Args:
        params: to be filled.
        wishes: what the client asked.
        model: what is served.
        ids: what the tokenizer made of `sampling_strings`.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    _set_dry(params, wishes, model, ids)
    if wishes.allowed_token_ids is not None:
        if not wishes.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids is empty: nothing could be drawn", field="allowed_token_ids")
        params.allowed_token_ids.extend(_listed("allowed_token_ids", wishes.allowed_token_ids, model))
    params.banned_token_ids.extend(_listed("banned_token_ids", wishes.banned_token_ids, model))
    for word in _bad_words(wishes, model, ids):
        params.bad_words.add(token_ids=word)
    _set_named(params, wishes, model)


def check_something_is_left(sampling: common_pb2.SamplingParams, stopping: common_pb2.StoppingParams, model: ServedModel) -> None:
    """Refuses parameters under which no token can be drawn, at once or before min_tokens.

    Raises:
        InvalidRequest: naming the field that takes the last one.
    """
    never = {*sampling.banned_token_ids, *(token for word in sampling.bad_words if len(word.token_ids) == 1 for token in word.token_ids)}
    allowed: Sequence[int] = sampling.allowed_token_ids or range(model.logits_width)
    at_first = stopping.stop_token_ids if stopping.min_tokens else ()
    if len(never) + len(at_first) < len(allowed):
        return
    left = [token for token in allowed if token not in never]
    if not left:
        field = "banned_token_ids" if sampling.banned_token_ids else "bad_words"
        raise InvalidRequest(f"{field} leaves none of the {len(allowed)} tokens that are allowed: nothing could be drawn", field=field)
    if set(left) <= set(at_first):
        raise InvalidRequest(
            f"min_tokens is {stopping.min_tokens}, but every token that is allowed ends the answer: nothing could be drawn",
            field="min_tokens",
        )


def _set_dry(params: common_pb2.SamplingParams, wishes: Wishes, model: ServedModel, ids: tokenizer_pb2.SamplingIds) -> None:
    given = {name: getattr(wishes, name) for name in _DRY if getattr(wishes, name) is not None}
    for name, value in given.items():
        _DRY[name].check(name, value)
    breakers = _listed("dry_breaker_ids", wishes.dry_breaker_ids, model)
    if not given.get("dry_multiplier"):
        return
    for name, value in given.items():
        if value != _DRY_DEFAULTS.get(name):
            setattr(params, name, value)
    # What the model has no row for it cannot repeat.
    breakers = sorted({*breakers, *(token for token in ids.dry_breaker_ids if token < model.logits_width)})
    _check_count("dry_breaker_ids", len(breakers), contract.MAX_LISTED_TOKEN_IDS)
    params.dry_breaker_ids.extend(breakers)


def _set_named(params: common_pb2.SamplingParams, wishes: Wishes, model: ServedModel) -> None:
    named = wishes.logprob_token_ids
    if not named:
        return
    if wishes.top_logprobs is None:
        raise InvalidRequest("logprob_token_ids is set, and no log-probabilities are asked for", field="logprob_token_ids")
    _check_count("logprob_token_ids", len(named), contract.MAX_LOGPROB_TOKEN_IDS)
    check_token_ids("logprob_token_ids", named, model)
    params.logprob_token_ids.extend(dict.fromkeys(named))


def _bad_words(wishes: Wishes, model: ServedModel, ids: tokenizer_pb2.SamplingIds) -> list[tuple[int, ...]]:
    for word in wishes.bad_word_ids:
        if not 1 <= len(word) <= contract.MAX_BAD_WORD_TOKENS:
            raise InvalidRequest(
                f"bad_words has a sequence of {len(word)} ids, the limits are 1 and {contract.MAX_BAD_WORD_TOKENS}", field="bad_words"
            )
        check_token_ids("bad_words", word, model)
    # A word with a token that the model has no row for cannot be drawn anyway.
    encoded = (tuple(word.token_ids) for word in ids.bad_words if max(word.token_ids) < model.logits_width)
    words = sorted({*wishes.bad_word_ids, *encoded})
    _check_count("bad_words", len(words), contract.MAX_BAD_WORDS)
    return words


def _listed(field: str, token_ids: Sequence[int], model: ServedModel) -> list[int]:
    """The ids of a list that is a set, rising."""
    _check_count(field, len(token_ids), contract.MAX_LISTED_TOKEN_IDS)
    check_token_ids(field, token_ids, model)
    return sorted(set(token_ids))


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"{field} has {count} entries, the limit is {most}", field=field)


def _check_strings(field: str, strings: Sequence[str], most: int, most_chars: int) -> None:
    _check_count(field, len(strings), most)
    for string in strings:
        if not 1 <= len(string) <= most_chars:
            raise InvalidRequest(f"{field} has a string of {len(string)} characters, the range is [1, {most_chars}]", field=field)


def check_token_ids(field: str, token_ids: Sequence[int], model: ServedModel) -> None:
    """Refuses token ids that the model cannot give and has no row for.

    Raises:
        InvalidRequest: naming the first such id and the limit.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < model.logits_width):
        wrong = next(token for token in token_ids if not 0 <= token < model.logits_width)
        raise InvalidRequest(f"{field} has token id {shown(wrong)}, ids are in [0, {model.logits_width})", field=field)
