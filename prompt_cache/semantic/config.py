"""What the semantic cache may do; the gateway's settings fill it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prompt_cache.vectors.vector_store import StoreLimits

Mode = Literal["shadow", "on"]
Choice = Literal["first", "freshest", "softmax"]


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """Bounds and policy.

    Attributes:
        mode: "shadow" serves nothing, and counts and checks what would have been.
        threshold: Least cosine; None = the default for the embedder.
        ttl_s: How long an entry stays.
        neighbours: How many entries near a question are looked at.
        choice: Which of several that may be served is: the nearest, the one whose answer was made last, or one at random, nearer ones likelier.
        learned: Whether an entry is served only once comparisons with the model have shown how near is near enough (vCache), and not as long
            as none has shown the contrary.
        audited_share: Of hits, how many go to the model too and are compared.
        grey_margin: How far below the threshold an entry is explored where there is a judge, and served once the bound allows it.
        max_wrong_share: Budget of wrong hits of a scope, which switches itself off beyond it.
        lookup_timeout_s: Of embedding and search together.
        max_question_bytes: Longest question that is looked at, in UTF-8.
        max_entry_bytes: Longest answer that is kept, in UTF-8.
        limits: Of one scope.
    """

    mode: Mode = "on"
    threshold: float | None = None
    ttl_s: float = 86400.0
    neighbours: int = 4
    choice: Choice = "first"
    learned: bool = False
    audited_share: float = 0.02
    grey_margin: float = 0.1
    max_wrong_share: float = 0.01
    lookup_timeout_s: float = 0.025
    max_question_bytes: int = 4096
    max_entry_bytes: int = 256 * 1024
    limits: StoreLimits = field(default_factory=StoreLimits)
