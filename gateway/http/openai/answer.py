"""OpenAI's response bodies, whole: choices, usage, log-probabilities, errors apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.flow.answer import FinishReason
from gateway.flow.generation import Generation, Piece, Timeline, Usage
from gateway.tools.findings import CallDelta, Said
from triserve.v1 import sampler_pb2


@dataclass
class WholeChoice:
    """A choice as its pieces are gathered."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[sampler_pb2.TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_token_ids: Sequence[int] = ()
    # What its text was taken apart into; None = it is left as it is.
    said: Said | None = None

    def add(self, piece: Piece) -> None:
        """Takes a piece in."""
        self.text.append(piece.delta.text)
        self.token_ids += piece.delta.token_ids
        self.logprobs += piece.delta.logprobs
        self.finish_reason = piece.delta.finish_reason


async def gather(generation: Generation, num_choices: int) -> list[WholeChoice]:
    """Reads a generation to its end.

    Raises:
        ServiceError: it failed.
    """
    choices = [WholeChoice() for _ in range(num_choices)]
    while not generation.finished:
        for piece in await generation.next():
            choices[piece.choice].add(piece)
    for index, choice in enumerate(choices):
        choice.prompt_token_ids = generation.prompt_token_ids(index)
        if generation.form is not None:
            choice.said = generation.form.parser(index).feed("".join(choice.text), is_last=True)
    return choices


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI's clients expect it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timeline_body(timeline: Timeline) -> dict[str, Any]:
    """Our own extension: where the time went."""
    return {name: round(value, 3) for name, value in timeline._asdict().items()}


def chat_choice(index: int, choice: WholeChoice, *, with_logprobs: bool, with_token_ids: bool) -> dict[str, Any]:
    """One choice of a chat."""
    said = Said("".join(choice.text)) if choice.said is None else choice.said
    message: dict[str, Any] = {"role": "assistant", "content": said.content or (None if said.calls else ""), "refusal": None}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.calls:
        message["tool_calls"] = [{"id": call.id, "type": "function", "function": _function(call)} for call in said.calls]
    body: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(choice.logprobs) if with_logprobs else None,
        "finish_reason": chat_finish(choice.finish_reason, has_calls=bool(said.calls)),
    }
    if with_token_ids:
        body["token_ids"] = choice.token_ids
    return body


def chat_finish(reason: FinishReason | None, *, has_calls: bool) -> str | None:
    """Why a chat's answer ended, in OpenAI's words: a model that stopped behind calls waits for their results."""
    return "tool_calls" if reason == "stop" and has_calls else reason


def call_deltas(calls: Sequence[CallDelta]) -> list[dict[str, Any]]:
    """More of tool calls, as a stream has it."""
    return [
        {"index": call.number, "function": {"arguments": call.arguments}}
        if call.id is None
        else {"index": call.number, "id": call.id, "type": "function", "function": _function(call)}
        for call in calls
    ]


def _function(call: CallDelta) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def completion_choice(index: int, choice: WholeChoice, *, with_logprobs: bool, with_token_ids: bool) -> dict[str, Any]:
    """One choice of a completion."""
    body: dict[str, Any] = {
        "index": index,
        "text": "".join(choice.text),
        "logprobs": completion_logprobs(choice.logprobs) if with_logprobs else None,
        "finish_reason": choice.finish_reason,
    }
    if with_token_ids:
        body["token_ids"] = choice.token_ids
        body["prompt_token_ids"] = list(choice.prompt_token_ids)
    return body


def chat_logprobs(logprobs: Sequence[sampler_pb2.TokenLogprobs]) -> dict[str, Any]:
    """Log-probabilities in the style of chats.

    The tokens, joined, are the content: the first tokens of one character are empty there and have their part of it in "bytes".
    """
    content = [
        {**_chat_token(one.text, one.token_bytes, one.logprob), "top_logprobs": [_chat_likeliest(one, top) for top in one.top]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _chat_likeliest(one: sampler_pb2.TokenLogprobs, top: sampler_pb2.TopLogprob) -> dict[str, Any]:
    """One of the likeliest tokens; the drawn one is written as in the content, so that it is known again."""
    if top.token == one.token:
        return _chat_token(one.text, one.token_bytes, top.logprob)
    return _chat_token(_shown(top.token_bytes, prefix=""), top.token_bytes, top.logprob)


def _chat_token(text: str, token_bytes: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(token_bytes)}


def completion_logprobs(logprobs: Sequence[sampler_pb2.TokenLogprobs]) -> dict[str, Any]:
    """Log-probabilities in the style of completions, where a token that is a part of a character is shown as `bytes:\\xf0`."""
    tokens = [_shown(one.token_bytes, prefix="bytes:") for one in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [_likeliest(one, token) for one, token in zip(logprobs, tokens, strict=True)],
        "text_offset": [one.text_offset for one in logprobs],
    }


def _likeliest(one: sampler_pb2.TokenLogprobs, drawn: str) -> dict[str, float]:
    """The likeliest tokens and the drawn one, falling.

    Of tokens that look the same the drawn one has the name, or else the likeliest; the others are called `token_id:ID`.
    """
    shown: dict[str, float] = {}
    for top in one.top:
        name = drawn if top.token == one.token else _shown(top.token_bytes, prefix="bytes:")
        if name in shown or (name == drawn and top.token != one.token):
            name = f"token_id:{top.token}"
        shown[name] = top.logprob
    # One that is among them keeps its place.
    shown.setdefault(drawn, one.logprob)
    return shown


def _shown(token_bytes: bytes, *, prefix: str) -> str:
    """A token's text; bytes that are no whole characters are spelt out."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in token_bytes)
