"""The decode that is hard to beat: a plain Llama of torch's own operations over a static KV cache, every step one replay of a CUDA graph.

`python -m tests.bench.gpu.fast_decode`: no scheduler, no pages, nothing of the engine's but its random weights; all requests have one length.
What it computes is compared with the engine's logits on a small model before anything is measured. With --compile the step goes through
torch.compile first, if that takes less than a minute.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from compute_svc.kernels.exact_products import use_exact_products
from tests.bench.gpu.ceilings import measure_ceilings
from tests.bench.gpu.device_checks import ROUNDED_TOLERANCE, random_tokens, whole_logits
from tests.bench.gpu.random_model import SHAPES, RandomWeights, build_random
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "gpu_fast_decode.json"
_WARM_UP_STEPS = 4
_CHECKED_TOKENS = 20
_PIECE_TOKENS = 1 << 14


class StaticLlama:
    """A Llama whose KV is as long as it will ever be.

    Args:
        weights: Whose numbers.
        dtype: Of weights, activations and KV.
        device: Where.
        num_requests: All of one length.
        max_tokens: Of each.
    """

    def __init__(self, weights: RandomWeights, dtype: torch.dtype, device: torch.device, num_requests: int, max_tokens: int) -> None:
        fields = weights.fields
        self.heads, self.kv_heads, self.dim = (fields[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        self.eps, theta = fields["rms_norm_eps"], fields["rope_theta"]

        def read(*names: str) -> torch.Tensor:
            return torch.cat([weights.read(f"{name}.weight", dtype, device) for name in names])

        self.embedding = read("model.embed_tokens")
        self.layers = [self._layer(f"model.layers.{index}", read) for index in range(fields["num_hidden_layers"])]
        self.norm = read("model.norm")
        self.head = self.embedding if fields["tie_word_embeddings"] else read("lm_head")
        rates = theta ** -(torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)
        angles = torch.arange(max_tokens, device=device, dtype=torch.float32)[:, None] * torch.cat((rates, rates))
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.places = torch.arange(max_tokens, device=device)
        self.fill(num_requests)

    @staticmethod
    def _layer(prefix: str, read: Any) -> tuple[torch.Tensor, ...]:
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        return (
            read(f"{prefix}.input_layernorm"),
            read(*(f"{attention}.{one}_proj" for one in "qkv")),
            read(f"{attention}.o_proj"),
            read(f"{prefix}.post_attention_layernorm"),
            read(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            read(f"{mlp}.down_proj"),
        )

    def fill(self, num_requests: int) -> None:
        """Room for requests, with random numbers for keys and values."""
        self.kv: list[torch.Tensor] = []
        shape = (2, num_requests, self.kv_heads, len(self.places), self.dim)
        for _ in self.layers:
            self.kv.append(torch.randn(shape, dtype=self.embedding.dtype, device=self.embedding.device))

    def step(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[requests, vocab]: logits of a token of each request at one position [1]; its keys and values are written."""
        hidden = F.embedding(tokens, self.embedding)
        cos, sin = self.cos.index_select(0, position), self.sin.index_select(0, position)
        mask = (self.places <= position)[None, None, None]
        for (norm, qkv, out, mlp_norm, into, down), kv in zip(self.layers, self.kv, strict=True):
            heads = F.linear(self._normed(hidden, norm), qkv).view(len(tokens), -1, self.dim)
            turned = heads[:, : self.heads + self.kv_heads]
            first, second = turned.chunk(2, dim=2)
            turned = turned * cos + torch.cat((-second, first), dim=2) * sin
            keys, values = turned[:, self.heads :, None], heads[:, self.heads + self.kv_heads :, None]
            kv[0].index_copy_(2, position, keys)
            kv[1].index_copy_(2, position, values)
            # The heads that share keys are queries of one head: so every backend of attention takes them with a mask.
            queries = turned[:, : self.heads].reshape(len(tokens), self.kv_heads, -1, self.dim)
            mixed = F.scaled_dot_product_attention(queries, kv[0], kv[1], mask)
            hidden = hidden + F.linear(mixed.reshape(len(tokens), -1), out)
            gate, up = F.linear(self._normed(hidden, mlp_norm), into).chunk(2, dim=1)
            hidden = hidden + F.linear(F.silu(gate) * up, down)
        return F.linear(self._normed(hidden, self.norm), self.head)

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, (hidden.shape[1],), weight, self.eps)


