"""`triserve cache`: what a server's prompt cache has done, filling it, forgetting it, and why it answers a question or does not."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gateway.cli import cache_embedder
from gateway.cli.api import ApiClient, ApiError
from gateway.cli.chat import add_server_arguments
from gateway.cli.options import readable_file, real, whole

_MAX_LINE_BYTES = 4 << 20


class BadQuestions(Exception):
    """A file of questions that cannot be read; names the line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own commands and their options."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    stats = commands.add_parser("stats", help="print what it has done and what it works with")
    stats.add_argument("--json", action="store_true", help="print the server's JSON")
    stats.set_defaults(act=_stats)
    warm = commands.add_parser("warm", help="have a file's questions answered and kept")
    warm.add_argument(
        "file", type=readable_file, metavar="FILE", help='lines of JSON, each {"question": TEXT} or {"messages": [...]}, or lines of text'
    )
    warm.add_argument("--system", metavar="TEXT", help="system prompt of questions without messages")
    warm.add_argument("--concurrency", type=whole(1, 1024), default=8, metavar="N", help="questions at once (default: %(default)s)")
    warm.add_argument("--max-tokens", type=whole(1), metavar="N", help="longest answer (default: as long as fits)")
    warm.add_argument(
        "--temperature", type=real(0, 100), metavar="T", help="of the answers; they are found by chats of the same (default: the model's)"
    )
    warm.set_defaults(act=_warm)
    purge = commands.add_parser("purge", help="forget all answers of the key's tenant")
    purge.set_defaults(act=_purge)
    explain = commands.add_parser("explain", help="say why a question is answered from the cache or is not, step by step")
    explain.add_argument("question", help="what a user would ask last")
    explain.add_argument("--system", metavar="TEXT", help="system prompt of the chat")
    explain.add_argument("--temperature", type=real(0, 100), metavar="T", help="of the chat (default: the model's)")
    explain.set_defaults(act=_explain)
    for one in (stats, warm, purge, explain):
        add_server_arguments(one)
    build = commands.add_parser("build-embedder", help=cache_embedder.__doc__)
    cache_embedder.add_arguments(build)
    build.set_defaults(act=None)


