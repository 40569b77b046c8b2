"""Decode steps begun in advance: they are used, and whoever needs something else gets that."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.engine.steps.decode_graphs import graph_sizes
from compute_svc.engine.steps.step_drawing import DrawConfig, DrawPlace
from tests.fakes.engine_reader import DEVICE, WIDTH, Reader, answer_alone, request_of, small_engine
from tests.fakes.hash_model import HashModel
from triserve.rpc.sampling import Sampling

DRAWS = pytest.mark.parametrize("draws", [True, False], ids=["drawn in graphs", "drawn behind them"])


@DRAWS
def test_all_decode_steps_are_computed_in_advance(draws: bool) -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE, runs_ahead=True, draws_ahead=draws)
    reader = Reader(engine)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 1, 2, 3]]
    for number, prompt in enumerate(prompts):
        engine.submit(request_of(number, prompt, 9))
    for step in range(1, 10):
        reader.step()
        # The last token is known to be the last, and nothing is computed twice.
        assert len(model.batches) == min(step + 1, 9)
    assert [reader.tokens[number] for number in range(3)] == [model.greedy_answer(prompt, 9) for prompt in prompts]
    engine.assert_consistent()


@DRAWS
def test_a_newcomer_joins_those_that_are_computed_in_advance(draws: bool) -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE, runs_ahead=True, draws_ahead=draws)
    reader = Reader(engine)
    engine.submit(request_of(0, [1, 2, 3], 12))
    for _ in range(4):
        reader.step()
    stops = frozenset({model.greedy_answer([3, 2, 1], 5)[2]})
    engine.submit(request_of(1, [3, 2, 1], 5, stop_token_ids=stops))
    reader.run()
    assert reader.tokens[0] == model.greedy_answer([1, 2, 3], 12)
    assert reader.tokens[1] == model.greedy_answer([3, 2, 1], 5, stops)
    # Most were computed once: the prompts' tokens, each request's others, and at most one that nobody wanted.
    assert sum(batch.num_tokens for batch in model.batches) <= 6 + 11 + 3 + 1


def test_steps_whose_rows_draw_in_different_ways_are_computed_in_advance_where_graphs_draw() -> None:
    model = HashModel(WIDTH, levels=64)
    engine = small_engine(model, DEVICE, runs_ahead=True)
    reader = Reader(engine)
    samplings = [Sampling(temperature=0.0), Sampling(seed=2**63, temperature=1.3), Sampling(seed=5, temperature=0.8, min_p=0.1)]
    requests = [request_of(number, [1, 2, number], 6 + number, sampling=sampling) for number, sampling in enumerate(samplings)]
    for request in requests:
        engine.submit(request)
    for step in range(1, 9):
        reader.step()
        assert len(model.batches) == min(step + 1, 8)
    assert [reader.tokens[request.number] for request in requests] == [answer_alone(model, request, DEVICE.place) for request in requests]


def test_an_auditor_gets_the_logits_that_a_token_was_drawn_from() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DrawConfig(DrawPlace.DEVICE, audited_share=1.0), runs_ahead=True)
    engine.submit(request_of(0, [1, 2, 3], 9))
    tokens = model.greedy_answer([1, 2, 3], 9)
    for token in tokens:
        output = engine.step(0.0)
        assert output is not None and output.rows is not None
        assert output.rows.tokens.tolist() == [token] == [int(np.frombuffer(output.rows.logits[0].logits, "<f4").argmax())]


def test_graphs_have_few_sizes_and_the_last_holds_everybody() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(3) == (1, 2, 4)
    assert graph_sizes(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert graph_sizes(100)[-3:] == (64, 96, 128)
