"""What a GPU would not forgive and Triton's interpreter does not notice: accesses out of bounds, and races of programs and of threads.

While it is installed, programs of a launch run in a shuffled order, and each load, store and atomic operation is looked at:

- Every address that is not masked lies in the memory of a tensor that the kernel was given.
- What one program writes, no other one reads or writes, and what one reads, no other one writes, unless both are ordered by atomic operations on
  one place: behind its accesses and a barrier the first program adds to it, and the second one does so before its own.
- What a program has written it reads behind a barrier alone: the compiler may have other threads read than those that wrote, and orders nothing
  between them in global memory. What it has read it writes behind a barrier, unless each number is read and written at one place of a block.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_load = _Builder.create_masked_load
_store = _Builder.create_masked_store
_atomic_rmw = _Builder.create_atomic_rmw
_atomic_cas = _Builder.create_atomic_cas
_barrier = _Builder.create_barrier
_set_grid_dim = _Builder.set_grid_dim
_set_grid_idx = _Builder.set_grid_idx
_arguments_of = interpreter.GridExecutor._init_args_hst

# In place of a program's number, which is 1 at least.
_NOBODY, _MANY = 0, -1
# A place in blocks of what several threads have read.
_SEVERAL = -1


class _Accessed(NamedTuple):
    """Who has accessed each byte last, and when."""

    by: npt.NDArray[np.int32]
    at: npt.NDArray[np.int64]

    @classmethod
    def nothing(cls, size: int) -> _Accessed:
        # Zeros take no memory and no time until they are touched.
        return cls(np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.int64))


class _Memory:
    """The memory behind some of a launch's tensors: bytes from `begin` to `end`."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.written, self.read = _Accessed.nothing(end - begin), _Accessed.nothing(end - begin)
        # Where in a block each byte was read last.
        self.read_as = np.zeros(end - begin, dtype=np.int32)


class _Places(NamedTuple):
    """What an operation accesses: [n] addresses, and [n] where in its block each is; `_SEVERAL` of a scalar, which every thread reads."""

    addresses: npt.NDArray[Any]
    in_block: npt.NDArray[np.int32]


