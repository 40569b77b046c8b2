"""Stages of a pipeline give together, bit for bit, what the whole model gives, in every family and format; they compute at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch

from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.layers.decoder_layer import DecoderLayer
from compute_svc.layers.step import Step
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup
from compute_svc.parallel.groups.stage_group import ONE_STAGE, Links, StageGroup
from tests.fakes.checkpoints import EXAMPLES, save_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.quantised_checkpoints import SCHEMES, save_quantised
from tests.fakes.thread_ranks import ThreadRanks
from tests.fakes.thread_stages import ThreadStages

CPU = torch.device("cpu")
LONG = [4, 9, 2, 7] * 10
PROMPTS = [[5, 7, 11], LONG, *([number, 3, 1][: 1 + number % 3] for number in range(14))]

# Layers of different kinds, softcaps, learnt positions, experts in some layers, and what stands before the first layer or behind the last.
FAMILIES = [
    ("gemma2", "mixed-window", 2),
    ("gpt_oss", "mixed-window-yarn", 3),
    ("opt", "norms-behind-narrow", 2),
    ("deepseek_v3", "query-latent-yarn", 2),
    ("bloom", "six-heads", 3),
]


class Computed(NamedTuple):
    """Logits, on the first rank, and all that a rank has stored of the long request."""

    logits: torch.Tensor
    stored: torch.Tensor


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _load(folder: Path, ranks: RankGroup = ALONE, stages: StageGroup = ONE_STAGE, dtype: torch.dtype = torch.float32) -> CausalLM:
    return load_model(folder, dtype=dtype, device=CPU, ranks=ranks, stages=stages)


def _compute(model: CausalLM, kv_format: str = "auto") -> Computed:
    """Many prompts, one of them in two steps, then a token behind each beside another prompt: steps that are cut in prompts and among decode rows."""
    driver = ForwardDriver(model, kv_format=kv_format)
    requests = [driver.request(prompt, 48) for prompt in PROMPTS]
    first = driver.step([], [(request, min(19, len(request.tokens))) for request in requests])
    for request in requests:
        if request.num_computed == len(request.tokens):
            request.tokens.append(6)
    others = [request for request in requests if len(request.tokens) != len(LONG)]
    second = driver.step(others, [(requests[1], len(LONG) - 19), (driver.request([3, 1, 4], 8), 3)], all_logits=True)
    return Computed(torch.cat((first, second)), driver.stored(requests[1]))


def _assert_stages_give_the_whole(folder: Path, count: int, dtype: torch.dtype = torch.float32, kv_format: str = "auto") -> None:
    expected = _compute(_load(folder, dtype=dtype), kv_format)
    found = ThreadStages(count).run(lambda ranks, stages: _compute(_load(folder, ranks, stages, dtype), kv_format))
    assert torch.equal(found[0].logits, expected.logits)
    assert torch.equal(torch.cat([one.stored for one in found]), expected.stored), "each stage stores what its layers made"
    assert all(len(one.logits) == 0 for one in found[1:])


@pytest.mark.parametrize(("family", "variant", "count"), FAMILIES, ids=lambda value: str(value))
def test_stages_give_what_the_whole_model_gives(family: str, variant: str, count: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **EXAMPLES[family].variants[variant])
    _assert_stages_give_the_whole(tmp_path, count)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(EXAMPLES))
def test_two_stages_give_what_the_whole_model_gives(family: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family, **next(iter(EXAMPLES[family].variants.values())))
    _assert_stages_give_the_whole(tmp_path, 2)


def test_stages_give_the_same_in_bfloat16_over_codes_of_keys_and_values(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "qwen3")
    _assert_stages_give_the_whole(tmp_path, 2, torch.bfloat16, "int8-g8")


def test_stages_read_codes_of_their_layers(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128}
    _assert_stages_give_the_whole(save_quantised(tmp_path, "llama", SCHEMES["int8"], **sizes), 2)


def test_two_ranks_of_each_of_two_stages_give_what_two_ranks_give(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    expected = ThreadRanks(2).run(lambda ranks: _compute(_load(tmp_path, ranks)))
    found = ThreadStages(2, tensor_size=2).run(lambda ranks, stages: _compute(_load(tmp_path, ranks, stages)))
    assert torch.equal(found[0].logits, expected[0].logits)
    for rank in range(2):
        assert torch.equal(torch.cat((found[rank].stored, found[2 + rank].stored)), expected[rank].stored)


class WatchedLayer(NamedTuple):
    """A layer that tells when it begins to compute a part of a step."""

    layer: Any
    began: Any

    def forward(self, hidden: torch.Tensor, kv: KvLayer, step: Step) -> torch.Tensor:
        """See `DecoderLayer`."""
        self.began()
        return cast(torch.Tensor, self.layer.forward(hidden, kv, step))


@pytest.mark.parametrize("gives_wait", [False, True])
def test_a_stage_computes_a_part_while_the_next_one_has_the_part_before(gives_wait: bool, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama", num_hidden_layers=2)
    together = threading.Barrier(2, timeout=10)

    def work(ranks: RankGroup, stages: StageGroup) -> list[str]:
        events: list[str] = []

        def began() -> None:
            # The first stage's second part and the second one's first.
            events.append("compute")
            if events.count("compute") == (2 if stages.is_first else 1):
                together.wait()

        model = _load(tmp_path, ranks, _watched(stages, events))
        (layer,) = model.layers
        watched = replace(model, layers=(cast(DecoderLayer, WatchedLayer(layer, began)),))
        driver = ForwardDriver(watched)
        driver.step([], [(driver.request(LONG, len(LONG)), len(LONG))])
        return events

    first, second = ThreadStages(2, gives_wait=gives_wait).run(work)
    assert first == ["compute", "give", "compute", "give", "take"]
    assert second == ["take", "compute", "take", "compute", "give"]


def _watched(stages: StageGroup, events: list[str]) -> StageGroup:
    """The same stage, which tells what it gives and takes."""
    links = stages.links
    assert links is not None

    def give(tensor: torch.Tensor) -> Any:
        events.append("give")
        return links.give(tensor)

    def take(tensor: torch.Tensor) -> None:
        links.take(tensor)
        events.append("take")

    return StageGroup(stages.stage, stages.count, Links(give, take))
