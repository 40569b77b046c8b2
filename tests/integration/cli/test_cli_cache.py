"""`triserve cache` against a gateway: what it says of the cache, and what it does to it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import cache
from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from triserve.v1 import common_pb2

SETTINGS: dict[str, Any] = {"semantic_cache": "on", "embedder": "ngrams", "semantic_audited_share": 0.0, "semantic_timeout_ms": 10_000}


def says(request: Any) -> list[Say]:
    """A short answer."""
    return [Say("Paris.", [1, 2]), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(says)], **SETTINGS) as fleet:
        await fleet.service.gateway.pipeline.cache.semantic.opened()  # type: ignore[union-attr]
        yield fleet


@pytest.fixture
def command(fleet: GatewayFleet, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command; returns its status and what it printed, errors behind the rest."""

    async def run(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        cache.add_arguments(parser)
        arguments = parser.parse_args([*words, "--url", fleet.url])
        status = await asyncio.to_thread(cache.run, arguments)
        await fleet.service.gateway.pipeline.cache.semantic.drain()  # type: ignore[union-attr]
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


async def test_a_file_of_questions_is_answered_and_kept_and_found_again(command: Any, fleet: GatewayFleet, tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    questions.write_text(
        'What is the capital of France?\n\n{"question": "Who wrote Faust?"}\n{"messages": [{"role": "user", "content": "How tall is the Eiffel Tower?"}]}\n'
    )
    status, said = await command("warm", str(questions))
    assert status == 0 and "3 of 3 questions answered" in said and "3/3" in said
    assert len(fleet.compute.submitted) == 3
    status, said = await command("explain", "what is the capital of france")
    assert status == 0 and "would be served" in said and "What is the capital of France?" in said
    status, said = await command("explain", "What is the capital of Spain?")
    assert "not served: " in said and "STOPS" in said and "passes" in said
    status, said = await command("stats")
    assert status == 0 and "embedder ngram" in said and "vectors in local on this process" in said and "weak" in said
    status, said = await command("purge")
    assert status == 0 and "tenant default are forgotten" in said
    status, said = await command("explain", "what is the capital of france")
    assert "a miss" in said


async def test_the_servers_json_can_be_had(command: Any) -> None:
    status, said = await command("stats", "--json")
    assert status == 0 and '"semantic": {' in said and '"breaker_open": false' in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no question"),
        ('{"question": 5}', "line 1 has neither a question nor messages"),
        ("ok\n{]", "line 2 begins as JSON and is none"),
        (b"\xff", "cannot be read"),
    ],
    ids=["empty", "no question", "no JSON", "no text"],
)
async def test_a_file_that_is_none_is_refused_by_its_line(command: Any, tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "questions"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, said = await command("warm", str(path))
    assert status == 1 and words in said and "Traceback" not in said


async def test_questions_that_fail_are_named_and_the_others_are_kept(command: Any, fleet: GatewayFleet, tmp_path: Path) -> None:
    path = tmp_path / "questions"
    path.write_text('Who wrote Faust?\n{"messages": []}\n')
    status, said = await command("warm", str(path))
    assert status == 1 and "1 of 2 questions answered" in said and "question 2: " in said


async def test_a_server_without_a_cache_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with running_fleet(cache=False) as fleet:
        for words in (["stats"], ["purge"], ["explain", "a"]):
            parser = argparse.ArgumentParser()
            cache.add_arguments(parser)
            status = await asyncio.to_thread(cache.run, parser.parse_args([*words, "--url", fleet.url]))
            assert status == 1 and "no prompt cache" in capsys.readouterr().err
