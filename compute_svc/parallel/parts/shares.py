"""Which part of a model each rank has: some heads and a part of every MLP's width (Megatron-LM, arXiv 1909.08053), and of the logits. Pure.

A rank's model is one of its family with fewer heads and narrower MLPs, so its tensors are parts of the checkpoint's: outputs of the projections into
heads and MLPs, inputs of those back to the hidden state. Norms, embeddings, routers and what makes latents are whole on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from compute_svc.models.config import Experts, ModelConfig
from compute_svc.models.weight_names import WeightNames


class Cut(NamedTuple):
    """A part of a tensor.

    Attributes:
        dim: The dimension that is cut.
        ranges: (start, stop) of what is taken along it, one behind the other.
    """

    dim: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """What is taken along the dimension."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def order(self) -> torch.Tensor:
        """[length] int64, where each of it lies."""
        return torch.cat([torch.arange(*span) for span in self.ranges])

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """That part; a view if it is one range. Of a memory map nothing else is read."""
        parts = [tensor.narrow(self.dim, start, stop - start) for start, stop in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of the part."""
        return (*whole[: self.dim], self.length, *whole[self.dim + 1 :])


class Share(NamedTuple):
    """Rank `rank` of `size`."""

    rank: int
    size: int

    def of(self, count: int) -> tuple[int, int]:
        """(start, stop) of this rank's among `count`, which the size divides."""
        each = count // self.size
        return self.rank * each, (self.rank + 1) * each

    def of_key_heads(self, config: ModelConfig) -> tuple[int, int]:
        """(start, stop) of the key heads that this rank's query heads look at; one that several ranks have if there are fewer heads than ranks."""
        count = config.num_kv_heads
        if count >= self.size:
            return self.of(count)
        first = self.rank * count // self.size
        return first, first + 1

    def of_vocabulary(self, vocab_size: int) -> tuple[int, int]:
        """(start, stop) of the ids whose logits this rank computes; the last ranks may have fewer than `vocabulary_width`."""
        width = vocabulary_width(vocab_size, self.size)
        return min(self.rank * width, vocab_size), min((self.rank + 1) * width, vocab_size)

    def config(self, whole: ModelConfig) -> ModelConfig:
        """What this rank's model is."""
        first, last = self.of(whole.num_heads)
        return replace(
            whole,
            num_heads=last - first,
            num_kv_heads=max(1, whole.num_kv_heads // self.size),
            intermediate_size=whole.intermediate_size // self.size,
            slopes=None if whole.slopes is None else whole.slopes[first:last],
            experts=None if whole.experts is None else self._experts(whole.experts),
        )

    def _experts(self, whole: Experts) -> Experts:
        return replace(whole, intermediate_size=whole.intermediate_size // self.size, shared_size=whole.shared_size // self.size)

    def cuts(self, whole: ModelConfig, names: WeightNames) -> dict[str, Cut]:
        """The part of each tensor that is not whole on every rank, by its name.

        Args:
            whole: The model; `require_divisible` has nothing against it.
            names: What the checkpoint calls its tensors.
        """
        found: dict[str, Cut] = {}
        if not whole.tie_word_embeddings:
            found |= _outputs(names.lm_head, self.of_vocabulary(whole.vocab_size))
        for index in range(whole.num_layers):
            prefix = names.layer.format(index)
            found |= {prefix + name: cut for name, cut in self._layer_cuts(whole, names, index)}
        return found

    def _layer_cuts(self, whole: ModelConfig, names: WeightNames, index: int) -> Iterator[tuple[str, Cut]]:
        heads = self.of(whole.num_heads)
        if whole.latent is None:
            yield from self._head_cuts(whole, names)
        else:
            value_dim = whole.value_dim or whole.head_dim
            yield from _outputs(names.latent_query, _scaled(heads, whole.head_dim)).items()
            yield from _outputs(names.latent_up, _scaled(heads, whole.latent.plain_dims + value_dim)).items()
        if whole.sink_logits:
            yield names.sink_logits, Cut(0, (heads,))
        yield _inputs(names.output, _scaled(heads, whole.value_dim or whole.head_dim), transposed=names.transposed)
        experts = whole.experts
        if experts is None or index not in experts.layers:
            yield from self._mlp_cuts(whole, names.mlp_in, names.mlp_down, whole.intermediate_size, transposed=names.transposed)
            return
        width = self.of(experts.intermediate_size)
        if names.expert_stacks:
            into, out = names.expert_stacks
            # Gates and ups in turn.
            yield from ((into, Cut(2, (_scaled(width, 2),))), (f"{into}_bias", Cut(1, (_scaled(width, 2),))), (out, Cut(1, (width,))))
            return
        for number in range(experts.count):
            for name, cut in self._mlp_cuts(whole, names.expert_in, names.expert_down, experts.intermediate_size):
                yield names.expert.format(number) + name, cut
        if experts.shared_size:
            for name, cut in self._mlp_cuts(whole, names.expert_in, names.expert_down, experts.shared_size):
                yield names.shared_expert + name, cut

    def _head_cuts(self, whole: ModelConfig, names: WeightNames) -> Iterator[tuple[str, Cut]]:
        queries, keys = self.of(whole.num_heads), self.of_key_heads(whole)
        spans: list[tuple[tuple[int, int], ...]]
        if len(names.qkv) == 3:
            spans = [(queries,), (keys,), (keys,)]
        elif names.qkv_layout == "blocks":
            first_value = whole.num_heads + whole.num_kv_heads
            spans = [(queries, _moved(keys, whole.num_heads), _moved(keys, first_value))]
        else:
            spans = [self._group_spans(whole)]
        for name, heads in zip(names.qkv, spans, strict=True):
            yield from _outputs(name, *(_scaled(span, whole.head_dim) for span in heads), transposed=names.transposed).items()

    def _group_spans(self, whole: ModelConfig) -> tuple[tuple[int, int], ...]:
        """Heads, stored as each key head's queries, its key and its value."""
        queries_each = whole.num_heads // whole.num_kv_heads
        first, last = self.of_key_heads(whole)
        if whole.num_kv_heads >= self.size:
            return (_scaled((first, last), queries_each + 2),)
        start = first * (queries_each + 2)
        queries = _moved(self.of(whole.num_heads), start - first * queries_each)
        return queries, (start + queries_each, start + queries_each + 2)

    def _mlp_cuts(
        self, whole: ModelConfig, into: tuple[str, ...], down: str, size: int, *, transposed: bool = False
    ) -> Iterator[tuple[str, Cut]]:
        width = self.of(size)
        both = whole.gated and len(into) == 1
        for name in into:
            yield from _outputs(name, width, *([_moved(width, size)] if both else []), transposed=transposed).items()
        yield _inputs(down, width, transposed=transposed)


def vocabulary_width(vocab_size: int, size: int) -> int:
    """Logits that each of so many ranks computes; those past the vocabulary are nobody's."""
    return -(-vocab_size // size)


def require_divisible(config: ModelConfig, size: int) -> None:
    """Refuses a model that so many ranks cannot share.

    Raises:
        ValueError: naming the variable and what stands against it.
    """
    counts = {"query heads": config.num_heads}
    experts = config.experts
    if experts is None or len(experts.layers) < config.num_layers:
        counts["numbers of an MLP's width"] = config.intermediate_size
    if experts is not None:
        counts["numbers of an expert's width"] = experts.intermediate_size
        counts["numbers of the shared expert's width"] = experts.shared_size
    wanted = f"COMPUTE_TENSOR_PARALLEL is {size}"
    for what, count in counts.items():
        if count % size:
            raise ValueError(f"{wanted}, which does not divide the {count} {what} of {config.architecture}")
    key_heads = config.num_kv_heads
    if key_heads % size and size % key_heads:
        raise ValueError(f"{wanted}, which neither divides the {key_heads} key heads of {config.architecture} nor is a multiple of them")
    if config.qk_norm == "all" and size > 1:
        raise ValueError(f"{wanted}; {config.architecture} normalises all heads together, which ranks that have some of them cannot")


def _outputs(name: str, *ranges: tuple[int, int], transposed: bool = False) -> dict[str, Cut]:
    """Some outputs of a projection, and of its bias if it has one."""
    return {f"{name}.weight": Cut(1 if transposed else 0, ranges), f"{name}.bias": Cut(0, ranges)}


def _inputs(name: str, span: tuple[int, int], *, transposed: bool) -> tuple[str, Cut]:
    """Some inputs of a projection; its bias is whole."""
    return f"{name}.weight", Cut(0 if transposed else 1, (span,))


def _scaled(span: tuple[int, int], factor: int) -> tuple[int, int]:
    return span[0] * factor, span[1] * factor


def _moved(span: tuple[int, int], by: int) -> tuple[int, int]:
    return span[0] + by, span[1] + by
