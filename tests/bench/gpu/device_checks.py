"""What must be right before anything is measured on a device, and what is to be known of it: how much a request's bits depend on its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from tests.fakes.forward_driver import DrivenRequest, ForwardDriver

# In terms of the spread of the reference's logits, their standard deviation over the vocabulary and all tokens. The largest error of a logit
# in float32: more than the oracle table allows, for a real model has ten times the layers of those.
EXACT_TOLERANCE = 2e-4
# Root mean square of the difference that bfloat16 explains.
ROUNDED_TOLERANCE = 0.1
_NEIGHBOURS = 63
_PROMPT_TOKENS = 100
_PREFIX_PAGES = 4
_DECODES = 4


class Reference(Protocol):
    """Who knows the right logits."""

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """[tokens, vocab] float32 on the CPU, of one sequence [tokens]."""
        ...


class EngineReference:
    """The engine itself, on a device that is known to be right."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Reference`."""
        return whole_logits(self._model, tokens)


def whole_logits(model: CausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """[tokens, vocab] float32 on the CPU: one sequence in one step."""
    driver = ForwardDriver(model, num_pages=-(-len(tokens) // 16))
    request = driver.request(tokens.tolist(), len(tokens))
    return driver.step([], [(request, len(tokens))], all_logits=True).cpu()


def check_logits(model: CausalLM, reference: Reference) -> dict[str, Any]:
    """Logits of one sequence beside the reference's.

    Raises:
        AssertionError: They differ by more than the dtype explains.
    """
    tokens = random_tokens(model, 1, _PROMPT_TOKENS, seed=1)[0]
    ours, theirs = whole_logits(model, tokens), reference.logits(tokens)
    assert ours.shape == theirs.shape and torch.isfinite(ours).all(), "logits are finite and as many as the reference's"
    difference, spread = ours - theirs, theirs.std()
    largest, relative = float(difference.abs().max() / spread), float(difference.square().mean().sqrt() / spread)
    if model.dtype == torch.float32:
        assert largest <= EXACT_TOLERANCE, f"logits are off by {largest:.1e} of their spread, the limit is {EXACT_TOLERANCE}"
    assert relative <= ROUNDED_TOLERANCE, f"logits are off by {relative:.3f} of their spread, the limit is {ROUNDED_TOLERANCE}"
    return {"max_error_of_spread": largest, "error_of_spread": relative}


def check_invariance(model: CausalLM, *, promised: bool) -> dict[str, Any]:
    """One request alone, among 64, from a cached prefix and with its prompt in chunks: equal bits or not, and how far apart.

    Args:
        promised: Whether equal bits are promised here.

    Raises:
        AssertionError: They are promised and not kept, or the results differ by more than the dtype explains.
    """
    tokens = random_tokens(model, 1 + _NEIGHBOURS, _PROMPT_TOKENS + _DECODES, seed=2).tolist()
    alone = _decoded(model, tokens[0], [])
    ways = {
        "decoded_among_64": _decoded(model, tokens[0], tokens[1:]),
        "prefilled_beside_another": _prefilled(model, tokens[0], tokens[1]),
        "prompt_in_chunks": _decoded(model, tokens[0], [], chunk=_PROMPT_TOKENS // 3),
        "from_a_cached_prefix": _continued(model, tokens[0], tokens[1]),
    }
    return {name: _difference(name, one, alone, promised=promised) for name, one in ways.items()}


def check_no_waiting(model: CausalLM) -> bool | None:
    """Whether a merge step runs without the host waiting for the device; None where no wait can be seen, which is everywhere but on CUDA."""
    if model.device.type != "cuda":
        return None
    step = _merge_step(model)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        print(f"a step waits for the device: {str(error).splitlines()[0]}")
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def random_tokens(model: CausalLM, count: int, length: int, *, seed: int) -> torch.Tensor:
    """[count, length] int64 ids of a model's vocabulary, on the CPU."""
    return torch.randint(0, model.config.vocab_size, (count, length), generator=torch.Generator().manual_seed(seed))


def _merge_step(model: CausalLM) -> Callable[[], torch.Tensor]:
    config = SchedulerConfig(16, 64, 256, 128, 16, 16)
    scheduler = Scheduler(config)
    builder = BatchBuilder(config, scheduler.memory.slots, model.device)
    kv = KvPageStore(model.config.num_layers, 64, 16, model.config.num_kv_heads, model.config.kv_head_dim, model.dtype, model.device)
    for number in range(4):
        scheduler.submit(Request(number, "", np.arange(30 * number, 30 * number + 20), np.empty(0, np.int64), 8, 0.0))
    plan = scheduler.step(0.0)
    model.forward(builder.build(plan), kv)
    scheduler.complete(plan)
    for chunk in plan.prefills:
        chunk.state.append(5)
    scheduler.submit(Request(9, "", np.arange(130, 170), np.empty(0, np.int64), 8, 0.0))
    plan = scheduler.step(0.0)
    assert len(plan.decodes) == 4 and plan.prefills, "the step merges"
    return lambda: model.forward(builder.build(plan), kv)


def _driver(model: CausalLM, num_requests: int) -> ForwardDriver:
    return ForwardDriver(model, num_pages=num_requests * (-(-(_PROMPT_TOKENS + _DECODES) // 16)))


def _decoded(model: CausalLM, tokens: list[int], others: list[list[int]], chunk: int = _PROMPT_TOKENS) -> torch.Tensor:
    """[1 + decodes, vocab] float32: the last of the prompt, which is computed alone, then decode rows among those of others."""
    driver = _driver(model, 1 + len(others))
    requests = [driver.request(one, len(one)) for one in (tokens, *others)]
    for request in requests:
        while request.num_computed < _PROMPT_TOKENS:
            driver.step([], [(request, min(chunk, _PROMPT_TOKENS - request.num_computed))])
    asked = requests[0]
    asked.logits = asked.logits[-1:]
    # Not the first row: where it lies must not matter either.
    neighbours = requests[1:]
    half = len(neighbours) // 2
    batch = [*neighbours[:half], asked, *neighbours[half:]]
    for _ in range(_DECODES):
        driver.step(batch, [])
    return torch.cat(asked.logits)


def _prefilled(model: CausalLM, tokens: list[int], other: list[int]) -> torch.Tensor:
    """As `_decoded`, the prompt in one step with another, of another length."""
    driver = _driver(model, 2)
    asked, beside = driver.request(tokens, len(tokens)), driver.request(other, len(other))
    driver.step([], [(beside, _PROMPT_TOKENS // 2), (asked, _PROMPT_TOKENS)])
    return _decode_rest(driver, asked)


def _continued(model: CausalLM, tokens: list[int], other: list[int]) -> torch.Tensor:
    """As `_decoded`, the first pages of the prompt computed by another request."""
    driver = _driver(model, 2)
    prefix = _PREFIX_PAGES * 16
    owner = driver.request(tokens[:prefix] + other[prefix:], len(tokens))
    driver.step([], [(owner, len(tokens))])
    asked = driver.request(tokens, len(tokens), share=owner, shared_pages=_PREFIX_PAGES)
    driver.step([], [(asked, _PROMPT_TOKENS - prefix)])
    return _decode_rest(driver, asked)


def _decode_rest(driver: ForwardDriver, asked: DrivenRequest) -> torch.Tensor:
    for _ in range(_DECODES):
        driver.step([asked], [])
    return torch.cat(asked.logits)


def _difference(name: str, one: torch.Tensor, alone: torch.Tensor, *, promised: bool) -> dict[str, Any]:
    equal = torch.equal(one, alone)
    largest = float((one - alone).abs().max())
    relative = float((one - alone).square().mean().sqrt() / alone.std())
    assert equal or not promised, f"{name}: bits differ from those of the request alone, by {largest:.1e}"
    assert relative <= ROUNDED_TOLERANCE, f"{name}: off by {relative:.3f} of the logits' spread, the limit is {ROUNDED_TOLERANCE}"
    return {
        "equal_bits": equal,
        "max_difference": largest,
        "difference_of_spread": relative,
        "same_greedy_tokens": torch.equal(one.argmax(dim=1), alone.argmax(dim=1)),
    }
