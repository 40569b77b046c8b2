"""Decode steps begun in advance: they are used, and whoever needs something else gets that."""

from __future__ import annotations

from compute_svc.engine.steps.decode_graphs import graph_sizes
from tests.fakes.engine_reader import DEVICE, WIDTH, Reader, request_of, small_engine
from tests.fakes.hash_model import HashModel


def test_all_decode_steps_are_computed_in_advance() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE, runs_ahead=True)
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


def test_a_newcomer_joins_those_that_are_computed_in_advance() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE, runs_ahead=True)
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


def test_graphs_have_few_sizes_and_the_last_holds_everybody() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(3) == (1, 2, 4)
    assert graph_sizes(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert graph_sizes(100)[-3:] == (64, 96, 128)
