"""What drawing gives."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class RowStatus(Enum):
    """What became of a row."""

    DRAWN = "drawn"
    BROKEN = "broken"  # the largest logit that the model gave is NaN or infinite
    IMPOSSIBLE = "impossible"  # the changes ban every id


class RowLogprobs(NamedTuple):
    """Log-probabilities that the model gives, whatever the request changes.

    Attributes:
        logprob: Of the drawn token.
        top_ids: [top_logprobs, or as many as there are] uint32, by falling logit, then by rising id.
        top_logprobs: [as many] float32, theirs.
        named: Of the request's logprob_token_ids, in their order.
    """

    logprob: float
    top_ids: npt.NDArray[np.uint32]
    top_logprobs: npt.NDArray[np.float32]
    named: tuple[float, ...] = ()


class Drawn(NamedTuple):
    """What the rows of a step draw.

    Attributes:
        tokens: [rows] int64; undefined in rows that failed.
        failed: What became of rows that are not DRAWN, by place.
        logprobs: Of rows that are DRAWN and whose requests want them, by place.
        likely: [rows] int64, what `OnTokens` was told, where a row was looked at again and the tokens may be others; None = it was told those.
    """

    tokens: npt.NDArray[np.int64]
    failed: dict[int, RowStatus]
    logprobs: dict[int, RowLogprobs]
    likely: npt.NDArray[np.int64] | None = None
