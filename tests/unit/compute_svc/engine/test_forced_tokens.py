"""Tokens to which a grammar leaves no choice: taken many at a time they are what they are one by one, whatever else is computed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.step_drawing import DrawConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from tests.fakes.engine_reader import DEVICE, SERVICE, WIDTH, Reader, request_of, small_engine
from tests.fakes.hash_model import HashModel
from triserve.rpc.errors import Internal
from triserve.rpc.sampling import Grammar, Sampling
from triserve.rpc.token_mask import MAX_FORCED_TOKENS, mask_bytes

GRAMMAR = Grammar("regex", "whatever")
GREEDY = Sampling(temperature=0.0, grammar=GRAMMAR)
SAMPLED = Sampling(seed=5, grammar=GRAMMAR, repetition_penalty=1.3, frequency_penalty=0.5)


class Text:
    """What can be drawn at each position of an answer: mostly one token, for some positions in a row."""

    def __init__(self, seed: int, share: float = 0.8) -> None:
        self._seed = seed
        self._share = share

    def allowed(self, position: int) -> list[int]:
        chosen = random.Random(1000 * self._seed + position)
        count = 1 if chosen.random() < self._share else 3
        return sorted(chosen.sample(range(WIDTH), count))

    def forced(self, position: int) -> list[int]:
        run: list[int] = []
        while len(ids := self.allowed(position + len(run))) == 1 and len(run) < MAX_FORCED_TOKENS:
            run += ids
        return run


def mask_of(ids: Sequence[int]) -> bytes:
    bits = np.zeros(8 * mask_bytes(WIDTH), np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


class Scene:
    """An engine with requests that have grammars, and whoever tells their masks."""

    def __init__(self, engine: Engine, texts: dict[int, Text], *, forces: bool = True) -> None:
        self.engine = engine
        self.reader = Reader(engine)
        self._texts = texts
        self._forces = forces
        self._told: dict[int, int] = {}

    def tell(self) -> None:
        """The masks of all next tokens, each once."""
        for number, text in self._texts.items():
            position = len(self.reader.tokens.get(number, []))
            if number not in self.reader.errors and self._told.get(number, -1) < position:
                self._told[number] = position
                self.engine.mask(number, position, mask_of(text.allowed(position)), text.forced(position) if self._forces else ())

    def step(self, when: str) -> None:
        if when == "before":
            self.tell()
        kept = self.engine.draw_kept()
        if kept is not None:
            self.reader.read(kept)
        self.engine.look_for_masks = self.tell if when == "within" else lambda: None
        self.reader.step()
        if when == "after":
            self.tell()

    def run(self, whens: Sequence[str] = ("within",), most: int = 600) -> dict[int, list[int]]:
        for number in range(most):
            if self.reader.errors.keys() >= self._texts.keys():
                return self.reader.tokens
            self.step(whens[number % len(whens)])
            if number % 4 == 0:
                self.engine.assert_consistent()
        raise AssertionError("the engine does not come to rest")


def scene_of(
    seeds: Sequence[int],
    *,
    forces: bool = True,
    sampling: Sampling = GREEDY,
    max_tokens: int = 20,
    drawing: DrawConfig = DEVICE,
    make_memory: type[KvMemory] = KvMemory,
    share: float = 0.8,
    **sizes: int,
) -> Scene:
    engine = small_engine(HashModel(WIDTH), drawing, make_memory, runs_ahead=False, draws_ahead=True, **sizes)
    scene = Scene(engine, {seed: Text(seed, share) for seed in seeds}, forces=forces)
    for seed in seeds:
        engine.submit(request_of(seed, [(seed + index) % WIDTH for index in range(5 + seed % 7)], max_tokens, sampling=sampling))
    return scene


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    st.sampled_from([GREEDY, SAMPLED]),
    st.integers(10, 16),
    st.sampled_from([4, 6, 16]),
    st.sampled_from([KvMemory, MaximumMemory, PredictedMemory]),
    st.lists(st.sampled_from(["before", "within", "after", "never"]), min_size=1, max_size=6).map(lambda whens: ["before", *whens]),
)
def test_answers_are_the_same_with_and_without(
    seeds: list[int], sampling: Sampling, num_pages: int, budget: int, make_memory: type[KvMemory], whens: list[str]
) -> None:
    # Few pages: requests give up theirs and are computed again.
    sizes: dict[str, Any] = {"num_pages": num_pages, "step_budget_tokens": budget}
    many = scene_of(seeds, sampling=sampling, make_memory=make_memory, **sizes)
    one = scene_of(seeds, sampling=sampling, forces=False)
    assert many.run(whens) == one.run()
    assert many.reader.errors == dict.fromkeys(seeds)
    assert many.engine.load.used_pages == 0
    assert many.engine.load.decode_tokens == 20 * len(seeds)


def test_they_cost_no_step_each() -> None:
    steps = {forces: scene_of([1], forces=forces, share=1.0, max_tokens=40) for forces in (True, False)}
    for scene in steps.values():
        scene.run()
    assert steps[False].engine.load.steps >= 40
    assert steps[True].engine.load.steps <= 8


@pytest.mark.parametrize("drawing", [DEVICE, SERVICE, DrawConfig(audited_share=1.0)], ids=["device", "service", "audited"])
def test_wherever_rows_are_drawn(drawing: DrawConfig) -> None:
    assert scene_of([1, 2], drawing=drawing).run() == scene_of([1, 2], forces=False).run()


def test_they_end_with_the_tokens_that_there_may_be() -> None:
    scene = scene_of([1], share=1.0, max_tokens=7)
    (tokens,) = scene.run().values()
    assert tokens == Text(1, 1.0).forced(0)[:7]


def test_others_go_on_beside_them() -> None:
    scene = scene_of([1], share=1.0, max_tokens=30)
    scene.engine.submit(request_of(500, range(5), 9))
    scene.run()
    for _ in range(20):
        scene.step("within")
    assert scene.reader.tokens[500] == HashModel(WIDTH).greedy_answer(range(5), 9)


@pytest.mark.parametrize(
    "changes",
    [{"top_logprobs": 1}, {"banned_token_ids": (0,)}, {"bad_words": ((1, 2),)}, {"allowed_token_ids": tuple(range(WIDTH))}],
    ids=str,
)
def test_they_are_drawn_one_by_one_where_more_is_told_of_them_or_they_may_be_banned(changes: dict[str, object]) -> None:
    sampling = Sampling(temperature=0.0, grammar=GRAMMAR, **changes)  # type: ignore[arg-type]
    scene = scene_of([3], sampling=sampling)
    other = scene_of([3], sampling=sampling, forces=False)
    assert scene.run() == other.run()
    assert [type(error) for error in scene.reader.errors.values()] == [type(error) for error in other.reader.errors.values()]
    assert all(output.rows is None or (output.rows.counts == 1).all() for output in scene.reader.outputs)


@pytest.mark.parametrize(("allowed", "forced"), [([3], [4]), ([3, 4], [3]), ([3], [WIDTH]), ([3], [3, WIDTH])], ids=str)
def test_a_mask_that_contradicts_itself_fails_its_request(allowed: list[int], forced: list[int]) -> None:
    engine = small_engine(HashModel(WIDTH), DEVICE)
    reader = Reader(engine)
    engine.submit(request_of(1, range(5), sampling=GREEDY))
    engine.mask(1, 0, mask_of(allowed), forced)
    engine.draw_kept()
    reader.step()
    assert isinstance(reader.errors[1], Internal)
