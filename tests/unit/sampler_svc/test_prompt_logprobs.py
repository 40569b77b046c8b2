"""What a sampler tells of prompts: every token once, with its text, before the answer; and answers of no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler_svc.logprobs import PromptPart, RowLogprobs, TopToken
from sampler_svc.request_slots import RequestSlots
from sampler_svc.request_state import Delta, Finish
from sampler_svc.session import Audits, Frame, Outcome, Session
from sampler_svc.text.vocabulary import Vocabulary
from sampler_svc.wire import read_frame, write_outcome
from tests.examples import examples
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.delta_frame import read_delta_frame
from triserve.rpc.errors import Internal, InvalidRequest
from triserve.v1 import common_pb2, sampler_pb2

WIDTH, EOS = 257, 256
VOCABULARY = Vocabulary(byte_tokenizer())


def opening(prompt: Sequence[int], *, prompt_logprobs: int | None = 0, max_tokens: int = 0, **sampling: Any) -> sampler_pb2.OpenRequest:
    return sampler_pb2.OpenRequest(
        request=1,
        gateway=1,
        gateway_request=1001,
        prompt_token_ids=prompt,
        sampling=common_pb2.SamplingParams(temperature=0, prompt_logprobs=prompt_logprobs, **sampling),
        stopping=common_pb2.StoppingParams(max_tokens=max_tokens, stop_token_ids=[EOS]),
    )


def part(first: int, count: int) -> PromptPart:
    """Of some tokens: each has its position as its rank, and as its log-probability, below 0."""
    positions = range(first, first + count)
    return PromptPart(1, first, [-float(position) for position in positions], list(positions), [], [])


def frame(
    *,
    opens: Sequence[sampler_pb2.OpenRequest] = (),
    prompts: Sequence[PromptPart] = (),
    computed: Sequence[int] = (),
    token: int | None = None,
    logprobs: RowLogprobs | None = None,
) -> Frame:
    rows = [] if token is None else [[token]]
    told = {} if logprobs is None else {0: logprobs}
    return Frame(1, opens, (), [1] * len(rows), [0] * len(rows), rows, told, {}, prompts, computed)


def session() -> Session:
    return Session(VOCABULARY, WIDTH, RequestSlots(9), Audits())


def told(*deltas: Delta) -> list[tuple[str, int | None, int]]:
    """Text, rank and offset of each token that deltas tell of, checked to have no gap."""
    entries: list[tuple[str, int | None, int]] = []
    for delta in deltas:
        assert delta.first_prompt_position == len(entries)
        entries += [(one.text, one.entry.rank, one.offset) for one in delta.prompt_logprobs]
    return entries


@examples(60)
@given(st.text(min_size=1, max_size=12), st.lists(st.integers(1, 5), max_size=12), st.booleans())
def test_texts_of_all_tokens_are_the_prompt_however_it_is_cut(text: str, cuts: list[int], apart: bool) -> None:
    prompt = list(text.encode())
    stream, outcomes, position = session(), [], 1
    frames = [frame(opens=[opening(prompt)])]
    for count in [*cuts, len(prompt)]:
        count = min(count, len(prompt) - position)
        if count:
            frames.append(frame(prompts=[part(position, count)]))
            position += count
    frames.append(frame(computed=[1]))
    outcomes = [stream.process([one]) for one in frames] if apart else [stream.process(frames)]
    deltas = [outcome.deltas[1] for outcome in outcomes if 1 in outcome.deltas]
    entries = told(*deltas)
    assert "".join(one for one, _, _ in entries) == text
    assert [rank for _, rank, _ in entries] == [None, *range(1, len(prompt))]
    assert deltas[-1].finish is Finish.LENGTH and not deltas[-1].tokens and outcomes[-1].finished == [1]
    assert not stream.num_requests


def test_a_prompt_of_half_a_character_is_told_of_to_its_end() -> None:
    stream = session()
    outcome = stream.process([frame(opens=[opening([0xF0, 0x9F])], prompts=[part(1, 1)], computed=[1])])
    assert [text for text, _, _ in told(outcome.deltas[1])] == ["", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_are_a_part_of_the_prompts_text() -> None:
    outcome = session().process([frame(opens=[opening([EOS, ord("a")])], prompts=[part(1, 1)])])
    name = VOCABULARY.special_names[EOS]
    assert told(outcome.deltas[1]) == [(name, None, 0), ("a", 1, len(name))]


def test_the_prompt_goes_before_the_answer_and_what_ends_it_has_an_entry_too() -> None:
    stream = session()
    first = stream.process([frame(opens=[opening(b"ab", max_tokens=5, top_logprobs=0)])])
    second = stream.process([frame(prompts=[part(1, 1)], token=EOS, logprobs=RowLogprobs([-0.5], [], []))])
    assert told(first.deltas[1], second.deltas[1]) == [("a", None, 0), ("b", 1, 1)]
    delta = second.deltas[1]
    assert (delta.tokens, delta.text, delta.finish) == ([EOS], "", Finish.STOP)
    assert [(one.entry.token, one.text, one.added) for one in delta.logprobs] == [(EOS, "", b"")]


def test_without_a_prompt_to_tell_of_what_ends_an_answer_has_no_entry() -> None:
    opens = [opening(b"ab", prompt_logprobs=None, max_tokens=5, top_logprobs=0)]
    outcome = session().process([frame(opens=opens, token=EOS, logprobs=RowLogprobs([-0.5], [], []))])
    assert outcome.deltas[1].logprobs == [] and outcome.deltas[1].finish is Finish.STOP


def test_an_answer_of_no_tokens_ends_when_its_prompt_is_computed() -> None:
    stream = session()
    assert stream.process([frame(opens=[opening(b"ab", prompt_logprobs=None)])]).is_empty
    outcome = stream.process([frame(computed=[1, 77])])
    assert (outcome.finished, outcome.deltas[1].finish, outcome.deltas[1].tokens) == ([1], Finish.LENGTH, [])


def test_of_what_is_never_drawn_no_grammar_is_compiled() -> None:
    opens = [opening(b"ab", prompt_logprobs=None, grammar=common_pb2.Grammar(regex="("))]
    assert not session().process([frame(opens=opens)]).to_compile


@pytest.mark.parametrize(
    "wrong",
    [
        frame(prompts=[part(2, 1)]),
        frame(prompts=[part(1, 3)]),
        frame(prompts=[part(1, 1)._replace(top_ids=[1], top=[-1.0])]),
        frame(computed=[1]),
        frame(token=ord("x")),
        frame(prompts=[part(1, 2)], token=ord("x")),
    ],
    ids=["a gap", "more than there are", "more of the likeliest than asked", "untold", "a row before", "a row of one that draws nothing"],
)
def test_what_does_not_fit_the_prompt_fails_its_request_alone(wrong: Frame) -> None:
    stream = session()
    stream.process([frame(opens=[opening(b"abc")])])
    outcome = stream.process([wrong])
    assert [(request, type(error).__mro__[1]) for request, error in outcome.failed] == [(1, Internal)]


def test_what_nobody_asked_for_fails_its_request() -> None:
    stream = session()
    stream.process([frame(opens=[opening(b"abc", prompt_logprobs=None, max_tokens=2)])])
    assert stream.process([frame(prompts=[part(1, 1)])]).failed
    again = session()
    again.process([frame(opens=[opening(b"abc", prompt_logprobs=None, max_tokens=2)])])
    assert again.process([frame(computed=[1])]).failed


def test_an_empty_prompt_has_nothing_to_be_told() -> None:
    (failed,) = session().process([frame(opens=[opening([])])]).failed
    assert isinstance(failed[1], InvalidRequest) and failed[1].field == "prompt_token_ids"


def test_parts_of_prompts_are_read_and_told_of_in_the_contracts_columns() -> None:
    prompts = [sampler_pb2.PromptLogprobs(request=1, first_position=1, logprob=[-1.5], rank=[3], top_token=[7, 8], top_logprob=[-1, -2])]
    read = read_frame(sampler_pb2.SampleRequest(frame=1, prompt_logprobs=prompts, computed=[4]), WIDTH)
    assert (list(read.prompts), list(read.computed)) == ([PromptPart(1, 1, [-1.5], [3], [7, 8], [-1.0, -2.0])], [4])
    stream = session()
    outcome = stream.process([frame(opens=[opening(b"ab", prompt_logprobs=2)], prompts=read.prompts, computed=[1])])
    deltas = read_delta_frame(write_outcome(outcome, 1, VOCABULARY).parcels[0].delta_frame, logits_width=WIDTH)
    assert (list(deltas.num_prompt_logprobs), list(deltas.first_prompt_position), deltas.num_tokens[0]) == ([2], [0], 0)
    first, second = deltas.prompt_logprobs
    assert not first.HasField("rank") and (second.rank, second.logprob, second.text_offset) == (3, -1.5, 1)
    assert [(top.token, top.logprob) for top in second.top] == [TopToken(7, -1.0), TopToken(8, -2.0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"logprob": []},
        {"logprob": [-1.0] * 129, "rank": [1] * 129},
        {"rank": [1, 1]},
        {"top_token": [7]},
        {"top_token": [WIDTH], "top_logprob": [-1.0]},
    ],
    ids=["of no token", "of too many", "ranks", "likely ones without a number", "no such id"],
)
def test_a_malformed_part_ends_the_stream(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"request": 1, "first_position": 1, "logprob": [-1.5], "rank": [3]}
    with pytest.raises(InvalidRequest):
        read_frame(sampler_pb2.SampleRequest(frame=1, prompt_logprobs=[sampler_pb2.PromptLogprobs(**{**fields, **changes})]), WIDTH)


def test_named_ids_go_out_in_the_order_of_the_request() -> None:
    opens = [opening(b"ab", prompt_logprobs=None, max_tokens=2, top_logprobs=0, logprob_token_ids=[9, 4])]
    outcome: Outcome = session().process([frame(opens=opens, token=ord("x"), logprobs=RowLogprobs([-0.5], [], [], [-3.0, -4.0]))])
    deltas = read_delta_frame(write_outcome(outcome, 1, VOCABULARY).parcels[0].delta_frame, logits_width=WIDTH)
    assert [(one.token, one.logprob) for one in deltas.logprobs[0].named] == [(9, -3.0), (4, -4.0)]
