"""Beam search finds what a literal reference finds, and what transformers' `generate` does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers

from gateway.flow.search.beams import BeamState
from gateway.flow.search.kinds import Beams, EarlyStopping
from gateway.flow.search.steps import Candidate
from tests.fakes.language_models import LanguageModel, random_model

ROOT = Path(__file__).parents[5]
EOS = 0


class Found(NamedTuple):
    """Answers, the best first, their scores, and how many probes it took."""

    tokens: list[list[int]]
    scores: list[float]
    probes: int


def searched(
    model: LanguageModel,
    beams: Beams,
    *,
    prompt: Sequence[int] = (),
    max_tokens: int,
    min_tokens: int = 0,
    stops: Sequence[int] = (EOS,),
    logprobs: int = 0,
) -> Found:
    """What the search finds, run as a search on replicas runs it."""
    state = BeamState(beams, max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=stops, num_reported=logprobs)
    probes = 0
    while not state.done:
        probes += len(state.beams)
        state.advance([likeliest(model([*prompt, *beam.token_ids]), state.num_candidates) for beam in state.beams])
    found = state.best(beams.width)
    return Found([[step.chosen.token for step in one.steps] for one in found], [one.score for one in found], probes)


def likeliest(logprobs: Sequence[float], count: int) -> list[Candidate]:
    ranked = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))[:count]
    return [Candidate(token, logprobs[token], b"") for token in ranked]


def reference(model: LanguageModel, beams: Beams, *, max_tokens: int, min_tokens: int = 0, stops: Sequence[int] = (EOS,)) -> Found:
    """Beam search by the words of its rules: every continuation of every beam is looked at, whatever its likelihood."""
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    probes = 0
    for length in range(1, max_tokens + 1):
        every = []
        for tokens, total in running:
            probes += 1
            for token, logprob in enumerate(model(tokens)):
                if token not in stops or length > min_tokens:
                    every.append(((*tokens, token), total + logprob))
        every.sort(key=lambda one: -one[1])
        for tokens, total in every[: beams.width]:
            if tokens[-1] in stops or length == max_tokens:
                ended.append((tokens, total / length**beams.length_penalty))
        ended = sorted(ended, key=lambda one: -one[1])[: beams.width]
        running = [one for one in every if one[0][-1] not in stops][: beams.width]
        if len(ended) == beams.width:
            longest = max_tokens if beams.early_stopping == "never" and beams.length_penalty > 0 else length
            if beams.early_stopping is True or running[0][1] / longest**beams.length_penalty <= ended[-1][1]:
                break
    return Found([list(tokens) for tokens, _ in ended], [score for _, score in ended], probes)


EARLY: list[EarlyStopping] = [False, True, "never"]


@pytest.mark.parametrize("early_stopping", EARLY)
@pytest.mark.parametrize("length_penalty", [-1.5, 0.0, 0.5, 1.0, 2.0])
def test_a_search_finds_what_one_that_looks_at_every_continuation_finds(length_penalty: float, early_stopping: EarlyStopping) -> None:
    for seed, width, min_tokens, stops in itertools.product(range(4), (1, 2, 3), (0, 3), ((EOS,), (EOS, 4))):
        model = random_model(9, seed)
        beams = Beams(width=width, length_penalty=length_penalty, early_stopping=early_stopping)
        found = searched(model, beams, max_tokens=6, min_tokens=min_tokens, stops=stops)
        assert found == reference(model, beams, max_tokens=6, min_tokens=min_tokens, stops=stops)


@pytest.mark.parametrize("seed", range(3))
def test_a_search_wide_enough_for_every_sequence_finds_the_best_of_all(seed: int) -> None:
    model = random_model(3, seed)
    every: list[tuple[float, list[int]]] = []
    for length in range(1, 4):
        for tokens in itertools.product(range(3), repeat=length):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == 3):
                every.append((math.fsum(model(tokens[:at])[token] for at, token in enumerate(tokens)) / length, list(tokens)))
    found = searched(model, Beams(width=18, early_stopping="never"), max_tokens=3)
    every.sort(key=lambda one: -one[0])
    assert found.tokens[: len(every)] == [tokens for _, tokens in every][:18]


def test_no_answer_of_several_stop_ids_ends_before_it_may() -> None:
    found = searched(random_model(9, 5), Beams(width=3, length_penalty=0.0), max_tokens=7, min_tokens=4, stops=(EOS, 4, 7))
    assert all(set(tokens[:4]).isdisjoint((EOS, 4, 7)) for tokens in found.tokens)


def test_equals_go_by_the_beam_they_continue_and_then_by_rank() -> None:
    def even(tokens: Sequence[int]) -> list[float]:
        return [math.log(0.25)] * 4

    found = searched(even, Beams(width=3), max_tokens=2, stops=())
    assert found.tokens == [[0, 0], [0, 1], [0, 2]]


def test_steps_keep_as_many_of_the_likeliest_as_are_reported() -> None:
    model = random_model(9, 1)
    for reported in (0, 2):
        state = BeamState(Beams(width=2), max_tokens=3, min_tokens=0, stop_token_ids=(), num_reported=reported)
        while not state.done:
            state.advance([likeliest(model(beam.token_ids), 5) for beam in state.beams])
        for found in state.best(2):
            for at, step in enumerate(found.steps):
                before = [one.chosen.token for one in found.steps[:at]]
                assert list(step.likeliest) == likeliest(model(before), reported)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def tiny_model() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(ROOT / "tests" / "tiny_model", dtype=torch.float32).eval()


def tiny_logprobs(token_ids: Sequence[int]) -> list[float]:
    with torch.inference_mode():
        logits = tiny_model()(torch.tensor([list(token_ids)])).logits[0, -1]
    values: list[float] = torch.log_softmax(logits, dim=-1).tolist()
    return values


# A chat's opening, words of the middle of a sentence, and what the model has never read.
PROMPTS = ([1, 300, 412, 4, 3], [500, 501, 502], [1000, 7, 3000, 42, 42])


@pytest.mark.parametrize(
    ("width", "length_penalty", "early_stopping"), [(3, 1.0, False), (2, 0.0, "never"), (4, 2.0, True), (3, -1.0, False), (2, 1.0, "never")]
)
@pytest.mark.usefixtures("one_thread")
def test_transformers_finds_the_same_beams(width: int, length_penalty: float, early_stopping: EarlyStopping) -> None:
    for prompt in PROMPTS:
        theirs = tiny_model().generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=8,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = Beams(width=width, length_penalty=length_penalty, early_stopping=early_stopping)
        ours = searched(tiny_logprobs, beams, prompt=prompt, max_tokens=8, stops=(4, 0))
        assert ours.tokens == [_without_padding(row[len(prompt) :].tolist()) for row in theirs.sequences]
        assert ours.scores == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)


def _without_padding(tokens: list[int]) -> list[int]:
    """Up to the first token that ends an answer."""
    end = next((at for at, token in enumerate(tokens) if token in (4, 0)), len(tokens))
    return tokens[: end + 1]
