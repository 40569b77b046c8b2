"""What one sampler was sent and what it may therefore say: its answers are checked here before anything else sees them. No I/O.

A sampler may speak of requests that are open at it, and of those that were closed in a frame it has not answered yet: what it says of
these is dropped. It owes a verdict for each row that it is to draw. All else breaks the contract, and with it the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from compute_svc.replica.parcels import TextKey, read_parcel
from triserve.rpc.errors import ServiceError, from_proto
from triserve.rpc.session import MalformedMessage
from triserve.rpc.token_mask import MAX_FORCED_TOKENS, mask_bytes
from triserve.v1 import sampler_pb2

_MAX_ERROR_CHARS = 4096


class Verdict(NamedTuple):
    """Tokens that the sampler drew from a row."""

    number: int
    position: int
    tokens: list[int]


class Mask(NamedTuple):
    """What can be drawn next of a request that has a grammar: a bit for each id; and the tokens that follow, as far as there is no choice."""

    number: int
    position: int
    allowed: bytes
    forced: Sequence[int] = ()


class Parcel(NamedTuple):
    """A serialised DeltaFrame for one gateway, all of whose deltas are of requests that are open."""

    gateway: int
    content: bytes


class Failed(NamedTuple):
    """A request that failed in the sampler."""

    number: int
    error: ServiceError


class SamplerAnswer(NamedTuple):
    """An answer that was checked: every number in it is a request that was open at this sampler until now.

    Attributes:
        verdicts: at most one for a request; tokens are below the logits width, positions are those of the rows.
        parcels: of these and of `finished` requests.
        finished: requests that came to their end.
        failed: requests that did not.
        silent: requests whose row the sampler left without a verdict or a mask, or whose last row it did not take for the last.
        masks: of open requests that have a grammar, each for the token behind the last that was sent; of the right length.
    """

    verdicts: list[Verdict]
    parcels: list[Parcel]
    finished: list[int]
    failed: list[Failed]
    silent: list[int]
    masks: Sequence[Mask] = ()


class SamplerLedger:
    """The requests of one stream to a sampler, and the frames of it.

    Args:
        logits_width: every token is below it.
    """

    def __init__(self, logits_width: int) -> None:
        self._logits_width = logits_width
        # Frames sent and frames answered.
        self.sent = 0
        self.answered = 0
        # Requests that are open, and where their text goes.
        self._open: dict[int, TextKey] = {}
        # Requests that were closed in a frame that is not answered yet; the closes in the order of those frames.
        self._leaving: dict[int, TextKey] = {}
        self._closes: deque[tuple[int, int]] = deque()
        # Requests by where their text goes; of those in `_opened_in` the open may not have arrived yet.
        self._by_text: dict[int, dict[tuple[int, int], int]] = {}
        self._opened_in: dict[int, int] = {}
        # Rows that it is to draw and that have no verdict, by request: position and frame. A request has one at most.
        self._owed: dict[int, tuple[int, int]] = {}
        self._owed_order: deque[tuple[int, int]] = deque()
        # Requests that have a grammar: the position of their next token. Of some a mask is owed for it, with the answer to the frame.
        self._positions: dict[int, int] = {}
        self._masks_owed: dict[int, int] = {}
        # Of each frame that is not answered: how many tokens it has, those to be drawn among them, and of how many tokens of prompts it tells.
        self._num_tokens: deque[int] = deque()
        self._num_prompt_logprobs: deque[int] = deque()
        # Of how many tokens of prompts it may still tell beside those: half a character waits for its end.
        self._prompt_logprobs_left = 0
        # The frame that carries a request's last row.
        self._last_rows: dict[int, int] = {}

    @property
    def requests(self) -> Iterable[int]:
        """Requests that are open."""
        return self._open.keys()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def is_leaving(self, key: TextKey) -> bool:
        """Whether the sampler may still send text of an attempt that was closed."""
        number = self._by_text.get(key.gateway, {}).get((key.request, key.epoch))
        return number in self._leaving

    def open(self, number: int, key: TextKey, frame: int, *, first_position: int | None = None) -> None:
        """A request opens.

        Args:
            number: never used before.
            key: of its text; no other request has it.
            frame: that carries the open.
            first_position: of its next token, if it has a grammar.
        """
        if first_position is not None:
            self._positions[number] = first_position
        self._open[number] = key
        self._opened_in[number] = frame
        self._by_text.setdefault(key.gateway, {})[key.request, key.epoch] = number

    def close(self, number: int, frame: int) -> None:
        """A request is closed by the replica in that frame."""
        self._leaving[number] = self._open.pop(number)
        self._last_rows.pop(number, None)
        self._closes.append((frame, number))

    def expect_end(self, number: int, frame: int) -> None:
        """A request's last row is in that frame or before: who has answered it has ended the request."""
        self._last_rows[number] = frame

    def note_sent(self, message: sampler_pb2.SampleRequest) -> None:
        """A frame is on its way: each of its rows that the sampler is to draw is owed a verdict."""
        self.sent = message.frame
        num_owed = 0
        if self._positions:
            self._note_positions(message)
        # Without the column every row has its token.
        for row, count in enumerate(message.num_tokens):
            if count == 0:
                num_owed += 1
                number = message.request[row]
                self._owed[number] = (message.position[row], message.frame)
                self._owed_order.append((message.frame, number))
        self._num_tokens.append(len(message.token) + num_owed)
        # A prompt's first token, which has none, is told of when the request opens.
        num_opened = sum(opening.sampling.HasField("prompt_logprobs") for opening in message.open)
        self._num_prompt_logprobs.append(num_opened + sum(len(one.logprob) for one in message.prompt_logprobs))

    def _note_positions(self, message: sampler_pb2.SampleRequest) -> None:
        counts = message.num_tokens or [1] * len(message.request)
        for number, position, count in zip(message.request, message.position, counts, strict=True):
            if number in self._positions:
                self._positions[number] = position + count
                self._masks_owed[number] = message.frame

    def take_silent(self) -> list[int]:
        """Open requests that the answers so far should have settled and have not. Each is told once."""
        silent = []
        while self._owed_order and self._owed_order[0][0] <= self.answered:
            _, number = self._owed_order.popleft()
            if self._owed.pop(number, None) is not None and number in self._open:
                silent.append(number)
        for number in [number for number, frame in self._masks_owed.items() if frame <= self.answered]:
            del self._masks_owed[number]
            # Behind a last row nothing can be drawn.
            if number in self._open and number not in self._last_rows:
                silent.append(number)
        late = [number for number, frame in self._last_rows.items() if frame <= self.answered]
        for number in late:
            del self._last_rows[number]
        return silent + [number for number in late if number not in silent]

    def read(self, message: sampler_pb2.SampleResponse) -> SamplerAnswer:
        """Checks an answer.

        Raises:
            MalformedMessage: it is not one the contract allows, and nothing of it counts.

        Effects: the frames are answered, the verdicts paid, and requests that ended are open no longer.
        """
        if message.HasField("hello"):
            raise MalformedMessage("hello is in a message that is not the first")
        if not (self.answered < message.frame <= self.sent or (message.frame == self.answered and _is_of_no_frame(message))):
            raise MalformedMessage(f"frame is {message.frame}, {self.sent} are sent and {self.answered} answered")
        verdicts = self._read_verdicts(message)
        failed = [self._read_failure(failure) for failure in message.failed]
        self._check_ends([*message.finished, *(failure.number for failure in failed)], message.frame)
        masks = self._read_masks(message)
        parcels = self._read_parcels(message)
        finished = [number for number in message.finished if number in self._open]
        answer = SamplerAnswer(verdicts, parcels, finished, [one for one in failed if one.number in self._open], [], masks)
        self._settle(message)
        return answer._replace(silent=self.take_silent())

    def _read_verdicts(self, message: sampler_pb2.SampleResponse) -> list[Verdict]:
        numbers, positions, counts = message.request, message.position, message.num_tokens or [1] * len(message.request)
        for field, column in (("position", positions), ("num_tokens", counts)):
            if len(column) != len(numbers):
                raise MalformedMessage(f"{field} has {len(column)} entries, request has {len(numbers)}")
        if len(message.token) != sum(counts):
            raise MalformedMessage(f"token has {len(message.token)} entries, num_tokens says {sum(counts)}")
        if len(set(numbers)) != len(numbers):
            raise MalformedMessage("request has an entry twice")
        tokens = iter(message.token)
        verdicts = [
            Verdict(number, position, list(islice(tokens, count)))
            for number, position, count in zip(numbers, positions, counts, strict=True)
        ]
        for verdict in verdicts:
            owed = self._owed.get(verdict.number)
            if owed is None or verdict.position != owed[0] or message.frame < owed[1]:
                raise MalformedMessage("a verdict is about a row that is not awaited")
            if len(verdict.tokens) != 1:
                raise MalformedMessage(f"num_tokens is {len(verdict.tokens)}, one token was to be drawn")
            if verdict.tokens[0] >= self._logits_width:
                raise MalformedMessage(f"token is {verdict.tokens[0]}, the limit is {self._logits_width - 1}")
        return [verdict for verdict in verdicts if verdict.number in self._open]

    def _read_masks(self, message: sampler_pb2.SampleResponse) -> list[Mask]:
        num_bytes = mask_bytes(self._logits_width)
        masks = []
        for mask in message.masks:
            next_position = self._positions.get(mask.request)
            if next_position is None:
                raise MalformedMessage("a mask is about a request that has no grammar, or is not here")
            if len(mask.allowed) != num_bytes:
                raise MalformedMessage(f"a mask has {len(mask.allowed)} bytes, {self._logits_width} ids take {num_bytes}")
            if mask.position > next_position:
                raise MalformedMessage(f"a mask is about position {mask.position}, the next is {next_position}")
            if len(mask.forced) > MAX_FORCED_TOKENS or any(token >= self._logits_width for token in mask.forced):
                raise MalformedMessage(f"a mask forces more than {MAX_FORCED_TOKENS} tokens, or one beyond {self._logits_width - 1}")
            # One for a token that has been sent meanwhile comes of an answer before it.
            if mask.position == next_position and mask.request in self._open:
                self._masks_owed.pop(mask.request, None)
                masks.append(Mask(mask.request, mask.position, mask.allowed, list(mask.forced)))
        return masks

    def _read_failure(self, failure: sampler_pb2.SampleFailure) -> Failed:
        if len(failure.error.message) + len(failure.error.field) > _MAX_ERROR_CHARS:
            raise MalformedMessage(f"an error is longer than {_MAX_ERROR_CHARS} characters")
        return Failed(failure.request, from_proto(failure.error))

    def _check_ends(self, numbers: Sequence[int], frame: int) -> None:
        if len(set(numbers)) != len(numbers):
            raise MalformedMessage("a request ends twice")
        for number in numbers:
            if number not in self._opened_in or self._opened_in[number] > frame:
                raise MalformedMessage("a request ends that is not open")

    def _read_parcels(self, message: sampler_pb2.SampleResponse) -> list[Parcel]:
        gateways = [parcel.gateway for parcel in message.parcels]
        if len(set(gateways)) != len(gateways):
            raise MalformedMessage("a gateway has two parcels")
        num_frames = message.frame - self.answered
        num_tokens = sum(islice(self._num_tokens, num_frames))
        num_of_prompts = self._prompt_logprobs_left + sum(islice(self._num_prompt_logprobs, num_frames))
        parcels = []
        for parcel in message.parcels:
            requests = self._by_text.get(parcel.gateway)
            if requests is None:
                raise MalformedMessage("a parcel is for a gateway that has no request here")
            read = read_parcel(parcel.delta_frame, requests, self._leaving.keys(), logits_width=self._logits_width)
            num_tokens -= read.num_tokens
            num_of_prompts -= read.num_prompt_logprobs
            if num_tokens < 0 or num_of_prompts < 0:
                raise MalformedMessage("the parcels have more tokens than the frames had")
            if read.content:
                parcels.append(Parcel(parcel.gateway, read.content))
        self._prompt_logprobs_left = num_of_prompts
        return parcels

    def _settle(self, message: sampler_pb2.SampleResponse) -> None:
        for _ in range(message.frame - self.answered):
            self._num_tokens.popleft()
            self._num_prompt_logprobs.popleft()
        self.answered = message.frame
        for number in message.request:
            del self._owed[number]
        for number in [*message.finished, *(failure.request for failure in message.failed)]:
            if number in self._open:
                self._forget(number, self._open.pop(number))
        while self._closes and self._closes[0][0] <= self.answered:
            _, number = self._closes.popleft()
            key = self._leaving.pop(number, None)
            if key is not None:
                self._forget(number, key)

    def _forget(self, number: int, key: TextKey) -> None:
        self._owed.pop(number, None)
        self._positions.pop(number, None)
        self._masks_owed.pop(number, None)
        self._last_rows.pop(number, None)
        del self._opened_in[number]
        requests = self._by_text[key.gateway]
        if requests.get((key.request, key.epoch)) == number:
            del requests[key.request, key.epoch]
        if not requests:
            del self._by_text[key.gateway]


def _is_of_no_frame(message: sampler_pb2.SampleResponse) -> bool:
    """Whether an answer is about grammars alone, which are compiled in their own time."""
    return bool(message.masks or message.failed) and not (message.request or message.finished or message.parcels)
