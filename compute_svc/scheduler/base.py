"""What a scheduler is told, what it keeps about a request and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_table import PageTable
from compute_svc.kv.radix_node import Node
from compute_svc.kv.window import KvWindow
from compute_svc.wire.request import Request
from triserve.rpc import limits
from triserve.rpc.errors import ServiceError


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Sizes a scheduler works within.

    Attributes:
        page_size_tokens: Tokens of one KV page.
        num_pages: KV pages in all.
        max_model_len_tokens: Most tokens of prompt and answer together.
        step_budget_tokens: Most tokens computed in one step.
        max_running_requests: Most requests in the batch; at most the budget, so that every decode row fits into every step.
        max_waiting_requests: Most requests that wait because the batch is full.
        window_tokens: The widest window of all layers, a token itself included; None = a layer sees everything.
        chunk_tokens: What lies before the window is dropped in pieces of so many, a multiple of the page size. See `KvWindow`.

    Raises:
        ValueError: A size is below 1, or more requests may run than one step has tokens.
    """

    page_size_tokens: int
    num_pages: int
    max_model_len_tokens: int
    step_budget_tokens: int
    max_running_requests: int
    max_waiting_requests: int
    window_tokens: int | None = None
    chunk_tokens: int = 128

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        if self.window_tokens is not None and self.chunk_tokens % self.page_size_tokens:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}, it must be a multiple of page_size_tokens, {self.page_size_tokens}")
        if self.max_running_requests > self.step_budget_tokens:
            raise ValueError(
                f"max_running_requests is {self.max_running_requests}, the limit is step_budget_tokens, {self.step_budget_tokens}"
            )

    @property
    def window(self) -> KvWindow | None:
        """What a request needs of its KV; None = all of it."""
        return None if self.window_tokens is None else KvWindow(self.window_tokens, self.chunk_tokens)

    @property
    def max_request_tokens(self) -> int:
        """Most tokens of one request, by context length and by the pages there are."""
        return self.max_model_len_tokens if self.slides else min(self.max_model_len_tokens, self.num_pages * self.page_size_tokens)

    @property
    def slides(self) -> bool:
        """Whether a request of any length fits because it drops what it does not need any more."""
        return self.window_tokens is not None and self.sliding_tokens <= self.num_pages * self.page_size_tokens

    @property
    def sliding_tokens(self) -> int:
        """What a request that drops what it can has room for."""
        window = self.window
        assert window is not None, "without a window nothing is dropped"
        return window.most_tokens(self.step_budget_tokens)


