"""Graphs of decode steps without CUDA: what is recorded is computed anew by any model, and drawn by the reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch

from compute_svc.engine.model import Model
from compute_svc.engine.steps.decode_graphs import DecodeGraphs, Recorded
from compute_svc.engine.steps.drawing_graphs import DrawingGraphs
from compute_svc.kernels.draw import BROKEN, DRAWN, UNDECIDED, DrawNumbers, reference
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import DecodeColumns, ForwardBatch, begun_pages
from compute_svc.scheduler.base import SchedulerConfig


class EagerRecorder:
    """Implements `Recorder`: a replay computes, and writes its result where the first one was, as a graph does."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        """See `Recorder`."""
        output = compute()

        def replay() -> None:
            output.copy_(compute())

        return Recorded(replay, output)


def eager_graphs(
    model: Model, kv: KvPageStore, config: SchedulerConfig, width: int, *, draws: bool = True
) -> Callable[[int], DecodeGraphs]:
    """As `decode_graphs` of a model on the CPU.

    Args:
        model: What computes.
        kv: Its keys and values.
        config: Sizes.
        width: Logits of a row.
        draws: Whether graphs draw.
    """

    def make(max_pages: int) -> DecodeGraphs:
        kind = partial(DrawingGraphs, page_size_tokens=config.page_size_tokens, draw_into=draw_rows) if draws else DecodeGraphs
        decode = partial(_decode, model=model, kv=kv, width=width)
        return kind(
            decode, max_requests=config.max_running_requests, max_pages=max_pages, device=torch.device("cpu"), recorder=EagerRecorder()
        )

    return make


def draw_rows(logits: torch.Tensor, numbers: DrawNumbers | None, out_tokens: torch.Tensor, out_flags: torch.Tensor | None) -> None:
    """As `draw_into`, by the reference; now and then it cannot decide top_k and top_p."""
    assert out_flags is not None and out_tokens.is_contiguous() and out_flags.is_contiguous(), "columns are given"
    for row, values in enumerate(logits.numpy()):
        settings = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        for place, column in enumerate(numbers or ()):
            settings[place] = settings[place] if column is None else column.view(-1)[row].item()
        seed, position, temperature, min_p, top_k, top_p = settings
        token = _drawn(values.tobytes(), int(seed), int(position), temperature, min_p, int(top_k), top_p)
        has_filters = temperature > 0 and (top_k > 0 or top_p < 1)
        out_tokens[row], out_flags[row] = (0, BROKEN) if token is None else (token, DRAWN)
        if token is not None and has_filters and position % 3 == 1:
            out_tokens[row], out_flags[row] = (token + 1) % len(values), UNDECIDED


@lru_cache(maxsize=4096)
def _drawn(logits: bytes, seed: int, position: int, temperature: float, min_p: float, top_k: int, top_p: float) -> int | None:
    unsigned = int(np.int64(seed).view(np.uint64))
    return reference.draw(np.frombuffer(logits, np.float32), unsigned, position, temperature, min_p, top_k, top_p)


def _decode(columns: DecodeColumns, model: Model, kv: KvPageStore, width: int) -> torch.Tensor:
    rows = [one.numpy() for one in columns]
    count = int((rows[3] > 0).sum())
    logits = torch.full((len(columns.token_ids), width), torch.nan)
    if not count:
        return logits
    assert (rows[2][count:] == -1).all(), "padding is written nowhere"
    token_ids, positions, slots, kv_lengths, table = (one[:count].copy() for one in rows)
    lengths = kv_lengths.tolist()
    pages = table[:, : -(-max(lengths) // kv.page_size_tokens)]
    begun = begun_pages(pages, [1] * count, lengths, kv.page_size_tokens)
    batch = ForwardBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        num_decodes=count,
        query_starts=tuple(range(count + 1)),
        kv_lengths=tuple(lengths),
        page_table=torch.from_numpy(pages),
        logit_rows=torch.arange(count),
        begun_pages=torch.from_numpy(begun),
        position_limit=int(positions.max()) + 1,
    )
    logits[:count] = model.forward(batch, kv)
    return logits
