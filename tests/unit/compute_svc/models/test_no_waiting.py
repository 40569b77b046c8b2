"""Between the batch and the logits the host never waits for a device. The device "meta" stands for one: it has shapes and no values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.kernels.host.host_copy import to_device
from compute_svc.kv.kv_format import choose_kv_format
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import StreamingWindow
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.wait_detector import HostWaits, no_waiting

META = torch.device("meta")
CUDA = torch.device("cuda")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "window": ("mistral", {"sliding_window": 11}),
    "streaming": ("llama", {"streaming": StreamingWindow(tokens=6, sinks=2)}),
    "experts": ("mixtral", {}),
    "experts-shared": ("qwen2_moe", {}),
    "qk-norm": ("qwen3", {}),
    "scaled-embedding-caps": ("gemma2", {"sliding_window": 9}),
    "slopes": ("bloom", {}),
    "slopes-clipped": ("mpt", {"attn_config": {"clip_qkv": 1.0}}),
    "learnt-positions": ("opt", {"word_embed_proj_dim": 20, "do_layer_norm_before": False}),
    "neighbours-turn-parallel": ("gptj", {}),
    "interleaved-output-norms": ("glm4", {}),
    "multipliers": ("granite", {}),
    "norms-behind-all-heads-together": ("olmo2", {}),
    "latent-experts-in-groups": ("deepseek_v3", {"q_lora_rank": 14}),
    "sink-logits-clamped-experts": ("gpt_oss", {"sliding_window": 9}),
    "rounded-slopes": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "groups": ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
}


def load(name: str, folder: Path, device: torch.device) -> CausalLM:
    family, overrides = MODELS[name]
    streaming = overrides.get("streaming")
    save_checkpoint(folder, family, **{field: value for field, value in overrides.items() if field != "streaming"})
    return load_model(folder, dtype=torch.bfloat16, device=device, streaming=streaming)


def merge_steps(model: CausalLM, device: torch.device, kv_format: str = "auto") -> Callable[[], torch.Tensor]:
    """Runs a prefill step that warms what is made once, and returns a merge step: decode rows, the end of a prompt and a new one."""
    config = SchedulerConfig(4, 64, 64, 24, 8, 8)
    scheduler = Scheduler(config)
    builder = BatchBuilder(config, scheduler.memory.slots, device)
    format_ = choose_kv_format(kv_format, None, model.dtype)
    sizes = (model.config.num_layers, 64, 4, model.config.num_kv_heads, model.config.kv_head_dim)
    kv = KvPageStore(*sizes, format_.dtype, device, group=format_.group)
    for number, length in enumerate((3, 8, 30)):
        scheduler.submit(Request(number, "", np.arange(20 * number, 20 * number + length), np.empty(0, np.int64), 8, 0.0))
    plan = scheduler.step(0.0)
    model.forward(builder.build(plan), kv)
    scheduler.complete(plan)
    for chunk in plan.prefills:
        if chunk.completes:
            chunk.state.append(5)
    scheduler.submit(Request(9, "", np.arange(80, 85), np.empty(0, np.int64), 8, 0.0))
    plan = scheduler.step(0.0)
    assert plan.decodes and len(plan.prefills) == 2, "the step merges"
    batch = builder.build(plan)
    assert len(batch.begun_pages), "the step begins pages"
    return lambda: model.forward(batch, kv)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_forward_pass_waits_for_nothing(name: str, tmp_path: Path) -> None:
    step = merge_steps(load(name, tmp_path, META), META)

    with no_waiting():
        logits = step()

    assert logits.shape == (4, 97) and logits.device == META


@pytest.mark.parametrize("kv_format", ["float32", "int8-g8", "fp8-g64"])
def test_a_forward_pass_over_kv_in_another_format_waits_for_nothing(kv_format: str, tmp_path: Path) -> None:
    step = merge_steps(load("llama", tmp_path, META), META, kv_format)

    with no_waiting():
        logits = step()

    assert logits.shape == (4, 97)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_cuda_says_the_same(name: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    step = merge_steps(load(name, tmp_path, CUDA), CUDA)
    step()

    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert torch.isfinite(logits).all()


WAITING: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x[0, 0]),
    "truth": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "to-the-host": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked-select": lambda x: x.masked_select(x > 0),
    "mask-as-index": lambda x: x[x > 0],
    "mask-written": lambda x: x.__setitem__(x > 0, 1.0),
    "unique": lambda x: torch.unique(x),
    "repeats-in-a-tensor": lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device=META), 0),
    "list-as-index": lambda x: x[[0, 1]],
    "array-as-index": lambda x: x[np.array([0, 1])],
    "tensor-of-a-list": lambda x: torch.tensor([1.0, 2.0], device=META),
    "copied-in": lambda x: torch.zeros(3, device="cpu").to(META),
    "copied-into": lambda x: x.copy_(torch.zeros(4, 5)),
    "index-on-the-host": lambda x: x.index_select(0, torch.zeros(1, dtype=torch.int64)),
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str) -> None:
    x = torch.zeros((4, 5), device=META)
    with pytest.raises(HostWaits), no_waiting():
        WAITING[name](x)


def test_what_does_not_wait_is_let_through() -> None:
    x = torch.zeros((4, 5), device=META)
    rows = torch.zeros(2, dtype=torch.int64, device=META)
    with no_waiting():
        (sent,) = to_device([np.array([2, 0])], META)
        y = x.index_select(0, sent)[:, 1:3] + x[rows, 1:3] + torch.full((), 2.0, device=META) * torch.arange(2, device=META)
        y[:, 0] = x.index_select(0, rows)[:, 0].masked_fill(y[:, 1] > 0, 0.0)
    assert y.shape == (2, 2)