def run(arguments: argparse.Namespace) -> int:
    """Runs one of them; returns the exit status."""
    if arguments.act is None:
        return cache_embedder.run(arguments)
    try:
        return asyncio.run(_with_server(arguments))
    except (ApiError, BadQuestions) as error:
        sys.stderr.write(f"triserve cache: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


async def _with_server(arguments: argparse.Namespace) -> int:
    async with ApiClient(arguments.url, api_key=arguments.api_key, ca=arguments.ca) as client:
        status: int = await arguments.act(client, arguments)
        return status


async def _stats(client: ApiClient, arguments: argparse.Namespace) -> int:
    found = await client.ask("GET", "/v1/cache")
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    exact, semantic = found["exact"], found["semantic"]
    lookups = exact["hits_l0"] + exact["hits_l1"] + exact["misses"]
    print(
        f"exact     {exact['hits_l0']} found in the process, {exact['hits_l1']} in Redis, of {lookups} looked for; {exact['l0_entries']} kept here"
    )
    trouble = {name: exact[name] for name in ("errors", "busy", "corrupt", "dropped", "too_large") if exact[name]}
    print(f"trouble   {_counts(trouble) or 'none'}{'; Redis is left alone' if exact['breaker_open'] else ''}")
    if semantic is None:
        print("semantic  off")
        return 0
    weak = " (weak: compares spelling)" if semantic["is_weak"] else ""
    print(
        f"semantic  {semantic['mode']}, embedder {semantic['embedder'] or 'not ready'}{weak}, vectors in {semantic['store'] or 'no store yet'} on {semantic['server'] or 'nothing yet'}"
    )
    for sentence in semantic["advice"]:
        print(f"          {sentence}")
    print(f"lookups   {_counts(semantic['outcomes']) or 'none'}")
    print(f"refused   {_counts(semantic['refusals']) or 'none'}")
    print(f"embedded  {_counts({name: value for name, value in semantic['embedding'].items() if name != 'seconds'}) or 'nothing'}")
    print(f"compared  {_counts(semantic['comparisons']) or 'none'}")
    for subject, judgements in semantic["judged"].items():
        print(f"judged    {subject}: {_counts(judgements)}")
    for scope in semantic["scopes"]:
        state = ", switched off" if scope["is_off"] else ""
        checked = f"{scope['wrong']} of {scope['checked']} checked were wrong, at most {scope['bound']:.1%} are{state}"
        print(f"  {scope['scope'][:24]}  {scope['served']} served, {checked}")
    return 0


async def _warm(client: ApiClient, arguments: argparse.Namespace) -> int:
    chats = _chats(arguments.file, arguments.system)
    body: dict[str, Any] = {"cache": {"mode": "refresh"}}
    if arguments.max_tokens is not None:
        body["max_tokens"] = arguments.max_tokens
    if arguments.temperature is not None:
        body["temperature"] = arguments.temperature
    waiting, failures, tokens = list(enumerate(chats, start=1)), [], 0
    with tqdm(total=len(chats), unit="question", file=sys.stderr, dynamic_ncols=True) as bar:

        async def work() -> None:
            nonlocal tokens
            while waiting:
                number, messages = waiting.pop(0)
                try:
                    answer = await client.ask("POST", "/v1/chat/completions", {**body, "messages": messages})
                    tokens += int(answer["usage"]["completion_tokens"])
                except ApiError as error:
                    failures.append(f"question {number}: {error}")
                bar.update()

        await asyncio.gather(*(work() for _ in range(arguments.concurrency)))
    print(f"{len(chats) - len(failures)} of {len(chats)} questions answered, {tokens} tokens")
    for failure in failures:
        sys.stderr.write(f"triserve cache warm: {failure}\n")
    return 1 if failures else 0


async def _purge(client: ApiClient, arguments: argparse.Namespace) -> int:
    found = await client.ask("DELETE", "/v1/cache")
    print(f"all answers of tenant {found['tenant']} are forgotten (generation {found['generation']})")
    return 0


async def _explain(client: ApiClient, arguments: argparse.Namespace) -> int:
    body: dict[str, Any] = {"messages": _messages(arguments.question, arguments.system)}
    if arguments.temperature is not None:
        body["temperature"] = arguments.temperature
    entries = (await client.ask("POST", "/v1/cache/explain", body))["entries"]
    if not entries:
        print("nothing near is kept for such a chat: a miss")
    for entry in entries:
        decided = (
            "would be served" if entry["served"] else f"not served: {entry['refused_by'] or 'it is to be compared with the model first'}"
        )
        print(f"{entry['cosine']:.4f}  {entry['question']}\n        {decided}")
        for step in entry["steps"]:
            print(f"        {'passes' if step['passed'] else 'STOPS '}  {step['step']}: {step['detail']}")
    return 0


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in found.items() if value)


def _messages(question: str, system: str | None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _chats(path: Path, system: str | None) -> list[Sequence[dict[str, Any]]]:
    """The chats of a file.

    Raises:
        BadQuestions: a line is none; or the file cannot be read.
    """
    chats = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if len(line) > _MAX_LINE_BYTES:
                    raise BadQuestions(f"{path} line {number} has {len(line)} bytes, the limit is {_MAX_LINE_BYTES}")
                if text := line.decode().strip():
                    chats.append(_chat(text, system, f"{path} line {number}"))
    except (OSError, UnicodeError) as error:
        raise BadQuestions(f"{path} cannot be read: {error}") from error
    if not chats:
        raise BadQuestions(f"{path} has no question")
    return chats


def _chat(line: str, system: str | None, where: str) -> Sequence[dict[str, Any]]:
    if not line.startswith("{"):
        return _messages(line, system)
    try:
        found = json.loads(line)
    except ValueError as error:
        raise BadQuestions(f"{where} begins as JSON and is none: {error}") from error
    if isinstance(found.get("messages"), list):
        return found["messages"]  # type: ignore[no-any-return]
    if isinstance(found.get("question"), str):
        return _messages(found["question"], system)
    raise BadQuestions(f"{where} has neither a question nor messages")
