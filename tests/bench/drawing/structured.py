"""What answers of a form cost: masks and compiling in the sampler, and a pipeline's tokens per second under a schema beside free text.

Masks: microseconds from a token to the mask behind it, over answers that are drawn at random from what is allowed, for a vocabulary of 49,152 ids (SmolLM2's)
and for one of 131,072 that is made of it. Compiling: milliseconds to an answer's first mask in the sampler, and those that the check before it takes in a process of its own. Served: the same requests of the
same lengths in turns, free and under a regular expression that lets any text be said, so that only the masks differ, at temperature 1. Writes a results file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from gateway.cli.hardware import describe_hardware
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from sampler_svc.grammar_check.checker import GrammarChecker, Words
from sampler_svc.grammars import GrammarCompiler
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from tests.bench.services.streamed_chat import streamed_chat
from tests.e2e.local_pipeline import Pipeline
from triserve.rpc.sampling import Grammar
from triserve.rpc.token_mask import unpacked

RESULTS = Path(__file__).parents[1] / "results" / "structured.json"
NARROW, WIDE = 49_152, 131_072
_LEAF = {"type": "string", "maxLength": 30}
GRAMMARS = {
    "a flat object": Grammar(
        "json_schema",
        json.dumps(
            {
                "type": "object",
                "properties": {"name": _LEAF, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
                "required": ["name", "age", "ok"],
            }
        ),
    ),
    "nested, arrays and enums": Grammar(
        "json_schema",
        json.dumps(
            {
                "type": "object",
                "properties": {
                    "city": _LEAF,
                    "units": {"enum": ["metric", "imperial"]},
                    "days": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"date": {"type": "string", "format": "date"}, "t": {"type": "number"}},
                            "required": ["date", "t"],
                        },
                        "maxItems": 5,
                    },
                },
                "required": ["city", "units", "days"],
                "additionalProperties": False,
            }
        ),
    ),
    "any JSON object": Grammar("json_schema", '{"type":"object"}'),
    "a date and a name": Grammar("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2} [A-Z][a-z]{2,20}"),
    "any text": Grammar("regex", r"(?s:.*)"),
}
ANY_TEXT = r"(?s:.*)"


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.percentile(values, 50)), 1),
        "p99": round(float(np.percentile(values, 99)), 1),
        "max": round(max(values), 1),
    }


def widened(tokenizer: Path, size: int, folder: Path) -> Path:
    """A byte-level BPE tokenizer with more ids: made up of two of those there are, as merges make them; the same ones each time."""
    definition = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary, merges = definition["model"]["vocab"], definition["model"]["merges"]
    taken = set(vocabulary)
    added = {token["content"] for token in definition["added_tokens"]}
    pieces = [piece for piece in vocabulary if piece not in added and len(piece) <= 8]
    chosen = random.Random(0)
    while len(vocabulary) < size:
        first, second = chosen.choice(pieces), chosen.choice(pieces)
        if first + second not in taken:
            taken.add(first + second)
            vocabulary[first + second] = len(vocabulary)
            merges.append([first, second])
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(definition), encoding="utf-8")
    return path


def _another(grammar: Grammar, number: int) -> Grammar:
    """The same form under another text, which is compiled anew."""
    if grammar.kind == "json_schema":
        return Grammar(grammar.kind, grammar.text.replace("{", f'{{"$comment":"{number}",', 1))
    return Grammar(grammar.kind, f"{grammar.text}( {{0,{number}}})?")


async def _checks(compiler: GrammarCompiler, grammars: Sequence[Grammar]) -> list[float]:
    """Milliseconds of each, one after the other, in a process that runs."""

    async def words() -> Words:
        return compiler.words()

    checker = GrammarChecker(words)
    await checker.check(Grammar("regex", "a"))
    times = []
    for grammar in grammars:
        began = time.perf_counter()
        await checker.check(grammar)
        times.append(1e3 * (time.perf_counter() - began))
    await checker.close()
    return times


def masks(path: Path, answers: int, most_tokens: int) -> dict[str, Any]:
    """Times of each grammar with a tokenizer."""
    vocabulary = Vocabulary(load_tokenizer(path))
    width = load_tokenizer(path).get_vocab_size()
    found: dict[str, Any] = {}
    GrammarCompiler(path, vocabulary).open(Grammar("regex", "a"), width, [2], [])
    for name, grammar in GRAMMARS.items():
        compiled_ms, mask_us = [], []
        compiler = GrammarCompiler(path, vocabulary)
        compiler.open(Grammar("regex", "a"), width, [2], [])
        chosen = random.Random(0)
        for number in range(answers):
            began = time.perf_counter()
            state = compiler.open(_another(grammar, number), width, [2], [])
            compiled_ms.append(1e3 * (time.perf_counter() - began))
            for _ in range(most_tokens):
                ids = np.flatnonzero(unpacked(state.allowed(), width))
                token = int(chosen.choice(ids.tolist()))
                if token == 2:
                    break
                began = time.perf_counter()
                assert state.advance([token]), "what is allowed can be drawn"
                state.allowed()
                mask_us.append(1e6 * (time.perf_counter() - began))
                if state.is_over:
                    break
        found[name] = {"compile_ms": _percentiles(compiled_ms), "mask_us": _percentiles(mask_us), "tokens": len(mask_us)}
        found[name]["check_ms"] = _percentiles(asyncio.run(_checks(compiler, [_another(grammar, number) for number in range(answers)])))
        print(f"{name}: {found[name]}", flush=True)
    return found


async def _round(url: str, concurrency: int, max_tokens: int, **fields: Any) -> float:
    """Tokens per second of as many chats at once."""
    async with aiohttp.ClientSession(url) as session:
        began = time.perf_counter()
        jobs = [
            streamed_chat(
                session,
                [{"role": "user", "content": f"Tell me about the number {number}."}],
                max_tokens=max_tokens,
                ignore_eos=True,
                seed=number,
                cache={"mode": "bypass"},
                **fields,
            )
            for number in range(concurrency)
        ]
        answers = await asyncio.gather(*jobs)
        took_s = time.perf_counter() - began
    assert all(answer.usage["completion_tokens"] == max_tokens for answer in answers), "all have the same length"
    return concurrency * max_tokens / took_s


def served(concurrencies: Sequence[int], rounds: int, max_tokens: int) -> list[dict[str, Any]]:
    """Free text and text under masks in turns."""
    pipeline = Pipeline(["--model", str(resolve_model(None, download_from_hub, os.environ).folder)])
    pipeline.start()
    table = []
    try:
        asyncio.run(_round(pipeline.url, 4, 8, guided_regex=ANY_TEXT))
        for concurrency in concurrencies:
            free, bound = [], []
            for _ in range(rounds):
                free.append(asyncio.run(_round(pipeline.url, concurrency, max_tokens, temperature=1)))
                bound.append(asyncio.run(_round(pipeline.url, concurrency, max_tokens, temperature=1, guided_regex=ANY_TEXT)))
            row = {
                "concurrency": concurrency,
                "free_tokens_per_s": [round(one, 1) for one in free],
                "bound_tokens_per_s": [round(one, 1) for one in bound],
                "bound_of_free": round(statistics.median(bound) / statistics.median(free), 3),
            }
            table.append(row)
            print(row, flush=True)
    finally:
        pipeline.stop()
    return table


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--parts", nargs="+", choices=("masks", "served"), default=["masks", "served"], help="others stay as they are in the output"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    document = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    document |= {
        "what": "answers of a form: microseconds a mask, milliseconds a grammar, and tokens per second beside free text",
        "triserve": version("triserve"),
        "llguidance": version("llguidance"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if "masks" in arguments.parts:
        path = resolve_model(None, download_from_hub, os.environ).folder / "tokenizer.json"
        with tempfile.TemporaryDirectory() as folder:
            wide = widened(path, WIDE, Path(folder))
            document["masks"] = {str(size): masks(one, arguments.answers, 200) for size, one in ((NARROW, path), (WIDE, wide))}
    if "served" in arguments.parts:
        document["served"] = served(arguments.concurrency, arguments.rounds, arguments.max_tokens)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