class _Launch:
    """One kernel's programs so far, and the program that runs."""

    def __init__(self, name: str, memories: list[_Memory]) -> None:
        self.name = name
        self.memories = memories
        self.order: list[tuple[int, int, int]] = []
        # Counted from 1.
        self.program = 0
        self._clock = 0
        self._barrier_at = 0
        # By place, of each program: when it last changed it, and before which barrier its accesses were that it lets others know of.
        self._changed: dict[int, dict[int, int]] = {}
        self._released: dict[int, dict[int, int]] = {}

    def begin(self, program: int) -> None:
        self.program, self._barrier_at = program, self._tick()

    def barrier(self) -> None:
        self._barrier_at = self._tick()

    def atomic(self, places: npt.NDArray[Any], size: int) -> None:
        for _ in self._accesses(_Places(places, np.zeros(places.size, dtype=np.int32)), size):
            pass
        now = self._tick()
        for place in np.unique(places).tolist():
            self._changed.setdefault(self.program, {})[place] = now
            self._released.setdefault(self.program, {})[place] = self._barrier_at
        # Its result is handed to all threads of a program behind a barrier.
        self._barrier_at = self._tick()

    def load(self, places: _Places, size: int) -> None:
        now = self._tick()
        for memory, at, as_ in self._accesses(places, size):
            self._check(memory.written, at, "reads what was written by")
            assert not self._is_fresh(memory.written, at).any(), (
                f"{self._who} reads what its threads have written, and no barrier is between"
            )
            is_shared = self._is_fresh(memory.read, at) & (memory.read_as[at] != as_)
            memory.read_as[at] = np.where(is_shared, _SEVERAL, as_)
            by = memory.read.by[at]
            memory.read.by[at] = np.where((by == _NOBODY) | (by == self.program), self.program, _MANY)
            memory.read.at[at] = now

    def store(self, places: _Places, size: int) -> None:
        now = self._tick()
        for memory, at, as_ in self._accesses(places, size):
            self._check(memory.written, at, "writes what was written by")
            self._check(memory.read, at, "writes what was read by")
            read_as = memory.read_as[at]
            is_read = self._is_fresh(memory.read, at) & ((read_as != as_) | (read_as == _SEVERAL))
            assert not is_read.any(), f"{self._who} writes what its other threads read, and no barrier is between"
            memory.written.by[at], memory.written.at[at] = self.program, now

    def _is_fresh(self, accessed: _Accessed, at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether this program has accessed it since its last barrier."""
        is_fresh: npt.NDArray[np.bool_] = (accessed.by[at] == self.program) & (accessed.at[at] > self._barrier_at)
        return is_fresh

    @property
    def _who(self) -> str:
        return f"{self.name}: program {self.order[self.program - 1]}"

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _accesses(self, places: _Places, size: int) -> Iterator[tuple[_Memory, npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
        """Where in which memory each byte of each element is, and where in its block the element."""
        left, as_ = places.addresses.astype(np.int64), places.in_block
        while left.size:
            memory = next((one for one in self.memories if one.begin <= left[0] < one.end), None)
            assert memory is not None, f"{self._who} accesses address {left[0]}, which is no tensor's"
            inside = (left >= memory.begin) & (left <= memory.end - size)
            assert inside[0], f"{self._who} accesses the end of a tensor and what is behind it"
            for byte in range(size):
                yield memory, left[inside] - memory.begin + byte, as_[inside]
            left, as_ = left[~inside], as_[~inside]

    def _check(self, accessed: _Accessed, at: npt.NDArray[np.int64], what: str) -> None:
        by = accessed.by[at]
        others = (by != _NOBODY) & (by != self.program)
        if not others.any():
            return
        if (by == _MANY).any():
            assert self.program in self._changed, f"{self._who} {what} more than one program, and nothing orders them"
        for other in np.unique(by[others & (by != _MANY)]).tolist():
            last = int(accessed.at[at][by == other].max())
            mine, theirs = self._changed.get(self.program, {}), self._released.get(other, {})
            is_ordered = any(place in mine and last < released for place, released in theirs.items())
            assert is_ordered, f"{self._who} {what} program {self.order[other - 1]}, and nothing orders them"


_launch = _Launch("nothing", [])
_random = random.Random(0)
_is_on = True


def _memories(values: Iterator[Any]) -> list[_Memory]:
    storages: dict[int, int] = {}
    for value in values:
        if isinstance(value, torch.Tensor) or hasattr(value, "data_ptr"):
            storage = interpreter._unwrap_tensor(value).untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return [_Memory(begin, begin + size) for begin, size in storages.items()]


def _begin_launch(self: Any, arguments: Any, named: Any) -> Any:
    global _launch
    positional, keywords = _arguments_of(self, arguments, named)
    _launch = _Launch(self.fn.__name__, _memories(iter([*positional, *keywords.values()])) if _is_on else [])
    return positional, keywords


def _shuffle(self: Any, x: int, y: int, z: int) -> None:
    _set_grid_dim(self, x, y, z)
    order = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
    _random.shuffle(order)
    _launch.order = order


def _next_program(self: Any, x: int, y: int, z: int) -> None:
    _, height, depth = self.grid_dim
    index = (x * height + y) * depth + z
    _launch.begin(index + 1)
    _set_grid_idx(self, *_launch.order[index])


def _active(places: Any, mask: Any) -> _Places:
    shape = np.broadcast_shapes(places.data.shape, mask.data.shape)
    is_active = np.broadcast_to(mask.data, shape).astype(bool).ravel()
    addresses = np.broadcast_to(places.data, shape).ravel()
    in_block = np.arange(addresses.size, dtype=np.int32) if addresses.size > 1 else np.full(1, _SEVERAL, dtype=np.int32)
    return _Places(addresses[is_active], in_block[is_active])


def _size(places: Any) -> int:
    return int(interpreter._get_np_dtype(places.get_element_ty()).itemsize)


def _checked_load(self: Any, places: Any, mask: Any, *rest: Any, **named: Any) -> Any:
    if _is_on:
        _launch.load(_active(places, mask), _size(places))
    return _load(self, places, mask, *rest, **named)


def _checked_store(self: Any, places: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
    if _is_on:
        _launch.store(_active(places, mask), _size(places))
    return _store(self, places, value, mask, *rest, **named)


def _checked_atomic_rmw(self: Any, operation: Any, places: Any, value: Any, mask: Any, *rest: Any) -> Any:
    if _is_on:
        _launch.atomic(_active(places, mask).addresses, _size(places))
    return _atomic_rmw(self, operation, places, value, mask, *rest)


def _checked_atomic_cas(self: Any, place: Any, *rest: Any) -> Any:
    if _is_on:
        _launch.atomic(place.data.ravel(), _size(place))
    return _atomic_cas(self, place, *rest)


def _checked_barrier(self: Any) -> None:
    _launch.barrier()


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Accesses are not looked at: of whole engines, whose kernels have tests of their own, and of steps that are measured and mean nothing."""
    global _is_on
    _is_on = False
    try:
        yield
    finally:
        _is_on = True


def install() -> None:
    """Looks at all launches from now on; what goes wrong is raised as the interpreter raises errors of kernels."""
    interpreter.GridExecutor._init_args_hst = _begin_launch
    _Builder.set_grid_dim = _shuffle
    _Builder.set_grid_idx = _next_program
    _Builder.create_masked_load = _checked_load
    _Builder.create_masked_store = _checked_store
    _Builder.create_atomic_rmw = _checked_atomic_rmw
    _Builder.create_atomic_cas = _checked_atomic_cas
    _Builder.create_barrier = _checked_barrier
