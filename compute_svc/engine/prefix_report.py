"""What the prefix cache holds and has been good for, gathered from where it is counted."""

from __future__ import annotations

from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.wire.step_output import PrefixStats


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
