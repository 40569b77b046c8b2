"""How the prefix cache has changed since somebody last looked, by the hashes of its pages."""

from __future__ import annotations

from compute_svc.kv.radix_node import Node


class CacheChanges:
    """Gathers what has entered and left while somebody watches, and costs nothing while nobody does: hashes are computed only then."""

    def __init__(self) -> None:
        # Whether a page is there now; None = nobody watches.
        self._is_cached: dict[int, bool] | None = None

    def watch(self) -> None:
        """Begins to gather, with nothing."""
        self._is_cached = {}

    def unwatch(self) -> None:
        """Undoes `watch`."""
        self._is_cached = None

    def note(self, node: Node, *, is_cached: bool) -> None:
        """A node's page has entered, or leaves now."""
        if self._is_cached is not None:
            self._is_cached[node.hash] = is_cached

    def take(self) -> tuple[list[int], list[int]]:
        """Hashes of pages that have entered and of those that have left since the last call: the last change of each page counts."""
        if not self._is_cached:
            return [], []
        changes, self._is_cached = self._is_cached, {}
        return [page for page, is_here in changes.items() if is_here], [page for page, is_here in changes.items() if not is_here]
