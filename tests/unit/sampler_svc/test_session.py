"""A replica's stream: whatever arrives, each request gets its own text, verdicts and failures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sampler_svc.logprobs import RowLogprobs, TokenLogprob, TopToken
from sampler_svc.request_slots import RequestSlots
from sampler_svc.request_state import REPLAY_PIECE_TOKENS, Delta, Finish
from sampler_svc.session import Audits, Frame, Outcome, Session, Verdict
from sampler_svc.text.vocabulary import Vocabulary
from tests.examples import examples
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.errors import Internal, InvalidRequest, Overloaded, Unavailable
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, sampler_pb2

WIDTH, EOS = 257, 256
VOCABULARY = Vocabulary(byte_tokenizer())
GREEDY = Sampling(temperature=0.0)


def opening(
    request: int, *, sampling: Sampling = GREEDY, generated: Sequence[int] = (), gateway: int = 1, **stopping: Any
) -> sampler_pb2.OpenRequest:
    fields: dict[str, Any] = {"max_tokens": 50, "stop_token_ids": [EOS]} | stopping
    return sampler_pb2.OpenRequest(
        request=request,
        gateway=gateway,
        gateway_request=1000 + request,
        epoch=3,
        request_id=f"r-{request}",
        prompt_token_ids=[ord("?")],
        generated_token_ids=generated,
        sampling=sampling.write(),
        stopping=common_pb2.StoppingParams(**fields),
    )


Row = tuple[int, int, int | Sequence[int] | dict[int, float]]
"""Request, position, and the drawn token, several of them, or the logits to draw from: those not given are impossible."""


def whole(logits: dict[int, float]) -> NDArray[np.float32]:
    """A row of logits."""
    row = np.full(WIDTH, -np.inf, np.float32)
    for token, logit in logits.items():
        row[token] = logit
    return row


def frame(
    rows: Sequence[Row] = (),
    *,
    opens: Sequence[sampler_pb2.OpenRequest] = (),
    closes: Sequence[int] = (),
    logprobs: Mapping[int, RowLogprobs] | None = None,
    audited: Mapping[int, dict[int, float]] | None = None,
) -> Frame:
    """A frame; `logprobs` and `audited` give more to drawn rows, by index."""
    logits = {index: whole(what) for index, (_, _, what) in enumerate(rows) if isinstance(what, dict)}
    tokens: list[list[int]] = [[] if isinstance(what, dict) else [what] if isinstance(what, int) else [*what] for _, _, what in rows]
    return Frame(
        number=1,
        opens=opens,
        closes=closes,
        request=[request for request, _, _ in rows],
        position=[position for _, position, _ in rows],
        tokens=tokens,
        logprobs=logprobs or {},
        logits=logits | {index: whole(row) for index, row in (audited or {}).items()},
    )


def session(limit: int = 100) -> Session:
    return Session(VOCABULARY, WIDTH, RequestSlots(limit), Audits())


def texts(outcome: Outcome) -> dict[int, str]:
    return {request: delta.text for request, delta in outcome.deltas.items()}


def test_drawn_tokens_become_deltas() -> None:
    stream = session()
    first = stream.process([frame([(1, 0, ord("a")), (2, 0, ord("x"))], opens=[opening(1), opening(2, gateway=9)])])
    assert texts(first) == {1: "a", 2: "x"}
    assert (first.deltas[2].gateway, first.deltas[2].gateway_request, first.deltas[2].epoch) == (9, 1002, 3)
    assert not first.verdicts and not first.finished and not first.failed
    second = stream.process([frame([(1, 1, ord("b"))])])
    assert texts(second) == {1: "b"}
    assert second.deltas[1].first_position == 1


def test_rows_that_are_drawn_here_get_a_verdict_and_a_delta() -> None:
    outcome = session().process([frame([(1, 0, {ord("a"): 1.0, ord("b"): 2.0})], opens=[opening(1)])])
    assert outcome.verdicts == [Verdict(1, 0, ord("b"))]
    assert texts(outcome) == {1: "b"}


def test_a_verdict_that_ends_the_answer_is_also_told_as_finished() -> None:
    stream = session()
    outcome = stream.process([frame([(1, 0, {EOS: 1.0})], opens=[opening(1)])])
    assert outcome.verdicts == [Verdict(1, 0, EOS)]
    assert outcome.finished == [1]
    assert outcome.deltas[1].finish is Finish.STOP
    assert stream.num_requests == 0


def test_rows_after_the_end_are_ignored() -> None:
    stream = session()
    outcome = stream.process([frame([(1, 0, EOS)], opens=[opening(1)]), frame([(1, 1, ord("x"))]), frame([(1, 2, {5: 1.0})])])
    assert (outcome.finished, outcome.deltas[1].tokens, outcome.failed) == ([1], [EOS], [])
    assert stream.process([frame([(1, 3, ord("y"))])]) == Outcome()


def test_a_closed_request_is_dropped_without_a_word() -> None:
    stream = session()
    stream.process([frame([(1, 0, ord("a"))], opens=[opening(1, stop_strings=("ab",))])])
    assert stream.process([frame([(1, 1, ord("b"))], closes=[1, 77])]) == Outcome()
    assert stream.num_requests == 0


def test_a_request_closed_in_the_frame_that_opens_it_never_was() -> None:
    assert session().process([frame([(1, 0, ord("a"))], opens=[opening(1)], closes=[1])]) == Outcome()


def test_a_position_that_is_done_is_ignored() -> None:
    stream = session()
    stream.process([frame([(1, 0, ord("a"))], opens=[opening(1)])])
    assert stream.process([frame([(1, 0, ord("a"))]), frame([(1, 0, {7: 1.0})])]) == Outcome()
    assert texts(stream.process([frame([(1, 1, ord("b"))])])) == {1: "b"}


def test_a_row_that_comes_twice_in_a_frame_is_drawn_once() -> None:
    row = {ord("a"): 1.0}
    outcome = session().process([frame([(1, 0, row), (1, 0, row)], opens=[opening(1)])])
    assert (outcome.verdicts, outcome.deltas[1].tokens) == ([Verdict(1, 0, ord("a"))], [ord("a")])


def test_a_gap_fails_the_request_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    stream = session()
    outcome = stream.process([frame([(1, 1, ord("a")), (2, 0, ord("x"))], opens=[opening(1), opening(2)])])
    ((request, error),) = outcome.failed
    assert request == 1
    assert isinstance(error, Internal)
    assert texts(outcome) == {2: "x"}
    assert "r-1: row is about position 1, the next is 0" in caplog.text
    assert stream.num_requests == 1


def test_several_drawn_tokens_of_a_request_in_one_frame_are_taken_in_order() -> None:
    outcome = session().process([frame([(1, 0, ord("a")), (1, 1, ord("b")), (1, 2, {ord("c"): 0.0})], opens=[opening(1)])])
    assert texts(outcome) == {1: "abc"}


def test_tokens_of_earlier_attempts_are_not_sent_again() -> None:
    outcome = session().process([frame([(1, 2, ord("c"))], opens=[opening(1, generated=[*b"ab"])])])
    assert (texts(outcome), outcome.deltas[1].first_position, outcome.failed) == ({1: "c"}, 2, [])


def test_a_bad_request_fails_alone_and_its_rows_are_ignored() -> None:
    stream = session()
    bad = opening(1, sampling=Sampling(temperature=-1.0))
    outcome = stream.process([frame([(1, 0, ord("a")), (2, 0, ord("x"))], opens=[bad, opening(2)])])
    ((request, error),) = outcome.failed
    assert (request, type(error), error.field) == (1, InvalidRequest, "temperature")
    assert texts(outcome) == {2: "x"}
    assert stream.num_requests == 1


def test_a_request_too_many_is_overloaded_and_room_comes_back() -> None:
    stream = session(limit=1)
    outcome = stream.process([frame(opens=[opening(1), opening(2)])])
    ((request, error),) = outcome.failed
    assert (request, type(error)) == (2, Overloaded)
    assert stream.process([frame(closes=[1], opens=[])]).failed == []
    assert stream.process([frame(opens=[opening(3)])]).failed == []


def test_a_refused_request_takes_no_room() -> None:
    stream = session(limit=1)
    stream.process([frame(opens=[opening(1, generated=[1, 2], max_tokens=1)])])
    assert stream.process([frame(opens=[opening(2)])]).failed == []


def test_a_sampler_that_leaves_takes_no_request_and_serves_those_it_has() -> None:
    slots = RequestSlots(9)
    stream = Session(VOCABULARY, WIDTH, slots, Audits())
    stream.process([frame(opens=[opening(1)])])
    slots.close()
    outcome = stream.process([frame([(1, 0, ord("a"))], opens=[opening(2)])])
    assert [(request, type(error)) for request, error in outcome.failed] == [(2, Unavailable)]
    assert texts(outcome) == {1: "a"}


def test_opening_a_request_twice_ends_the_stream() -> None:
    stream = session()
    stream.process([frame(opens=[opening(1)])])
    with pytest.raises(InvalidRequest, match="request 1, which is open already"):
        stream.process([frame(opens=[opening(1)])])


def test_closing_the_session_frees_its_requests_once() -> None:
    slots = RequestSlots(9)
    one, other = Session(VOCABULARY, WIDTH, slots, Audits()), Session(VOCABULARY, WIDTH, slots, Audits())
    one.process([frame(opens=[opening(1), opening(2)])])
    other.process([frame(opens=[opening(1)])])
    one.close()
    one.close()
    assert slots.open_requests == 1


def test_a_row_of_several_tokens_advances_token_by_token_to_the_end() -> None:
    stream = session()
    outcome = stream.process([frame([(1, 0, b"abc")], opens=[opening(1)])])
    assert (texts(outcome), outcome.deltas[1].tokens) == ({1: "abc"}, [*b"abc"])
    assert texts(stream.process([frame([(1, 3, b"de")])])) == {1: "de"}


@pytest.mark.parametrize(
    ("tokens", "stopping", "text", "finish"),
    [
        ([*b"ab", EOS, *b"cd"], {}, "ab", Finish.STOP),
        ([*b"abcd"], {"stop_strings": ["bc"]}, "a", Finish.STOP),
        ([*b"abcd"], {"max_tokens": 3}, "abc", Finish.LENGTH),
    ],
    ids=["stop id", "stop string", "length"],
)
def test_tokens_behind_the_end_are_ignored(tokens: list[int], stopping: dict[str, Any], text: str, finish: Finish) -> None:
    stream = session()
    outcome = stream.process([frame([(1, 0, tokens)], opens=[opening(1, **stopping)]), frame([(1, len(tokens), b"xy")])])
    assert (outcome.deltas[1].text, outcome.deltas[1].tokens, outcome.deltas[1].finish) == (text, tokens[:3], finish)
    assert (outcome.finished, outcome.failed, outcome.verdicts, stream.num_requests) == ([1], [], [], 0)


@pytest.mark.parametrize(
    ("position", "tokens", "outcome"),
    [(0, b"ab", "ignored"), (1, b"b", "ignored"), (1, b"bc", "failed"), (2, b"cd", "taken"), (3, b"d", "failed")],
)
def test_a_row_is_about_what_is_known_or_about_what_is_next(position: int, tokens: bytes, outcome: str) -> None:
    stream = session()
    stream.process([frame([(1, 0, b"ab")], opens=[opening(1)])])
    result = stream.process([frame([(1, position, tokens)])])
    assert ("failed" if result.failed else "taken" if result.deltas else "ignored") == outcome


LOGPROBS = RowLogprobs([-0.5, -1.5], [ord("a"), ord("c")], [-0.5, -0.25])


def test_a_drawn_row_reports_the_logprobs_it_came_with() -> None:
    sampling = replace(GREEDY, top_logprobs=1)
    outcome = session().process([frame([(1, 0, b"ab")], opens=[opening(1, sampling=sampling)], logprobs={0: LOGPROBS})])
    assert [one.entry for one in outcome.deltas[1].logprobs] == [
        TokenLogprob(ord("a"), -0.5, [TopToken(ord("a"), -0.5)]),
        TokenLogprob(ord("b"), -1.5, [TopToken(ord("c"), -0.25)]),
    ]


def test_logprobs_of_a_row_drawn_here_are_those_of_the_model_whatever_was_drawn_from() -> None:
    sampling = Sampling(temperature=0.0, logit_bias_ids=(ord("b"),), logit_bias_values=(9.0,), top_logprobs=2)
    row = {ord("a"): math.log(0.75), ord("b"): math.log(0.25)}
    outcome = session().process([frame([(1, 0, row)], opens=[opening(1, sampling=sampling)])])
    (entry,) = outcome.deltas[1].logprobs
    assert (entry.entry.token, [one.token for one in entry.entry.top]) == (ord("b"), [ord("a"), ord("b")])
    assert math.exp(entry.entry.logprob) == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("logprobs", [{}, {0: RowLogprobs([-0.5], [], [])}, {0: RowLogprobs([math.nan], [5], [-1.0])}], ids=str)
def test_missing_logprobs_fail_the_request_alone_and_leave_no_token_without_them(logprobs: dict[int, RowLogprobs]) -> None:
    opens = [opening(1, sampling=replace(GREEDY, top_logprobs=1)), opening(2)]
    outcome = session().process([frame([(1, 0, ord("a")), (2, 0, ord("x"))], opens=opens, logprobs=logprobs)])
    assert [request for request, _ in outcome.failed] == [1]
    assert texts(outcome) == {2: "x"}


def audit(rows: Sequence[Row], audited: dict[int, dict[int, float]], **request: Any) -> tuple[Outcome, Audits]:
    audits = Audits()
    stream = Session(VOCABULARY, WIDTH, RequestSlots(9), audits)
    return stream.process([frame(rows, opens=[opening(1, **request)], audited=audited)]), audits


def test_an_audited_row_that_agrees_is_counted_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    outcome, audits = audit([(1, 0, ord("a")), (1, 1, ord("b"))], {1: {ord("a"): 0.0, ord("b"): 1.0}})
    assert (audits, texts(outcome), outcome.verdicts, caplog.text) == (Audits(1, 0), {1: "ab"}, [], "")


def test_an_audited_row_that_disagrees_is_counted_and_logged_and_computes_token_stands(caplog: pytest.LogCaptureFixture) -> None:
    outcome, audits = audit([(1, 0, ord("a"))], {0: {ord("a"): 0.0, ord("b"): 1.0}})
    assert (audits, texts(outcome), outcome.failed) == (Audits(1, 1), {1: "a"}, [])
    assert f"request r-1, position 0: compute drew {ord('a')}, the sampler {ord('b')}" in caplog.text


@pytest.mark.parametrize("row", [{}, {5: math.nan}], ids=["impossible", "NaN"])
def test_an_audit_that_can_draw_nothing_is_a_disagreement_and_fails_nobody(row: dict[int, float]) -> None:
    outcome, audits = audit([(1, 0, ord("a"))], {0: row})
    assert (audits, texts(outcome), outcome.failed) == (Audits(1, 1), {1: "a"}, [])


def test_an_audit_draws_from_the_state_before_the_row() -> None:
    row = {ord("a"): 1.0, ord("b"): 0.5}
    rows: list[Row] = [(1, 0, ord("a")), (1, 1, ord("b"))]
    _, audits = audit(rows, {0: row, 1: row}, sampling=replace(GREEDY, presence_penalty=1.0))
    assert audits == Audits(2, 0)


def test_a_request_that_leaves_nothing_to_draw_is_told_which_fields_do() -> None:
    sampling = replace(GREEDY, allowed_token_ids=(EOS,))
    outcome = session().process([frame([(1, 0, {EOS: 1.0, 5: 2.0})], opens=[opening(1, sampling=sampling, min_tokens=2)])])
    ((request, error),) = outcome.failed
    assert (request, type(error), error.field) == (1, InvalidRequest, "min_tokens")
    assert error.message == "allowed_token_ids and min_tokens leave no token to draw at position 0"


def test_a_row_that_cannot_be_drawn_fails_its_request_alone() -> None:
    rows: list[Row] = [(1, 0, {5: math.nan}), (2, 0, {ord("a"): 0.0})]
    outcome = session().process([frame(rows, opens=[opening(1), opening(2)])])
    assert [request for request, _ in outcome.failed] == [1]
    assert texts(outcome) == {2: "a"}


def joined(outcomes: Sequence[Outcome]) -> dict[int, Delta]:
    """Deltas of single frames put together the way a gateway does."""
    deltas: dict[int, Delta] = {}
    for outcome in outcomes:
        for request, delta in outcome.deltas.items():
            if delta.is_empty:
                continue
            whole = deltas.setdefault(request, replace(delta, tokens=[], text="", logprobs=[]))
            assert delta.first_position == whole.first_position + len(whole.tokens)
            whole.tokens += delta.tokens
            whole.text += delta.text
            whole.logprobs += delta.logprobs
            whole.finish = delta.finish
    return deltas


@st.composite
def conversations(draw: st.DrawFn) -> list[Frame]:
    """Frames of three requests of different kinds, with duplicates, a gap now and then, and closes."""
    positions = {1: 0, 2: 0, 3: 0}
    samplings = {1: GREEDY, 2: Sampling(seed=4, temperature=0.8, frequency_penalty=0.5, top_logprobs=1), 3: GREEDY}
    opens = [
        opening(request, sampling=sampling, max_tokens=6, stop_strings=("ab", "ba€") if request == 3 else ())
        for request, sampling in samplings.items()
    ]
    frames = [frame(opens=opens)]
    tokens = st.sampled_from([*b"aab", *"€".encode(), EOS])
    for _ in range(draw(st.integers(1, 12))):
        rows: list[Row] = []
        for request in draw(st.permutations(sorted(positions))):
            step = draw(st.sampled_from([1, 1, 1, 1, 0, 2]))
            position = positions[request] + step - 1
            if position < 0 or draw(st.integers(0, 5)) == 0:
                continue
            some = draw(st.lists(tokens, min_size=1, max_size=4, unique=True))
            positions[request] = max(positions[request], position + (1 if request == 2 else len(some)))
            rows.append((request, position, {token: draw(st.floats(-3, 3, width=32)) for token in some} if request == 2 else some))
        frames.append(frame(rows, closes=draw(st.sampled_from([[], [], [], [], [1], [9]]))))
    return frames


@examples(60)
@given(conversations(), st.randoms(use_true_random=False))
def test_frames_taken_together_give_what_they_give_one_by_one(frames: list[Frame], random: Any) -> None:
    alone, together, mixed = session(), session(), session()
    outcomes = [alone.process([each]) for each in frames]
    whole = together.process(frames)
    cut = random.randrange(len(frames) + 1)
    halves = [mixed.process(frames[:cut]), mixed.process(frames[cut:])]
    for some in ([whole], halves):
        assert joined(some) == joined(outcomes)
        assert [verdict for outcome in some for verdict in outcome.verdicts] == [v for outcome in outcomes for v in outcome.verdicts]
        assert [request for outcome in some for request in outcome.finished] == [r for outcome in outcomes for r in outcome.finished]
        assert [f[0] for outcome in some for f in outcome.failed] == [f[0] for outcome in outcomes for f in outcome.failed]
    assert alone.num_requests == together.num_requests == mixed.num_requests


@pytest.mark.parametrize("generated", [[*b"ab"] * 2000, [*b"ab"] * 2000 + [EOS]], ids=["goes on", "has ended"])
async def test_a_long_answer_that_is_resumed_lets_others_have_their_turn_and_changes_nothing_else(generated: list[int]) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    frames = [frame([(1, 4000, ord("c"))], opens=[opening(1, generated=generated, max_tokens=5000)])]
    other = asyncio.create_task(count())
    prepared = session()
    await prepared.prepare(frames)
    other.cancel()
    assert turns >= 4000 // REPLAY_PIECE_TOKENS
    outcome, plain = prepared.process(frames), session().process(frames)
    assert (outcome.deltas, len(outcome.failed)) == (plain.deltas, len(plain.failed))
    assert prepared.num_requests == (0 if EOS in generated else 1)


async def test_a_resumed_answer_that_is_one_too_many_is_still_refused() -> None:
    full = session(limit=0)
    frames = [frame(opens=[opening(1, generated=[*b"ab"] * 2000, max_tokens=5000)])]
    await full.prepare(frames)
    ((request, error),) = full.process(frames).failed
    assert (request, type(error)) == (1, Overloaded)
