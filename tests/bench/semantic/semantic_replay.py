"""Questions drawn Zipf-like from the pair set, asked of SmolLM2 through all services with the semantic cache on: what it saves and what it gives wrongly.

First the model answers every question by itself, greedily at first. Then the stream of questions is asked with the cache, and a part of it without. What is
given to a question that was asked in other words is judged twice: by the pair set (the two are a pair of the same meaning), and by the model's own
answers to both. Then all of it again with a judge, which is asked where the model's answers differ and knows the pair set: what the audits are worth
where who judges is right; and once more with that judge as clients ask who say nothing of sampling, at temperature 1 without a seed, where no answer is
the only one and repeats are found by meaning, too. Writes a results file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from aiohttp import web
from tqdm import tqdm

from gateway.cli.hardware import describe_hardware
from gateway.cli.local.redis_server import find_redis
from prompt_cache.semantic.normalise import normalise
from prompt_cache.semantic.same_answer import is_same_answer
from tests.bench.services.streamed_chat import streamed_chat
from tests.bench.services.whole_pipeline import plan_one_of_each, running
from tests.ports import free_port
from tests.question_pairs import HALVES, read_pairs

RESULTS = Path(__file__).parents[1] / "results" / "semantic_replay.json"
_JUDGE_PATH = "/v1/chat/completions"


class Asked(NamedTuple):
    """What came of one question."""

    question: str
    status: str
    text: str
    tokens: int
    ttft_ms: float


class Stream(NamedTuple):
    """Questions in the order in which they are asked, and which of them mean the same."""

    questions: list[str]
    # By question: all that one answer serves.
    same: dict[str, set[str]]


def make_stream(count: int, exponent: float, seed: int) -> Stream:
    """Draws questions by rank: a pair's two questions share its rank, near misses are as likely as paraphrases."""
    random = np.random.default_rng(seed)
    pairs = [pair for half in HALVES for pair in read_pairs(half)]
    random.shuffle(pairs)
    weights = np.arange(1, len(pairs) + 1) ** -exponent
    drawn = random.choice(len(pairs), size=count, p=weights / weights.sum())
    sides = random.integers(0, 2, count)
    same: dict[str, set[str]] = {}
    for pair in pairs:
        for question in (pair.first, pair.second):
            same.setdefault(question, {question})
        if pair.same:
            same[pair.first].add(pair.second)
            same[pair.second].add(pair.first)
    questions = [(pairs[index].first, pairs[index].second)[side] for index, side in zip(drawn.tolist(), sides.tolist(), strict=True)]
    return Stream(questions, same)


async def ask_all(url: str, questions: Sequence[str], arguments: argparse.Namespace, label: str, **fields: Any) -> list[Asked]:
    """Asks in order, so many at once."""
    results: list[Asked | None] = [None] * len(questions)
    waiting = iter(list(enumerate(questions)))
    with tqdm(total=len(questions), desc=label) as bar:
        async with aiohttp.ClientSession(url) as session:

            async def work() -> None:
                for index, question in waiting:
                    results[index] = await _ask(session, question, arguments.max_tokens, fields)
                    bar.update()

            await asyncio.gather(*(work() for _ in range(arguments.concurrency)))
    return [one for one in results if one is not None]


async def _ask(session: aiohttp.ClientSession, question: str, max_tokens: int, fields: dict[str, Any]) -> Asked:
    # One sentence: an answer that is cut at a length is not kept for others.
    asked = {"max_tokens": max_tokens, "stop": ["\n", ". ", "。"], **fields}
    got = await streamed_chat(session, [{"role": "user", "content": question}], **asked)
    return Asked(question, got.cache, got.text, got.usage.get("completion_tokens", 0), 1000 * got.ttft_s)


