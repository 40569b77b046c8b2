"""Deltas that go to a writer as they come: none is lost, doubled or out of order, whatever the writer and the reader do meanwhile."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.generations.generation import Piece
from tests.fakes.fake_stages import FakeAttempt, FakeReplica
from tests.unit.gateway.flow.generations.test_generation import LOST, Scene, choices, fails, prompt
from triserve.rpc.errors import Internal


class Pen:
    """A writer that is free when a test says so."""

    def __init__(self) -> None:
        self.is_free = True
        self.is_broken = False
        self.pieces: list[Piece] = []

    def write(self, piece: Piece) -> None:
        assert self.is_free, "nothing is written while it is not"
        if self.is_broken:
            raise ValueError("it cannot write")
        self.pieces.append(piece)

    def text(self, choice: int) -> str:
        return "".join(piece.delta.text for piece in self.pieces if piece.choice == choice)


def begun(pen: Pen, *, n: int = 1) -> tuple[Scene, list[FakeAttempt]]:
    replica = FakeReplica("one")
    scene = Scene(replica, of=choices(prompt(1), n=n), stream=True)
    scene.generation.submit()
    scene.generation.write_to(pen)
    return scene, replica.attempts


async def test_what_comes_while_the_writer_is_free_is_written_before_push_returns_and_wakes_nobody() -> None:
    pen = Pen()
    scene, (attempt,) = begun(pen)
    reading = asyncio.create_task(scene.generation.next())
    await asyncio.sleep(0)
    attempt.answer.push(0, [1], "a", now=0.0)
    assert pen.text(0) == "a"
    await asyncio.sleep(0)
    assert not reading.done()
    attempt.answer.push(1, [2], "b", "stop", now=0.0)
    assert [(piece.delta.text, piece.delta.finish_reason) for piece in await reading] == [("b", "stop")], "the end is the reader's"
    assert scene.generation.finished
    scene.generation.close()


async def test_what_comes_while_the_writer_is_not_free_is_merged_for_the_reader() -> None:
    pen = Pen()
    scene, (attempt,) = begun(pen)
    pen.is_free = False
    attempt.answer.push(0, [1], "a", now=0.0)
    attempt.answer.push(1, [2], "b", now=0.0)
    assert [piece.delta.text for piece in await scene.generation.next()] == ["ab"]
    assert not pen.pieces
    scene.generation.close()


async def test_a_failure_is_told_to_the_reader() -> None:
    pen = Pen()
    scene, (attempt,) = begun(pen)
    attempt.answer.push(0, [1], "a", now=0.0)
    attempt.answer.fail(LOST)
    assert await fails(scene.generation.next()) is LOST
    scene.generation.close()


async def test_a_writer_that_breaks_fails_its_own_answer_and_nothing_else() -> None:
    pen = Pen()
    scene, (attempt,) = begun(pen)
    pen.is_broken = True
    attempt.answer.push(0, [1], "a", now=0.0)
    assert isinstance(await fails(scene.generation.next()), Internal)
    scene.generation.close()


async def test_gaps_of_what_is_written_are_noted() -> None:
    pen = Pen()
    scene, (attempt,) = begun(pen)
    for position in range(3):
        scene.clock.now += 0.5
        attempt.answer.push(position, [1], "a", now=0.0)
    assert scene.notes.gaps == [0.5, 0.5]
    scene.generation.close()


async def test_a_reader_that_is_woken_returns_though_the_writer_has_taken_what_waited_for_it() -> None:
    pen = Pen()
    scene, (attempt,) = begun(pen)
    pen.is_free = False
    attempt.answer.push(0, [1], "a", now=0.0)
    pen.is_free = True
    attempt.answer.push(1, [2], "b", now=0.0)
    assert pen.text(0) == "ab"
    scene.generation.wake()
    assert await asyncio.wait_for(scene.generation.next(), timeout=20) == []
    scene.generation.close()


@given(st.lists(st.sampled_from(["push 0", "push 1", "free", "busy", "read"]), max_size=40))
async def test_every_token_comes_once_and_in_order_whoever_delivers_it(steps: list[str]) -> None:
    pen = Pen()
    scene, attempts = begun(pen, n=2)
    sent = ["", ""]
    for step in steps:
        match step.split():
            case ["push", number]:
                choice = int(number)
                text = f"<{choice}:{len(sent[choice])}>"
                attempts[choice].answer.push(len(attempts[choice].answer.token_ids), [7], text, now=0.0)
                sent[choice] += text
            case ["free"]:
                pen.is_free = True
            case ["busy"]:
                pen.is_free = False
            case ["read"]:
                scene.generation.wake()
                pen.pieces += await scene.generation.next()
    for attempt in attempts:
        attempt.answer.push(len(attempt.answer.token_ids), [], "", "stop", now=0.0)
    while not scene.generation.finished:
        pen.pieces += await scene.generation.next()
    assert [pen.text(0), pen.text(1)] == sent
    assert scene.generation.usage().completion_tokens == sum(len(attempt.answer.token_ids) for attempt in attempts)
    scene.generation.close()
