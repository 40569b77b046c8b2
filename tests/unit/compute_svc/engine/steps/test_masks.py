"""Requests that have a grammar: whenever their masks come, they are answered as if each row had waited for its own; nobody else waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.step_drawing import DrawConfig
from tests.fakes.engine_reader import DEVICE, SERVICE, WIDTH, Reader, request_of, small_engine
from tests.fakes.hash_model import HashModel
from triserve.rpc.errors import Internal, InvalidRequest
from triserve.rpc.sampling import Grammar, Sampling
from triserve.rpc.token_mask import mask_bytes

GREEDY = Sampling(temperature=0.0, grammar=Grammar("regex", "whatever"))
SAMPLED = Sampling(seed=5, grammar=Grammar("regex", "whatever"))
PROMPT = range(10)
NUM_BYTES = mask_bytes(WIDTH)


def allowed_at(position: int) -> list[int]:
    """Some ids, others at every position; once few, once most."""
    chosen = np.random.default_rng(position)
    return sorted(chosen.choice(WIDTH, size=3 if position % 2 else WIDTH - 3, replace=False).tolist())


def mask_of(ids: Sequence[int]) -> bytes:
    bits = np.zeros(8 * NUM_BYTES, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def greedy_under_masks(model: HashModel, max_tokens: int) -> list[int]:
    context = list(PROMPT)
    for position in range(max_tokens):
        logits = model.logits_of(context)
        ids = allowed_at(position)
        context.append(ids[int(np.argmax(logits[ids]))])
    return context[len(PROMPT) :]


class Scene:
    """An engine with one request that has a grammar, which is told masks when a test says so."""

    def __init__(self, sampling: Sampling = GREEDY, drawing: DrawConfig = DEVICE, max_tokens: int = 8) -> None:
        self.model = HashModel(WIDTH)
        self.engine: Engine = small_engine(self.model, drawing)
        self.reader = Reader(self.engine)
        self.told = -1
        self.engine.submit(request_of(1, PROMPT, max_tokens, sampling=sampling))

    @property
    def position(self) -> int:
        return len(self.reader.tokens.get(1, []))

    def tell(self) -> None:
        """The mask of the next token, once."""
        if self.told < self.position:
            self.told = self.position
            self.engine.mask(1, self.position, mask_of(allowed_at(self.position)))

    def step(self, *, before: bool = False, within: bool = False, after: bool = False) -> None:
        """A step, and when in it the mask comes."""
        if before:
            self.tell()
        kept = self.engine.draw_kept()
        if kept is not None:
            self.reader.read(kept)
        self.engine.look_for_masks = self.tell if within else lambda: None
        self.reader.step()
        if after:
            self.tell()

    def run(self, step: Callable[[], None], steps: int = 60) -> list[int]:
        for _ in range(steps):
            if 1 in self.reader.errors:
                return self.reader.tokens[1]
            step()
        raise AssertionError("the engine does not come to rest")


WHEN = ("before", "within", "after")


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("drawing", [DEVICE, SERVICE], ids=["device", "service"])
def test_every_token_is_one_that_its_mask_allows_and_the_likeliest_of_those(when: str, drawing: DrawConfig) -> None:
    scene = Scene(drawing=drawing)
    assert scene.run(lambda: scene.step(**{when: True})) == greedy_under_masks(scene.model, 8)
    assert scene.reader.errors == {1: None}
    assert scene.engine.load.used_pages == 0
    assert scene.engine.load.decode_tokens == 8


@pytest.mark.parametrize("when", WHEN)
def test_rows_under_masks_are_audited_as_all_are(when: str) -> None:
    scene = Scene(drawing=DrawConfig(audited_share=1.0))
    scene.run(lambda: scene.step(**{when: True}))
    audited = [one for output in scene.reader.outputs if output.rows is not None for one in output.rows.logits]
    assert len(audited) == 8


@given(st.lists(st.sampled_from([*WHEN, "never"]), min_size=10, max_size=40))
def test_when_masks_come_changes_no_token(whens: list[str]) -> None:
    scene, other = Scene(SAMPLED), Scene(SAMPLED)
    expected = other.run(lambda: other.step(before=True))
    for when in whens:
        if 1 in scene.reader.errors:
            break
        scene.step(**({} if when == "never" else {when: True}))
    assert scene.run(lambda: scene.step(before=True)) == expected


def test_a_mask_that_comes_within_the_step_costs_no_step() -> None:
    scene = Scene()
    scene.run(lambda: scene.step(within=True))
    assert scene.engine.load.steps == 8


def test_others_go_on_while_one_waits_for_its_mask() -> None:
    scene = Scene()
    scene.engine.submit(request_of(2, range(5), 6))
    # A prompt more than fits into the first step.
    for _ in range(7):
        scene.step()
    assert scene.reader.errors == {2: None}
    assert scene.reader.tokens[2] == scene.model.greedy_answer(range(5), 6)
    assert scene.position == 0
    assert scene.run(lambda: scene.step(before=True)) == greedy_under_masks(scene.model, 8)


def test_a_request_that_waits_may_be_released() -> None:
    scene = Scene()
    scene.step()
    scene.tell()
    assert scene.engine.release(1)
    assert scene.engine.draw_kept() is None
    assert scene.engine.load.used_pages == 0


@pytest.mark.parametrize(
    ("position", "allowed"), [(1, mask_of([1])), (0, b""), (0, mask_of([1]) + b"\0"), (0, b"\xff")], ids=["place", "none", "long", "short"]
)
def test_a_mask_that_does_not_fit_fails_its_request_before_the_next_step(position: int, allowed: bytes) -> None:
    scene = Scene()
    scene.engine.look_for_masks = lambda: scene.engine.mask(1, position, allowed)
    scene.reader.step()
    assert scene.engine.draw_kept() is None
    scene.reader.step()
    assert isinstance(scene.reader.errors[1], Internal)
    scene.engine.assert_consistent()


def test_a_mask_for_a_request_without_a_grammar_fails_it() -> None:
    scene = Scene(Sampling(temperature=0.0))
    scene.engine.mask(1, 0, mask_of([1]))
    scene.engine.draw_kept()
    scene.reader.step()
    assert isinstance(scene.reader.errors[1], Internal)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_mask_that_leaves_nothing_names_the_grammar(when: str) -> None:
    scene = Scene()
    if when == "after":
        scene.step()
    scene.engine.mask(1, 0, mask_of([]))
    scene.step()
    scene.step()
    error = scene.reader.errors[1]
    assert isinstance(error, InvalidRequest) and "grammar" in error.message


def test_bans_of_the_request_itself_hold_beside_the_mask() -> None:
    best = greedy_under_masks(HashModel(WIDTH), 1)[0]
    scene = Scene(Sampling(temperature=0.0, grammar=GREEDY.grammar, banned_token_ids=(best,)), max_tokens=1)
    (token,) = scene.run(lambda: scene.step(before=True))
    assert token != best and token in allowed_at(0)
    few = tuple(sorted({best, 0, 1}))
    scene = Scene(Sampling(temperature=0.0, grammar=GREEDY.grammar, allowed_token_ids=few), max_tokens=1)
    (token,) = scene.run(lambda: scene.step(before=True))
    assert token == best


def test_log_probabilities_of_a_row_that_waited_are_the_models_own() -> None:
    sampling = Sampling(temperature=0.0, grammar=GREEDY.grammar, top_logprobs=2)
    at_once, late = Scene(sampling, max_tokens=1), Scene(sampling, max_tokens=1)
    at_once.run(lambda: at_once.step(before=True))
    late.run(lambda: late.step(after=True))
    both = [
        [one for output in scene.reader.outputs if output.rows is not None for one in output.rows.logprobs] for scene in (at_once, late)
    ]
    assert both[0] == both[1] and len(both[0]) == 1
