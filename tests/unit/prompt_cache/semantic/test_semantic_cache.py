"""What the semantic cache serves, to whom, and that it finds out where it is wrong. Includes the mistakes of others, each a test."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import Any

import pytest

from prompt_cache.keys import SemanticScope
from prompt_cache.semantic.lookup import NotExplained, Terms
from tests.fakes.semantic_parts import SCOPE, SemanticScene, answered

ASKED = "What is the capital of France?"
SIMILAR = "What's the capital of France?"
OTHER = "What is the capital of Austria?"


async def test_a_question_that_means_the_same_gets_the_answer_that_was_kept() -> None:
    scene = await SemanticScene({SIMILAR: 0.97}).started()
    assert (await scene.ask(ASKED, "Paris.")).outcome == "miss"
    found = await scene.look(SIMILAR)
    assert found.outcome == "hit" and found.served is not None
    assert found.served.record.answer.text == "Paris." and found.served.cosine == pytest.approx(0.97)


async def test_a_question_that_is_as_near_and_means_something_else_does_not() -> None:
    scene = await SemanticScene({OTHER: 0.999}).started()
    await scene.ask(ASKED, "Paris.")
    found = await scene.look(OTHER)
    assert found.outcome == "near" and found.served is None and found.refused_by is not None
    assert scene.cache.refusals == {found.refused_by: 1}


@pytest.mark.parametrize("name", [item.name for item in fields(SemanticScope)])
async def test_no_answer_leaves_its_scope(name: str) -> None:
    scene = await SemanticScene().started()
    await scene.ask(ASKED, "Paris.")
    value: Any = getattr(SCOPE, name)
    changed: Any = value + 1 if isinstance(value, int) else value + (b"x" if isinstance(value, bytes) else "x")
    other = replace(SCOPE, **{name: changed})
    assert (await scene.look(ASKED)).outcome == "hit"
    assert (await scene.look(ASKED, other)).outcome == "miss"


async def test_a_threshold_of_zero_is_a_threshold_and_not_unset() -> None:
    scene = await SemanticScene({SIMILAR: 0.4}).started()
    await scene.ask(ASKED, "Paris.")
    assert (await scene.look(SIMILAR)).outcome == "near"
    assert (await scene.look(SIMILAR, threshold=0.0)).outcome == "hit"
    zero = await SemanticScene({SIMILAR: 0.4}, threshold=0.0).started()
    await zero.ask(ASKED, "Paris.")
    assert (await zero.look(SIMILAR)).outcome == "hit"


async def test_an_embedder_that_fails_or_passes_over_a_question_is_a_miss() -> None:
    scene = await SemanticScene({"a b": None}).started()
    assert (await scene.ask("a b", "c")).outcome == "skipped"
    scene.embedder.failing = True
    found = await scene.ask(ASKED, "Paris.")
    assert found.outcome == "skipped" and found.vector is None
    assert await scene.store.count(found.scope) == 0


async def test_a_store_that_takes_too_long_is_a_miss() -> None:
    scene = await SemanticScene(lookup_timeout_s=0.01).started()

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    vars(scene.store)["search"] = never
    assert (await scene.look(ASKED)).outcome == "failed"


async def test_before_there_is_a_store_nothing_is_found_and_nothing_fails() -> None:
    scene = SemanticScene()
    assert (await scene.ask(ASKED, "Paris.")).outcome == "failed"
    await scene.started()
    assert (await scene.ask(ASKED, "Paris.")).outcome == "miss"


async def test_a_store_that_is_not_there_is_looked_for_again_every_few_seconds() -> None:
    scene = SemanticScene()
    scene.store_errors = [ConnectionError("gone"), ValueError("full")]
    await scene.started()
    assert scene.slept == [5.0, 5.0]
    assert (await scene.ask(ASKED, "Paris.")).outcome == "miss"


async def test_an_answer_for_which_there_is_no_vector_in_time_is_not_kept() -> None:
    scene = await SemanticScene(lookup_timeout_s=0.01).started()
    prepared = await scene.cache.prepare(SCOPE, ASKED, asyncio.Event().wait())  # type: ignore[arg-type]
    assert (prepared.outcome, prepared.vector) == ("skipped", None)
    assert scene.cache.keep(prepared, answered("Paris.", now=scene.now)) == "no_vector"


async def test_an_answer_longer_than_the_request_allows_is_not_served() -> None:
    scene = await SemanticScene().started()
    found = await scene.look(ASKED)
    scene.cache.keep(found, answered("long", now=scene.now, tokens=9))
    await scene.cache.drain()
    assert (await scene.look(ASKED, most_tokens=8)).outcome == "miss"
    assert (await scene.look(ASKED, most_tokens=9)).outcome == "hit"


async def test_an_answer_older_than_the_client_wants_is_not_served() -> None:
    scene = await SemanticScene().started()
    await scene.ask(ASKED, "Paris.")
    scene.now += 61
    assert (await scene.look(ASKED, max_age_s=60)).outcome == "near"
    assert (await scene.look(ASKED, max_age_s=62)).outcome == "hit"


async def test_the_answer_comes_with_its_own_record_and_not_with_that_of_the_first() -> None:
    scene = await SemanticScene({SIMILAR: 0.98}).started()
    first = await scene.look(ASKED)
    scene.cache.keep(first, answered("one", now=1, tokens=2))
    await scene.cache.drain()
    second = await scene.cache.prepare(SCOPE, SIMILAR, scene.cache.embed(SIMILAR))
    scene.cache.keep(second, answered("two", now=2, tokens=7))
    await scene.cache.drain()
    found = await scene.look(SIMILAR)
    assert found.served is not None
    assert (found.served.record.question, found.served.record.answer) == (SIMILAR, answered("two", now=2, tokens=7))


@pytest.mark.parametrize(
    ("choice", "draw", "text"), [("first", 0.5, "near"), ("freshest", 0.5, "new"), ("softmax", 0.0, "near"), ("softmax", 0.999, "new")]
)
async def test_which_of_several_answers_is_served_is_a_policy(choice: Any, draw: float, text: str) -> None:
    scene = await SemanticScene({SIMILAR: 0.98}, choice=choice).started()
    for question, answer in ((ASKED, "near"), (SIMILAR, "new")):
        prepared = await scene.cache.prepare(SCOPE, question, scene.cache.embed(question))
        scene.now += 1
        scene.cache.keep(prepared, answered(answer, now=scene.now))
        await scene.cache.drain()
    scene.draws = draw
    found = await scene.look(ASKED)
    assert found.served is not None and found.served.record.answer.text == text


async def test_in_shadow_mode_nothing_is_served_and_what_would_have_been_is_compared() -> None:
    scene = await SemanticScene(mode="shadow").started()
    await scene.ask(ASKED, "Paris.")
    for answer in ("Paris.", "Lyon, of course, and nothing else."):
        assert (await scene.ask(ASKED, answer)).outcome == "would_hit"
    assert scene.cache.comparer.comparisons == {"same": 1, "different": 1}
    (report,) = scene.cache.reports()
    assert (report.served, report.checked, report.wrong) == (0, 2, 1)


async def test_a_scope_that_is_wrong_too_often_switches_itself_off_and_others_stay_on() -> None:
    scene = await SemanticScene(audited_share=1.0).started()
    other = replace(SCOPE, tenant="b")
    for scope in (SCOPE, other):
        await scene.ask(ASKED, "Paris.", scope)
    for number in range(60):
        if (await scene.ask(ASKED, f"Something else entirely, number {number}.", SCOPE)).outcome == "off":
            break
    assert (await scene.look(ASKED)).outcome in ("off", "near")
    assert (await scene.ask(ASKED, "Paris.", other)).outcome == "hit"
    reports = {report.scope: report for report in scene.cache.reports()}
    assert len(reports) == 2 and sum(report.is_off for report in reports.values()) <= 1


async def test_what_was_wrong_once_is_not_served_again_at_that_distance() -> None:
    scene = await SemanticScene({SIMILAR: 0.97}, audited_share=1.0).started()
    await scene.ask(ASKED, "Paris.")
    assert (await scene.ask(SIMILAR, "It is not what you think it is.")).outcome == "hit"
    found = await scene.look(SIMILAR)
    assert found.outcome == "near" and found.served is None


async def test_an_entry_that_cannot_be_read_is_removed_and_its_question_is_a_miss() -> None:
    scene = await SemanticScene().started()
    found = await scene.look(ASKED)
    assert found.vector is not None
    await scene.store.add(found.scope, "bad", found.vector, b"rubbish", ttl_s=60, saved_tokens=1)
    assert (await scene.look(ASKED)).outcome == "miss" and scene.cache.corrupt == 1
    await scene.cache.drain()
    assert await scene.store.count(found.scope) == 0


async def test_an_entry_of_another_secret_is_passed_over_and_stays() -> None:
    scene, newer = await SemanticScene().started(), await SemanticScene().started()
    newer.cache._codec = type(newer.cache._codec)([b"another secret!!", b"0123456789abcdef"])
    newer.cache.store = scene.store
    await newer.ask(ASKED, "Paris.")
    found = await scene.look(ASKED)
    assert found.outcome == "miss" and scene.cache.corrupt == 0
    assert await scene.store.count(found.scope) == 1


@pytest.mark.parametrize("question", ["", " \n", "x" * 5000])
async def test_what_is_no_question_of_a_size_to_be_looked_for_is_passed_over(question: str) -> None:
    scene = await SemanticScene().started()
    scene.embedder.asked.clear()
    assert (await scene.ask(question, "?")).outcome == "skipped"
    assert not any(len(text) > 4096 for text in scene.embedder.asked)


async def test_explaining_says_what_every_step_found_and_counts_nothing() -> None:
    scene = await SemanticScene({OTHER: 0.99}).started()
    await scene.ask(ASKED, "Paris.")
    before = dict(scene.cache.outcomes)
    (explained,) = await scene.cache.explain(SCOPE, OTHER, Terms())
    assert explained.near.record.question == ASKED and not explained.verdict.serve
    assert any(not step.passed for step in explained.steps) and any(step.passed for step in explained.steps)
    assert scene.cache.outcomes == before


async def test_what_cannot_be_looked_at_is_not_explained_as_a_miss() -> None:
    scene = SemanticScene()
    with pytest.raises(NotExplained, match="the store of the semantic cache cannot be asked now"):
        await scene.cache.explain(SCOPE, ASKED, Terms())
    await scene.started()
    scene.embedder.failing = True
    with pytest.raises(NotExplained, match="the question has no vector"):
        await scene.cache.explain(SCOPE, ASKED, Terms())


async def test_closing_lets_go_of_the_embedder() -> None:
    scene = await SemanticScene().started()
    await scene.cache.close()
    assert scene.embedder.closed


async def test_closing_before_what_was_to_be_kept_has_begun_leaves_nothing_unawaited() -> None:
    scene = await SemanticScene().started()
    found = await scene.look(ASKED)
    assert scene.cache.keep(found, answered("Paris.")) is None
    # Python warns of a coroutine that nobody awaits, and a warning is an error here.
    await scene.cache.close()
