"""Threads for work that is too long for the event loop, in lanes by size, so that long work delays no shorter work."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from triserve.rpc.errors import Overloaded, Unavailable

T = TypeVar("T")

# Of a new value in the mean.
_PACE_WEIGHT = 0.2


class LaneLimits(NamedTuple):
    """Bounds of one lane.

    Attributes:
        threads: pieces of work under way at once.
        max_waiting: pieces of work that wait.
        max_waiting_bytes: of the inputs of those.
    """

    threads: int
    max_waiting: int
    max_waiting_bytes: int


class _Work(NamedTuple):
    run: Callable[[], Any]
    num_bytes: int


class Lane:
    """A bounded queue and the threads that take from it, in order of arrival.

    `Future.cancel` on what waits takes it out of the queue at once; on what has begun it does nothing.

    Args:
        name: of the threads.
        limits: bounds.
        clock: seconds.
    """

    def __init__(self, name: str, limits: LaneLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._waiting: OrderedDict[Future[Any], _Work] = OrderedDict()
        self._waiting_bytes = 0
        self._idle = limits.threads
        self._num_threads = limits.threads
        self._progress_at = clock()
        # Means over what was done last, for the pace of one thread.
        self._mean_bytes = self._mean_s = 0.0
        self._closed = False
        self._changed = threading.Condition()
        # Daemons, because work that has begun cannot be stopped and must not hold the process.
        for index in range(limits.threads):
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True).start()

    def submit(self, run: Callable[[], T], num_bytes: int) -> Future[T]:
        """Queues a piece of work.

        Args:
            run: the work.
            num_bytes: size of its input.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the lane is closed.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise Unavailable("the tokenizer is leaving")
            # With a thread to spare nothing waits, so that one input of any size is always taken.
            if len(self._waiting) >= self._idle:
                self._check_room(num_bytes)
            if not self._waiting:
                self._progress_at = self._clock()
            self._waiting[future] = _Work(run, num_bytes)
            self._waiting_bytes += num_bytes
            self._changed.notify()
        future.add_done_callback(self._forget)
        return future

    def stalled(self, limit_s: float) -> bool:
        """Whether work waits and none has begun or ended for so many seconds."""
        with self._changed:
            return bool(self._waiting) and self._clock() - self._progress_at > limit_s

    def close(self) -> None:
        """Cancels what waits and lets the threads go; what has begun runs on."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._changed.notify_all()
        for future in waiting:
            future.cancel()

    def join(self, timeout_s: float) -> bool:
        """Waits for the threads of a closed lane; False if one still works after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_threads, timeout_s)

    @property
    def num_waiting(self) -> int:
        """Pieces of work that have not begun."""
        return len(self._waiting)

    @property
    def queued_s(self) -> float:
        """How long what waits will take, at the pace of what was done last; as long as nothing has moved, where nothing was done yet."""
        with self._changed:
            if not self._waiting:
                return 0.0
            if not self._mean_bytes:
                return self._clock() - self._progress_at
            return self._waiting_bytes * self._mean_s / (self._mean_bytes * self._limits.threads)

    def _check_room(self, num_bytes: int) -> None:
        waiting, limit = len(self._waiting) - self._idle + 1, self._limits.max_waiting
        if waiting > limit:
            raise Overloaded(f"the tokenizer has {limit} requests waiting, the limit is {limit}")
        if self._waiting_bytes + num_bytes > self._limits.max_waiting_bytes:
            raise Overloaded(f"the tokenizer has {self._waiting_bytes} bytes waiting, the limit is {self._limits.max_waiting_bytes}")

    def _forget(self, future: Future[Any]) -> None:
        with self._changed:
            work = self._waiting.pop(future, None)
            if work is not None:
                self._waiting_bytes -= work.num_bytes

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    self._num_threads -= 1
                    self._changed.notify_all()
                    return
                future, work = self._waiting.popitem(last=False)
                self._waiting_bytes -= work.num_bytes
                self._progress_at = self._clock()
                self._idle -= 1
            began, ran = self._clock(), future.set_running_or_notify_cancel()
            if ran:
                _settle(future, work.run)
            with self._changed:
                self._progress_at = self._clock()
                if ran:
                    weight = _PACE_WEIGHT if self._mean_bytes else 1.0
                    self._mean_bytes += weight * (work.num_bytes - self._mean_bytes)
                    self._mean_s += weight * (self._progress_at - began - self._mean_s)
                self._idle += 1


class Lanes:
    """Runs work where it delays nobody: short work at once, the rest in the lane for its size.

    Args:
        inline_bytes: inputs up to this size are done at once, in the caller's thread.
        lanes: with the largest size of each, ascending; the last one takes any size.
    """

    def __init__(self, inline_bytes: int, lanes: Sequence[tuple[int, Lane]]) -> None:
        self._inline_bytes = inline_bytes
        self._lanes = tuple(lanes)

    def submit(self, run: Callable[[], T], num_bytes: int, *, at_once: bool = True) -> Future[T]:
        """Does or queues a piece of work; see `Lane.submit`.

        Args:
            run: the work.
            num_bytes: size of its input.
            at_once: whether it may be done in the caller's thread if it is short.
        """
        if at_once and num_bytes <= self._inline_bytes:
            future: Future[T] = Future()
            _settle(future, run)
            return future
        lane = next((lane for most, lane in self._lanes if num_bytes <= most), self._lanes[-1][1])
        return lane.submit(run, num_bytes)

    @property
    def queued_s(self) -> float:
        """How long what waits will take, in the lane where it takes longest."""
        return max((lane.queued_s for _, lane in self._lanes), default=0.0)

    @property
    def num_waiting(self) -> int:
        """Pieces of work that have not begun."""
        return sum(lane.num_waiting for _, lane in self._lanes)

    def stalled(self, limit_s: float) -> bool:
        """Whether a lane's work waits and none has begun or ended for so many seconds."""
        return any(lane.stalled(limit_s) for _, lane in self._lanes)

    def close(self) -> None:
        """Cancels what waits in every lane."""
        for _, lane in self._lanes:
            lane.close()

    def join(self, timeout_s: float) -> bool:
        """Waits for the threads of all closed lanes; False if one still works after so many seconds in its lane."""
        return all(lane.join(timeout_s) for _, lane in self._lanes)


def _settle(future: Future[T], run: Callable[[], T]) -> None:
    try:
        result = run()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the work's outcome; the thread lives on
        future.set_exception(error)
    else:
        future.set_result(result)
