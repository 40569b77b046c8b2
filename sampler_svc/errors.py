"""The sampler's own errors.

Internal
└── Disagreement   compute sent what the contract excludes for one request; the request fails, its stream goes on
"""

from __future__ import annotations

from triserve.rpc.errors import Internal


class Disagreement(Internal):
    """Compute and sampler disagree about a request.

    Args:
        detail: what is wrong, for the log; the caller is told no more than that it is our fault.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("internal error: compute and sampler disagree about the request")
        self.detail = detail
