"""What compute draws on its device is what samplers draw: the same token of the same row, always."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_svc.drawing import Drawer, RequestDraw, RowStatus
from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.draw import draw_token
from tests.fakes.rows_to_draw import draw_rows, row_to_draw
from tests.pretend_cuda import pretend_cuda
from tests.triton_device import DEVICE
from triserve.rpc.sampling import Sampling

CPU = torch.device("cpu")
WIDTHS = (1, 2, 3, 17, 255, 256, 257, 1000, 4095, 4096, 4097, 5000)
# Tokens of prompts and most of answers: few, so that they are seen again.
FEW_IDS = 6
ROUNDS = 3


class Case(NamedTuple):
    """A request of a batch."""

    sampling: Sampling
    prompt: list[int]
    min_tokens: int
    stop_token_ids: tuple[int, ...]


def _f32(value: float) -> float:
    return float(np.float32(value))


def _optional(options: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


@st.composite
def cases(draw: st.DrawFn, width: int) -> Case:
    """Requests with any combination of parameters, at values where they act."""
    ids = st.integers(0, width - 1)
    few = st.integers(0, min(width, FEW_IDS) - 1)
    filters = _optional(
        {
            "top_k": st.sampled_from([1, 2, 5, 50, 300, 2000]),
            "top_p": st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99, 0.99999]).map(_f32),
            "min_p": st.sampled_from([1e-6, 0.01, 0.1, 0.5, 1.0]).map(_f32),
            "typical_p": st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99]).map(_f32),
            "top_n_sigma": st.sampled_from([0.1, 1.0, 2.0, 5.0]).map(_f32),
            "xtc_probability": st.sampled_from([0.5, 1.0]),
            "xtc_threshold": st.sampled_from([0.001, 0.01, 0.1, 0.3]).map(_f32),
        }
    )
    penalties = _optional(
        {
            "repetition_penalty": st.sampled_from([0.5, 1.1, 2.0]).map(_f32),
            "presence_penalty": st.sampled_from([-1.0, 0.5, 2.0]),
            "frequency_penalty": st.sampled_from([-1.0, 0.5, 2.0]),
            "dry_multiplier": st.sampled_from([0.8, 5.0]).map(_f32),
            "dry_allowed_length": st.integers(1, 3),
            "dry_breaker_ids": st.lists(few, max_size=2).map(tuple),
        }
    )
    bans = _optional(
        {
            "allowed_token_ids": st.lists(ids, min_size=1, max_size=20).map(tuple),
            "banned_token_ids": st.lists(ids, max_size=20).map(tuple),
            "bad_words": st.lists(st.lists(few, min_size=1, max_size=4).map(tuple), max_size=4).map(tuple),
        }
    )
    options: dict[str, Any] = {}
    for one in (filters, penalties, bans):
        options |= draw(st.one_of(st.just({}), one))
    if draw(st.booleans()):
        bias = draw(st.dictionaries(ids, st.sampled_from([-100.0, -3.0, 0.5, 4.0, 100.0]), max_size=5))
        options |= {"logit_bias_ids": tuple(bias), "logit_bias_values": tuple(bias.values())}
    temperature = _f32(draw(st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0, 10.0, 100.0])))
    sampling = Sampling(temperature=temperature, seed=draw(st.integers(0, 2**64 - 1)), **options)
    return Case(sampling, draw(st.lists(few, max_size=8)), draw(st.integers(0, 2)), draw(st.lists(ids, max_size=2).map(tuple)))


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[Case], int]:
    width = draw(st.sampled_from(WIDTHS))
    return width, draw(st.lists(cases(width), min_size=1, max_size=5)), draw(st.integers(0, 2**32 - 1))


def _row(random: np.random.Generator, width: int) -> npt.NDArray[np.float32]:
    """Logits as models give them, some peaked, some with many equals, some with ids that have no chance."""
    row = random.normal(0, random.choice([0.5, 1, 3, 5]), width).astype(np.float32)
    kind = random.integers(0, 6)
    if kind == 0:
        row = np.round(row * random.choice([1, 4]))
    elif kind == 1:
        row[random.random(width) < 0.5] = -np.inf
        row[random.integers(0, width)] = 0.5
    elif kind == 2:
        row[random.integers(0, width)] += 12
    elif kind == 3:
        row[:] = row[0]
    elif kind == 4:
        row[random.random(width) < 0.5] = random.choice([0.0, -0.0])
    return row.astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(batches())
def test_the_cpu_draws_what_samplers_draw(batch: tuple[int, list[Case], int]) -> None:
    agree(batch, CPU)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="there is a real device")
@settings(deadline=None, max_examples=6)
@given(batches())
def test_a_device_draws_what_samplers_draw(batch: tuple[int, list[Case], int]) -> None:
    with pretend_cuda() as pretended:
        agree(batch, pretended.device)


def agree(batch: tuple[int, list[Case], int], device: torch.device) -> None:
    """Fails where a device and a sampler draw otherwise."""
    width, requests, seed = batch
    random, drawer = np.random.default_rng(seed), Drawer(width, device)
    draws = [
        RequestDraw(
            one.sampling, min_tokens=one.min_tokens, stop_token_ids=one.stop_token_ids, num_prompt=len(one.prompt), logits_width=width
        )
        for one in requests
    ]
    changes = [Changes(one.sampling, one.min_tokens, one.stop_token_ids, one.prompt, width) for one in requests]
    tokens = [list(one.prompt) for one in requests]
    for position in range(ROUNDS):
        logits = np.stack([_row(random, width) for _ in requests])
        given_logits = logits.copy()
        rows = [row_to_draw(draw, np.array(one, dtype=np.int64)) for draw, one in zip(draws, tokens, strict=True)]
        on_device = torch.from_numpy(logits).to(device)
        drawn = draw_rows(drawer, on_device, rows)
        assert np.array_equal(on_device.cpu().numpy(), given_logits)
        for index, request in enumerate(requests):
            expected = draw_token(logits[index], request.sampling, changes[index], position)
            assert drawn.status[index] == (RowStatus.IMPOSSIBLE if expected is None else RowStatus.DRAWN), index
            assert expected is None or drawn.tokens[index] == expected, index
            # What comes next is another's draw as often as its own: histories need not be likely.
            following = int(random.integers(0, min(width, FEW_IDS))) if expected is None or random.random() < 0.8 else expected
            tokens[index].append(following)
            changes[index].count(following)


PLAIN: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "noise alone": st.fixed_dictionaries({}),
    "min_p": st.fixed_dictionaries({"min_p": st.sampled_from([1e-6, 0.1, 1.0]).map(_f32)}),
    "top_p": st.fixed_dictionaries({"top_p": st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.9, 0.99]).map(_f32)}),
    "top_p, min_p": st.fixed_dictionaries(
        {"top_p": st.sampled_from([0.3, 0.5, 0.9]).map(_f32), "min_p": st.sampled_from([0.001, 0.1]).map(_f32)}
    ),
    "top_k": st.fixed_dictionaries({"top_k": st.sampled_from([2, 5, 300, 2000])}),
    "top_k, top_p": st.fixed_dictionaries(
        {"top_k": st.sampled_from([2, 20, 300]), "top_p": st.sampled_from([0.1, 0.5, 0.9, 0.99]).map(_f32)},
        optional={"min_p": st.sampled_from([0.001, 0.1]).map(_f32)},
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_batch_of_one_kind_draws_what_samplers_draw(kind: str, data: st.DataObject) -> None:
    width = data.draw(st.sampled_from(WIDTHS), label="width")
    temperatures = st.sampled_from([0.3, 1.0, 2.0]).map(_f32)
    samplings = [
        Sampling(seed=seed, temperature=data.draw(temperatures), **data.draw(PLAIN[kind], label="filters"))
        for seed in range(data.draw(st.integers(1, 6), label="rows"))
    ]
    draws = [RequestDraw(one, min_tokens=0, stop_token_ids=(), num_prompt=1, logits_width=width) for one in samplings]
    random, drawer = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="logits")), Drawer(width, CPU)
    for position in range(ROUNDS):
        logits = np.stack([_row(random, width) for _ in samplings])
        rows = [row_to_draw(draw, np.zeros(1 + position, dtype=np.int64)) for draw in draws]
        drawn = draw_rows(drawer, torch.from_numpy(logits), rows)
        expected = [draw_token(row, one, Changes(one, 0, (), [0], width), position) for row, one in zip(logits, samplings, strict=True)]
        assert drawn.tokens == expected
