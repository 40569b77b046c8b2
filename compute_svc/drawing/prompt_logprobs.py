"""Log-probabilities of tokens that are known: those of a prompt, each behind those before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.logprobs import logprobs
from compute_svc.drawing.looks import rows_at_once
from compute_svc.kernels.host.host_copy import rows_of, to_device


class PromptRows(NamedTuple):
    """Of some rows of logits.

    Attributes:
        logprobs: [rows] float32, of the tokens.
        ranks: [rows] int64, of the tokens by falling logit, then by rising id; 1 = the likeliest.
        top_ids: [rows, k] int64, in that order.
        top_logprobs: [rows, k] float32, theirs.
        is_finite: [rows] bool; what is said of a row that is not means nothing.
    """

    logprobs: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]
    is_finite: npt.NDArray[np.bool_]

    def of(self, start: int, end: int) -> PromptRows:
        """Those of a range of rows."""
        return PromptRows._make(column[start:end] for column in self)


def prompt_rows(logits: torch.Tensor, tokens: npt.NDArray[np.int64], num_top: int) -> PromptRows:
    """What rows of logits say of the tokens behind them.

    Args:
        logits: [rows, width] float32, at least one row; stays as it is.
        tokens: [rows], ids below the width.
        num_top: How many of the likeliest ids are wanted; fewer where there are fewer.
    """
    step, k = rows_at_once(logits), min(num_top, logits.shape[1])
    parts = [_piece(logits[start : start + step], tokens[start : start + step], k) for start in range(0, len(tokens), step)]
    return PromptRows._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _piece(logits: torch.Tensor, tokens: npt.NDArray[np.int64], k: int) -> PromptRows:
    columns = tokens[:, None]
    wanted = torch.from_numpy(columns) if logits.device.type == "cpu" else to_device([columns], logits.device)[0]
    found = logprobs(logits, wanted, k, whole_rows=False)
    top_ids, top_logprobs = found.ids.cpu().numpy(), found.values.cpu().numpy()
    undecided = np.flatnonzero(~found.decided.cpu().numpy()[:, 0]) if k else np.empty(0, dtype=np.int64)
    if undecided.size:
        places = undecided.tolist()
        closer = logprobs(rows_of(logits, places), rows_of(wanted, places), k, whole_rows=True)
        top_ids[undecided], top_logprobs[undecided] = closer.ids.cpu().numpy(), closer.values.cpu().numpy()
    own = logits.gather(1, wanted)
    ids = torch.arange(logits.shape[1], device=logits.device)
    ranks = 1 + (logits > own).sum(dim=1) + ((logits == own) & (ids < wanted)).sum(dim=1)
    is_finite = torch.isfinite(logits.amax(dim=1))
    return PromptRows(found.told[:, 0].cpu().numpy(), ranks.cpu().numpy(), top_ids, top_logprobs, is_finite.cpu().numpy())
