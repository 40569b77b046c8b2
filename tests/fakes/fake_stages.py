"""The stages behind a gateway as plain objects: a test says what each replica does, and when. No socket, no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from gateway.flow.generations.answer import Answer, Started
from gateway.flow.served_model import ServedModel
from triserve.rpc.errors import ServiceError, Unavailable
from triserve.v1 import compute_pb2, tokenizer_pb2

MODEL = ServedModel(
    tokenizer_sha256="ab",
    weights_revision="cd",
    computation="float32 on cpu",
    eos_token_ids=(7,),
    default_temperature=None,
    default_top_k=None,
    default_top_p=None,
    has_chat_template=True,
    template_arguments=(),
    vocab_size=390,
    max_model_len_tokens=100,
    logits_width=400,
    serves_by_priority=False,
)


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], object]) -> None:
    """Lets the event loop run until a condition holds, which takes no time where nothing waits for any.

    Raises:
        AssertionError: it does not come to hold.
    """
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the event loop has nothing left to do for it")


@dataclass
class FakeAttempt:
    """One request a fake replica has."""

    request: compute_pb2.SubmitRequest
    answer: Answer
    cancelled: bool = False

    @property
    def epoch(self) -> int:
        """Its number."""
        return self.request.epoch

    def cancel(self) -> None:
        """Notes it."""
        self.cancelled = True


@dataclass
class FakeReplica:
    """Takes requests and does with them what `play` says; nothing, until a test pushes deltas itself."""

    name: str
    ready: bool = True
    by_priority: bool = False
    play: Callable[[FakeAttempt], None] = lambda attempt: None
    attempts: list[FakeAttempt] = field(default_factory=list)

    def submit(self, request: compute_pb2.SubmitRequest, answer: Answer) -> FakeAttempt:
        """Takes a request."""
        attempt = FakeAttempt(request, answer)
        self.attempts.append(attempt)
        self.play(attempt)
        return attempt


class FakeStages:
    """A tokenizer whose ids are bytes, and some replicas, of which the first that is ready is chosen."""

    def __init__(self, *replicas: FakeReplica, model: ServedModel = MODEL) -> None:
        self.replicas = replicas
        self.encoded: list[tokenizer_pb2.EncodeRequest] = []
        self.encode_us = 1500
        # Raised instead of ids while it is set.
        self.refusal: ServiceError | None = None
        self._model = model
        self._changed = asyncio.Event()

    @property
    def model(self) -> ServedModel:
        """The fake's model."""
        return self._model

    @property
    def is_complete(self) -> bool:
        """Whether a replica is ready."""
        return any(replica.ready for replica in self.replicas)

    def serving(self) -> FakeStages:
        """Itself, as long as a replica is ready."""
        if not self.is_complete:
            raise Unavailable("no compute process is ready")
        return self

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        """Bytes of the text, or of the chat's words."""
        self.encoded.append(request)
        if self.refusal is not None:
            raise self.refusal
        words = request.text.text or "".join(message.content for message in request.chat.messages)
        return tokenizer_pb2.EncodeResponse(token_ids=list(words.encode()), system_tokens=1, encode_us=self.encode_us)

    async def decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        """Ids from 256 on are special tokens."""
        named = "" if request.skip_special_tokens else "".join(f"<{token}>" for token in request.token_ids if token >= 256)
        said = bytes(token for token in request.token_ids if token < 256)
        return tokenizer_pb2.DecodeResponse(text=said.decode(errors="replace") + named)

    def choose(
        self, token_ids: Sequence[int], tenant: str, *, by_priority: bool = False, without: Collection[object] = ()
    ) -> FakeReplica | None:
        """The first that is ready."""
        allowed = (one for one in self.replicas if one.ready and not any(one is other for other in without))
        return next((one for one in allowed if one.by_priority or not by_priority), None)

    async def changed(self) -> None:
        """Waits for `change`."""
        self._changed.clear()
        await self._changed.wait()

    def change(self, replica: FakeReplica, *, ready: bool) -> None:
        """Makes a replica ready or not."""
        replica.ready = ready
        self._changed.set()


def says(*deltas: tuple[str, list[int]], at: Callable[[], float] = lambda: 0.0) -> Callable[[FakeAttempt], None]:
    """A replica's play: starts, then says these deltas at once and stops after the last."""

    def play(attempt: FakeAttempt) -> None:
        attempt.answer.begin(Started(cached_tokens=2, queue_us=3000, prefill_us=7000))
        position = 0
        for number, (text, token_ids) in enumerate(deltas, start=1):
            if position >= len(attempt.request.generated_token_ids):
                attempt.answer.push(position, token_ids, text, "stop" if number == len(deltas) else None, now=at())
            position += len(token_ids)

    return play
