"""Contrastive search finds what its paper's formula says, with a model of random numbers and with a real one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gateway.flow.call import AnswerReading, Wishes
from gateway.flow.search.contrastive_search import chosen
from gateway.flow.search.kinds import Contrast
from gateway.flow.search.steps import Candidate
from gateway.flow.search.vectors import Vectors
from tests.fakes.fake_stages import MODEL, FakeAttempt, FakeReplica
from tests.fakes.language_models import HiddenModel, LanguageModel, probed, random_model, random_vectors
from tests.fakes.search_scene import SearchScene
from triserve.rpc.errors import Internal, InvalidRequest, Overloaded, Unavailable
from triserve.v1 import compute_pb2

TINY = Path(__file__).parents[5] / "tests" / "tiny_model"
EOS = 7
WIDTH = 5
SERVED = replace(MODEL, hidden_size=WIDTH)
WORDS, VECTORS = random_model(12, 3, sharpness=1.0), random_vectors(WIDTH, 4)


def reference(
    model: LanguageModel, hidden: HiddenModel, prompt: Sequence[int], contrast: Contrast, max_tokens: int, stops: Sequence[int] = (EOS,)
) -> list[int]:
    """The paper's words, one after the other: argmax over the k likeliest of (1 - alpha) p(v) - alpha max cos(h_v, h_j)."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        logprobs = model(tokens)
        likeliest = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))[: contrast.width]
        before = [hidden(tokens[:end]) for end in range(1, len(tokens) + 1)]
        scores = []
        for token in likeliest:
            own = hidden([*tokens, token])
            degeneration = max(_cosine(own, one) for one in before)
            scores.append((1 - contrast.alpha) * math.exp(logprobs[token]) - contrast.alpha * degeneration)
        tokens.append(likeliest[scores.index(max(scores))])
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def replica(name: str = "one") -> FakeReplica:
    return FakeReplica(name, play=probed(WORDS, VECTORS))


class Scene(SearchScene):
    """Replicas that give hidden states."""

    def __init__(self, *replicas: FakeReplica, **options: Any) -> None:
        super().__init__(*(replicas or (replica(),)), **{"model": SERVED, **options})

    async def tokens(self, contrast: Contrast, **wishes: Any) -> list[int]:
        """Of the answer to a prompt of two."""
        answered = await self.answer((5, 6), search=contrast, wishes=Wishes(top_k=contrast.width, **wishes))
        return answered.answers[0].token_ids


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("width", [2, 5, 12])
async def test_each_token_is_the_one_that_the_formula_chooses(alpha: float, width: int) -> None:
    contrast = Contrast(alpha=alpha, width=width)
    assert await Scene().tokens(contrast, max_tokens=8) == reference(WORDS, VECTORS, (5, 6), contrast, 8)


async def test_probes_try_every_candidate_and_the_last_ones_draw_nothing() -> None:
    scene = Scene(one := replica())
    contrast = Contrast(alpha=0.6, width=3)
    answered = await scene.answer((5, 6), search=contrast, wishes=Wishes(max_tokens=2, top_logprobs=4, ignore_eos=True))
    expected = reference(WORDS, VECTORS, (5, 6), contrast, 2, stops=())
    assert answered.answers[0].token_ids == expected and answered.answers[0].finish_reason == "length"
    requests = [attempt.request for attempt in one.attempts]
    assert [request.hidden_states for request in requests] == [compute_pb2.HIDDEN_STATES_ALL] + [compute_pb2.HIDDEN_STATES_LAST] * 6
    assert [list(request.token_ids) for request in requests[4:]] == [[5, 6, expected[0], request.token_ids[-1]] for request in requests[4:]]
    assert [request.stopping.max_tokens for request in requests] == [1] * 4 + [0] * 3
    assert {request.sampling.top_logprobs for request in requests[:4]} == {4}
    assert answered.usage == (2, 7, 2)
    assert [len(one.top) for one in answered.answers[0].logprobs] == [4, 4]
    assert [one.logprob for one in answered.answers[0].logprobs] == pytest.approx(
        [WORDS((5, 6))[expected[0]], WORDS((5, 6, expected[0]))[expected[1]]]
    )
    assert scene.count("triserve_search_requests_total", kind="contrastive") == 7


async def test_an_end_of_text_is_a_candidate_like_others_and_ends_the_answer() -> None:
    def ends(tokens: Sequence[int]) -> list[float]:
        return [math.log(0.9) if token == EOS else math.log(0.1 / 11) for token in range(12)]

    scene = Scene(FakeReplica("one", play=probed(ends, VECTORS)))
    answered = await scene.answer((5, 6), search=Contrast(alpha=0.01, width=2), wishes=Wishes(max_tokens=9))
    assert (answered.answers[0].token_ids, answered.answers[0].finish_reason, answered.texts) == ([EOS], "stop", [""])


async def test_the_whole_context_may_be_used() -> None:
    scene = Scene(model=replace(SERVED, max_model_len_tokens=6))
    assert len(await scene.tokens(Contrast(alpha=0.5, width=3), ignore_eos=True)) == 4


async def test_a_replica_that_dies_changes_nothing() -> None:
    def dies(attempt: FakeAttempt) -> None:
        probed(WORDS, VECTORS)(attempt) if len(first.attempts) < 6 else _die(attempt)

    def _die(attempt: FakeAttempt) -> None:
        first.ready = False
        attempt.answer.hidden += b"half"
        attempt.answer.fail(Unavailable("the compute process was lost"))

    first = FakeReplica("one", play=dies)
    contrast = Contrast(alpha=0.5, width=4)
    assert await Scene(first, replica("two")).tokens(contrast, max_tokens=6) == reference(WORDS, VECTORS, (5, 6), contrast, 6)


