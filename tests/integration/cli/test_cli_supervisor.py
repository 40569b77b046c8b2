"""`triserve up` on stand-ins for its parts: started, restarted when dead or hung, prefixed, stopped in order, with no process left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from gateway.cli.console import Console
from gateway.cli.local.hang_watch import HangLimits
from gateway.cli.local.part import Part, PartFailed, RestartPause
from gateway.cli.local.supervisor import Supervisor

LAUNCHER = Path(__file__).parents[3] / "gateway" / "launch.py"
SOON = RestartPause(first_s=0.01, longest_s=0.05, settled_s=60)
SILENCE = HangLimits(silence_s=0.05, start_s=0.05)

# Says its process id and serves until SIGTERM. Lines are written in one go: a signal may come between any two steps.
POLITE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"bye\\n"), sys.exit(0)))
os.write(1, b"up %d\\n" % os.getpid())
while True:
    signal.pause()
"""
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"up %d\\n" % os.getpid())
while True:
    signal.pause()
"""
# Starts a process of its own, which keeps the log open and ignores SIGTERM.
PARENT = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print('child', flush=True); signal.pause()"])
os.write(1, b"up %d %d\\n" % (os.getpid(), child.pid))
signal.pause()
"""


class Screen(io.StringIO):
    """Collects what a console writes, and lets tests wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def write(self, text: str) -> int:
        """Wakes whoever waits."""
        self._changed.set()
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        """All lines so far."""
        return self.getvalue().splitlines()

    def words_after(self, start: str) -> list[list[str]]:
        """The words that follow, of each line that begins so."""
        return [line.removeprefix(start).split() for line in self.lines if line.startswith(start)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; it is asked again whenever something was written."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class Pipeline:
    """Stand-ins under a supervisor, and what they said. A stand-in is ready when it says "up" and never when it says "early"."""

    def __init__(
        self, programs: dict[str, str], *, ranks: dict[str, int] | None = None, stop_s: float = 20.0, hang: HangLimits | None = SILENCE
    ) -> None:
        self.screen = Screen()
        self.stop = asyncio.Event()
        self.ready = asyncio.Event()
        # Process ids that answer nothing, and how often a part was asked whether it is alive.
        self.silent: set[int] = set()
        self.asked: dict[str, int] = dict.fromkeys(programs, 0)
        self.parts = [
            Part(
                name=name,
                command=(sys.executable, "-c", program),
                environment=os.environ,
                wait_ready=self._waiter(name),
                answers=self._answerer(name),
                stop_rank=(ranks or {}).get(name, 0),
            )
            for name, program in programs.items()
        ]
        console = Console(self.screen, terminal=False, names=tuple(programs))
        self.supervisor = Supervisor(self.parts, console, pause=SOON, hang=hang, stop_s=stop_s)

    def pids(self, name: str) -> list[int]:
        """Process ids of all lives of a part so far."""
        return [int(words[0]) for words in self.screen.words_after(f"{name} | up")]

    async def run(self) -> None:
        """Runs until `stop`."""

        async def on_ready() -> None:
            self.ready.set()

        await self.supervisor.run(self.stop, on_ready)

    def _answerer(self, name: str) -> Callable[[float], Awaitable[bool]]:
        async def answers(timeout_s: float) -> bool:
            self.asked[name] += 1
            return not any(alive(pid) for pid in self.silent.intersection(self.pids(name)))

        return answers

    def _waiter(self, name: str) -> Callable[[], asyncio.Future[None]]:
        lives = 0

        async def wait(life: int) -> None:
            await self.screen.until(lambda: bool(self.pids(name)))
            await self.screen.until(lambda: len(self.pids(name)) + self.screen.lines.count(f"{name} | early") >= life)

        def wait_ready() -> asyncio.Future[None]:
            nonlocal lives
            lives += 1
            return asyncio.ensure_future(wait(lives))

        return wait_ready


@asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[asyncio.Task[None]]:
    """The pipeline, ready; stopped at the end."""
    task = asyncio.create_task(pipeline.run())
    ready = asyncio.create_task(pipeline.ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    try:
        yield task
    finally:
        pipeline.stop.set()
        await task


def alive(pid: int) -> bool:
    """Whether a process with the id runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


