"""A judge is asked where comparing answers cannot tell, after the answer, and decides nothing but what is counted and learnt."""

from __future__ import annotations

from prompt_cache.keys import KeyMaker
from tests.fakes.semantic_parts import SCOPE, SECRET, FakeJudge, SemanticScene

ASKED = "What is the capital of France?"
SIMILAR = "What's the capital of France?"
OTHER = "What is the capital of Austria?"
KEPT = "It is Paris, which lies on the Seine and has been the seat of most governments since the tenth century."
REWORDED = "Paris: the largest city of the country, known for its museums, its food, and a tower of iron."


async def _served_and_audited(judge: FakeJudge, answer: str) -> SemanticScene:
    scene = await SemanticScene({SIMILAR: 0.97, KEPT: 0.5}, judge, audited_share=1.0).started()
    await scene.ask(ASKED, KEPT)
    assert (await scene.ask(SIMILAR, answer)).outcome == "hit"
    return scene


async def test_answers_that_differ_are_the_same_if_the_questions_are() -> None:
    judge = FakeJudge("same")
    scene = await _served_and_audited(judge, REWORDED)
    assert judge.asked == [(ASKED, SIMILAR)]
    assert scene.cache.comparer.comparisons == {"same": 1, "different": 0}
    assert scene.cache.comparer.judged == {("answers", "same"): 1}
    (report,) = scene.cache.reports()
    assert (report.checked, report.wrong) == (1, 0)


async def test_a_judge_that_is_not_sure_or_does_not_answer_excuses_nothing() -> None:
    for says in ("different", "unsure", "failed", "dropped"):
        scene = await _served_and_audited(FakeJudge(says), REWORDED)
        assert scene.cache.comparer.comparisons == {"same": 0, "different": 1}, says


async def test_answers_that_are_the_same_are_not_judged() -> None:
    judge = FakeJudge("different")
    scene = await _served_and_audited(judge, KEPT)
    assert judge.asked == [] and scene.cache.comparer.comparisons == {"same": 1, "different": 0}


async def test_what_a_guard_refused_is_judged_and_counted_by_guard_and_changes_nothing_else() -> None:
    judge = FakeJudge("same")
    scene = await SemanticScene({OTHER: 0.99}, judge).started()
    await scene.ask(ASKED, "Paris.")
    for _ in range(8):
        assert (await scene.look(OTHER)).outcome == "near"
        await scene.cache.drain()
    (guard,) = scene.cache.refusals
    assert scene.cache.comparer.judged == {(guard, "same"): 8}
    assert scene.cache.comparer.comparisons == {"same": 0, "different": 0} and scene.cache.reports() == []
    (neighbour,) = await scene.store.search(KeyMaker(SECRET).scope(SCOPE), (await scene.embedder.embed([ASKED]))[0], 1)  # type: ignore[arg-type]
    assert not neighbour.observations


async def test_what_the_threshold_refuses_is_not_judged() -> None:
    judge = FakeJudge("same")
    scene = await SemanticScene({SIMILAR: 0.5}, judge, threshold=0.8, grey_margin=0.1).started()
    await scene.ask(ASKED, "Paris.")
    assert (await scene.look(SIMILAR)).outcome == "near"
    await scene.cache.drain()
    assert judge.asked == []


async def test_an_entry_in_the_grey_zone_is_served_once_the_judge_has_found_it_right_often_enough() -> None:
    scene = await SemanticScene({SIMILAR: 0.75}, FakeJudge("same"), threshold=0.8, grey_margin=0.1, max_wrong_share=0.2).started()
    scene.draws = 0.9
    await scene.ask(ASKED, KEPT)
    asked = 0
    while (found := await scene.look(SIMILAR)).outcome != "hit":
        assert asked < 50 and found.compare is not None
        scene.cache.compare(found, REWORDED)
        await scene.cache.drain()
        asked += 1
    # As many as the bound needs before it says anything.
    assert asked >= 6


async def test_without_a_judge_nothing_below_the_threshold_is_looked_at() -> None:
    scene = await SemanticScene({SIMILAR: 0.75}, threshold=0.8, grey_margin=0.1).started()
    await scene.ask(ASKED, KEPT)
    found = await scene.look(SIMILAR)
    assert (found.outcome, found.refused_by, found.compare) == ("near", "threshold", None)


async def test_closing_the_cache_lets_go_of_the_judge() -> None:
    judge = FakeJudge("same")
    scene = await SemanticScene(judge=judge).started()
    await scene.cache.close()
    assert judge.closed
