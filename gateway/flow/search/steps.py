"""Tokens of sequences that a search looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A token that may come next."""

    token: int
    # Natural log of its probability under the model.
    logprob: float
    # Its own, a special token's name.
    token_bytes: bytes


class Probe(NamedTuple):
    """What a replica says of a sequence."""

    # The likeliest tokens behind it, falling.
    candidates: Sequence[Candidate]
    # Vectors that were asked for, little-endian float32.
    hidden: bytes


class Step(NamedTuple):
    """A token of a sequence."""

    chosen: Candidate
    # The likeliest in its place, falling, as far as they are reported.
    likeliest: Sequence[Candidate]
