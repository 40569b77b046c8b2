"""Beam search through the pipeline: probes, texts, what is refused, and what happens when replicas fail."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.flow.call import AnswerReading, Wishes
from gateway.flow.search.kinds import Beams
from tests.fakes.fake_stages import FakeAttempt, FakeReplica, until
from tests.fakes.language_models import LanguageModel, probed, random_model
from tests.fakes.search_scene import SearchScene, call
from tests.unit.gateway.flow.search.test_beams import searched
from triserve.rpc.errors import DeadlineExceeded, Internal, InvalidRequest, Overloaded, Unavailable
from triserve.v1 import common_pb2

LOST = Unavailable("the compute process that had the request was lost")
MODEL = random_model(12, 3)


def replica(model: LanguageModel = MODEL, name: str = "one") -> FakeReplica:
    return FakeReplica(name, play=probed(model))


def follows(tokens: Sequence[int], *, prompt: int) -> LanguageModel:
    """A model that says these tokens behind a prompt of so many, nearly certainly."""

    def logprobs(token_ids: Sequence[int]) -> list[float]:
        at = len(token_ids) - prompt
        values = [math.log(1e-6)] * 300
        values[tokens[at] if at < len(tokens) else 7] = math.log(0.9)
        return values

    return logprobs


async def test_probes_find_the_beams_of_the_search() -> None:
    scene = SearchScene(one := replica())
    beams = Beams(width=3, length_penalty=0.5)
    answered = await scene.answer((5, 6), n=3, search=beams, wishes=Wishes(max_tokens=6))
    expected = searched(MODEL, beams, prompt=(5, 6), max_tokens=6, stops=(7,))
    assert [answered.answers[rank].token_ids for rank in range(3)] == expected.tokens
    assert [answered.answers[rank].finish_reason for rank in range(3)] == [
        "stop" if 7 in tokens else "length" for tokens in expected.tokens
    ]
    assert len(one.attempts) == expected.probes
    assert answered.usage == (2, expected.probes, 2)
    assert answered.cache == "bypass"
    request = one.attempts[-1].request
    assert request.sampling.top_logprobs == 3 + 1
    assert list(request.token_ids[:2]) == [5, 6] and not request.stopping.stop_token_ids


async def test_fewer_than_all_beams_are_returned_where_fewer_are_wanted_and_each_prompt_has_its_own() -> None:
    scene = SearchScene(replica())
    beams = Beams(width=3, field="best_of")
    answered = await scene.answer((5,), (6,), n=2, search=beams, wishes=Wishes(max_tokens=4))
    expected = [searched(MODEL, beams, prompt=prompt, max_tokens=4, stops=(7,)) for prompt in ((5,), (6,))]
    assert [answered.answers[index].token_ids for index in range(4)] == [*expected[0].tokens[:2], *expected[1].tokens[:2]]
    assert answered.completion_tokens == sum(one.probes for one in expected)


async def test_texts_are_those_of_the_tokens_without_special_ones_and_characters_of_several_tokens_are_whole() -> None:
    said = [104, *"é".encode(), 260, 105, *"漢".encode()[:2]]
    scene = SearchScene(replica(follows(said, prompt=1)))
    answered = await scene.answer((5,), search=Beams(width=1, early_stopping=True), wishes=Wishes(max_tokens=9, top_logprobs=2))
    delta = answered.answers[0]
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("héi\N{REPLACEMENT CHARACTER}", [*said, 7], "stop")
    assert [one.text for one in delta.logprobs] == ["h", "", "é", "", "i", "", "\N{REPLACEMENT CHARACTER}"]
    assert [one.text_offset for one in delta.logprobs] == [0, 1, 1, 2, 2, 3, 3]
    assert b"".join(one.token_bytes for one in delta.logprobs) == bytes(token for token in said if token < 256)
    assert delta.logprobs[0].logprob == pytest.approx(math.log(0.9))
    assert [[top.token for top in one.top] for one in delta.logprobs[:2]] == [[104, 0], [195, 0]]
    plain = await scene.answer((5,), search=Beams(width=1, early_stopping=True), wishes=Wishes(max_tokens=9))
    assert plain.answers[0] == delta._replace(logprobs=[])


async def test_special_tokens_are_text_where_the_client_wants_them() -> None:
    scene = SearchScene(replica(follows([104, 260], prompt=1)))
    wishes = Wishes(max_tokens=9, skip_special_tokens=False)
    assert (await scene.answer((5,), search=Beams(width=1, early_stopping=True), wishes=wishes)).texts == ["h<260>"]


async def test_min_tokens_holds_ends_back_and_ignored_ends_are_tokens_like_others() -> None:
    scene = SearchScene(replica(follows([7, 104, 7], prompt=1)))
    beams = Beams(width=1, early_stopping=True)
    assert 7 not in (await scene.answer((5,), search=beams, wishes=Wishes(max_tokens=4, min_tokens=2))).answers[0].token_ids[:2]
    ignoring = await scene.answer((5,), search=beams, wishes=Wishes(max_tokens=3, ignore_eos=True))
    assert (ignoring.answers[0].token_ids, ignoring.answers[0].finish_reason) == ([7, 104, 7], "length")


async def test_a_stream_gets_each_answer_in_one_piece_and_nothing_while_it_waits() -> None:
    def play(attempt: FakeAttempt) -> None:
        if len(one.attempts) > 1:
            probed(MODEL)(attempt)

    one = FakeReplica("one", play=play)
    scene = SearchScene(one, keep_alive_s=0.001)
    with scene.admission.enter("acme") as ticket:
        async with scene.pipeline.open(
            call((5,), n=2, search=Beams(width=2), wishes=Wishes(max_tokens=3), stream=True), ticket
        ) as generation:
            assert await generation.next() == []
            probed(MODEL)(one.attempts[0])
            pieces = []
            while not generation.finished:
                pieces += await generation.next()
    assert [piece.choice for piece in pieces] == [0, 1]
    assert all(piece.delta.finish_reason for piece in pieces)


async def test_a_replica_that_dies_costs_a_search_nothing_but_the_probes_it_had() -> None:
    def dies(attempt: FakeAttempt) -> None:
        if len(first.attempts) < 5:
            probed(MODEL)(attempt)
        else:
            first.ready = False
            attempt.answer.fail(LOST)

    first = FakeReplica("one", play=dies)
    scene = SearchScene(first, second := replica(name="two"))
    beams = Beams(width=3)
    answered = await scene.answer((5,), n=3, search=beams, wishes=Wishes(max_tokens=6))
    assert [answered.answers[rank].token_ids for rank in range(3)] == searched(MODEL, beams, prompt=(5,), max_tokens=6, stops=(7,)).tokens
    assert len(first.attempts) >= 5 and second.attempts
    assert scene.count("triserve_retries_total", stage="compute") == len(first.attempts) - 4


async def test_probes_stay_with_one_replica() -> None:
    one, two = replica(name="one"), replica(name="two")
    scene = SearchScene(one, two)
    turns = 0
    choose = scene.stages.choose

    def by_turns(*arguments: Any, **options: Any) -> FakeReplica | None:
        nonlocal turns
        turns += 1
        return two if turns % 2 else choose(*arguments, **options)

    scene.stages.choose = by_turns  # type: ignore[method-assign]
    await scene.answer((5,), search=Beams(width=2, field="best_of"), wishes=Wishes(max_tokens=4))
    assert not one.attempts and len(two.attempts) > 3


async def test_a_full_replica_ends_a_search_that_has_not_begun_and_delays_one_that_has() -> None:
    fresh = SearchScene(FakeReplica("one", play=lambda attempt: attempt.answer.fail(Overloaded("too many wait"))))
    assert isinstance(await fresh.refusal((5,), search=Beams(width=2, field="best_of")), Overloaded)

    def busy(attempt: FakeAttempt) -> None:
        if len(one.attempts) == 2:
            attempt.answer.fail(Overloaded("too many wait"))
        else:
            probed(MODEL)(attempt)

    one = FakeReplica("one", play=busy)
    beams = Beams(width=2, field="best_of")
    answered = await SearchScene(one).answer((5,), search=beams, wishes=Wishes(max_tokens=3))
    assert answered.answers[0].token_ids == searched(MODEL, beams, prompt=(5,), max_tokens=3, stops=(7,)).tokens[0]


async def test_a_search_waits_for_a_replica_that_is_away_for_a_moment_and_not_longer_than_other_requests() -> None:
    def leaves(attempt: FakeAttempt) -> None:
        probed(MODEL)(attempt)
        if len(one.attempts) == 1:
            one.ready = False
            asyncio.get_running_loop().call_soon(lambda: setattr(one, "ready", comes_back))

    beams = Beams(width=2, field="best_of")
    for comes_back in (True, False):
        one = FakeReplica("one", play=leaves)
        asking = SearchScene(one, retry_wait_s=0.1).answer((5,), search=beams, wishes=Wishes(max_tokens=3))
        if comes_back:
            assert (await asking).answers[0].token_ids == searched(MODEL, beams, prompt=(5,), max_tokens=3, stops=(7,)).tokens[0]
        else:
            with pytest.raises(Unavailable):
                await asking


async def test_other_failures_are_the_clients_at_once() -> None:
    scene = SearchScene(one := FakeReplica("one", play=lambda attempt: attempt.answer.fail(Internal("broken"))))
    assert isinstance(await scene.refusal((5,), search=Beams(width=2, field="best_of")), Internal)
    assert len(one.attempts) == 1


async def test_a_client_that_leaves_and_a_deadline_abort_the_probes() -> None:
    scene = SearchScene(one := FakeReplica("one"), request_timeout_s=0.01)
    error = await scene.refusal((5,), search=Beams(width=2, field="best_of"))
    assert isinstance(error, DeadlineExceeded)
    await until(lambda: all(attempt.cancelled for attempt in one.attempts))
    scene = SearchScene(one := FakeReplica("one"))
    asking = asyncio.create_task(scene.answer((5,), search=Beams(width=2, field="best_of")))
    await until(lambda: one.attempts)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: one.attempts[0].cancelled)
    assert scene.admission.active == 0


async def test_beams_take_places_as_answers_do_and_count_as_one_request() -> None:
    scene = SearchScene(replica(), places=3)
    assert isinstance(await scene.refusal((5,), search=Beams(width=4, field="best_of")), Overloaded)
    answered = await scene.answer((5,), search=Beams(width=3, field="best_of"), wishes=Wishes(max_tokens=4))
    assert scene.count("triserve_requests_total", route="completions", outcome="ok") == 1
    assert scene.count("triserve_search_requests_total", kind="beams") == answered.completion_tokens
    assert scene.count("triserve_completion_tokens_total") == answered.completion_tokens
    for name in ("time_to_first_token", "inter_token_latency", "queue", "prefill"):
        assert scene.count(f"triserve_{name}_seconds_count") == 0


def wished(**fields: Any) -> Wishes:
    return Wishes(**fields)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    *((name, {"wishes": wished(**{name: 0.5})}) for name in ("temperature", "top_p", "min_p", "typical_p", "top_n_sigma")),
    *((name, {"wishes": wished(**{name: 0.5})}) for name in ("xtc_probability", "dry_multiplier", "repetition_penalty")),
    *((name, {"wishes": wished(**{name: 0.5})}) for name in ("presence_penalty", "frequency_penalty")),
    ("top_k", {"wishes": Wishes(top_k=5)}),
    ("logit_bias", {"wishes": Wishes(logit_bias=((5, 1.0),))}),
    ("allowed_token_ids", {"wishes": Wishes(allowed_token_ids=(5,))}),
    ("banned_token_ids", {"wishes": Wishes(banned_token_ids=(5,))}),
    ("bad_words", {"wishes": Wishes(bad_words=("a",))}),
    ("bad_words", {"wishes": Wishes(bad_word_ids=((5,),))}),
    ("stop", {"wishes": Wishes(stop_strings=("a",))}),
    ("guided_regex", {"wishes": Wishes(grammar=common_pb2.Grammar(regex="a"), spelling={"grammar": "guided_regex"})}),
    ("tools", {"reading": AnswerReading(tools=frozenset({"f"}))}),
    ("n", {"n": 11, "search": Beams(width=11)}),
    ("best_of", {"n": 3, "search": Beams(width=2, field="best_of")}),
    ("length_penalty", {"search": Beams(width=2, field="best_of", length_penalty=11.0)}),
    ("length_penalty", {"search": Beams(width=2, field="best_of", length_penalty=math.nan)}),
    ("stop_token_ids", {"wishes": Wishes(stop_token_ids=tuple(range(100, 119)))}),
]


@pytest.mark.parametrize(("field", "asked"), REFUSED)
async def test_what_cannot_be_searched_with_is_refused_by_name(field: str, asked: dict[str, Any]) -> None:
    error = await SearchScene(one := replica()).refusal((5,), **{"search": Beams(width=2, field="best_of"), **asked})
    assert isinstance(error, InvalidRequest) and error.field == field and error.message.startswith(field)
    assert not one.attempts


async def test_fields_that_ask_for_nothing_are_no_hindrance() -> None:
    idle = Wishes(
        temperature=0, top_p=1, top_k=-1, min_p=0, typical_p=1, top_n_sigma=-1, xtc_probability=0, repetition_penalty=1, presence_penalty=0,
        frequency_penalty=0, dry_multiplier=0, max_tokens=2, seed=3,
    )  # fmt: skip
    beams = Beams(width=2, field="best_of")
    answered = await SearchScene(replica()).answer((5,), search=beams, wishes=idle)
    assert answered.answers[0].token_ids == searched(MODEL, beams, prompt=(5,), max_tokens=2, stops=(7,)).tokens[0]


async def test_a_probe_without_log_probabilities_is_a_fault_of_a_stage() -> None:
    scene = SearchScene(FakeReplica("one", play=lambda attempt: attempt.answer.push(0, [5], "a", "length", now=0.0)))
    assert isinstance(await scene.refusal((5,), search=Beams(width=2, field="best_of")), Internal)
