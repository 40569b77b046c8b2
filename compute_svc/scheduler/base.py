"""What a scheduler is told, what it keeps about a request and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_table import PageTable
from compute_svc.kv.radix_node import Node
from compute_svc.kv.window import KvWindow
from compute_svc.wire.request import Request
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


class RequestState:
    """A request on its way through the scheduler.

    Tokens: [0, num_computed) have their KV in pages, apart from `dropped_tokens` that are not needed any more · [num_computed, num_tokens)
    are known and not computed · the rest is room for the answer. One that `is_sliding` drops what it does not need and shares no more than
    its first chunk. While `awaiting` is set the token behind num_tokens is being drawn elsewhere. The first `num_given` were known at the start.
    The first `num_found_pages` of its pages were in the prefix cache whenever it was admitted: the others it has computed itself.
    While `leader` computes what this one needs too, up to the `leader_end`-th token, it waits.
    The whole answer is expected to have `predicted_tokens`; it may turn out shorter or longer. `rank` is its policy's: lower is sooner.
    `draw` is the engine's; no scheduler looks at it.

    Args:
        request: What was asked.
        arrival: Rises from request to request.
    """

    __slots__ = (
        "admitted_at",
        "arrival",
        "awaiting",
        "cached_tokens",
        "draw",
        "dropped_tokens",
        "is_sliding",
        "last_token",
        "leader",
        "leader_end",
        "num_computed",
        "num_found_pages",
        "num_given",
        "num_tokens",
        "paused",
        "phase",
        "predicted_tokens",
        "preemptions",
        "prefill_end",
        "prefix",
        "rank",
        "request",
        "table",
        "tokens",
    )

    def __init__(self, request: Request, arrival: int) -> None:
        known = request.prompt.size + request.generated.size
        self.request = request
        self.arrival = arrival
        self.phase = Phase.WAITING
        self.tokens: npt.NDArray[np.int64] = np.empty(request.prompt.size + request.max_tokens, dtype=np.int64)
        self.tokens[: request.prompt.size] = request.prompt
        self.tokens[request.prompt.size : known] = request.generated
        self.num_tokens = known
        self.num_given = known
        self.num_computed = 0
        self.num_found_pages = 1 << 62
        self.prefill_end = known
        self.cached_tokens = 0
        self.preemptions = 0
        self.predicted_tokens = request.max_tokens
        self.rank: tuple[float, int] = (0.0, arrival)
        self.last_token = int(self.tokens[known - 1])
        self.draw: object = None
        self.admitted_at: float | None = None
        self.awaiting = False
        self.paused = False
        self.is_sliding = False
        self.dropped_tokens = 0
        self.leader: RequestState | None = None
        self.leader_end = 0
        self.table: PageTable | None = None
        self.prefix: Node | None = None

    @property
    def kv_length(self) -> int:
        """Tokens whose KV is in its pages."""
        return self.num_computed - self.dropped_tokens

    @property
    def is_blocked(self) -> bool:
        """Whether the next step cannot have it: its last token is not drawn yet, its sampler is behind, or it waits for its leader."""
        return self.awaiting or self.paused or self.is_led

    @property
    def is_led(self) -> bool:
        """Whether another request computes tokens that it needs too, and gets on with it."""
        leader = self.leader
        return leader is not None and leader.phase is Phase.RUNNING and not leader.paused and leader.num_computed < self.leader_end

    @property
    def remaining_tokens(self) -> int:
        """Answer tokens that are still expected, at least 1; an answer that outgrows its prediction is expected to be twice as long."""
        expected = self.predicted_tokens
        while expected <= self.position:
            expected *= 2
        return max(1, min(expected, self.request.max_tokens) - self.position)

    @property
    def position(self) -> int:
        """Index of the next generated token."""
        return self.num_tokens - self.request.prompt.size

    def append(self, token: int) -> None:
        """Adds a drawn token."""
        self.tokens[self.num_tokens] = token
        self.last_token = token
        self.num_tokens += 1


class Chunk(NamedTuple):
    """A part of a request's known tokens to compute: [start, start + length)."""

    state: RequestState
    start: int
    length: int

    @property
    def completes(self) -> bool:
        """Whether it ends with the last known token, so that its logits are wanted."""
        return self.start + self.length == self.state.num_tokens


