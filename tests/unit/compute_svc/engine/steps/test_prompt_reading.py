"""What the engine tells of prompts and their hidden states; that it is the same in any use is tested in test_engine_any_use.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from compute_svc.engine.engine import Engine
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.scheduler.base import MAX_READ_TOKENS, SchedulerConfig
from compute_svc.wire.request import HiddenStates, Request
from tests.fakes.engine_reader import DEVICE, SERVICE, WIDTH, Reader, assert_read_as_alone, request_of, small_engine
from tests.fakes.hash_model import HashModel, hash_kv
from triserve.rpc.errors import Internal, InvalidRequest, PromptTooLong
from triserve.rpc.sampling import Sampling

READ = Sampling(temperature=0.0, prompt_logprobs=2)
LONG = [index % 23 for index in range(300)]


def large_engine(model: HashModel) -> Engine:
    return small_engine(model, DEVICE, num_pages=400, max_model_len_tokens=400, step_budget_tokens=350)


def test_of_what_is_summed_up_a_step_takes_all_that_fits() -> None:
    model = HashModel(WIDTH)
    engine = large_engine(model)
    reader = Reader(engine)
    request = request_of(1, LONG, 0, hidden_states=HiddenStates.MEAN)
    engine.submit(request)
    reader.run()
    assert [batch.num_tokens for batch in model.batches] == [len(LONG)]
    assert_read_as_alone(model, request, reader)


def test_a_step_reads_no_more_tokens_than_it_may_and_prompts_take_turns_by_rank() -> None:
    model = HashModel(WIDTH)
    engine = large_engine(model)
    reader = Reader(engine)
    requests = [
        request_of(1, LONG, 1, sampling=READ),
        request_of(2, [5, *LONG], 0, hidden_states=HiddenStates.ALL),
        request_of(3, [6, *LONG[:40]], 3),
    ]
    for request in requests:
        engine.submit(request)
    reader.run()
    read = [len(batch.logit_rows) + (0 if batch.hidden_rows is None else len(batch.hidden_rows)) for batch in model.batches]
    # Each of the three may have a row besides that draws.
    assert max(read) <= MAX_READ_TOKENS + 3
    assert model.batches[0].num_tokens == MAX_READ_TOKENS + 41, "who is not read does not wait for those who are"
    for request in requests:
        assert_read_as_alone(model, request, reader)
    assert reader.errors == {1: None, 2: None, 3: None}


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({"sampling": READ}, 0),
        ({"hidden_states": HiddenStates.MEAN}, 0),
        ({"hidden_states": HiddenStates.ALL}, 0),
        ({"hidden_states": HiddenStates.LAST}, 16),
        ({"sampling": READ, "hidden_states": HiddenStates.LAST}, 0),
        ({}, 16),
    ],
    ids=["log-probabilities", "mean", "all", "last", "log-probabilities and last", "nothing"],
)
@pytest.mark.parametrize("max_tokens", [0, 2])
def test_a_cached_prefix_is_used_where_nothing_of_it_is_to_be_told_and_kept_by_all(
    changes: dict[str, object], cached: int, max_tokens: int
) -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    engine.submit(request_of(1, range(20), 1))
    reader.run()
    request = request_of(2, range(20), max_tokens, **changes)
    engine.submit(request)
    reader.run()
    assert [started.cached_tokens for output in reader.outputs for started in output.started] == [0, cached]
    assert_read_as_alone(model, request, reader)
    assert engine.load.cached_pages == 5 and engine.load.used_pages == 0


def test_a_prompt_that_was_read_is_cached_for_those_who_come_after() -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, range(20), 0, sampling=READ))
    reader.run()
    engine.submit(request_of(2, range(20), 1))
    reader.run()
    assert [started.cached_tokens for output in reader.outputs for started in output.started] == [0, 16]


@pytest.mark.parametrize("drawing", [SERVICE, DEVICE], ids=["service", "device"])
def test_a_request_of_no_tokens_begins_and_ends_with_its_prompt_and_draws_nothing(drawing: object) -> None:
    engine = small_engine(drawing=SERVICE if drawing is SERVICE else DEVICE)
    sampling = Sampling(temperature=1.0, seed=3, top_logprobs=2, allowed_token_ids=(1,), banned_token_ids=(1,))
    engine.submit(request_of(1, range(20), 0, sampling=sampling))
    first, second = engine.step(0.0), engine.step(1.0)
    assert first is not None and first.rows is None and not first.started
    assert second is not None and second.rows is not None
    assert (list(second.rows.computed), second.rows.numbers.size, second.rows.logits) == ([1], 0, [])
    assert [item.number for item in second.started] == [1] and [item.error for item in second.released] == [None]
    assert (second.load.running_requests, second.load.used_pages, second.load.decode_tokens) == (0, 0, 0)


def test_a_prompt_may_fill_the_context_where_nothing_follows_it() -> None:
    engine = small_engine()
    reader = Reader(engine)
    whole = [index % 7 for index in range(64)]
    engine.submit(request_of(1, whole, 0))
    reader.run()
    assert reader.errors == {1: None}
    with pytest.raises(PromptTooLong, match="the limit is 64"):
        engine.submit(request_of(2, [*whole, 1], 0))
    with pytest.raises(PromptTooLong, match="the limit is 63"):
        engine.submit(request_of(3, whole, 1))
    with pytest.raises(InvalidRequest, match="generated_token_ids"):
        engine.submit(request_of(4, whole[:5], 0, generated=[1]))


def test_tokens_of_earlier_attempts_are_known_and_the_prompt_is_told_of_again() -> None:
    model = HashModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    reader.given[1] = 2
    request = request_of(1, range(9), 4, generated=[3, 4], sampling=READ, hidden_states=HiddenStates.ALL)
    engine.submit(request)
    reader.run()
    assert_read_as_alone(model, request, reader)
    assert len(reader.hidden[1]) == 11 and len(reader.tokens[1]) == 2


class _BrokenAt(HashModel):
    """Gives no numbers behind a token."""

    token = 5

    def logits_of_seen(self, seen: Sequence[tuple[int, int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        logits = super().logits_of_seen(seen)
        return np.full_like(logits, np.nan) if seen[-1][1] == self.token else logits


@pytest.mark.parametrize(
    "request_", [request_of(1, [1, 5, 2, 3], 3, sampling=READ), request_of(1, [1, 5, 2, 3], 3, hidden_states=HiddenStates.ALL)]
)
def test_a_token_without_numbers_fails_its_request_alone(request_: Request) -> None:
    model = _BrokenAt(WIDTH)
    engine = small_engine(model, DEVICE)
    reader = Reader(engine)
    other = request_of(2, [1, 4, 2, 3], 3, sampling=READ)
    engine.submit(request_)
    engine.submit(other)
    reader.run()
    assert isinstance(reader.errors[1], Internal) and reader.errors[2] is None
    assert 1 not in reader.tokens and 1 not in reader.prompt_logprobs and 1 not in reader.hidden
    assert_read_as_alone(model, other, reader)


class _WithoutHidden:
    """Gives logits alone."""

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        return torch.zeros((len(batch.logit_rows), WIDTH))


def test_hidden_states_are_refused_where_the_model_gives_none() -> None:
    config = SchedulerConfig(4, 16, 64, 16, 4, 8)
    engine = Engine(_WithoutHidden(), hash_kv(16, 4), config, logits_width=WIDTH, device=torch.device("cpu"))
    assert engine.hidden_size == 0
    with pytest.raises(InvalidRequest, match="hidden_states"):
        engine.submit(request_of(1, [1], 1, hidden_states=HiddenStates.LAST))