def judged(asked: Sequence[Asked], own: dict[str, Asked], same: dict[str, set[str]]) -> dict[str, Any]:
    """Counts, and what was given wrongly.

    An answer of the cache is that of the questions to which it was given when they missed, or by the model alone; it is right by the pair set if one of
    them means the same. Of answers that an audit made and nobody was given, the question is not known.
    """
    by_text: dict[str, set[str]] = {}
    for question, answer in own.items():
        by_text.setdefault(answer.text, set()).add(question)
    for one in asked:
        if one.status == "miss":
            by_text.setdefault(one.text, set()).add(one.question)
    statuses: dict[str, int] = {}
    for one in asked:
        statuses[one.status] = statuses.get(one.status, 0) + 1
    semantic = [one for one in asked if one.status == "hit-semantic"]
    by_pairs = [one for one in semantic if one.text in by_text and not by_text[one.text] & same[one.question]]
    by_model = [one for one in semantic if not is_same_answer(own[one.question].text, one.text, None)]
    hits = [one for one in asked if one.status.startswith("hit")]
    exact_changed = [one for one in asked if one.status == "hit-exact" and one.text != own[one.question].text]
    return {
        "statuses": statuses,
        "hit_rate": round(len(hits) / len(asked), 4),
        "tokens": sum(one.tokens for one in asked),
        "tokens_saved": sum(one.tokens for one in hits),
        "wrong_by_pairs": len(by_pairs),
        "of_a_question_not_known": sum(one.text not in by_text for one in semantic),
        "other_words_than_the_models_own": len(by_model),
        "exact_hits_that_differ_from_the_model": len(exact_changed),
        "examples_wrong_by_pairs": [
            {"asked": one.question, "answered_as": sorted(by_text.get(one.text, set()))[:2]} for one in by_pairs[:5]
        ],
        "ttft_ms": _ttft(asked),
        "ttft_ms_of_hits": _ttft(hits),
    }


def _ttft(asked: Sequence[Asked]) -> dict[str, float] | None:
    if not asked:
        return None
    times = sorted(one.ttft_ms for one in asked)
    return {"p50": round(statistics.median(times), 2), "p90": round(times[int(0.9 * len(times))], 2)}


@asynccontextmanager
async def judging(same: dict[str, set[str]], port: int) -> AsyncIterator[None]:
    """A judge that says of two questions what the pair set does."""

    async def answer(request: web.Request) -> web.Response:
        pair = json.loads((await request.json())["messages"][-1]["content"])
        known = {normalise(question): {normalise(one) for one in others} for question, others in same.items()}
        word = "SAME" if pair["second"] in known.get(pair["first"], ()) else "DIFFERENT"
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": word}}]})

    app = web.Application()
    app.router.add_post(_JUDGE_PATH, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def _run(arguments: argparse.Namespace, url: str, judge_port: int, temperature: float) -> dict[str, Any]:
    stream = make_stream(arguments.questions, arguments.exponent, arguments.seed)
    async with judging(stream.same, judge_port):
        return await _replay(arguments, url, stream, temperature)


async def _replay(arguments: argparse.Namespace, url: str, stream: Stream, temperature: float) -> dict[str, Any]:
    unique = list(dict.fromkeys(stream.questions))
    answers = await ask_all(url, unique, arguments, "the model's own", temperature=temperature, cache={"mode": "bypass"})
    own = {one.question: one for one in answers}
    cached = await ask_all(url, stream.questions, arguments, "with the cache", temperature=temperature)
    without = await ask_all(
        url, stream.questions[: arguments.without], arguments, "without", temperature=temperature, cache={"mode": "bypass"}
    )
    async with aiohttp.ClientSession(url) as session, session.get("/v1/cache") as response:
        counters = (await response.json())["semantic"]
    return {
        "unique_questions": len(unique),
        "with_cache": judged(cached, own, stream.same),
        "ttft_ms_without": _ttft(without),
        "semantic": {name: counters[name] for name in ("embedder", "store", "outcomes", "refusals", "comparisons", "judged")},
    }


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=5000)
    parser.add_argument("--without", type=int, default=300, help="questions that are asked without the cache")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the Zipf-like distribution")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedder", type=Path, required=True, help="a folder from `triserve cache build-embedder`")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    judge_port = free_port()
    judge = {"GATEWAY_SEMANTIC_JUDGE": f"http://127.0.0.1:{judge_port}{_JUDGE_PATH}", "GATEWAY_SEMANTIC_JUDGE_MODEL": "pairs"}
    measured = {}
    for name, variables, temperature in (
        ("greedy", {}, 0.0),
        ("greedy, with a judge that knows the pairs", judge, 0.0),
        ("temperature 1, with a judge that knows the pairs", judge, 1.0),
    ):
        with tempfile.TemporaryDirectory() as runtime:
            port = free_port()
            cache = {"cache": True, "redis_program": find_redis().program, "cache_secret": "0123456789abcdef"}
            parts = plan_one_of_each(port, Path(runtime), variables, **cache, embedder=str(arguments.embedder.resolve()))
            with running(parts):
                measured[name] = asyncio.run(_run(arguments, f"http://127.0.0.1:{port}", judge_port, temperature))
    document = {
        "what": "a Zipf-like stream of questions against SmolLM2 with the semantic cache",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": describe_hardware(),
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("output", "embedder")},
        **measured,
    }
    arguments.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(document, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
