"""Freed memory stays with the process."""

from __future__ import annotations

import resource

import torch

from compute_svc.kernels.host.host_memory import keep_freed_memory


def test_the_next_large_block_costs_no_page_faults() -> None:
    assert keep_freed_memory(), "tests run on glibc"
    faults = []
    # Several, because small things that fall into the hole a block has left make the next one go elsewhere.
    for _ in range(16):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = torch.ones(4 << 20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del block

    assert min(faults[1:]) < 64, f"16 MiB are 4096 pages; faults were {faults}"
