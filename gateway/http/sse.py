"""Server-sent events in OpenAI's form, built by hand: what is the same in every event of a request is made once."""

from __future__ import annotations

import json
from typing import Any, Protocol

from gateway.flow.generations.generation import Generation, Piece, Timeline, Usage
from gateway.flow.generations.system2_attention import rewritten_turn
from gateway.http.error_map import error_body
from gateway.http.openai.answer import Look, call_deltas, chat_finish, echoed_logprobs, extra_body, usage_body
from gateway.http.openai.logprobs import chat_logprobs
from gateway.tools.answer_parser import AnswerParser
from gateway.tools.findings import Said
from triserve.rpc.errors import ServiceError

DONE = b"data: [DONE]\n\n"
# A line that clients pass over.
KEEP_ALIVE = b": waiting\n\n"

# What `json.dumps` does for a string, without its dozen branches; its result is ASCII.
_quote = json.encoder.encode_basestring_ascii
# `json.dumps` would make an encoder for each call.
_compact = json.JSONEncoder(separators=(",", ":")).encode
_FINISH = {None: "null", "stop": '"stop"', "length": '"length"', "tool_calls": '"tool_calls"'}


class EventRenderer(Protocol):
    """Makes the events of one streamed answer."""

    def pieces(self, pieces: list[Piece], generation: Generation) -> bytes:
        """Events for pieces, one each; a piece without anything a client would see gives none."""

    def last(self, usage: Usage, timeline: Timeline) -> bytes:
        """The events after the last piece."""

    def failed(self, error: ServiceError) -> bytes:
        """The event with which a stream ends that has begun and failed."""


class _Form:
    """What the events of chats and completions share.

    Args:
        request_id: the same in every event.
        created: Unix time, seconds.
        model: name of the model.
        system_fingerprint: of what makes the answer.
        kind: OpenAI's "object".
        include_usage: whether an event with the usage comes before [DONE].
        continuous_usage: whether every event has the usage so far.
        look: what events show besides text; of token ids the first event of a choice has those of its prompt.
        timeline: whether the last event has the timeline.
    """

    def __init__(
        self,
        *,
        request_id: str,
        created: int,
        model: str,
        system_fingerprint: str,
        kind: str,
        include_usage: bool,
        continuous_usage: bool,
        look: Look,
        timeline: bool,
    ) -> None:
        head = {"id": request_id, "object": kind, "created": created, "model": model, "system_fingerprint": system_fingerprint}
        self._head = "data: " + _compact(head)[:-1]
        self._before = f'{self._head},"choices":[{{"index":'
        self._plain_end = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self._include_usage = include_usage
        self._continuous = continuous_usage
        self._look = look
        self._token_ids = look.token_ids
        self._timeline = timeline
        self._begun: set[int] = set()
        # The turn that is answered in place of the client's.
        self._turn: str | None = None
        # Of all choices, in events so far.
        self._num_tokens = 0

    def pieces(self, pieces: list[Piece], generation: Generation) -> bytes:
        """Events for pieces, one each; a piece without anything a client would see gives none."""
        return "".join([self._piece(piece, generation) for piece in pieces]).encode("ascii")

    def _piece(self, piece: Piece, generation: Generation) -> str:
        raise NotImplementedError

    def last(self, usage: Usage, timeline: Timeline) -> bytes:
        """The events after the last piece, up to [DONE]."""
        extension = extra_body(timeline if self._timeline else None, self._turn)
        if not (self._include_usage or extension):
            return DONE
        extra: dict[str, Any] = {"choices": []}
        if self._include_usage:
            extra["usage"] = usage_body(usage)
        if extension:
            extra["triserve"] = extension
        return f"{self._head},{_compact(extra)[1:]}\n\n".encode("ascii") + DONE

    def failed(self, error: ServiceError) -> bytes:
        """An error's body; no [DONE] follows it."""
        return error_event(error)

    def _begins(self, piece: Piece) -> bool:
        """Whether the choice's first event comes now. True once for each."""
        if piece.choice in self._begun:
            return False
        self._begun.add(piece.choice)
        return True

    def _end(self, generation: Generation) -> str:
        """What follows an event's choices: the usage so far, if it is wanted."""
        if not self._continuous:
            return self._plain_end
        usage = generation.usage()._replace(completion_tokens=self._num_tokens)
        return f',"usage":{_compact(usage_body(usage))}}}\n\n'

    def _prompt(self, piece: Piece, generation: Generation) -> str:
        return f',"prompt_token_ids":[{",".join(map(str, generation.prompt_token_ids(piece.choice)))}]' if self._token_ids else ""

    def _tail(self, piece: Piece, logprobs: str, finish: str | None) -> str:
        ids = f',"token_ids":[{",".join(map(str, piece.delta.token_ids))}]' if self._token_ids else ""
        return f'{logprobs},"finish_reason":{_FINISH[finish]}{ids}'

    def _shows(self, piece: Piece, *, has_text: bool) -> bool:
        delta = piece.delta
        return bool(has_text or delta.finish_reason or delta.logprobs or (self._token_ids and delta.token_ids))