class Phase(Enum):
    """Where a request is. WAITING -> RUNNING <-> PREEMPTED; all -> ENDED."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    ENDED = auto()


# So many known tokens at most a step tells one by one: each has a row of logits or a vector that leaves the engine, and what a step takes for
# them must be no more than that, however long a prompt is.
MAX_READ_TOKENS = limits.MAX_TOLD_TOKENS

# Drawn tokens of running requests are gathered in pieces of so many before they come to each request's own.
RECENT_TOKENS = 64


class Number:
    """A number of a request that steps read and write for all running requests at once; see `RequestState.numbers`."""

    names: tuple[str, ...] = ()

    def __set_name__(self, owner: type, name: str) -> None:
        self._index = len(Number.names)
        Number.names += (name,)

    def __get__(self, state: RequestState, owner: type) -> int:
        return int(state.numbers[self._index])

    def __set__(self, state: RequestState, value: int) -> None:
        state.numbers[self._index] = value


class RequestState:
    """A request on its way through the scheduler.

    Tokens: [0, num_computed) have their KV in pages, apart from `dropped_tokens` that are not needed any more · [num_computed, num_tokens)
    are known and not computed · the rest is room for the answer. One that `is_sliding` drops what it does not need and shares no more than
    its first chunk. While `awaiting` is set the token behind num_tokens is being drawn elsewhere; while `paused` is, its sampler is behind.
    The first `num_given` were known at the start.
    The first `num_found_pages` of its pages were in the prefix cache whenever it was admitted: the others it has computed itself.
    Of the known tokens in `unread` something is still to be told, so they are to be computed, and not found in the prefix cache.
    The whole answer is expected to have `predicted_tokens`; it may turn out shorter or longer. `rank` is its policy's: lower is sooner.
    `draw` and `hidden_sum` are the engine's; no scheduler looks at them.

    While it runs, `numbers` and `recent` are views of what `BatchSlots` holds of all running requests: a column, and a row.

    Args:
        request: What was asked.
        arrival: Rises from request to request.
    """

    num_tokens = Number()
    num_computed = Number()
    dropped_tokens = Number()
    prefill_end = Number()
    last_token = Number()
    awaiting = Number()
    paused = Number()
    # All its tokens when the answer is as long as it may be, and when stop ids begin to count.
    end = Number()
    stops_from = Number()
    number = Number()
    prompt_tokens = Number()

    __slots__ = (
        "_num_written",
        "_tokens",
        "admitted_at",
        "arrival",
        "cached_tokens",
        "draw",
        "hidden_sum",
        "is_sliding",
        "num_found_pages",
        "num_given",
        "numbers",
        "phase",
        "predicted_tokens",
        "preemptions",
        "prefix",
        "rank",
        "recent",
        "request",
        "table",
        "unread",
    )

    def __init__(self, request: Request, arrival: int) -> None:
        prompt = request.prompt.size
        known = prompt + request.generated.size
        self.request = request
        self.arrival = arrival
        self.phase = Phase.WAITING
        self._tokens: npt.NDArray[np.int64] = np.empty(prompt + request.max_tokens, dtype=np.int64)
        self._tokens[:prompt] = request.prompt
        self._tokens[prompt:known] = request.generated
        self._num_written = known
        self.recent: npt.NDArray[np.int64] = np.empty(RECENT_TOKENS, dtype=np.int64)
        self.numbers: npt.NDArray[np.int64] = np.zeros(len(Number.names), dtype=np.int64)
        self.number = request.number
        self.prompt_tokens = prompt
        self.num_tokens = self.prefill_end = self.num_given = known
        self.last_token = int(self._tokens[known - 1])
        self.end = prompt + request.max_tokens
        self.stops_from = prompt + request.min_tokens + 1
        self.num_found_pages = 1 << 62
        self.cached_tokens = 0
        self.preemptions = 0
        self.predicted_tokens = request.max_tokens
        self.rank: tuple[float, int] = (0.0, arrival)
        self.draw: object = None
        self.unread = request.read_tokens
        self.hidden_sum: npt.NDArray[np.float64] | None = None
        self.admitted_at: float | None = None
        self.is_sliding = False
        self.table: PageTable | None = None
        self.prefix: Node | None = None

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """[prompt + max_tokens] int64, known up to num_tokens."""
        self.collect()
        return self._tokens

    def collect(self) -> None:
        """Takes in the tokens that `recent` has; once it is full, before the next one comes."""
        first, end = self._num_written, self.num_tokens
        if end > first:
            place = first % RECENT_TOKENS
            self._tokens[first:end] = self.recent[place : place + end - first]
            self._num_written = end

    @property
    def kv_length(self) -> int:
        """Tokens whose KV is in its pages."""
        return self.num_computed - self.dropped_tokens

    @property
    def reusable_tokens(self) -> int:
        """How many of its first tokens need not be computed where they are cached. The last known one always is: its logits are wanted."""
        return min(self.num_tokens - 1, self.unread.start) if self.unread else self.num_tokens - 1

    @property
    def is_blocked(self) -> bool:
        """Whether the next step cannot have it: its last token is not drawn yet, or its sampler is behind."""
        return bool(self.awaiting or self.paused)

    @property
    def remaining_tokens(self) -> int:
        """Answer tokens that are still expected, at least 1; an answer that outgrows its prediction is expected to be twice as long."""
        # Nothing is predicted of a request that draws nothing.
        expected = max(1, self.predicted_tokens)
        while expected <= self.position:
            expected *= 2
        return max(1, min(expected, self.request.max_tokens) - self.position)

    @property
    def position(self) -> int:
        """Index of the next generated token."""
        return self.num_tokens - self.request.prompt.size

    def mark_read(self, end: int) -> None:
        """What is to be told of its tokens up to here was told."""
        self.unread = range(max(self.unread.start, end), self.unread.stop)

    def append(self, token: int) -> None:
        """Adds a drawn token."""
        self.tokens[self.num_tokens] = token
        self.last_token = token
        self.num_tokens += 1
        self._num_written += 1


class Chunk(NamedTuple):
    """A part of a request's known tokens to compute: [start, start + length)."""

    state: RequestState
    start: int
    length: int

    @property
    def slot(self) -> int:
        """The request's place in the batch."""
        assert self.state.table is not None, "a planned request runs"
        return self.state.table.row

    @property
    def completes(self) -> bool:
        """Whether it ends with the last known token, so that its logits are wanted."""
        return self.start + self.length == self.state.num_tokens

    @property
    def read_tokens(self) -> range:
        """Positions of its tokens of which more is to be told than what is drawn behind the last."""
        return _common(range(self.start, self.start + self.length), self.state.unread)

    @property
    def num_told(self) -> int:
        """How many of them are told one by one."""
        return len(self.read_tokens) if self.state.request.tells_each_token else 0

    @property
    def logprob_tokens(self) -> range:
        """Those of them whose logits tell of the next token."""
        return _common(self.read_tokens, self.state.request.logprob_tokens)

    @property
    def hidden_tokens(self) -> range:
        """Those of them whose hidden states are wanted."""
        return _common(self.read_tokens, self.state.request.hidden_tokens)


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


class Failure(NamedTuple):
    """A request that was ended by the scheduler; its KV is free."""

    state: RequestState
    error: ServiceError


def _no_rows() -> npt.NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(slots=True)
class Plan:
    """One step.

    Attributes:
        decodes: Requests that compute their one last token; they come first.
        prefills: Chunks of one or more tokens.
        admitted: Requests that left the queue for the first time.
        failures: Requests whose time is over.
        rows: [len(decodes)] int64, the batch slots of the decodes.
    """

    decodes: list[RequestState] = field(default_factory=list)
    prefills: list[Chunk] = field(default_factory=list)
    admitted: list[RequestState] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    rows: npt.NDArray[np.int64] = field(default_factory=_no_rows)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.decodes and not self.prefills

    @property
    def reads(self) -> bool:
        """Whether more is to be told of some tokens than what is drawn behind the last of a request."""
        return any(chunk.read_tokens for chunk in self.prefills)

    @property
    def wanted(self) -> list[RequestState]:
        """Requests whose last known token it computes, in the order of the rows of logits: each gets a token."""
        return [*self.decodes, *(chunk.state for chunk in self.prefills if chunk.completes)]

    @property
    def wanted_rows(self) -> npt.NDArray[np.int64]:
        """[len(wanted)] int64, their batch slots."""
        if not self.prefills:
            return self.rows
        return np.concatenate((self.rows, np.array([chunk.slot for chunk in self.prefills if chunk.completes], dtype=np.int64)))

    @property
    def num_tokens(self) -> int:
        """Tokens that it computes."""
        return len(self.decodes) + sum(chunk.length for chunk in self.prefills)


class PlanFailed(Exception):
    """A step could not be planned; its cause says why.

    Attributes:
        failures: Requests that were ended before that because their time is over.
    """

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("a step could not be planned")
        self.failures = failures
