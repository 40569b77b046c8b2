"""Bounds what a process keeps of all scopes together."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class ResidentScopes(Generic[T]):
    """Something per scope, with its size; when all together are too large, what was used longest ago goes.

    Args:
        max_bytes: of all together; the one used last stays, whatever its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Least recently used first.
        self._items: OrderedDict[str, T] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def use(self, scope: str) -> T | None:
        """What is kept of a scope, which is now the last one used."""
        item = self._items.get(scope)
        if item is not None:
            self._items.move_to_end(scope)
        return item

    def keep(self, scope: str, item: T, num_bytes: int) -> None:
        """Keeps an item of this size, in place of the one of that scope. Effects: drops others."""
        self.drop(scope)
        self._items[scope] = item
        self._sizes[scope] = num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes and len(self._items) > 1:
            self.drop(next(iter(self._items)))

    def drop(self, scope: str) -> None:
        """Forgets a scope, if it is kept."""
        if self._items.pop(scope, None) is not None:
            self.num_bytes -= self._sizes.pop(scope)
