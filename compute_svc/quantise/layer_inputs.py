"""What the matrices of a layer are multiplied by while it reads calibration windows: their second moments, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from compute_svc.kernels.gated_linear import gated_linear
from compute_svc.kernels.linear import linear
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.decoder_layer import DecoderLayer, ParallelDecoderLayer, PostLnDecoderLayer
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.layers.mlp import ExpertMlp, Mlp
from compute_svc.layers.step import Step
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.weight_names import WeightNames

Layer = DecoderLayer | ParallelDecoderLayer | PostLnDecoderLayer

_PAGE_TOKENS = 16
_SAMPLE_STEP = 32
_SAMPLED_WINDOWS = 16


@dataclass(slots=True)
class InputMoments:
    """What is kept of rows x [n, K] of a matrix's inputs.

    Attributes:
        gram: [K, K] float64, the sum of x^T x.
        absolute: [K] float64, the sum of |x|.
        largest: [K] float32, the largest |x|.
        count: n.
        sample: Some of the rows, the first of every window among them: what a text begins with is often an outlier.
    """

    gram: torch.Tensor
    absolute: torch.Tensor
    largest: torch.Tensor
    count: int = 0
    sample: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, num_inputs: int) -> InputMoments:
        """Of no rows."""
        wide = torch.zeros((num_inputs, num_inputs), dtype=torch.float64)
        return cls(wide, wide.new_zeros(num_inputs), torch.zeros(num_inputs))

    def add(self, x: torch.Tensor) -> None:
        """Takes rows [n, K] float32 of a window."""
        self.gram += x.t() @ x
        self.absolute += x.abs().sum(dim=0)
        self.largest = torch.maximum(self.largest, x.abs().amax(dim=0))
        self.count += len(x)
        if len(self.sample) < _SAMPLED_WINDOWS:
            self.sample.append(x[::_SAMPLE_STEP].clone())

    @property
    def mean_absolute(self) -> torch.Tensor:
        """[K] float32, the mean of |x|."""
        return (self.absolute / max(1, self.count)).float()


class CalibrationPass:
    """The calibration windows on their way through a model, layer by layer.

    Args:
        shell: The model without its layers.
        windows: [windows, tokens] int64 ids; tokens a multiple of 32.
        names: What the family calls its tensors.

    Attributes:
        steps: Of each window.
        hidden: Of each window, [tokens, hidden size], what the next layer reads.
    """

    def __init__(self, shell: CausalLM, windows: torch.Tensor, names: WeightNames) -> None:
        config = shell.config
        self._names = names
        self.steps: list[Step] = []
        self.hidden: list[torch.Tensor] = []
        # Every layer in turn writes into the first one's pages.
        pages = -(-windows.shape[1] // _PAGE_TOKENS)
        kv = KvPageStore(config.num_layers, pages, _PAGE_TOKENS, config.num_kv_heads, config.kv_head_dim, shell.dtype, shell.device)
        self._kv = kv.kv(0)
        assert shell.embedding is not None, "a shell is of a whole model"
        for window in windows:
            batch = _batch(window)
            self.steps.append(shell.prepare(batch, batch.positions, kv))
            self.hidden.append(shell.embedding.forward(window, batch.positions))

    def inputs(self, layer: Layer, prefix: str) -> dict[str, InputMoments]:
        """Of each of a layer's matrices, by module; those that read the same share one. Nothing of experts that no token came to."""
        moments: dict[str, InputMoments] = {}
        for hidden, step in zip(self.hidden, self.steps, strict=True):
            for modules, rows in self._rows(layer, prefix, hidden, step):
                if modules[0] not in moments:
                    moments |= dict.fromkeys(modules, InputMoments.of(rows.shape[1]))
                moments[modules[0]].add(rows)
        return moments

    def advance(self, layer: Layer) -> None:
        """Goes on to the next layer with what this one makes of the hidden states."""
        self.hidden = [layer.forward(hidden, self._kv, step) for hidden, step in zip(self.hidden, self.steps, strict=True)]

    def _rows(self, layer: Layer, prefix: str, hidden: torch.Tensor, step: Step) -> Iterator[tuple[list[str], torch.Tensor]]:
        names = self._names
        norm = None if isinstance(layer, PostLnDecoderLayer) else layer.attention_norm
        x = hidden if norm is None else norm.forward(hidden)
        yield [prefix + name for name in names.qkv], x
        attention = layer.attention.forward(x, None, self._kv, step)
        yield [prefix + names.output], step.attended
        yield from self._mlp_rows(layer.mlp, prefix, _mlp_input(layer, hidden, x, attention))

    def _mlp_rows(self, mlp: Mlp | ExpertMlp, prefix: str, x: torch.Tensor) -> Iterator[tuple[list[str], torch.Tensor]]:
        names = self._names
        if isinstance(mlp, Mlp):
            yield [prefix + name for name in names.mlp_in], x
            yield [prefix + names.mlp_down], _between(mlp, x)
            return
        chosen = mlp.router.forward(x).chosen
        assert isinstance(mlp.experts, tuple), "experts are grouped on a device alone"
        parts = [
            (names.expert.format(number), expert, x[(chosen == number).any(dim=1)])
            for number, expert in enumerate(mlp.experts)
            if isinstance(expert, Mlp)
        ]
        if mlp.shared is not None:
            parts.append((names.shared_expert, mlp.shared, x))
        for inner, expert, rows in parts:
            if len(rows):
                yield [prefix + inner + name for name in names.expert_in], rows
                yield [prefix + inner + names.expert_down], _between(expert, rows)


def _mlp_input(layer: Layer, hidden: torch.Tensor, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """What the MLP reads, as the layers' own forward has it; x is what attention read."""
    if isinstance(layer, ParallelDecoderLayer):
        return x if layer.mlp_norm is None else layer.mlp_norm.forward(hidden)
    if isinstance(layer, PostLnDecoderLayer):
        return layer.attention_output_norm.forward(hidden + attention)
    if layer.attention_output_norm is not None:
        attention = layer.attention_output_norm.forward(attention)
    if layer.residual_scale is not None:
        attention = attention * layer.residual_scale
    hidden = hidden + attention
    return hidden if layer.mlp_norm is None else layer.mlp_norm.forward(hidden)


def _between(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    """What the projection back to the hidden size reads."""
    if mlp.gate is None:
        return linear(x, mlp.up, activation=mlp.activation)
    return gated_linear(x, mlp.gate, mlp.up, mlp.activation)


def _batch(window: torch.Tensor) -> ForwardBatch:
    """A window as one request in the first pages of a store."""
    length = len(window)
    places = torch.arange(length)
    return ForwardBatch(
        token_ids=window,
        positions=places,
        slots=places,
        num_decodes=0,
        query_starts=(0, length),
        kv_lengths=(length,),
        page_table=torch.arange(-(-length // _PAGE_TOKENS))[None],
        logit_rows=places,
        begun_pages=places[:0],
        position_limit=length,
    )