async def ended(pid: int) -> None:
    """Returns when a process, not a child of this one, has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    end = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, end.set)
    await end.wait()
    asyncio.get_running_loop().remove_reader(handle)
    os.close(handle)


async def test_lines_of_the_parts_carry_their_names_and_readiness_is_shown() -> None:
    pipeline = Pipeline({"a": POLITE, "b": POLITE})
    async with running(pipeline):
        pass
    shown = pipeline.screen.getvalue()
    assert "a | up" in shown and "b | up" in shown
    assert any(line.startswith("a is ready after ") for line in pipeline.screen.lines)


async def test_stopping_leaves_no_process_and_asks_politely_first() -> None:
    pipeline = Pipeline({"a": POLITE, "b": POLITE})
    async with running(pipeline):
        pids = pipeline.pids("a") + pipeline.pids("b")
        assert all(map(alive, pids))
    assert not any(map(alive, pids))
    assert {"a | bye", "b | bye"} <= set(pipeline.screen.lines)


async def test_parts_stop_in_the_order_of_their_ranks() -> None:
    pipeline = Pipeline({"c": POLITE, "a": POLITE, "b": POLITE}, ranks={"a": 0, "b": 1, "c": 2})
    async with running(pipeline):
        pass
    assert [line for line in pipeline.screen.lines if line.endswith("bye")] == ["a | bye", "b | bye", "c | bye"]


async def test_a_part_that_does_not_stop_is_killed() -> None:
    pipeline = Pipeline({"a": STUBBORN, "b": POLITE}, ranks={"b": 1}, stop_s=0.2)
    async with running(pipeline):
        pids = pipeline.pids("a") + pipeline.pids("b")
    assert not any(map(alive, pids))


async def test_kill_ends_everything_at_once() -> None:
    pipeline = Pipeline({"a": STUBBORN}, stop_s=3600.0)
    async with running(pipeline):
        pids = pipeline.pids("a")
        pipeline.stop.set()
        pipeline.supervisor.kill()
    assert not any(map(alive, pids))


async def test_a_part_that_dies_is_started_again_and_the_others_stay() -> None:
    pipeline = Pipeline({"a": POLITE, "b": POLITE})
    async with running(pipeline):
        for life in (1, 2, 3):
            os.kill(pipeline.pids("a")[-1], signal.SIGKILL)
            await pipeline.screen.until(lambda life=life: len(pipeline.pids("a")) > life)  # type: ignore[misc]
        await pipeline.screen.until(lambda: "a is ready again after" in pipeline.screen.getvalue())
        assert len(pipeline.pids("b")) == 1
        assert "a was killed by SIGKILL, starts again in 0.0 s" in pipeline.screen.lines


async def test_a_part_that_stops_answering_is_killed_and_started_again_and_the_others_stay() -> None:
    pipeline = Pipeline({"a": STUBBORN, "b": POLITE}, stop_s=0.2)
    async with running(pipeline):
        for life in (1, 2):
            hung = pipeline.pids("a")[-1]
            os.kill(hung, signal.SIGSTOP)
            pipeline.silent.add(hung)
            await pipeline.screen.until(lambda life=life: len(pipeline.pids("a")) > life)  # type: ignore[misc]
            assert not alive(hung)
        await pipeline.screen.until(lambda: "a is ready again after" in pipeline.screen.getvalue())
        assert pipeline.screen.lines.count("a did not answer for 0.05 s and was killed, starts again in 0.0 s") == 2
        assert len(pipeline.pids("b")) == 1


async def test_a_part_that_hangs_whenever_it_starts_ends_everything_by_that_reason() -> None:
    pipeline = Pipeline({"a": "import os, signal; os.write(1, b'loading\\n'); signal.pause()"})

    async def silent(timeout_s: float) -> bool:
        shown = pipeline.screen.getvalue
        await pipeline.screen.until(lambda: shown().count("a | loading") > shown().count("starts again"))
        return False

    async def never() -> None:
        raise AssertionError("it was never ready")

    part = dataclasses.replace(pipeline.parts[0], answers=silent)
    console = Console(pipeline.screen, terminal=False, names=("a",))
    with pytest.raises(PartFailed, match=r"^a did not answer for 0.05 s and was killed before it was ready: loading$"):
        await Supervisor([part], console, pause=SOON, hang=SILENCE).run(pipeline.stop, never)
    assert pipeline.screen.lines.count("a | loading") == 3


async def test_a_part_that_is_told_to_stop_is_not_taken_for_hung() -> None:
    pipeline = Pipeline({"a": "import signal; signal.signal(15, signal.SIG_IGN)\n" + STUBBORN}, stop_s=0.3)
    async with running(pipeline):
        pipeline.stop.set()
        pipeline.silent.update(pipeline.pids("a"))
    assert "did not answer" not in pipeline.screen.getvalue()


async def test_without_limits_a_silent_part_is_left_alone() -> None:
    pipeline = Pipeline({"a": POLITE}, hang=None)
    async with running(pipeline):
        assert pipeline.asked == {"a": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="the test needs handles of processes")
async def test_what_a_dead_part_had_started_dies_with_it() -> None:
    pipeline = Pipeline({"a": PARENT})
    async with running(pipeline):
        await pipeline.screen.until(lambda: "a | child" in pipeline.screen.lines)
        parent, child = (int(word) for word in pipeline.screen.words_after("a | up")[0])
        os.kill(parent, signal.SIGKILL)
        await ended(child)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import sys; sys.stderr.write('PORT=x: not a number\\n'); sys.exit(2)",
            "a ended with status 2 before it was ready: PORT=x: not a number",
        ),
        ("import sys; sys.exit(0)", "a ended with status 0 before it was ready: it said nothing"),
        ("import os; os.kill(os.getpid(), 9)", "a was killed by SIGKILL before it was ready: it said nothing"),
    ],
)
async def test_a_part_that_never_gets_ready_ends_everything_with_its_last_words(program: str, message: str) -> None:
    pipeline = Pipeline({"a": program, "b": POLITE})
    with pytest.raises(PartFailed) as failure:
        await pipeline.run()
    assert str(failure.value) == message
    assert not any(map(alive, pipeline.pids("b")))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("compute: the model has no weights", "the model has no weights"),
        ("PORT='x': not a number", "PORT='x': not a number"),
        ("2026-01-31T12:00:00.123Z ERROR compute a.b.c no memory", "no memory"),
    ],
)
async def test_why_a_part_cannot_start_is_told_once_without_the_head_of_its_line(said: str, reason: str) -> None:
    pipeline = Pipeline({"a": f"import sys; print('loading', flush=True); sys.stderr.write({said!r}); sys.exit(1)"})
    with pytest.raises(PartFailed) as failure:
        await pipeline.run()
    assert str(failure.value) == f"a ended with status 1 before it was ready: {reason}"
    assert "a | loading" in pipeline.screen.lines
    assert ("ERROR" in said) == (f"a | {said}" in pipeline.screen.lines)


async def test_what_only_looks_like_a_reason_is_shown_when_the_part_goes_on() -> None:
    pipeline = Pipeline({"a": "print('A=1', flush=True)\nprint('sampler: 2', flush=True)\n" + POLITE})
    async with running(pipeline):
        pass
    assert pipeline.screen.lines[:2] == ["a | A=1", "a | sampler: 2"]


@pytest.mark.parametrize("kills", [1, 2])
async def test_a_part_killed_while_it_starts_is_started_again(kills: int, tmp_path: Path) -> None:
    die = f"""
