"""Log-probabilities in OpenAI's forms, and those of prompts in the form of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triserve.v1 import sampler_pb2

# What has no probability at all is said so: JSON has no infinity.
_LEAST = -9999.0


def chat_logprobs(logprobs: Sequence[sampler_pb2.TokenLogprobs], *, as_ids: bool = False) -> dict[str, Any]:
    """Log-probabilities in the style of chats.

    The tokens, joined, are the content: the first tokens of one character are empty there and have their part of it in "bytes".

    Args:
        logprobs: of the answer's tokens.
        as_ids: whether tokens are written as `token_id:ID`.
    """
    content = [
        {
            **_chat_token(one.token, one.text, one.token_bytes, one.logprob, as_ids=as_ids),
            "top_logprobs": [_chat_likeliest(one, top, as_ids=as_ids) for top in _shown_beside(one)],
        }
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _shown_beside(one: sampler_pb2.TokenLogprobs) -> list[sampler_pb2.TopLogprob]:
    """The likeliest tokens, or else those that were asked for by name, behind the drawn one."""
    if not one.named:
        return list(one.top)
    drawn = sampler_pb2.TopLogprob(token=one.token, token_bytes=one.token_bytes, logprob=one.logprob)
    return [drawn, *(named for named in one.named if named.token != one.token)]


def _chat_likeliest(one: sampler_pb2.TokenLogprobs, top: sampler_pb2.TopLogprob, *, as_ids: bool) -> dict[str, Any]:
    """One of the likeliest tokens; the drawn one is written as in the content, so that it is known again."""
    if top.token == one.token:
        return _chat_token(one.token, one.text, one.token_bytes, top.logprob, as_ids=as_ids)
    return _chat_token(top.token, _shown(top.token_bytes, prefix=""), top.token_bytes, top.logprob, as_ids=as_ids)


def _chat_token(token: int, text: str, token_bytes: bytes, logprob: float, *, as_ids: bool) -> dict[str, Any]:
    return {"token": f"token_id:{token}" if as_ids else text, "logprob": max(logprob, _LEAST), "bytes": list(token_bytes)}


def completion_logprobs(
    logprobs: Sequence[sampler_pb2.TokenLogprobs],
    *,
    as_ids: bool = False,
    prompt: Sequence[sampler_pb2.TokenLogprobs] = (),
    before: int = 0,
    num_top: int | None = None,
) -> dict[str, Any]:
    """Log-probabilities in the style of completions, where a token that is a part of a character is shown as `bytes:\\xf0`.

    Args:
        logprobs: of the answer's tokens.
        as_ids: whether tokens are written as `token_id:ID`.
        prompt: of the prompt's tokens, which come first where they are echoed. Nothing is known of the first.
        before: characters of the text before the answer.
        num_top: of the likeliest of the prompt's tokens so many are shown; None = all.
    """
    entries = [*prompt, *logprobs]
    tokens = [f"token_id:{one.token}" if as_ids else _shown(one.token_bytes, prefix="bytes:") for one in entries]
    # Where the prompt's text has what the tokenizer has added to it, offsets are those in the text without.
    shift = before - sum(len(one.text) for one in prompt)
    tops: list[dict[str, float] | None] = [
        _likeliest(one, token, as_ids=as_ids, num_top=num_top if index < len(prompt) else None)
        for index, (one, token) in enumerate(zip(entries, tokens, strict=True))
    ]
    values: list[float | None] = [max(one.logprob, _LEAST) for one in entries]
    if prompt:
        tops[0] = values[0] = None
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": [max(0, one.text_offset + shift) for one in prompt] + [one.text_offset + before for one in logprobs],
    }


def _likeliest(one: sampler_pb2.TokenLogprobs, drawn: str, *, as_ids: bool, num_top: int | None) -> dict[str, float]:
    """The drawn token, then the likeliest, falling, or those that were asked for by name.

    Of tokens that look the same the drawn one has the name, or else the likeliest; the others are called `token_id:ID`.
    """
    shown = {drawn: max(one.logprob, _LEAST)}
    for top in _shown_beside(one)[:num_top]:
        if top.token == one.token:
            continue
        name = f"token_id:{top.token}" if as_ids else _shown(top.token_bytes, prefix="bytes:")
        shown[f"token_id:{top.token}" if name in shown else name] = max(top.logprob, _LEAST)
    return shown


def prompt_logprobs(logprobs: Sequence[sampler_pb2.TokenLogprobs], num_top: int) -> list[dict[str, Any] | None]:
    """What is said of each token of a prompt: nothing of the first, then the likeliest ids and the prompt's own, by id, each with its rank.

    Args:
        logprobs: of the prompt's tokens.
        num_top: so many of the likeliest.
    """
    told: list[dict[str, Any] | None] = [None] * bool(logprobs)
    for one in logprobs[1:]:
        entries = {str(top.token): _prompt_token(top.logprob, rank, top.token_bytes) for rank, top in enumerate(one.top[:num_top], start=1)}
        entries.setdefault(str(one.token), _prompt_token(one.logprob, one.rank, one.token_bytes))
        told.append(entries)
    return told


def _prompt_token(logprob: float, rank: int, token_bytes: bytes) -> dict[str, Any]:
    return {"logprob": max(logprob, _LEAST), "rank": rank, "decoded_token": token_bytes.decode(errors="replace")}


def _shown(token_bytes: bytes, *, prefix: str) -> str:
    """A token's text; bytes that are no whole characters are spelt out."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in token_bytes)
