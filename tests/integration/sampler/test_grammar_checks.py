"""Grammars are checked in processes that may be killed: what is hostile costs its own request alone."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from sampler_svc.grammar_check.checker import Checked, CheckLimits, GrammarChecker, Words, _Checking
from sampler_svc.grammars import GrammarCompiler
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.errors import Internal, InvalidRequest, Overloaded
from triserve.rpc.sampling import Grammar

ROOT = Path(__file__).parents[3]
WIDTH, EOS = 257, 256
PLAIN = Grammar("regex", "[a-z]+")


def schema(content: Any) -> Grammar:
    return Grammar("json_schema", content if isinstance(content, str) else json.dumps(content))


def endless(number: int = 0) -> Grammar:
    """One that takes minutes."""
    patterns = ["".join(f".*{letter}" for letter in letters) for letters in itertools.permutations("abcdef", 4)]
    return schema({"title": str(number), "allOf": [{"pattern": pattern} for pattern in patterns[:120]]})


def chain(length: int) -> Grammar:
    """Definitions that lead to the next."""
    steps = {
        f"a{number}": {"anyOf": [{"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{number + 1}"}}}, {"type": "null"}]}
        for number in range(length)
    }
    return schema({"$ref": "#/$defs/a0", "$defs": {**steps, f"a{length}": {"type": "null"}}})


HOSTILE = {
    "schemas within schemas": (schema('{"items":' * 5000 + "{}" + "}" * 5000), "it is no JSON"),
    "forty schemas within schemas": (schema('{"allOf":[' * 40 + "{}" + "]}" * 40), None),
    "a huge enum": (schema({"enum": [f"value{number}" for number in range(14_000)]}), None),
    "5,000 properties": (schema({"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(5000)}}), None),
    "references in a ring": (
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        "refers to itself",
    ),
    "references in a chain": (chain(2500), "nests too deep"),
    "trees that must be the same": (
        schema(
            {
                "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
                "$defs": {name: {"type": "object", "properties": {"c": {"$ref": f"#/$defs/{name}"}}} for name in "ab"},
            }
        ),
        "stack level",
    ),
    "options to the power of options": (
        schema(
            {"allOf": [{"anyOf": [{"type": "object", "properties": {f"{one}.{other}": {}}} for other in range(5)]} for one in range(12)]}
        ),
        "too large",
    ),
    "patterns of patterns": (endless(), "longer than"),
    "repetition beyond numbers": (Grammar("regex", "a{1,99999999999}"), "grammar cannot be held"),
    "a billion repetitions": (Grammar("regex", "a{1,1000000000}"), None),
    "repetitions of repetitions": (Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"), None),
    "classes of all scripts": (Grammar("regex", r"(\p{L}|\p{N}|\p{S}){1,100000}"), None),
    "what backtracks without end elsewhere": (Grammar("regex", "(x+x+)+y"), None),
    "states to the power of letters": (Grammar("regex", "(a|b)*a(a|b){200}"), None),
    "groups within groups": (Grammar("regex", "(" * 20_000 + "a" + ")" * 20_000), "grammar cannot be held"),
    "rules in a chain": (
        Grammar("lark", "start: a0\n" + "\n".join(f'a{number}: "x" | a{number + 1} "y"' for number in range(9000)) + '\na9000: "z"'),
        "grammar cannot be held",
    ),
    "millions of items": (schema({"type": "array", "maxItems": 50_000_000, "items": {"type": "array", "maxItems": 5_000_000}}), None),
    "a text of millions": (schema({"type": "string", "pattern": "^(a+)+$", "minLength": 3000, "maxLength": 1_000_000}), None),
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return GrammarCompiler(path, Vocabulary(load_tokenizer(path)))


def checker_of(compiler: GrammarCompiler, **limits: Any) -> GrammarChecker:
    async def words() -> Words:
        return compiler.words()

    return GrammarChecker(words, CheckLimits(**limits))


@pytest.fixture(scope="module")
def check(compiler: GrammarCompiler) -> Iterator[Callable[[Grammar], Checked]]:
    """Checks one grammar after the other in the same process."""
    with asyncio.Runner() as runner:
        checker = checker_of(compiler, time_s=0.5)
        yield lambda grammar: runner.run(checker.check(grammar))
        runner.run(checker.close())


@pytest.fixture
async def checkers(compiler: GrammarCompiler) -> AsyncIterator[Callable[..., GrammarChecker]]:
    """Makes checkers with the limits given, and closes them."""
    made: list[GrammarChecker] = []

    def make(**limits: Any) -> GrammarChecker:
        made.append(checker_of(compiler, **limits))
        return made[-1]

    yield make
    for checker in made:
        await checker.close()


def process_of(checker: GrammarChecker) -> psutil.Process:
    assert checker._process is not None
    return psutil.Process(checker._process._process.pid)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_with_a_reason_or_compiled_within_the_limits(
    check: Callable[[Grammar], Checked], compiler: GrammarCompiler, name: str
) -> None:
    grammar, reason = HOSTILE[name]
    try:
        checked = check(grammar)
    except InvalidRequest as error:
        assert error.field == "grammar"
        assert error.message.startswith("grammar cannot be held: ") and len(error.message) < 400
        assert (reason or "too complex") in error.message
    else:
        assert reason is None, "it was to be refused"
        assert compiler.open(grammar, WIDTH, [EOS], [], checked).allowed()
    assert check(PLAIN).source


def test_a_grammar_that_takes_too_much_memory_is_refused(compiler: GrammarCompiler) -> None:
    with asyncio.Runner() as runner:
        checker = checker_of(compiler, time_s=20.0, memory_bytes=16 << 20)
        with pytest.raises(InvalidRequest, match="takes more than 16 MiB"):
            runner.run(checker.check(HOSTILE["5,000 properties"][0]))
        assert runner.run(checker.check(PLAIN)).source
        runner.run(checker.close())


async def test_others_wait_for_none_that_take_long(checkers: Callable[..., GrammarChecker]) -> None:
    checker = checkers(time_s=60.0, workers=1)
    long = [asyncio.create_task(checker.check(endless(number))) for number in range(4)]
    for number in range(20):
        assert (await checker.check(Grammar("regex", f"a{{{number}}}b"))).source
    assert not any(task.done() for task in long)
    for task in long:
        task.cancel()


async def test_nobody_waits_longer_than_the_limit(checkers: Callable[..., GrammarChecker]) -> None:
    checker = checkers(time_s=0.3, workers=1)
    outcomes = await asyncio.gather(*(checker.check(endless(number)) for number in range(12)), checker.check(PLAIN), return_exceptions=True)
    assert all(isinstance(outcome, InvalidRequest | Overloaded | Checked) for outcome in outcomes)
    assert any(isinstance(outcome, Overloaded) for outcome in outcomes)


async def test_requests_that_have_the_same_grammar_share_its_check(checkers: Callable[..., GrammarChecker]) -> None:
    checker = checkers()
    first = await asyncio.gather(*(checker.check(PLAIN) for _ in range(10)))
    assert await checker.check(PLAIN) is first[0] and len({id(one) for one in first}) == 1
    bad = Grammar("regex", "(")
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="unclosed group"):
            await checker.check(bad)
    assert checker._process is not None and checker._process._number == 2


async def test_verdicts_are_kept_while_their_texts_are_not_too_long(
    checkers: Callable[..., GrammarChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sampler_svc.grammar_check.checker._MAX_KEPT_CHARS", 2500)
    checker = checkers()
    for number in range(3):
        with pytest.raises(InvalidRequest):
            await checker.check(Grammar("regex", f"({number}" + " " * 800))
    assert [grammar.text[:2] for grammar in checker._kept] == ["(1", "(2"]
    assert 1600 < checker._kept_chars < 2500


async def test_a_process_that_dies_is_started_again_and_costs_no_request(checkers: Callable[..., GrammarChecker]) -> None:
    checker = checkers(time_s=60.0)
    await checker.check(PLAIN)
    under_way = asyncio.create_task(checker.check(endless()))
    await asyncio.sleep(0)
    first = process_of(checker)
    first.kill()
    assert (await checker.check(Grammar("regex", "b+"))).source
    assert process_of(checker).pid != first.pid
    assert not under_way.done()
    process_of(checker).kill()
    with pytest.raises(Internal):
        await under_way


@pytest.mark.parametrize("fault", ["it dies at once", "there is no room for it"])
def test_a_process_that_does_not_come_about_costs_no_request(
    compiler: GrammarCompiler, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Any] = []

    def start_badly(command: tuple[str, ...], **options: Any) -> subprocess.Popen[bytes]:
        starts.append(command)
        if len(starts) > 1:
            return subprocess.Popen(command, **options)
        if fault == "there is no room for it":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        process = subprocess.Popen("/bin/false", **options)
        process.wait()
        return process

    async def checked() -> Checked:
        checker = checker_of(compiler)
        try:
            return await checker.check(PLAIN)
        finally:
            await checker.close()

    monkeypatch.setattr("sampler_svc.grammar_check.checker.Popen", start_badly)
    # The loop of the services, whose pipes raise where asyncio's only warn.
    assert uvloop.run(checked()).source
    assert len(starts) == 2


def test_a_checking_process_is_started_without_grpcs_fork_handlers(tmp_path: Path) -> None:
    """They may abort it before it has begun, in the midst of a sampler's calls; gRPC tells when it has to leave them out."""
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    code = (
        "import grpc, sys, uvloop\n"
        "from pathlib import Path\n"
        "from tests.integration.sampler.test_grammar_checks import PLAIN, GrammarCompiler, Vocabulary, checker_of, load_tokenizer\n"
        "async def main():\n"
        "    server = grpc.aio.server()\n"
        "    port = server.add_insecure_port('127.0.0.1:0')\n"
        "    await server.start()\n"
        "    path = Path(sys.argv[1])\n"
        "    checker = checker_of(GrammarCompiler(path, Vocabulary(load_tokenizer(path))))\n"
        "    async with grpc.aio.insecure_channel(f'127.0.0.1:{port}') as channel:\n"
        "        await channel.channel_ready()\n"
        "        await checker.check(PLAIN)\n"
        "        await checker.close()\n"
        "    await server.stop(0)\n"
        "uvloop.run(main())"
    )
    environment = {**os.environ, "GRPC_VERBOSITY": "INFO", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "log.cc" in done.stderr, "gRPC tells what it does"
    assert "fork" not in done.stderr


async def test_a_process_that_hangs_is_killed(checkers: Callable[..., GrammarChecker], monkeypatch: pytest.MonkeyPatch) -> None:
    checker = checkers(time_s=0.1)
    await checker.check(PLAIN)
    hung = process_of(checker)
    hung.send_signal(signal.SIGSTOP)
    start = _Checking.start

    async def stopped(words: Words) -> _Checking:
        another = await start(words)
        another._process.send_signal(signal.SIGSTOP)
        return another

    monkeypatch.setattr(_Checking, "start", stopped)
    monkeypatch.setattr("sampler_svc.grammar_check.checker._START_S", 0.0)
    with pytest.raises(Internal):
        await checker.check(Grammar("regex", "b+"))
    assert not hung.is_running()


async def test_closing_leaves_no_process_behind(checkers: Callable[..., GrammarChecker]) -> None:
    checker = checkers(time_s=60.0)
    under_way = asyncio.create_task(checker.check(endless()))
    await checker.check(PLAIN)
    process = process_of(checker)
    children = process.children()
    assert children
    await checker.close()
    under_way.cancel()
    assert not process.is_running()
    # Those whose process is gone end by themselves: a child that waits for a grammar at once, the other with its time of the processor.
    waiting = [child for child in children if child.status() == psutil.STATUS_SLEEPING]
    assert not psutil.wait_procs(waiting, timeout=20)[1]


async def test_no_grammar_needs_a_process(checkers: Callable[..., GrammarChecker]) -> None:
    assert checkers()._process is None


def test_it_ends_with_the_sampler_whose_it_is(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    code = (
        "import asyncio, sys, time\n"
        "from tests.integration.sampler.test_grammar_checks import PLAIN, GrammarCompiler, Vocabulary, checker_of, load_tokenizer, process_of\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    path = Path(sys.argv[1])\n"
        "    checker = checker_of(GrammarCompiler(path, Vocabulary(load_tokenizer(path))))\n"
        "    await checker.check(PLAIN)\n"
        "    print(process_of(checker).pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    command = [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True) as sampler:
        assert sampler.stdout is not None
        process = psutil.Process(int(sampler.stdout.readline()))
        everything = [process, *process.children()]
        sampler.kill()
        assert not psutil.wait_procs(everything, timeout=20)[1]
