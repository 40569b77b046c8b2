"""Requests that have a grammar: masks follow their tokens, and an answer ends where its text does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sampler_svc.grammars import GrammarCompiler
from sampler_svc.request_slots import RequestSlots
from sampler_svc.request_state import Finish
from sampler_svc.session import Audits, Compiled, Outcome, Session
from tests.fakes.sampler_tokenizers import byte_tokenizer
from tests.unit.sampler_svc.test_session import EOS, VOCABULARY, WIDTH, frame, opening, session, texts
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Grammar, Sampling
from triserve.rpc.token_mask import unpacked

GRAMMAR = Sampling(temperature=0.0, grammar=Grammar("regex", "ab+c?"))


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return GrammarCompiler(path, VOCABULARY)


def compiled(grammars: GrammarCompiler, outcome: Outcome) -> list[Compiled]:
    """What a sampler's threads would make of the grammars that are to be compiled."""
    found = []
    for one in outcome.to_compile:
        try:
            found.append(Compiled(one.request, grammars.open(one.grammar, WIDTH, one.stop_token_ids, one.generated)))
        except InvalidRequest as error:
            found.append(Compiled(one.request, error))
    return found


def begun(grammars: GrammarCompiler, *, sampling: Sampling = GRAMMAR, **fields: Any) -> tuple[Session, Outcome]:
    """A session with request 1, whose grammar is compiled, and what that gave."""
    one = session()
    return one, one.process([], compiled(grammars, one.process([frame(opens=[opening(1, sampling=sampling, **fields)])])))


def allowed_in(outcome: Outcome, request: int = 1) -> tuple[int, str]:
    mask = outcome.masks[request]
    ids = np.flatnonzero(unpacked(mask.allowed, WIDTH)).tolist()
    return mask.position, "".join("$" if token == EOS else chr(token) for token in ids)


def test_a_mask_follows_each_token_and_the_answer_ends_where_nothing_can_follow(grammars: GrammarCompiler) -> None:
    one, outcome = begun(grammars)
    assert allowed_in(outcome) == (0, "a")
    outcome = one.process([frame([(1, 0, ord("a"))])])
    assert (allowed_in(outcome), texts(outcome)) == ((1, "b"), {1: "a"})
    outcome = one.process([frame([(1, 1, ord("b"))])])
    assert allowed_in(outcome) == (2, "bc$")
    outcome = one.process([frame([(1, 2, ord("c"))])])
    assert (outcome.finished, outcome.masks, texts(outcome)) == ([1], {}, {1: "c"})
    assert outcome.deltas[1].finish is Finish.STOP
    assert one.num_requests == 0


def test_a_stop_id_ends_a_text_that_is_whole_and_fails_one_that_is_not(grammars: GrammarCompiler) -> None:
    one, _ = begun(grammars)
    outcome = one.process([frame([(1, 0, ord("a"))]), frame([(1, 1, ord("b"))]), frame([(1, 2, EOS)])])
    assert (outcome.finished, texts(outcome)) == ([1], {1: "ab"})
    one, _ = begun(grammars)
    outcome = one.process([frame([(1, 0, ord("a"))]), frame([(1, 1, EOS)])])
    assert [request for request, _ in outcome.failed] == [1] and not outcome.masks


def test_a_token_that_the_grammar_does_not_allow_fails_its_request_alone(grammars: GrammarCompiler) -> None:
    one, _ = begun(grammars)
    one.process([frame(opens=[opening(2)])])
    outcome = one.process([frame([(1, 0, ord("z")), (2, 0, ord("z"))])])
    assert ([request for request, _ in outcome.failed], texts(outcome)) == ([1], {1: "", 2: "z"})


def test_a_row_before_the_grammar_is_compiled_fails_its_request(grammars: GrammarCompiler) -> None:
    one = session()
    outcome = one.process([frame([(1, 0, ord("a"))], opens=[opening(1, sampling=GRAMMAR)])])
    assert [request for request, _ in outcome.failed] == [1]
    assert not one.process([], compiled(grammars, outcome)).masks


