"""OpenAI's response bodies, whole: choices and usage, errors apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.flow.generations.answer import FinishReason
from gateway.flow.generations.generation import Generation, Piece, Timeline, Usage
from gateway.http.openai.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from gateway.tools.answer_parser import AnswerForm
from gateway.tools.findings import CallDelta, Said
from triserve.v1 import sampler_pb2


class Look(NamedTuple):
    """What choices show besides their text."""

    logprobs: bool = False
    token_ids: bool = False
    # Whether tokens are written as ids where log-probabilities name them.
    names_ids: bool = False
    # How many of the likeliest tokens are shown with each token of the prompt, beside the choice; None = nothing is.
    prompt_logprobs: int | None = None
    # The prompts with which texts begin, each as it came, None where it came as ids; None = texts begin without.
    echo: Sequence[str | None] | None = None
    # How many of the likeliest tokens an echo shows.
    echo_top: int | None = None
    # Answers to each prompt.
    n: int = 1

    def echoed(self, choice: int, prompt: Sequence[sampler_pb2.TokenLogprobs]) -> str:
        """What of a prompt a choice's text begins with."""
        if self.echo is None:
            return ""
        text = self.echo[choice // self.n]
        return "".join(one.text for one in prompt) if text is None else text


@dataclass
class WholeChoice:
    """A choice as its pieces are gathered."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[sampler_pb2.TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[sampler_pb2.TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_token_ids: Sequence[int] = ()
    # What its text was taken apart into; None = it is left as it is.
    said: Said | None = None
    # Whether there are calls in it that its client has not chosen itself.
    asks: bool = False

    def add(self, piece: Piece) -> None:
        """Takes a piece in."""
        self.text.append(piece.delta.text)
        self.token_ids += piece.delta.token_ids
        self.logprobs += piece.delta.logprobs
        self.prompt_logprobs += piece.delta.prompt_logprobs
        self.finish_reason = piece.delta.finish_reason

    def take_apart(self, form: AnswerForm, index: int) -> None:
        """Reads all that was gathered, the answer of that index."""
        parser = form.parser(index)
        self.said = parser.feed("".join(self.text), is_last=True)
        self.asks = parser.asks


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
            choice.take_apart(generation.form, index)
    return choices


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI's clients expect it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def extra_body(timeline: Timeline | None, turn: str | None) -> dict[str, Any]:
    """Our own extension.

    Args:
        timeline: where the time went; None = nobody asked.
        turn: the turn that was answered in place of the client's; None = the client's own was.
    """
    times = {} if timeline is None else {name: round(value, 3) for name, value in timeline._asdict().items()}
    return times if turn is None else {**times, "system2_prompt": turn}


def chat_choice(index: int, choice: WholeChoice, *, look: Look) -> dict[str, Any]:
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
        "logprobs": chat_logprobs(choice.logprobs, as_ids=look.names_ids) if look.logprobs else None,
        "finish_reason": chat_finish(choice.finish_reason, asks=choice.asks),
    }
    if look.token_ids:
        body["token_ids"] = choice.token_ids
    return body


def chat_finish(reason: FinishReason | None, *, asks: bool) -> str | None:
    """Why a chat's answer ended, in OpenAI's words: a model that stopped behind calls waits for their results; one that has called what it was told to
    has just stopped."""
    return "tool_calls" if reason == "stop" and asks else reason


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


def completion_choice(index: int, choice: WholeChoice, *, look: Look) -> dict[str, Any]:
    """One choice of a completion."""
    echo = look.echoed(index, choice.prompt_logprobs)
    return {
        "index": index,
        "text": echo + "".join(choice.text),
        "logprobs": echoed_logprobs(choice.logprobs, choice.prompt_logprobs, len(echo), look) if look.logprobs else None,
        "finish_reason": choice.finish_reason,
        # Clients written for vLLM read these whether they asked for them or not.
        "prompt_logprobs": None if look.prompt_logprobs is None else prompt_logprobs(choice.prompt_logprobs, look.prompt_logprobs),
        "token_ids": choice.token_ids if look.token_ids else None,
        "prompt_token_ids": list(choice.prompt_token_ids) if look.token_ids else None,
    }


def echoed_logprobs(
    logprobs: Sequence[sampler_pb2.TokenLogprobs], prompt: Sequence[sampler_pb2.TokenLogprobs], before: int, look: Look
) -> dict[str, Any]:
    """Log-probabilities of a completion, behind those of its prompt where that is echoed.

    Args:
        logprobs: of the completion's tokens, or some of them.
        prompt: of the prompt's tokens.
        before: characters of the prompt that the text begins with.
        look: of the choice.
    """
    shown = () if look.echo is None else prompt
    return completion_logprobs(logprobs, as_ids=look.names_ids, prompt=shown, before=before, num_top=look.echo_top)