async def test_hidden_states_that_are_too_few_are_a_fault_of_a_stage() -> None:
    scene = Scene(FakeReplica("one", play=probed(WORDS, random_vectors(WIDTH - 1, 4))))
    assert isinstance(await scene.refusal((5, 6), search=Contrast(alpha=0.5, width=2)), Internal)


async def test_prompt_and_answer_are_held_to_the_limit_before_anything_is_asked() -> None:
    contrast = Contrast(alpha=0.5, width=2)
    scene = Scene(one := replica(), max_contrastive_tokens=16)
    assert len(await scene.tokens(contrast, ignore_eos=True)) == 14
    for prompt, wishes, field in (((5,) * 16, Wishes(), "prompt"), ((5, 6), Wishes(max_tokens=15), "max_tokens")):
        before = len(one.attempts)
        error = await scene.refusal(prompt, search=contrast, wishes=wishes)
        assert isinstance(error, InvalidRequest) and error.field == field and "limit on both is 16" in error.message
        assert len(one.attempts) == before


async def test_replicas_without_hidden_states_refuse_it_by_name() -> None:
    error = await SearchScene(replica()).refusal((5,), search=Contrast(alpha=0.5, width=2))
    assert isinstance(error, InvalidRequest) and error.field == "penalty_alpha"


def wished(**fields: Any) -> Wishes:
    return Wishes(**fields)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("penalty_alpha", {"search": Contrast(alpha=1.5, width=2)}),
    ("penalty_alpha", {"search": Contrast(alpha=-0.5, width=2)}),
    ("top_k", {"search": Contrast(alpha=0.5, width=1)}),
    ("top_k", {"search": Contrast(alpha=0.5, width=21)}),
    ("n", {"n": 2}),
    ("min_tokens", {"wishes": Wishes(min_tokens=1)}),
    ("max_tokens", {"wishes": Wishes(max_tokens=0, may_be_empty=True)}),
    ("prompt_logprobs", {"wishes": Wishes(prompt_logprobs=1)}),
    ("logprob_token_ids", {"wishes": Wishes(logprob_token_ids=(5,), top_logprobs=1)}),
    *((name, {"wishes": wished(**{name: 0.5})}) for name in ("temperature", "top_p", "repetition_penalty")),
    ("stop", {"wishes": Wishes(stop_strings=("a",))}),
    ("tools", {"reading": AnswerReading(tools=frozenset({"f"}))}),
]


@pytest.mark.parametrize(("field", "asked"), REFUSED)
async def test_what_cannot_be_searched_with_is_refused_by_name(field: str, asked: dict[str, Any]) -> None:
    error = await Scene(one := replica()).refusal((5,), **{"search": Contrast(alpha=0.5, width=2), **asked})
    assert isinstance(error, InvalidRequest) and error.field == field and error.message.startswith(field)
    assert not one.attempts


async def test_candidates_take_places_as_answers_do() -> None:
    assert isinstance(await Scene(places=3).refusal((5,), search=Contrast(alpha=0.5, width=4)), Overloaded)


def test_of_equal_candidates_the_likeliest_is_chosen() -> None:
    even = [Candidate(token, math.log(0.25), b"") for token in (3, 5, 4)]
    assert chosen(even, [0.5, 0.5, 0.5], 0.6) == 0
    assert chosen(even, [0.5, 0.2, 0.2], 0.6) == 1
    assert chosen([Candidate(3, 0.0, b""), Candidate(4, -1.0, b"")], [0.9, 0.1], 0.0) == 0


def test_a_vector_of_zeros_is_like_nothing() -> None:
    vectors = Vectors(2, 2)
    vectors.add(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).numpy().tobytes(), num=2)
    assert vectors.likeness([torch.tensor(one).numpy().tobytes() for one in ([6.0, 8.0], [0.0, 0.0], [-3.0, -4.0])]) == pytest.approx(
        [1, 0, 0]
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def tiny_model() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@functools.cache
def _forward(token_ids: tuple[int, ...]) -> tuple[list[float], list[float]]:
    with torch.inference_mode():
        found = tiny_model()(torch.tensor([token_ids]), output_hidden_states=True)
    return torch.log_softmax(found.logits[0, -1], dim=-1).tolist(), found.hidden_states[-1][0, -1].tolist()


def tiny_logprobs(token_ids: Sequence[int]) -> list[float]:
    return _forward(tuple(token_ids))[0]


def tiny_hidden(token_ids: Sequence[int]) -> list[float]:
    return _forward(tuple(token_ids))[1]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("alpha", "width"), [(0.6, 4), (0.2, 6)])
async def test_a_real_model_s_answer_is_the_formula_s(alpha: float, width: int) -> None:
    contrast = Contrast(alpha=alpha, width=width)
    served = replace(MODEL, hidden_size=256, eos_token_ids=(4, 0), logits_width=4096)
    for prompt in ((500, 501, 502), (1000, 7, 3000, 42, 42)):
        scene = SearchScene(FakeReplica("one", play=probed(tiny_logprobs, tiny_hidden)), model=served)
        answered = await scene.answer(prompt, search=contrast, wishes=Wishes(max_tokens=6))
        assert answered.answers[0].token_ids == reference(tiny_logprobs, tiny_hidden, prompt, contrast, 6, stops=(4, 0))