def test_what_is_no_grammar_fails_its_request_by_name(grammars: GrammarCompiler) -> None:
    _, outcome = begun(grammars, sampling=Sampling(temperature=0.0, grammar=Grammar("regex", "(")))
    ((request, error),) = outcome.failed
    assert (request, error.field) == (1, "grammar")


def test_a_request_that_was_closed_meanwhile_needs_no_grammar(grammars: GrammarCompiler) -> None:
    one = session()
    first = one.process([frame(opens=[opening(1, sampling=GRAMMAR)])])
    one.process([frame(closes=[1])])
    assert one.process([], compiled(grammars, first)).is_empty


def test_a_resumed_answer_goes_on_in_its_grammar_and_one_that_left_it_is_refused(grammars: GrammarCompiler) -> None:
    _, outcome = begun(grammars, generated=[ord("a"), ord("b")])
    assert allowed_in(outcome) == (2, "bc$")
    _, outcome = begun(grammars, generated=[ord("x")])
    assert [error.field for _, error in outcome.failed] == ["generated_token_ids"]


def test_tokens_without_a_choice_are_told_with_the_mask_and_come_back_in_one_row_or_in_several(grammars: GrammarCompiler) -> None:
    sampling = Sampling(temperature=0.0, grammar=Grammar("regex", "abcde[xy]"))
    for pieces in (["abcde"], ["ab", "c", "de"]):
        one, outcome = begun(grammars, sampling=sampling)
        assert bytes(outcome.masks[1].forced) == b"abcde"
        position = 0
        for piece in pieces:
            row = frame([(1, position, ord(piece[0]))])._replace(tokens=[list(piece.encode())])
            outcome = one.process([row])
            position += len(piece)
            assert texts(outcome) == {1: piece}
            assert bytes(outcome.masks[1].forced) == b"abcde"[position:]
        assert allowed_in(outcome) == (5, "xy")


def test_where_log_probabilities_are_asked_for_each_token_has_a_row(grammars: GrammarCompiler) -> None:
    _, outcome = begun(grammars, sampling=Sampling(temperature=0.0, grammar=Grammar("regex", "abcde"), top_logprobs=1))
    assert not outcome.masks[1].forced


def test_max_tokens_end_a_text_that_is_not_whole(grammars: GrammarCompiler) -> None:
    one, _ = begun(grammars, max_tokens=1)
    outcome = one.process([frame([(1, 0, ord("a"))])])
    assert (outcome.deltas[1].finish, outcome.masks) == (Finish.LENGTH, {})


def test_a_row_that_is_drawn_here_is_drawn_from_what_the_grammar_allows(grammars: GrammarCompiler) -> None:
    one, _ = begun(grammars)
    outcome = one.process([frame([(1, 0, {ord("z"): 9.0, ord("a"): 1.0, ord("b"): 5.0})])])
    assert [verdict.token for verdict in outcome.verdicts] == [ord("a")]
    assert allowed_in(outcome) == (1, "b")


def test_a_row_that_leaves_nothing_the_grammar_allows_fails_its_request_by_name(grammars: GrammarCompiler) -> None:
    one, _ = begun(grammars)
    ((request, error),) = one.process([frame([(1, 0, {ord("z"): 9.0})])]).failed
    assert (request, error.field) == (1, "grammar")


def test_an_audited_row_is_drawn_again_under_the_same_mask(grammars: GrammarCompiler) -> None:
    audits = Audits()
    one = Session(VOCABULARY, WIDTH, RequestSlots(10), audits)
    one.process([], compiled(grammars, one.process([frame(opens=[opening(1, sampling=GRAMMAR)])])))
    one.process([frame([(1, 0, ord("a"))], audited={0: {ord("z"): 9.0, ord("a"): 1.0}})])
    assert (audits.rows, audits.disagreements) == (1, 0)
