"""The largest steps that an engine can compute, so that what they take of a device's memory is known before the first request comes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.drawing.prompt_logprobs import prompt_rows
from compute_svc.engine.start.device_memory import DeviceMemory, MemoryFigures, graph_bytes, kept_bytes
from compute_svc.engine.steps.decode_graphs import graph_sizes
from compute_svc.engine.steps.step_drawing import DrawConfig, StepDrawing
from compute_svc.kv.kv_format import KvFormat
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import NO_SLOT, DecodeColumns, ForwardBatch
from compute_svc.models.causal_lm import CausalLM
from compute_svc.scheduler.base import MAX_READ_TOKENS, RequestState
from compute_svc.wire.request import Request
from triserve.rpc import limits
from triserve.rpc.sampling import Grammar, Sampling

# Pages that stand for all: what a step takes does not depend on what they hold.
_NUM_PAGES = 4
_PROMPT_TOKENS = 8


class StepSizes(NamedTuple):
    """Limits of steps.

    Attributes:
        budget_tokens: Most tokens of a step.
        max_requests: Most requests of a step.
        longest_tokens: Most tokens of a request that are in pages.
        max_positions: Most tokens of a request, those included that are in pages no more.
        page_size_tokens: Tokens of a page.
    """

    budget_tokens: int
    max_requests: int
    longest_tokens: int
    max_positions: int
    page_size_tokens: int

    @property
    def max_pages(self) -> int:
        """Of a request."""
        return -(-self.longest_tokens // self.page_size_tokens)


class LargestSteps:
    """Runs them, over a store of a few pages that stand for all.

    Args:
        model: What computes.
        kv_format: What keys and values are stored as.
        sizes: Limits of steps.
        takes_graphs: Whether decode steps may become graphs, where the model takes any.
    """

    def __init__(self, model: CausalLM, kv_format: KvFormat, sizes: StepSizes, *, takes_graphs: bool) -> None:
        config = model.config
        shape = (config.num_layers, _NUM_PAGES, sizes.page_size_tokens, config.num_kv_heads, config.kv_head_dim)
        self._model = model
        self._sizes = sizes
        self._kv = KvPageStore(*shape, kv_format.dtype, model.device, group=kv_format.group)
        self._takes_graphs = takes_graphs and model.takes_graphs(self._kv)

    def measure(self, memory: DeviceMemory) -> MemoryFigures:
        """What they take of a device; the store is not counted, and must be gone before the real one is made.

        Raises:
            ValueError: The device has not even room for them.
        """
        try:
            step, graphs = self._peaks(memory)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the largest step does not fit beside the weights: lower COMPUTE_STEP_BUDGET_TOKENS, COMPUTE_MAX_RUNNING_REQUESTS or "
                f"COMPUTE_MAX_MODEL_LEN_TOKENS ({error})"
            ) from error
        total, free = memory.total_bytes, memory.free_bytes()
        store = self._kv.bytes_per_page * _NUM_PAGES
        return MemoryFigures(total, total - free - store, step, graphs)

    def _peaks(self, memory: DeviceMemory) -> tuple[int, int]:
        """What a step takes, and what graphs do."""
        width, most, graphs = self._model.config.vocab_size, self._sizes.max_requests, 0
        before, step = memory.tensor_bytes(), 0
        for batch in largest_batches(self._sizes, width):
            memory.reset_peak()
            self._run(batch)
            step = max(step, memory.peak_bytes() - before)
        if self._takes_graphs:
            sizes = graph_sizes(most)
            memory.reset_peak()
            self._decode(sizes[-1])
            graphs = graph_bytes(memory.peak_bytes() - before, sizes, width, self._sizes.max_pages)
        # Logits are the first stage's.
        return step + kept_bytes(most, width) * self._model.config.has_ends, graphs

    @torch.inference_mode()
    def _run(self, batch: ForwardBatch) -> None:
        """Computes a batch, and draws and reads of it all that can be."""
        output = self._model.forward_with_hidden(batch, self._kv)
        if not self._model.config.has_ends:
            return
        told = min(MAX_READ_TOKENS, len(output.logits))
        num_drawn = min(len(output.logits), batch.num_requests)
        draw_widest(output.logits[:num_drawn])
        prompt_rows(output.logits[:told], np.zeros(told, dtype=np.int64), limits.MAX_PROMPT_LOGPROBS)

    def _decode(self, count: int) -> None:
        zeros = torch.zeros((3, count), dtype=torch.int64, device=self._model.device)
        pages = torch.zeros((count, self._sizes.max_pages), dtype=torch.int64, device=self._model.device)
        columns = DecodeColumns(zeros[0], zeros[1], torch.full_like(zeros[2], NO_SLOT), torch.ones_like(zeros[2]), pages)
        self._model.decode(columns, self._kv, max_tokens=self._sizes.longest_tokens)


def largest_batches(sizes: StepSizes, width: int) -> Iterator[ForwardBatch]:
    """A long prompt, as many short ones as there can be, and as many decode rows beside a prompt; all of them behind as much as there can be.

    Every row that can be told of is, and every token's hidden state.

    Args:
        sizes: Limits of steps.
        width: Of logits: token ids are below.
    """
    budget, longest, most = sizes.budget_tokens, sizes.longest_tokens, sizes.max_requests
    yield _batch(sizes, width, 0, [min(budget, longest)])
    yield _batch(sizes, width, 0, [min(budget // most, longest)] * most)
    yield _batch(sizes, width, most, [1] * most + [min(budget - most, longest)] * (budget > most))


def _batch(sizes: StepSizes, width: int, num_decodes: int, query_lengths: list[int]) -> ForwardBatch:
    starts = (0, *accumulate(query_lengths))
    longest, page_size, count = sizes.longest_tokens, sizes.page_size_tokens, len(query_lengths)
    # Each request's last tokens.
    places = torch.cat([torch.arange(longest - length, longest) for length in query_lengths])
    pages = torch.arange(sizes.max_pages) % _NUM_PAGES
    told = torch.arange(num_decodes, starts[-1])
    return ForwardBatch(
        token_ids=torch.arange(starts[-1]) % width,
        positions=places + (sizes.max_positions - longest),
        slots=pages[places // page_size] * page_size + places % page_size,
        num_decodes=num_decodes,
        query_starts=starts,
        kv_lengths=(longest,) * count,
        page_table=pages.expand(count, -1).contiguous(),
        logit_rows=torch.cat((torch.tensor(starts[1:]) - 1, told[:MAX_READ_TOKENS])),
        begun_pages=torch.empty(0, dtype=torch.int64),
        position_limit=sizes.max_positions,
        hidden_rows=told if len(told) else None,
    )


def draw_widest(logits: torch.Tensor) -> None:
    """Draws a token of each row with everything that a request can ask for.

    Args:
        logits: [rows, width] float32.
    """
    rows, width = logits.shape
    drawing = StepDrawing(width, logits.device, DrawConfig())
    sampling = _widest(width)
    mask = np.zeros(width, dtype=np.bool_)
    mask[:2] = True
    states = []
    for number in range(rows):
        prompt = np.arange(_PROMPT_TOKENS) % width
        state = RequestState(Request(number, "", prompt, np.empty(0, dtype=np.int64), 2, 0.0, sampling=sampling), number)
        draw = state.draw = drawing.open(state.request)
        draw.set_mask(0, mask)
        states.append(state)
    drawing.draw(states, np.full(rows, _PROMPT_TOKENS), logits)


def _widest(width: int) -> Sampling:
    named = tuple(range(min(width, limits.MAX_LOGPROB_TOKEN_IDS)))
    return Sampling(
        top_p=0.95,
        min_p=0.01,
        typical_p=0.95,
        top_n_sigma=3.0,
        xtc_probability=1.0,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        dry_multiplier=0.5,
        logit_bias_ids=named,
        logit_bias_values=(0.5,) * len(named),
        seed=0,
        top_logprobs=limits.MAX_TOP_LOGPROBS,
        logprob_token_ids=named,
        grammar=Grammar("regex", ""),
    )
