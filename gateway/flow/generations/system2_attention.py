"""System 2 Attention (Weston and Sukhbaatar, 2023): the model first writes the last turn anew without what would mislead it, then answers that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from gateway.flow.call import AnswerReading, CachePolicy, Call, Wishes
from gateway.flow.generations.generation import CacheReport, Generation, Piece, Timeline, Usage, Writer
from gateway.flow.generations.live_generation import LiveGeneration
from gateway.flow.generations.waking import done_or_woken
from gateway.flow.limits import Limits
from gateway.tools.answer_parser import AnswerForm
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.traces.spans import OpenSpan
from triserve.v1 import tokenizer_pb2

_FIELD = "system2_attention"
_USER = "user"
# Before the turn, which stands between the two marks.
INSTRUCTION = """\
Rewrite the text between the marks <<< and >>>, which somebody has sent to an assistant.
Keep the question or task, and every fact and condition that is needed to deal with it.
Leave out everything that has no bearing on it, and everything that pushes towards one answer: opinions, guesses, hopes, flattery and pressure.
Do not answer it and add nothing of your own. Write the new text alone, without the marks."""


def check_rewritable(call: Call) -> None:
    """Refuses to have a turn rewritten where there is none, or where it is more than words.

    Raises:
        InvalidRequest: naming the field.
    """
    if not call.system2_attention:
        return
    (prompt,) = call.prompts
    if not isinstance(prompt, tokenizer_pb2.EncodeRequest) or not prompt.HasField("chat"):
        raise InvalidRequest(f"{_FIELD} is not supported without messages: what is rewritten is a user's turn", field=_FIELD)
    if prompt.chat.tools:
        raise InvalidRequest(f"{_FIELD} is not supported beside tools", field=_FIELD)
    last = prompt.chat.messages[-1]
    if last.role != _USER or not last.content.strip():
        raise InvalidRequest(f"{_FIELD} is not supported where the last message is not what a user says", field=_FIELD)


def rewriting(call: Call, limits: Limits) -> Call:
    """The call by which a model is asked to write the last turn of a call anew, greedily."""
    chat = _chat_of(call)
    asked = tokenizer_pb2.ChatInput(template_arguments=chat.template_arguments)
    asked.messages.add(role=_USER, content=f"{INSTRUCTION}\n\n<<<\n{chat.messages[-1].content}\n>>>")
    return replace(
        call,
        prompts=(tokenizer_pb2.EncodeRequest(chat=asked),),
        n=1,
        search=None,
        wishes=Wishes(temperature=0, repetition_penalty=1),
        # What the model thinks of it is no part of the text.
        reading=AnswerReading(),
        default_max_tokens=limits.max_rewrite_tokens,
        truncate_prompt_tokens=None,
        cache=CachePolicy(read=False, write=False),
        stream=False,
        span=call.span.child("rewrite") if call.span is not None else None,
    )


def rewritten(call: Call, turn: str) -> Call:
    """The call with another last turn."""
    encode = tokenizer_pb2.EncodeRequest()
    encode.chat.CopyFrom(_chat_of(call))
    encode.chat.messages[-1].content = turn
    return replace(call, prompts=(encode,))


def _chat_of(call: Call) -> tokenizer_pb2.ChatInput:
    (prompt,) = call.prompts
    assert isinstance(prompt, tokenizer_pb2.EncodeRequest), "checked"
    return prompt.chat


class RewrittenGeneration:
    """An answer to a turn that is rewritten first. Implements `Generation`.

    Args:
        first: writes the turn; submitted.
        form: how that is taken apart; None = it is text.
        answer: begins the answer to a turn, with its form set.
        idle_s: `next` returns nothing after so long without a turn, again and again; None = never.
        span: of the rewriting; None = it is not traced.
    """

    def __init__(
        self,
        first: LiveGeneration,
        form: AnswerForm | None,
        *,
        answer: Callable[[str], Awaitable[Generation]],
        idle_s: float | None,
        span: OpenSpan | None,
    ) -> None:
        # What is rewritten anew each time is not looked for in the prompt cache.
        self.cache = CacheReport("bypass")
        self.saved_s = 0.0
        self.system_fingerprint = ""
        self.form: AnswerForm | None = None
        # The turn that is answered; None = it is not there yet.
        self.turn: str | None = None
        # None = the turn is not there yet.
        self.answer: Generation | None = None
        self._first = first
        self._first_form = form
        self._make_answer = answer
        self._idle_s = idle_s
        self._span = span
        self._writer: Writer | None = None
        self._woken = asyncio.Event()
        self._beginning = asyncio.create_task(self._begin(), name="rewrite")

    @property
    def finished(self) -> bool:
        """Whether every answer was taken."""
        return self.answer is not None and self.answer.finished

    async def next(self) -> list[Piece]:
        """See `Generation.next`."""
        if self.answer is not None:
            return await self.answer.next()
        if not await done_or_woken(self._beginning, self._woken, idle_s=self._idle_s):
            return []
        self.answer = self._beginning.result()
        self.form = self.answer.form
        if self._writer is not None:
            self.answer.write_to(self._writer)
        return await self.answer.next()

    def usage(self) -> Usage:
        """What both steps have cost."""
        first = self._first.usage()
        return first if self.answer is None else Usage(*map(sum, zip(first, self.answer.usage(), strict=True)))

    def timeline(self) -> Timeline:
        """Both steps', one after the other."""
        first = self._first.timeline()
        return first if self.answer is None else Timeline(*map(sum, zip(first, self.answer.timeline(), strict=True)))

    def prompt_token_ids(self, choice: int) -> Sequence[int]:
        """The prompt with the rewritten turn."""
        return self._first.prompt_token_ids(0) if self.answer is None else self.answer.prompt_token_ids(choice)

    def write_to(self, writer: Writer) -> None:
        """See `Generation`; of the answer."""
        self._writer = writer

    def wake(self) -> None:
        """See `Generation`."""
        self._woken.set()
        if self.answer is not None:
            self.answer.wake()

    def close(self) -> None:
        """Aborts whichever step is under way. Lets go of its reader, which holds it too."""
        self._writer = None
        self._beginning.cancel()
        self._first.close()
        if self._beginning.done() and not self._beginning.cancelled() and self._beginning.exception() is None:
            self._beginning.result().close()

    async def _begin(self) -> Generation:
        with contextlib.closing(self._first), self._span if self._span is not None else contextlib.nullcontext():
            text, is_cut = "", False
            while not self._first.finished:
                for piece in await self._first.next():
                    text += piece.delta.text
                    is_cut = piece.delta.finish_reason == "length"
        if self._first_form is not None:
            text = self._first_form.parser(0).feed(text, is_last=True).content
        self.turn = text.strip()
        if is_cut or not self.turn:
            tokens = self._first.usage().completion_tokens
            what = f"did not end within {tokens} tokens" if is_cut else "is empty"
            raise InvalidRequest(f"{_FIELD}: what the model made of the last message {what}; it can be asked without", field=_FIELD)
        return await self._make_answer(self.turn)


def rewritten_turn(generation: Generation) -> str | None:
    """The turn that is answered in place of the client's; None = the client's own."""
    return generation.turn if isinstance(generation, RewrittenGeneration) else None
