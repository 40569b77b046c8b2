"""What a policy is: who is served first."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from compute_svc.scheduler.base import Plan, RequestState


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
    BLOCKED: It could have been admitted, but the next step cannot have it, or another computes what it needs.
    ENDED: It has come to its end, wherever it was. Once for each request, and last.
    """

    ADMITTED = auto()
    BLOCKED = auto()
    ENDED = auto()


def _none_cached(state: RequestState) -> int:
    return 0


class Policy(Protocol):
    """Keeps the queue, and gives each request a rank among those that run.

    The scheduler says what happens to a request, and why:

        enter(ARRIVED) -> leave(ADMITTED) -> enter(PREEMPTED) -> leave(ADMITTED) -> ... -> leave(ENDED)
                       -> leave(BLOCKED) -> enter(UNBLOCKED) ->                         -> leave(ENDED)

    `state.rank` is set by `enter`; among running requests the lower rank has the first claim to the budget and the higher one gives up its
    pages first when there is none left. Decode rows come before prompts whatever the ranks.

    A policy that lets others pass bounds how often: nobody starves. `account` and `yields` have defaults.
    """

    # Whether one that waits is admitted before the prompts of running ones of a higher rank go on; then `first` follows the ranks.
    overtakes: bool = False
    # Whether running ones may be preempted for waiting ones, as `yields` says.
    preempts: bool = False
    # How many tokens of a waiting request have their KV in the prefix cache; the scheduler's.
    cached_tokens: Callable[[RequestState], int] = staticmethod(_none_cached)

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        """A request is in the queue from now on.

        Args:
            now: Seconds on the caller's clock: the step's, or when the request arrived.

        Effects: sets the request's rank.
        """
        ...

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        """A request is in the queue no longer; one that ENDED may have left it before.

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
