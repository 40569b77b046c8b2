"""What it costs on a CPU that a request's bits do not depend on its neighbours: the same steps with kernels that promise it and with natural ones.

Three ways to compute, in turns in one process. "invariant": the engine's kernels. "natural": products of just the rows there are with `F.linear`,
torch's own attention over gathered KV in the model's dtype. "natural packed": the same attention, with weights in oneDNN's blocks,
unpadded: what an engine would do that wants speed alone. First the invariant one is proven equal, bit for bit, and it is
shown by how much the others depend on neighbours and how far their logits are from the engine's. Writes medians and spread to a results file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from compute_svc.kernels.host.host_memory import keep_freed_memory
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.models.causal_lm import CausalLM
from tests.bench.engine.natural_kernels import natural_kernels, onednn_weights, plain_weights
from tests.bench.gpu.device_checks import EXACT_TOLERANCE, ROUNDED_TOLERANCE, check_invariance
from tests.bench.gpu.random_model import SHAPES, RandomWeights, build_random
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "batch_invariance.json"
CPU = torch.device("cpu")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PAGE_SIZE_TOKENS = 16


class Way(NamedTuple):
    """A model and the kernels it computes with."""

    name: str
    model: CausalLM
    kernels: Callable[[], AbstractContextManager[None]]


class Workload(NamedTuple):
    """Steps of one kind.

    Attributes:
        name: For the results.
        num_requests: In a step.
        query_tokens: What each brings to a step; 1 = a decode row.
        context_tokens: What each has before.
    """

    name: str
    num_requests: int
    query_tokens: int
    context_tokens: int


def main(arguments: Sequence[str] | None = None) -> Path:
    """Proves, measures and writes; returns the results file."""
    chosen = _parse(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    workloads = [Workload(f"decode {size}", size, 1, chosen.context) for size in (1, 8, 64)]
    workloads += [Workload("prefill 1x512", 1, 512, 0), Workload("prefill 8x128", 8, 128, 0)]
    document = {
        "what": "milliseconds of a step with kernels that keep a request's bits whatever its neighbours, and with natural ones, in turns",
        **describe_environment(CPU),
        "model": chosen.shape,
        "context_tokens": chosen.context,
        "rounds": chosen.rounds,
        "dtypes": {name: _compare(dtype, workloads, chosen) for name, dtype in _DTYPES.items()},
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    output: Path = chosen.output
    print(output)
    return output


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine.batch_invariance", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="75m", help="size of the model, whose weights are random")
    parser.add_argument("--context", type=int, default=256, help="tokens before the one that a decode row brings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample-ms", type=float, default=60.0, help="a round's steps of one kind take at least about so long")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    for name in ("context", "rounds"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}, it must be at least 1")
    return chosen


def _compare(dtype: torch.dtype, workloads: Sequence[Workload], chosen: argparse.Namespace) -> dict[str, Any]:
    ways = _ways(RandomWeights(chosen.shape, CPU), dtype)
    bits = {}
    for way in ways:
        with way.kernels():
            bits[way.name] = check_invariance(way.model, promised=way.name == "invariant")
        print(json.dumps({"dtype": str(dtype), "way": way.name, **bits[way.name]}), flush=True)
    steps = {}
    for workload in workloads:
        steps[workload.name] = _in_turns(ways, workload, chosen)
        print(json.dumps({"dtype": str(dtype), "workload": workload.name, **steps[workload.name]}), flush=True)
    return {"bits": bits, "steps": steps}


def _ways(weights: RandomWeights, dtype: torch.dtype) -> list[Way]:
    packed = build_random(weights, dtype, CPU)
    with plain_weights():
        plain = build_random(weights, dtype, CPU)
    with onednn_weights():
        blocked = build_random(weights, dtype, CPU)
    return [Way("invariant", packed, nullcontext), Way("natural", plain, natural_kernels), Way("natural packed", blocked, natural_kernels)]


def _in_turns(ways: Sequence[Way], workload: Workload, chosen: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step by way, and what the invariant one takes beside the faster of the others, round by round."""
    batch, kv = _make_step(ways[0].model, workload)
    differences = _differences(ways, batch, kv)
    repeats = [max(1, round(chosen.sample_ms / _milliseconds(way, batch, kv, 2))) for way in ways]
    samples: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(chosen.rounds):
        for way, count in zip(ways, repeats, strict=True):
            samples[way.name].append(_milliseconds(way, batch, kv, count))
    price = [100 * (own / min(others) - 1) for own, *others in zip(*samples.values(), strict=True)]
    tokens = workload.num_requests * workload.query_tokens
    return {
        "tokens": tokens,
        "step_ms": {name: _spread(values, 3) for name, values in samples.items()},
        "tokens_per_s": {name: round(1000 * tokens / statistics.median(values), 1) for name, values in samples.items()},
        "price_percent": _spread(price, 1),
        "logits_differ_by": differences,
    }