class ChatEvents(_Form):
    """Events of a chat; the first of each choice says whose turn it is. For arguments see `_Form`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(kind="chat.completion.chunk", **arguments)
        # Of answers that are taken apart, by choice.
        self._parsers: dict[int, AnswerParser] = {}

    def _piece(self, piece: Piece, generation: Generation) -> str:
        first = ""
        if self._begins(piece):
            turn = f'{self._before}{piece.choice},"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]'
            first = turn + self._prompt(piece, generation) + self._end(generation)
            self._turn = rewritten_turn(generation)
        delta = piece.delta
        self._num_tokens += len(delta.token_ids)
        said, asks = self._read(piece, generation)
        if not self._shows(piece, has_text=not said.is_empty):
            return first
        finish = chat_finish(delta.finish_reason, asks=asks)
        logprobs = f',"logprobs":{_compact(chat_logprobs(delta.logprobs, as_ids=self._look.names_ids))}' if delta.logprobs else ""
        tail = f"{self._tail(piece, logprobs, finish)}}}]{self._end(generation)}"
        return f'{first}{self._before}{piece.choice},"delta":{{{_shown(said)}}}{tail}'

    def _read(self, piece: Piece, generation: Generation) -> tuple[Said, bool]:
        """What came to light with a piece, and whether its answer asks for calls so far."""
        delta, form = piece.delta, generation.form
        if form is None:
            return Said(delta.text), False
        parser = self._parsers.get(piece.choice)
        if parser is None:
            parser = self._parsers[piece.choice] = form.parser(piece.choice)
        return parser.feed(delta.text, is_last=delta.finish_reason is not None), parser.asks


class CompletionEvents(_Form):
    """Events of a completion. For arguments see `_Form`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(kind="text_completion", **arguments)
        # Characters of prompts that texts began with, by choice.
        self._echoed: dict[int, int] = {}

    def _piece(self, piece: Piece, generation: Generation) -> str:
        delta = piece.delta
        self._num_tokens += len(delta.token_ids)
        echo = "" if piece.choice in self._begun else self._look.echoed(piece.choice, delta.prompt_logprobs)
        if not self._shows(piece, has_text=bool(echo or delta.text)):
            return ""
        prompt = self._prompt(piece, generation) if self._begins(piece) else ""
        if echo:
            self._echoed[piece.choice] = len(echo)
        logprobs = ""
        if delta.logprobs or (self._look.logprobs and self._look.echo is not None and delta.prompt_logprobs):
            told = echoed_logprobs(delta.logprobs, delta.prompt_logprobs, self._echoed.get(piece.choice, 0), self._look)
            logprobs = f',"logprobs":{_compact(told)}'
        return f'{self._before}{piece.choice},"text":{_quote(echo + delta.text)}{self._tail(piece, logprobs, delta.finish_reason)}{prompt}}}]{self._end(generation)}'


def _shown(said: Said) -> str:
    """The members of a delta."""
    if not (said.reasoning or said.calls):
        return f'"content":{_quote(said.content)}' if said.content else ""
    members = [f'"{name}":{_quote(text)}' for name, text in (("reasoning_content", said.reasoning), ("content", said.content)) if text]
    if said.calls:
        members.append(f'"tool_calls":{_compact(call_deltas(said.calls))}')
    return ",".join(members)


def error_event(error: ServiceError) -> bytes:
    """The event with which a stream ends that has begun and failed; no [DONE] follows it."""
    return f"data: {_compact(error_body(error))}\n\n".encode("ascii")