import os
with open({str(tmp_path / "lives")!r}, "a+") as lives:
    lives.write("x")
    lives.seek(0)
    if len(lives.read()) <= {kills}:
        os.write(1, b"early\\n")
        os.kill(os.getpid(), 9)
"""
    pipeline = Pipeline({"a": die + POLITE})
    async with running(pipeline):
        assert len(pipeline.pids("a")) == 1
        assert pipeline.screen.lines.count("a was killed by SIGKILL, starts again in 0.0 s") == kills


async def test_stopping_while_parts_start_leaves_no_process() -> None:
    before = psutil.Process().children()
    pipeline = Pipeline({"a": "import signal; print('starting', flush=True); signal.pause()", "b": POLITE})
    task = asyncio.create_task(pipeline.run())
    await pipeline.screen.until(lambda: "a | starting" in pipeline.screen.lines)
    pipeline.stop.set()
    await task
    assert not pipeline.ready.is_set()
    assert not any(map(alive, pipeline.pids("b")))
    assert psutil.Process().children() == before


async def test_an_error_of_the_caller_stops_everything() -> None:
    pipeline = Pipeline({"a": POLITE})

    async def on_ready() -> None:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        await pipeline.supervisor.run(pipeline.stop, on_ready)
    assert not any(map(alive, pipeline.pids("a")))


async def test_a_part_whose_readiness_cannot_be_asked_for_ends_everything() -> None:
    async def fail() -> None:
        raise ValueError("no such question")

    async def on_ready() -> None:
        raise AssertionError("one part is not")

    pipeline = Pipeline({"a": POLITE, "b": POLITE})
    parts = [dataclasses.replace(pipeline.parts[0], wait_ready=fail), pipeline.parts[1]]
    console = Console(pipeline.screen, terminal=False, names=("a", "b"))
    before = psutil.Process().children()
    with pytest.raises(ValueError, match="no such question"):
        await Supervisor(parts, console).run(pipeline.stop, on_ready)
    assert psutil.Process().children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of a process that was killed")
def test_nothing_outlives_a_command_that_was_killed() -> None:
    child = "import os, signal; print(os.getpid(), flush=True); signal.signal(15, signal.SIG_IGN); signal.pause()"
    parent = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-I", "-S", {str(LAUNCHER)!r}, str(os.getpid()), sys.executable, "-c", {child!r}], start_new_session=True)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.kill()
        # The child holds the other end of this pipe: its end is the child's.
        assert process.stdout.read() == ""


def test_a_program_whose_parent_is_gone_is_not_started() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(LAUNCHER), "1", sys.executable, "-c", "print('started')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
