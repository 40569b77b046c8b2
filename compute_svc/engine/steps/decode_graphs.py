"""Decode steps as CUDA graphs: a step of few kernels' time would otherwise wait for Python to launch them one by one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kernels.draw import draw_into, has_kernel
from compute_svc.kernels.host.host_copy import to_device
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import NO_SLOT, DecodeColumns
from compute_svc.models.causal_lm import CausalLM
from compute_svc.scheduler.base import SchedulerConfig

_log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]

# cuBLAS and Triton set up what they need when they first run, which no graph may record.
_WARM_UPS = 2


class Recorded(NamedTuple):
    """A computation that can be run again: `replay` computes anew from what its inputs hold then, and `output` is where its result is."""

    replay: Callable[[], None]
    output: torch.Tensor


class Recorder(Protocol):
    """Makes computations that can be run again."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        """Records what `compute` does to tensors that stay where they are."""
        ...


class CudaRecorder:
    """CUDA graphs, in one memory pool: their results are to be copied before another one runs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor]) -> Recorded:
        """See `Recorder`."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's streams have no types
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = compute()
        return Recorded(graph.replay, output)


class DecodeRows(NamedTuple):
    """What a decode step computes, on the host: n rows.

    Attributes:
        positions: [n] int64, of the tokens.
        slots: [n] int64, where their keys and values go.
        kv_lengths: [n] int64, the tokens themselves included.
        page_table: [n, pages] int64.
    """

    positions: Ids
    slots: Ids
    kv_lengths: Ids
    page_table: Ids


class DecodeGraphs:
    """A graph for each of few numbers of rows; a step is padded to the next of them.

    Args:
        decode: Logits [B, width] of B rows; may not wait for the device, and for the same B does the same whatever the columns hold.
        max_requests: Most rows of a step.
        max_pages: Most pages of a request.
        device: Where the model is.
        recorder: Makes graphs.
    """

    def __init__(
        self,
        decode: Callable[[DecodeColumns], torch.Tensor],
        *,
        max_requests: int,
        max_pages: int,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self._sizes = graph_sizes(max_requests)
        self._device = device
        self._columns = self._make_columns()
        self._page_table = torch.zeros((self._sizes[-1], max_pages), dtype=torch.int64, device=device)
        self._graphs: dict[int, Recorded] = {}
        with torch.inference_mode():
            # From the largest on: the smaller ones fit into the memory it takes.
            for size in reversed(self._sizes):
                self._graphs[size] = recorder.record(self._computation(decode, size))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that there are graphs of."""
        return self._sizes

    def run(self, rows: DecodeRows, token_ids: Ids | torch.Tensor | None, chosen: Ids | None = None) -> torch.Tensor:
        """[n, width] float32, new memory: logits of rows, without waiting for the device.

        Args:
            rows: What is computed; not empty, and no more than max_requests.
            token_ids: [n] int64 of the host; or more of the device, of which some are chosen; None = another rank's are taken.
            chosen: [n] int64, which of the device's; None = the first n.
        """
        count = len(rows.positions)
        size = self._size_for(count)
        columns = np.zeros((4, size), dtype=np.int64)
        columns[2, count:] = NO_SLOT
        columns[1:, :count] = rows.positions, rows.slots, rows.kv_lengths
        arrays: list[Ids] = [columns, rows.page_table]
        if isinstance(token_ids, np.ndarray):
            columns[0, :count] = token_ids
        elif chosen is not None:
            arrays.append(chosen)
        with torch.inference_mode():
            sent = to_device(arrays, self._device)
            self._columns[:, :size].copy_(sent[0])
            self._page_table[:count, : rows.page_table.shape[1]].copy_(sent[1])
            if isinstance(token_ids, torch.Tensor):
                some = token_ids[:count] if chosen is None else token_ids.index_select(0, sent[2])
                self._columns[0, :count].copy_(some)
            graph = self._graphs[size]
            graph.replay()
            # A copy: the next step may be computed before this one's logits are done with.
            return graph.output[:count].clone()

    def _make_columns(self) -> torch.Tensor:
        """What graphs read of the most rows: token ids, positions, slots, lengths of KV; all of them padding."""
        columns = torch.zeros((4, self._sizes[-1]), dtype=torch.int64, device=self._device)
        columns[2] = NO_SLOT
        return columns

    def _computation(self, decode: Callable[[DecodeColumns], torch.Tensor], size: int) -> Callable[[], torch.Tensor]:
        """What is recorded for so many rows; it gives their logits."""
        token_ids, positions, slots, kv_lengths = self._columns[:, :size].unbind(0)
        return partial(decode, DecodeColumns(token_ids, positions, slots, kv_lengths, self._page_table[:size]))

    def _size_for(self, count: int) -> int:
        return next(size for size in self._sizes if size >= count)


def decode_graphs(
    model: CausalLM, kv: KvPageStore, config: SchedulerConfig, kind: Callable[..., DecodeGraphs] = DecodeGraphs
) -> Callable[[int], DecodeGraphs] | None:
    """What makes the graphs of a model's decode steps, given the most pages of a request; None = it takes none on its device.

    Args:
        model: Computes them; on several ranks, all must record theirs at the same time.
        kv: Its keys and values.
        config: Sizes.
        kind: What is made, with the arguments of `DecodeGraphs`. Those themselves draw, too, where one rank has the model: `DrawingGraphs`.
    """
    if not model.takes_graphs(kv):
        return None
    has_alone = model.head is not None and model.head.ranks.size == 1
    draws = kind is DecodeGraphs and has_alone and has_kernel(model.device.type)

    def make(max_pages: int) -> DecodeGraphs:
        from compute_svc.engine.steps.drawing_graphs import DrawingGraphs  # noqa: PLC0415 - they are made of what is here

        began = time.perf_counter()
        make_kind = kind
        if draws:
            make_kind = partial(DrawingGraphs, page_size_tokens=config.page_size_tokens, draw_into=draw_into)
        graphs = make_kind(
            partial(model.decode, kv=kv, max_tokens=config.max_request_tokens),
            max_requests=config.max_running_requests,
            max_pages=max_pages,
            device=model.device,
            recorder=CudaRecorder(),
        )
        what = "decode steps and their draws" if draws else "decode steps"
        _log.info("%s are CUDA graphs of %s rows, made in %.1f s", what, graphs.sizes, time.perf_counter() - began)
        return graphs

    return make


def graph_sizes(max_requests: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then every eighth number to 64 and every 32nd behind it, until there are enough."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < max_requests:
        sizes.append(sizes[-1] + (8 if sizes[-1] < 64 else 32))
    while len(sizes) > 1 and sizes[-2] >= max_requests:
        sizes.pop()
    return tuple(sizes)


def page_columns(kv_lengths: Sequence[int] | Ids, page_size_tokens: int) -> int:
    """Pages of the longest of some requests."""
    return -(-int(np.max(kv_lengths)) // page_size_tokens)
