"""A streaming window: what it changes, what it leaves, whom it refuses, and that KV behind it can be left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.kernels.attention.kv_chunks import CHUNK_TOKENS
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import LayerKind, StreamingWindow
from compute_svc.models.registry import load_model, read_model_config
from compute_svc.models.weights import CheckpointError
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.engine_reader import request_of
from tests.fakes.forward_driver import DrivenRequest, ForwardDriver
from tests.oracle.serving import Serving, small_engine

PAGE = 16
TURNING = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("gpt_neox", {"rotary_pct": 0.5}, id="partly-turning"),
    pytest.param("deepseek_v2", {"v_head_dim": 22}, id="latent"),
]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def load(folder: Path, streaming: StreamingWindow | None, dtype: torch.dtype = torch.float32) -> CausalLM:
    return load_model(folder, dtype=dtype, device=torch.device("cpu"), streaming=streaming)


def logits_of(model: CausalLM, tokens: list[int]) -> torch.Tensor:
    """Of all tokens, in one forward pass."""
    driver = ForwardDriver(model, num_pages=-(-len(tokens) // PAGE), page_size_tokens=PAGE)
    return driver.step([], [(driver.request(tokens, len(tokens)), len(tokens))], all_logits=True)


@pytest.mark.parametrize(("family", "fields"), TURNING)
def test_up_to_its_length_a_window_changes_nothing_and_beyond_it_does(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **fields)
    tokens = tokens_of(200)
    plain = logits_of(load(tmp_path, None), tokens)

    for window in (200, 10_000):
        torch.testing.assert_close(logits_of(load(tmp_path, StreamingWindow(tokens=window)), tokens), plain, atol=1e-5, rtol=1e-5)
    narrow = logits_of(load(tmp_path, StreamingWindow(tokens=100)), tokens)
    # The sinks and the window behind them still cover everything.
    torch.testing.assert_close(narrow[:104], plain[:104], atol=1e-5, rtol=0)
    assert (narrow[104:] - plain[104:]).abs().amax(dim=1).min() > 1e-4


@dataclass(frozen=True)
class Part:
    """Some consecutive tokens of a request in a batch, without some of its chunks behind the first."""

    request: DrivenRequest
    start: int
    count: int
    num_dropped: int


def forward(model: CausalLM, kv: KvPageStore, parts: list[Part], num_decodes: int) -> torch.Tensor:
    """Logits of all tokens; the pages of dropped chunks are in no page table, and lengths do not count them."""
    per_chunk = CHUNK_TOKENS // PAGE
    spans = [range(part.start, part.start + part.count) for part in parts]
    pages = [torch.cat((part.request.pages[:per_chunk], part.request.pages[(1 + part.num_dropped) * per_chunk :])) for part in parts]
    owned = list(zip(parts, spans, strict=True))
    starts = tuple(accumulate((part.count for part in parts), initial=0))
    page_table = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True)
    kv_lengths = tuple(span.stop - part.num_dropped * CHUNK_TOKENS for part, span in owned)
    batch = ForwardBatch(
        token_ids=torch.tensor([part.request.tokens[position] for part, span in owned for position in span]),
        positions=torch.tensor([position for span in spans for position in span]),
        slots=torch.tensor(
            [int(part.request.pages[position // PAGE]) * PAGE + position % PAGE for part, span in owned for position in span]
        ),
        num_decodes=num_decodes,
        query_starts=starts,
        kv_lengths=kv_lengths,
        page_table=page_table,
        logit_rows=torch.arange(starts[-1]),
        begun_pages=torch.from_numpy(begun_pages(page_table.numpy(), [part.count for part in parts], kv_lengths, PAGE)),
        position_limit=max(span.stop for span in spans),
    )
    return model.forward(batch, kv)


def droppable(window: int, position: int) -> int:
    """How many chunks behind the first no query from this position on sees."""
    return max(0, (position + 1 - window) // CHUNK_TOKENS - 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        *TURNING,
        pytest.param("gemma2", {"sliding_window": 50}, id="mixed-windows"),
        pytest.param("mistral", {"sliding_window": 100}, id="own-window-without-sinks"),
    ],
)
def test_without_the_chunks_that_nobody_sees_logits_are_the_same(
    family: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, family, num_hidden_layers=2, **fields)
    streaming = None if family == "mistral" else StreamingWindow(tokens=100, sinks=5)
    tokens = tokens_of(1130)
    expected = logits_of(load(tmp_path, streaming, dtype), tokens)
    # Another one, whose rotary table has to grow with the positions although lengths stay below its first block.
    model = load(tmp_path, streaming, dtype)
    driver = ForwardDriver(model, num_pages=100, page_size_tokens=PAGE)
    request, other = driver.request(tokens, len(tokens)), driver.request(tokens_of(40, 1), 40)
    driver.step([], [(request, 400), (other, 7)])
    computed, most_dropped = 400, 0
    for count in (1, 60, 200, 1, 1, 300, 1, 130, 1):
        dropped = droppable(100, computed)
        for layer in range(2):
            driver.kv.kv(layer).data[:, request.pages[8 : 8 * (1 + dropped)]] = torch.nan
        parts = [Part(request, computed, count, dropped), Part(other, 7, 3, 0)]
        logits = forward(model, driver.kv, parts, num_decodes=int(count == 1))
        assert torch.equal(logits[:count], expected[computed : computed + count])
        computed, most_dropped = computed + count, max(dropped, most_dropped)
    assert most_dropped == 6


def test_in_merge_steps_a_prompt_with_a_cached_prefix_gets_the_logits_it_got_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    model = load(tmp_path, StreamingWindow(tokens=45, sinks=3))
    prompt = tokens_of(170)
    cold = Serving(small_engine(model, 200)).serve([request_of(1, prompt, 20)])
    serving = Serving(small_engine(model, 200))
    serving.serve([request_of(1, prompt[:130] + tokens_of(30, 1), 20), request_of(2, tokens_of(60, 2), 20)])

    hot = serving.serve([request_of(3, tokens_of(50, 3), 30)], [request_of(4, prompt, 20)])

    assert hot.cached_tokens[4] >= 128 and hot.num_merged
    assert hot.tokens[4] == cold.tokens[1]
    assert torch.equal(hot.logits[4], cold.logits[1])


@pytest.mark.parametrize(
    ("family", "fields", "streaming", "kv_window", "sinks"),
    [
        ("llama", {}, None, None, 0),
        ("llama", {}, StreamingWindow(tokens=64), 64, 4),
        ("mistral", {"sliding_window": 30}, None, 30, 0),
        ("mistral", {"sliding_window": 30}, StreamingWindow(tokens=64, sinks=2), 30, 2),
        ("gemma2", {"sliding_window": 30}, None, None, 0),
        ("gemma2", {"sliding_window": 30}, StreamingWindow(tokens=64, sinks=2), 64, 2),
    ],
)
def test_a_model_says_how_far_its_layers_see(
    family: str, fields: dict[str, Any], streaming: StreamingWindow | None, kv_window: int | None, sinks: int, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, family, **fields)

    model = load(tmp_path, streaming)

    assert (model.kv_window, model.sinks) == (kv_window, sinks)
    assert read_model_config(tmp_path, streaming=streaming) == model.config


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("bloom", {}, "BloomForCausalLM cannot have one: it has ALiBi slopes"),
        ("mpt", {}, "MptForCausalLM cannot have one: it has ALiBi slopes"),
        ("opt", {}, "OPTForCausalLM cannot have one: its positions are learnt"),
        ("gpt2", {}, "GPT2LMHeadModel cannot have one: its positions are learnt"),
        ("falcon", {"alibi": True}, "FalconForCausalLM cannot have one: it has ALiBi slopes"),
        ("gpt_oss", {}, "GptOssForCausalLM cannot have one: it has learnt sinks"),
        ("smollm3", {}, "SmolLM3ForCausalLM cannot have one: it has layers without positions"),
    ],
)
def test_models_without_rotary_positions_are_refused(family: str, fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **fields)

    with pytest.raises(CheckpointError, match=rf"config\.json: a streaming window needs .*; {reason}"):
        load(tmp_path, StreamingWindow(tokens=64))


def test_a_model_with_one_kind_of_layers_without_positions_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "gemma2")
    config = read_model_config(tmp_path)
    mixed = replace(config, kinds=(config.kinds[0], LayerKind()))

    with pytest.raises(CheckpointError, match=r"^here: .* Gemma2ForCausalLM cannot have one: it has layers without positions"):
        mixed.streaming(StreamingWindow(tokens=64), "here")


@pytest.mark.parametrize(
    ("tokens", "sinks", "words"),
    [(0, 4, "of 0 tokens is too short"), (8, 0, "has 0 sinks"), (8, 33, "has 33 sinks, it must be from 1 to 32")],
)
def test_a_window_out_of_range_is_refused(tokens: int, sinks: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StreamingWindow(tokens=tokens, sinks=sinks)
