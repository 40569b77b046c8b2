"""The engine over a model that hashes what it reads from the KV: any mistake in scheduling or paging changes an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from compute_svc.engine.steps.step_drawing import DrawConfig, DrawPlace
from compute_svc.wire.step_output import Pinned
from tests.fakes.engine_reader import DEVICE, GREEDY, TOP_3, WIDTH, Reader, answer_alone, ranking_of, request_of, small_engine
from tests.fakes.hash_model import HashModel
from triserve.rpc.errors import Internal, InvalidRequest, Overloaded
from triserve.rpc.sampling import Sampling


def test_a_greedy_request_is_answered_and_frees_its_pages() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    engine.submit(request_of(1, range(10), 12))
    reader.run()
    assert reader.tokens[1] == model.greedy_answer(range(10), 12)
    assert reader.errors == {1: None}
    assert engine.load.used_pages == 0
    assert engine.load.cached_pages == 5


def test_nothing_is_generated_beyond_max_tokens_or_a_stop_id() -> None:
    model = HashModel(WIDTH)
    long = model.greedy_answer(range(5), 12)
    engine = small_engine(model)
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), 12, stop_token_ids=frozenset({long[6]})))
    engine.submit(request_of(2, range(5), 1))
    reader.run()
    assert reader.tokens[1] == model.greedy_answer(range(5), 12, frozenset({long[6]}))
    assert reader.tokens[2] == long[:1]
    assert engine.load.decode_tokens == len(reader.tokens[1]) + 1


def test_stop_ids_do_not_count_before_min_tokens() -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), 6, min_tokens=4, stop_token_ids=frozenset(range(WIDTH))))
    rows = []
    for _ in range(4):
        output = reader.step()
        assert output is not None and output.rows is not None
        rows.append(output.rows.counts[0])
        if reader.awaiting:
            reader.answer(1)
    assert rows == [0] * 4
    output = reader.step()
    assert output is not None and output.rows is not None and output.rows.counts[0] == 1
    assert len(reader.tokens[1]) == 5
    assert reader.errors == {1: None}


def test_rows_that_wait_for_a_verdict_do_not_hold_up_greedy_ones() -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), 4, sampling=TOP_3))
    engine.submit(request_of(2, range(1, 7), 4))
    for _ in range(4):
        reader.step()
    assert reader.errors == {2: None}
    assert list(reader.awaiting) == [1]
    assert engine.load.used_pages == 2


def test_log_probabilities_come_with_the_token_if_they_are_asked_for() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    engine.submit(request_of(1, range(1, 7), 2))
    engine.submit(request_of(2, range(5), 2, sampling=Sampling(temperature=0.0, top_logprobs=3)))
    output = engine.step(0.0)
    assert output is not None and output.rows is not None
    rows = output.rows
    logits = model.logits_of(range(5))
    ranking = ranking_of(logits)
    logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    assert (rows.numbers.tolist(), rows.positions.tolist(), rows.counts.tolist()) == ([1, 2], [0, 0], [1, 1])
    assert rows.tokens.tolist() == [model.greedy_answer(range(1, 7), 1)[0], ranking[0]]
    assert [(one.row, list(one.top_token)) for one in rows.logprobs] == [(1, ranking[:3])]
    assert list(rows.logprobs[0].logprob) == pytest.approx([logprobs[ranking[0]]], rel=1e-6)
    assert list(rows.logprobs[0].top_logprob) == pytest.approx(logprobs[ranking[:3]].tolist(), rel=1e-6)


def test_a_request_tells_when_it_was_admitted_started_and_released() -> None:
    engine = small_engine()
    prompt = list(range(20))
    engine.submit(request_of(1, prompt, 2))
    first, second, third = (engine.step(float(now)) for now in (3, 4, 5))
    assert first is not None and second is not None and third is not None
    assert (first.started, first.rows) == ([], None)
    assert [(item.number, item.cached_tokens, item.submitted_at, item.admitted_at) for item in second.started] == [(1, 0, 0.0, 3.0)]
    assert [(item.number, item.preemptions, item.error) for item in third.released] == [(1, 0, None)]
    engine.submit(request_of(2, prompt, 2))
    again = engine.step(6.0)
    assert again is not None and again.started[0].cached_tokens == 16
    assert again.load.cached_tokens == 16


def test_replayed_tokens_continue_the_answer() -> None:
    model = HashModel(WIDTH)
    whole = model.greedy_answer(range(5), 10)
    engine = small_engine(model)
    reader = Reader(engine)
    reader.given[1] = 4
    engine.submit(request_of(1, range(5), 10, generated=whole[:4]))
    reader.run()
    assert reader.tokens[1] == whole[4:]


def test_a_prefix_is_computed_pinned_and_not_answered() -> None:
    engine = small_engine(num_pages=32)
    reader = Reader(engine)
    engine.submit(request_of(1, range(20), 1, pins=True))
    reader.run()
    assert [item for output in reader.outputs for item in output.pinned] == [Pinned(1, 20, 20)]
    assert (reader.tokens, reader.errors) == ({}, {})
    load = engine.load
    assert (load.pinned_pages, load.used_pages, load.cached_pages, load.decode_tokens) == (5, 0, 0, 0)
    engine.submit(request_of(2, range(20), 1, pins=True))
    output = engine.step(0.0)
    assert output is not None and output.pinned == [Pinned(2, 20, 0)], "what is cached is pinned at once"
    engine.submit(request_of(3, [*range(20), 1, 2], 2))
    output = engine.step(0.0)
    assert output is not None and output.started[0].cached_tokens == 20
    assert engine.unpin("", np.arange(20)) and not engine.unpin("", np.arange(20))


def test_what_is_pinned_survives_a_full_memory() -> None:
    engine = small_engine(num_pages=32)
    reader = Reader(engine)
    engine.submit(request_of(1, [3] * 16, 1, pins=True))
    reader.run()
    for number in range(2, 6):
        engine.submit(request_of(number, [number] * 40, 20))
    reader.run(steps=400)
    stats = engine.prefix_stats
    # Each of four answers leaves the KV of 59 tokens, fourteen whole pages, of which one request shares four with the pin.
    assert stats.stored_pages == 4 + 3 * 14 + 10
    assert stats.evicted_pages == stats.stored_pages - stats.cached_pages >= 56 - 32
    assert engine.prefix_stats.pinned_pages == engine.load.pinned_pages == 4


def test_more_than_half_of_the_memory_cannot_be_pinned() -> None:
    engine = small_engine(num_pages=32)
    engine.submit(request_of(1, [3] * 40, 1, pins=True))
    engine.submit(request_of(2, [4] * 40, 1, pins=True))
    reader = Reader(engine)
    reader.run()
    assert isinstance(reader.errors[2], Overloaded), "the second is refused when it is computed: the first came before it"
    with pytest.raises(Overloaded, match=r"10 pages are pinned and 20 would be, the limit is 16"):
        engine.submit(request_of(3, [4] * 40, 1, pins=True))


def test_a_prefix_pinned_in_a_thousand_chunks_is_counted_and_told_of() -> None:
    engine = small_engine(num_pages=2400, max_model_len_tokens=4404, step_budget_tokens=4)
    reader = Reader(engine)
    prompt = [place * place % WIDTH for place in range(4400)]
    engine.submit(request_of(1, prompt, 1, pins=True))
    reader.run(steps=1200)
    assert [item for output in reader.outputs for item in output.pinned] == [Pinned(1, 4400, 4400)]
    stats = engine.prefix_stats
    assert (stats.pinned_pages, stats.pins[0][:2]) == (1100, ("", 4400))
    engine.watch(True)
    output = reader.step()
    assert output is not None and output.kv_changes is not None
    assert len(output.kv_changes.stored) == 1100 and output.kv_changes.stored[-1] == stats.pins[0][2]


def test_changes_of_the_cache_are_gathered_only_while_somebody_watches() -> None:
    engine = small_engine()
    reader = Reader(engine)
    tree = engine._scheduler.memory.tree
    engine.watch(True)
    engine.submit(request_of(1, range(8), 2))
    reader.run()
    changes = [output.kv_changes for output in reader.outputs if output.kv_changes is not None]
    assert [(item.is_reset, len(item.stored), item.removed) for item in changes] == [(True, 2, [])]
    engine.watch(False)
    engine.submit(request_of(2, range(10, 18), 2))
    reader.run()
    assert tree.take_changes() == ([], []), "nobody would ever take them"
    assert [output.kv_changes for output in reader.outputs[-2:]] == [None, None]


def test_what_the_engine_has_done_is_counted_exactly() -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, range(20), 3))
    reader.run()
    load, stats = engine.load, engine.prefix_stats
    assert (load.steps, load.prefill_tokens, load.decode_tokens, load.cached_tokens, load.preemptions) == (4, 20, 3, 0, 0)
    assert (stats.looked_up_tokens, stats.hit_tokens, stats.stored_pages, stats.evicted_pages) == (20, 0, 5, 0)
    engine.submit(request_of(2, [*range(18), 9, 9], 3))
    reader.run()
    load, stats = engine.load, engine.prefix_stats
    assert (load.steps, load.prefill_tokens, load.decode_tokens, load.cached_tokens, load.preemptions) == (7, 24, 6, 16, 0)
    assert (stats.looked_up_tokens, stats.hit_tokens, stats.stored_pages, stats.evicted_pages) == (40, 16, 6, 0)
    assert (stats.cached_pages, stats.evictable_pages, stats.pinned_pages, stats.tenants) == (6, 6, 0, 1)


def test_each_preemption_is_counted_once_for_the_engine_and_once_for_its_request() -> None:
    engine = small_engine(num_pages=6, max_running_requests=2)
    reader = Reader(engine)
    for number in (1, 2):
        engine.submit(request_of(number, [number] * 7, 14))
    reader.run()
    released = {item.number: item.preemptions for output in reader.outputs for item in output.released}
    assert released == {1: 0, 2: 1} and engine.load.preemptions == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 4], ids=["waiting", "prefilling", "prefilled", "decoding"])
@pytest.mark.parametrize("sampling", [GREEDY, TOP_3], ids=["greedy", "sampled"])
def test_a_released_requests_pages_are_free_at_once(steps: int, sampling: Sampling) -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, range(20), 8, sampling=sampling))
    for _ in range(steps):
        reader.step()
        if reader.awaiting and steps == 4:
            reader.answer(1)
    assert engine.release(1)
    assert engine.load.used_pages == 0
    output = engine.step(0.0)
    assert output is not None and [item.number for item in output.released] == [1]
    assert engine.step(0.0) is None
    assert not engine.release(1)


def test_a_verdict_for_a_request_that_has_left_is_ignored() -> None:
    engine = small_engine()
    engine.submit(request_of(1, range(5), 4, sampling=TOP_3))
    engine.step(0.0)
    engine.release(1)
    engine.verdict(1, 0, [3])
    output = engine.step(0.0)
    assert output is not None and output.released[0].error is None


@pytest.mark.parametrize(("position", "token"), [(1, 3), (0, WIDTH), (0, -1)], ids=["position", "too large", "negative"])
def test_a_verdict_that_does_not_fit_fails_its_request_alone(position: int, token: int) -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), 4, sampling=TOP_3))
    engine.submit(request_of(2, range(6), 4))
    reader.step()
    engine.verdict(1, position, [token])
    reader.awaiting.clear()
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert reader.tokens[2] == model.greedy_answer(range(6), 4)


def test_an_unasked_verdict_fails_its_request() -> None:
    engine = small_engine()
    engine.submit(request_of(1, range(5), 4))
    engine.step(0.0)
    engine.verdict(1, 1, [3])
    output = engine.step(0.0)
    assert output is not None and isinstance(output.released[0].error, Internal)


class _SometimesBroken(HashModel):
    """Gives NaN for contexts that begin with token 9."""

    def logits_of_seen(self, seen: Sequence[tuple[int, int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        logits = super().logits_of_seen(seen)
        return np.full_like(logits, np.nan) if seen[0][1] == 9 else logits


@pytest.mark.parametrize("sampling", [GREEDY, TOP_3, Sampling(temperature=0.0, top_logprobs=2)], ids=["greedy", "sampled", "logprobs"])
def test_a_row_without_numbers_fails_its_request_alone(sampling: Sampling) -> None:
    model = _SometimesBroken(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    engine.submit(request_of(1, [9, 1, 2], 4, sampling=sampling))
    engine.submit(request_of(2, range(5), 4, sampling=sampling))
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert reader.tokens.keys() == {2} and reader.errors[2] is None
    assert engine.load.used_pages == 0


def test_same_prefix_prompts_in_one_step_are_answered_as_if_alone() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    for number in range(3):
        engine.submit(request_of(number, [1, 1, 1, 1, 1], 6))
    reader.run()
    assert [reader.tokens[number] for number in range(3)] == [model.greedy_answer([1] * 5, 6)] * 3


SAMPLINGS = {
    "plain": Sampling(seed=3),
    "penalties": Sampling(seed=3, presence_penalty=2.0, frequency_penalty=0.5, repetition_penalty=1.3),
    "greedy with penalties": Sampling(temperature=0.0, presence_penalty=8.0, logit_bias_ids=(4,), logit_bias_values=(3.0,)),
    "filters": Sampling(seed=3, temperature=2.0, top_k=9, top_p=0.9, min_p=0.01),
    "bans": Sampling(seed=3, banned_token_ids=(1, 2, 3), allowed_token_ids=tuple(range(12))),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_sampled_requests_run_ahead_and_draw_what_the_reference_draws(sampling: Sampling) -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE, num_pages=64)
    reader = Reader(engine)
    requests = [request_of(number, range(number, 6), 12, sampling=sampling) for number in range(1, 4)]
    for request in requests:
        engine.submit(request)
    steps = 0
    while reader.step() is not None:
        steps += 1
    assert steps == 12 and not reader.awaiting, "a token in each step"
    assert [reader.tokens[request.number] for request in requests] == [
        answer_alone(model, request, DrawPlace.DEVICE) for request in requests
    ]


def test_a_request_that_bans_every_token_fails_alone() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE)
    reader = Reader(engine)
    banned = Sampling(temperature=0.0, allowed_token_ids=(1,), banned_token_ids=(1,))
    engine.submit(request_of(1, range(5), 4, sampling=banned))
    engine.submit(request_of(2, range(5), 4))
    reader.run()
    assert isinstance(reader.errors[1], InvalidRequest)
    assert str(reader.errors[1]) == "allowed_token_ids and banned_token_ids leave no token to draw at position 0"
    assert reader.tokens == {2: model.greedy_answer(range(5), 4)}


def test_an_audited_row_goes_out_whole_beside_its_token() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DrawConfig(audited_share=0.5))
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), 8))
    reader.run()
    rows = [output.rows for output in reader.outputs if output.rows is not None]
    assert [len(one.logits) for one in rows] == [0, 1] * 4, "every second one"
    context = [*range(5), *reader.tokens[1][:1]]
    assert rows[1].logits[0].row == 0 and rows[1].logits[0].logits == model.logits_of(context).tobytes()


def test_a_prefix_hit_does_not_inherit_a_strangers_penalties() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model, DEVICE)
    reader = Reader(engine)
    requests = [request_of(number, [1] * 8, 4, sampling=SAMPLINGS["greedy with penalties"]) for number in (1, 2)]
    for request in requests:
        engine.submit(request)
        reader.run()
    assert reader.outputs[-4].started[0].cached_tokens == 4
    assert reader.tokens[1] == reader.tokens[2] == answer_alone(model, requests[0], DrawPlace.DEVICE)


def test_a_cached_prompt_is_answered_as_the_first_time() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    for number in range(3):
        engine.submit(request_of(number, range(13), 6))
        reader.run()
    assert [reader.tokens[number] for number in range(3)] == [model.greedy_answer(range(13), 6)] * 3
    assert engine.load.cached_tokens == 2 * 12


def test_the_last_token_may_be_drawn_elsewhere() -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), 1, sampling=TOP_3))
    reader.step()
    reader.answer(1)
    assert engine.load.used_pages == 0
    reader.run()
    assert reader.errors == {1: None}