class Failure(NamedTuple):
    """A request that was ended by the scheduler; its KV is free."""

    state: RequestState
    error: ServiceError


class Plan(NamedTuple):
    """One step.

    Attributes:
        decodes: Requests that compute their one last token; they come first.
        prefills: Chunks of one or more tokens.
        admitted: Requests that left the queue for the first time.
        failures: Requests whose time is over.
        copies: Pages to copy before anything is computed, (from, to): all are read before the first is written.
    """

    decodes: list[RequestState]
    prefills: list[Chunk]
    admitted: list[RequestState]
    failures: list[Failure]
    copies: list[tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.decodes and not self.prefills


class PlanFailed(Exception):
    """A step could not be planned; its cause says why.

    Attributes:
        failures: Requests that were ended before that because their time is over.
    """

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__("a step could not be planned")
        self.failures = failures


class Enter(Enum):
    """Why a request is in the queue from now on.

    ARRIVED: It is new. Once for each request, and first.
    PREEMPTED: It ran and has lost its pages.
    UNBLOCKED: It left the queue as BLOCKED, and what it waited for has come.
    """

    ARRIVED = auto()
    PREEMPTED = auto()
    UNBLOCKED = auto()


class Leave(Enum):
    """Why a request is not in the queue any more.

    ADMITTED: It runs, for the first time or again.
    BLOCKED: It could have been admitted, but the next step cannot have it; see `RequestState.is_blocked`.
    ENDED: It is cancelled, or its time is over.
    """

    ADMITTED = auto()
    BLOCKED = auto()
    ENDED = auto()


class Policy(Protocol):
    """Who is served first: keeps the queue, and gives each request a rank among those that run.

    The scheduler says what happens to a request, and why:

        enter(ARRIVED) -> leave(ADMITTED) -> enter(PREEMPTED) -> leave(ADMITTED) -> ... -> forget
                       -> leave(BLOCKED) -> enter(UNBLOCKED) ->                     -> forget
                       -> leave(ENDED)                                              -> forget

    Each enter is followed by a leave before the next enter, and `forget` comes once, last, wherever the request was. `state.rank` is set by
    `enter`; among running requests the lower rank has the first claim to the budget and the higher one gives up its pages first when there
    is none left. Decode rows come before prompts whatever the ranks.

    A policy that lets others pass bounds how often: nobody starves. All but `enter`, `leave` and `first` have defaults.
    """

    # Whether one that waits is admitted before the prompts of running ones of a higher rank go on; then `first` follows the ranks.
    overtakes: bool = False
    # Whether running ones may be preempted for waiting ones, as `yields` says.
    preempts: bool = False

    def attach(self, cached_tokens: Callable[[RequestState], int]) -> None:
        """Called once before all else.

        Args:
            cached_tokens: How many tokens of a waiting request have their KV in the prefix cache.
        """
        return

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        """A request is in the queue from now on.

        Args:
            now: Seconds on the caller's clock: the step's, or when the request arrived.

        Effects: sets the request's rank.
        """
        ...

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        """A request that entered is in the queue no longer.

        Args:
            now: Seconds on the caller's clock: the step's, the last step's if it ends between two.
        """
        ...

    def first(self, now: float) -> RequestState | None:
        """The request to admit next, of the queue; None = it is empty.

        If there is no room for it nobody else is admitted in this step.
        """
        ...

    def account(self, plan: Plan) -> bool:
        """A plan was computed.

        Returns:
            Whether the rank of a running request has changed.
        """
        return False

    def yields(self, running: RequestState, waiting: RequestState) -> bool:
        """Whether a running request is preempted for a waiting one of lower rank that finds no room."""
        return False

    def forget(self, state: RequestState) -> None:
        """A request has ended; if it was in the queue it has left before."""
        return


class LengthPredictor(Protocol):
    """Guesses how long answers will be, from those that have ended."""

    def predict(self, request: Request) -> int:
        """Answer tokens to expect, at least 1 and at most the request's max_tokens."""
        ...

    def observe(self, request: Request, answer_tokens: int) -> None:
        """An answer has ended with so many tokens, at least 1."""
        ...
