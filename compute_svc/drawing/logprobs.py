"""Log-probabilities that the model gives, whatever requests change: of drawn tokens and of the likeliest ids."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.drawing import blocks
from compute_svc.drawing.arithmetic import exp_, log_, sort_rows
from compute_svc.drawing.ranking import head, pieces

_HEAD_BLOCKS = 32


class Logprobs(NamedTuple):
    """Of some rows.

    Attributes:
        told: [rows, n] float32, of the given tokens.
        ids: [rows, k] int64, by falling logit, then by rising id.
        values: [rows, k] float32, theirs.
        decided: [rows, 1] bool, whether these ids are known to be the likeliest.
    """

    told: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor
    decided: torch.Tensor


def logprobs(logits: torch.Tensor, tokens: torch.Tensor, k: int, *, whole_rows: bool) -> Logprobs:
    """Log-probabilities of tokens and of the k likeliest ids.

    Args:
        logits: [rows, width] float32, as the model gave them.
        tokens: [rows, n] int64, ids or, where none was drawn, anything; n at least 1.
        k: At most the width.
        whole_rows: Whether to rank whole rows, which decides every row.
    """
    width = logits.shape[1]
    if whole_rows:
        ids = torch.arange(width, device=logits.device).expand(logits.shape)
        keys = sort_rows(blocks.rank_keys(logits, ids))[:, :k]
        decided = torch.ones_like(tokens[:, :1], dtype=torch.bool)
    else:
        keys = head(logits, blocks.maxima(logits), _HEAD_BLOCKS).keys[:, :k]
        keys = torch.cat((keys, keys.new_full((len(keys), k - keys.shape[1]), blocks.WORST)), dim=1)
        decided = (keys != blocks.WORST).all(dim=1, keepdim=True)
    normaliser = _log_sum_exp(logits)
    told = logits.gather(1, tokens.clamp(0, width - 1))
    values = blocks.ranked_logits(keys).to(torch.float64) - normaliser
    return Logprobs((told.to(torch.float64) - normaliser).to(torch.float32), blocks.ranked_ids(keys), values.to(torch.float32), decided)


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """[rows, 1] float64."""
    best = logits.amax(dim=1, keepdim=True).to(torch.float64)
    totals = torch.empty_like(best)
    for start, end in pieces(logits):
        totals[start:end] = exp_(logits[start:end].to(torch.float64).sub_(best[start:end])).sum(dim=1, keepdim=True)
    return log_(totals).add_(best)