def _differences(ways: Sequence[Way], batch: ForwardBatch, kv: KvPageStore) -> dict[str, float]:
    """By how much the logits of a step differ from those of the first way at most. All compute the same, or their times mean nothing.

    Raises:
        AssertionError: They differ by more than the dtype explains.
    """
    expected = ways[0].model.forward(batch, kv)
    differences = {}
    for way in ways[1:]:
        with way.kernels():
            logits = way.model.forward(batch, kv)
        largest, relative = float((logits - expected).abs().max()), float((logits - expected).square().mean().sqrt() / expected.std())
        assert relative <= ROUNDED_TOLERANCE, f"{way.name}: off by {relative:.3f} of the logits' spread, the limit is {ROUNDED_TOLERANCE}"
        is_exact = way.model.dtype != torch.float32 or largest <= EXACT_TOLERANCE
        assert is_exact, f"{way.name}: logits are off by {largest:.1e}, the limit is {EXACT_TOLERANCE}"
        differences[way.name] = largest
    return differences


def _milliseconds(way: Way, batch: ForwardBatch, kv: KvPageStore, count: int) -> float:
    """Of one step, the mean of `count`. A step writes what it has written before, so they are all the same."""
    with way.kernels():
        began = time.perf_counter()
        for _ in range(count):
            way.model.forward(batch, kv)
        return 1000 * (time.perf_counter() - began) / count


def _make_step(model: CausalLM, workload: Workload) -> tuple[ForwardBatch, KvPageStore]:
    """A step of a workload, over a store of random KV in pages that lie about at random."""
    _, num_requests, count, context = workload
    length = context + count
    pages_each = -(-length // _PAGE_SIZE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    config = model.config
    kv = KvPageStore(
        config.num_layers, num_requests * pages_each, _PAGE_SIZE_TOKENS, config.num_kv_heads, config.kv_head_dim, model.dtype, CPU
    )
    for layer in range(config.num_layers):
        kv.kv(layer).data.normal_(generator=generator)
    table = torch.randperm(num_requests * pages_each, generator=generator).view(num_requests, pages_each)
    positions = torch.arange(context, length).repeat(num_requests, 1)
    slots = table.gather(1, positions // _PAGE_SIZE_TOKENS) * _PAGE_SIZE_TOKENS + positions % _PAGE_SIZE_TOKENS
    lengths = (length,) * num_requests
    return ForwardBatch(
        token_ids=torch.randint(0, config.vocab_size, (num_requests * count,), generator=generator),
        positions=positions.view(-1),
        slots=slots.view(-1),
        num_decodes=num_requests if count == 1 else 0,
        query_starts=tuple(range(0, num_requests * count + 1, count)),
        kv_lengths=lengths,
        page_table=table,
        logit_rows=torch.arange(count - 1, num_requests * count, count),
        begun_pages=torch.from_numpy(begun_pages(table.numpy(), [count] * num_requests, lengths, _PAGE_SIZE_TOKENS)),
        position_limit=length,
    ), kv


def _spread(values: Sequence[float], digits: int) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(float(np.min(values)), digits),
        "max": round(float(np.max(values)), digits),
    }


if __name__ == "__main__":
    main()
