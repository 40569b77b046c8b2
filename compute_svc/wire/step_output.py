"""What the engine says after a step. Knows no torch: the network's side of a replica reads it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from triserve.rpc.errors import ServiceError
from triserve.v1 import sampler_pb2


class Started(NamedTuple):
    """A request's first token is computed."""

    number: int
    cached_tokens: int
    submitted_at: float
    admitted_at: float


class Released(NamedTuple):
    """A request has left and its KV is free: it came to its end, was taken back, or failed with `error`."""

    number: int
    preemptions: int
    error: ServiceError | None


class Rows(NamedTuple):
    """What a step gave for samplers: of requests whose last known token it computed, one row each, and of prompts.

    Attributes:
        numbers: [rows] uint64, the requests.
        positions: [rows] uint32, index of the row's first generated token.
        counts: [rows] uint32, number of drawn tokens; 0 where a sampler is to draw one.
        tokens: [sum of counts] uint32.
        logprobs: Of rows whose requests asked for them, in the order of the rows.
        logits: Of rows that a sampler is to draw, or to draw again for comparison; in the order of the rows.
        prompt_logprobs: Of prompts whose requests asked for them; they come before the rows.
        computed: Requests that draw nothing, and whose prompt is computed.
    """

    numbers: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]
    tokens: npt.NDArray[np.uint32]
    logprobs: list[sampler_pb2.RowLogprobs]
    logits: list[sampler_pb2.RowLogits]
    prompt_logprobs: Sequence[sampler_pb2.PromptLogprobs] = ()
    computed: Sequence[int] = ()

    def of(self, has: Callable[[int], bool]) -> Rows | None:
        """What is about some requests; None = nothing is.

        Args:
            has: Whether a request is one of them.
        """
        numbers = self.numbers.tolist()
        places = [index for index, number in enumerate(numbers) if has(number)]
        prompts = [one for one in self.prompt_logprobs if has(one.request)]
        computed = [number for number in self.computed if has(number)]
        if not (places or prompts or computed):
            return None
        rows = self if len(places) == len(numbers) else self.chosen(places)
        return rows._replace(prompt_logprobs=prompts, computed=computed)

    def chosen(self, places: Sequence[int]) -> Rows:
        """Some of the rows, and nothing of prompts.

        Args:
            places: Rising.
        """
        index = np.array(places, dtype=np.int64)
        is_chosen = np.zeros(len(self.numbers), dtype=np.bool_)
        is_chosen[index] = True
        new_place = {row: place for place, row in enumerate(places)}
        return Rows(
            self.numbers[index],
            self.positions[index],
            self.counts[index],
            self.tokens[np.repeat(is_chosen, self.counts)],
            [moved(one, new_place[one.row]) for one in self.logprobs if one.row in new_place],
            [moved(one, new_place[one.row]) for one in self.logits if one.row in new_place],
        )


_OfRow = TypeVar("_OfRow", sampler_pb2.RowLogprobs, sampler_pb2.RowLogits)


def moved(one: _OfRow, row: int) -> _OfRow:
    """The same for a row at another place."""
    if one.row == row:
        return one
    copy = type(one)()
    copy.CopyFrom(one)
    copy.row = row
    return copy


class Hidden(NamedTuple):
    """Some hidden states of a request, in the order of its tokens.

    Attributes:
        number: Of the request.
        first_position: Of the first vector's token.
        vectors: One after the other, little-endian float32.
        width: Numbers in each.
    """

    number: int
    first_position: int
    vectors: bytes
    width: int


class Pinned(NamedTuple):
    """A prefix is in the cache, and stays there; so many of its tokens had to be computed."""

    number: int
    tokens: int
    computed_tokens: int


class KvChanges(NamedTuple):
    """How the prefix cache has changed since it was last told: hashes of pages, see `triserve.rpc.page_hash`.

    Attributes:
        is_reset: Whether all that was told before is to be forgotten.
        stored: Pages that are cached from now on.
        removed: Pages that are not any more.
    """

    is_reset: bool
    stored: list[int]
    removed: list[int]


class PrefixStats(NamedTuple):
    """The prefix cache, and its counters since the engine was built. Names and units as in the contract.

    Attributes:
        pins: Tenant, tokens and hash of each pinned prefix.
    """

    cached_pages: int
    evictable_pages: int
    pinned_pages: int
    max_pinned_pages: int
    tenants: int
    looked_up_tokens: int
    hit_tokens: int
    stored_pages: int
    evicted_pages: int
    pins: list[tuple[str, int, int]]


class Load(NamedTuple):
    """How full the engine is, and what it has done since it was built."""

    running_requests: int
    waiting_requests: int
    used_pages: int
    cached_pages: int
    free_pages: int
    steps: int
    preemptions: int
    prefill_tokens: int
    decode_tokens: int
    cached_tokens: int
    pinned_pages: int

    @classmethod
    def nothing(cls) -> Load:
        """Of an engine that is not there yet."""
        return cls(*[0] * len(cls._fields))


class StepOutput(NamedTuple):
    """What has happened since the last output.

    Attributes:
        rows: What was computed; None if nothing.
        started: Requests whose first token is among the rows.
        released: Requests whose KV is free.
        load: After all that.
        pinned: Prefixes that are kept from now on.
        kv_changes: None if there are none, or nobody wants to know.
        hidden: Hidden states, before what is released with them.
    """

    rows: Rows | None
    started: list[Started]
    released: list[Released]
    load: Load
    pinned: list[Pinned]
    kv_changes: KvChanges | None
    hidden: Sequence[Hidden] = ()


class EngineInfo(NamedTuple):
    """What a loaded engine is: its dtype, "float32", sizes as in `SchedulerConfig`, numbers of a vector of hidden states, 0 = it gives none, and
    what keys and values are stored as, by its name in COMPUTE_KV_FORMAT, and which kernels compute where others round otherwise, empty = none of these."""

    logits_width: int
    max_request_tokens: int
    page_size_tokens: int
    num_pages: int
    max_waiting_requests: int
    dtype: str
    hidden_size: int
    kv_format: str
    kv_bytes_per_page: int
    kernels: str