def check(device: torch.device) -> float:
    """The difference from the engine's logits, as a part of their spread, on a small model.

    Raises:
        AssertionError: It is more than rounding explains.
    """
    weights = RandomWeights("tiny", torch.device("cpu"))
    model = build_random(weights, torch.float32, device)
    tokens = random_tokens(model, 1, _CHECKED_TOKENS, seed=1)[0]
    llama = StaticLlama(weights, torch.float32, device, 1, _CHECKED_TOKENS + 3)
    rows = [llama.step(token[None].to(device), torch.tensor([place], device=device)) for place, token in enumerate(tokens)]
    theirs = whole_logits(model, tokens)
    relative = float((torch.cat(rows).cpu() - theirs).square().mean().sqrt() / theirs.std())
    assert relative <= ROUNDED_TOLERANCE / 100, f"logits differ from the engine's by {relative:.1e} of their spread"
    return relative


def measure(llama: StaticLlama, context: int, steps: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Tokens per second of greedy decoding; each step's tokens are read, as a server must."""
    device, requests = llama.embedding.device, llama.kv[0].shape[1]
    tokens = torch.randint(0, len(llama.embedding), (requests,), device=device)
    position = torch.full((1,), context, device=device)
    step = torch.compile(llama.step) if compiled else llama.step

    def run() -> None:
        tokens.copy_(step(tokens, position).argmax(dim=1))
        position.add_(1)

    replay: Any = run
    run()
    if device.type == "cuda":
        position.fill_(context)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay = graph.replay
    rates = []
    for _ in range(rounds):
        position.fill_(context)
        for _ in range(_WARM_UP_STEPS):
            replay()
        tokens.tolist()
        began = time.perf_counter()
        for _ in range(steps):
            replay()
            tokens.tolist()
        rates.append(requests * steps / (time.perf_counter() - began))
    return {"tokens_per_s": round(statistics.median(rates), 1), "min": round(min(rates), 1), "max": round(max(rates), 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.fast_decode", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["8b", "1b"])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="through torch.compile as well")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda":
        use_exact_products()
    with torch.inference_mode():
        document: dict[str, Any] = {
            "what": "greedy decoding of torch's own operations over a static KV cache in a CUDA graph, tokens per second",
            **describe_environment(device),
            "context_tokens": chosen.context,
            "steps": chosen.steps,
            "ceilings": measure_ceilings(device).described(),
            "difference_from_the_engine": check(device),
            "rows": [],
        }
        for shape in dict.fromkeys(chosen.shapes):
            llama = StaticLlama(RandomWeights(shape, device), torch.bfloat16, device, 1, chosen.context + _WARM_UP_STEPS + chosen.steps + 1)
            for requests in chosen.requests:
                llama.fill(requests)
                for compiled in (False, True)[: 1 + chosen.compile]:
                    row = {"shape": shape, "requests": requests, "compiled": compiled, **_tried(llama, chosen, compiled=compiled)}
                    document["rows"].append(row)
                    print(json.dumps(row), flush=True)
                    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
            del llama
            gc.collect()
    print(chosen.output)


def _tried(llama: StaticLlama, chosen: argparse.Namespace, *, compiled: bool) -> dict[str, Any]:
    try:
        return measure(llama, chosen.context, chosen.steps, chosen.rounds, compiled=compiled)
    except Exception as error:  # noqa: BLE001 - the rest goes on, and the row says what happened
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


if __name__ == "__main__":
    main()
