"""What an engine holds and what its prefix cache has been good for, gathered from where it is counted."""

from __future__ import annotations

from compute_svc.kv.radix_tree import RadixTree
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.step_output import KvChanges, Load, PrefixStats


def load_of(scheduler: Scheduler, *, steps: int, prefill_tokens: int, decode_tokens: int) -> Load:
    """How full an engine is.

    Args:
        scheduler: Of the engine.
        steps: Computed since it was built, and tokens likewise.
    """
    memory = scheduler.memory
    free, cached, pinned = memory.pool.num_free, memory.tree.evictable_pages, memory.tree.idle_pinned_pages
    return Load(
        running_requests=scheduler.num_running,
        waiting_requests=scheduler.num_waiting,
        used_pages=scheduler.config.num_pages - free - cached - pinned,
        cached_pages=cached,
        free_pages=free,
        steps=steps,
        preemptions=scheduler.num_preemptions,
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        cached_tokens=scheduler.num_cached_tokens,
        pinned_pages=pinned,
    )


def prefix_stats_of(memory: KvMemory) -> PrefixStats:
    """Of an engine's KV memory."""
    tree = memory.tree
    return PrefixStats(
        cached_pages=tree.num_pages,
        evictable_pages=tree.evictable_pages,
        pinned_pages=tree.pinned_pages,
        max_pinned_pages=memory.max_pinned_pages,
        tenants=tree.num_tenants,
        looked_up_tokens=memory.looked_up_tokens,
        hit_tokens=memory.hit_tokens,
        stored_pages=tree.stored_pages,
        evicted_pages=tree.evicted_pages,
        pins=tree.pinned(),
    )


class PrefixReport:
    """Tells whoever watches how the prefix cache changes.

    Args:
        tree: The cache.
    """

    def __init__(self, tree: RadixTree) -> None:
        self._tree = tree
        self._has_watcher = False
        self.is_due = False
        """Whether a new watcher is still to be told what there is."""

    def watch(self, wanted: bool) -> None:
        """From now on changes are told, what there is first; or they are told no longer."""
        self._has_watcher = self.is_due = wanted
        if not wanted:
            self._tree.unwatch()

    def take(self) -> KvChanges | None:
        """What has changed since it was told last; None = nothing, or nobody watches."""
        if not self._has_watcher:
            return None
        if self.is_due:
            self.is_due = False
            return KvChanges(True, self._tree.watch(), [])
        stored, removed = self._tree.take_changes()
        return KvChanges(False, stored, removed) if stored or removed else None
