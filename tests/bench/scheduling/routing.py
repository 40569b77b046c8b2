"""Which replica gets a request: by its prefix, by load, at random. Hit rate of the prefix cache and time to the first token.

Served: three replicas of SmolLM2 behind a gateway, chats of several turns over 20 system prompts, at temperature 1 with seeds. Every answer is checked to be the same whatever the
routing. Simulated: 64 replicas with the engine's own schedulers, the gateway's own choice and the cost of a large device, by its data sheet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from tqdm import tqdm

from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.simulator.cost_model import roofline
from gateway.cli.hardware import describe_hardware
from gateway.clients.prefix_index import PageBudget
from gateway.clients.replica_choice import ChoicePolicy, LeastLoad, LeastWork, Random
from tests.bench.scheduling.simulated_fleet import Chats, FleetRun, SimulatedReplica
from tests.bench.services.streamed_chat import streamed_chat
from tests.bench.services.whole_pipeline import plan_one_of_each, running
from tests.ports import free_port

RESULTS = Path(__file__).parents[1] / "results" / "routing.json"
POLICIES: dict[str, Callable[[], ChoicePolicy]] = {
    "prefix": lambda: LeastWork(seed=1),
    "least-load": LeastLoad,
    "random": lambda: Random(seed=1),
}
# 13 billion weights of 2 bytes, 40 layers of width 5120; 1.56 TB/s and 312 TFLOP/s, as on an A100's data sheet.
COST = roofline(weight_bytes=26e9, kv_bytes_per_token=2 * 40 * 5120 * 2, bytes_per_s=1.56e12, flops_per_token=26e9, flops_per_s=312e12)
CONFIG = SchedulerConfig(
    page_size_tokens=16,
    num_pages=3800,
    max_model_len_tokens=4096,
    step_budget_tokens=512,
    max_running_requests=64,
    max_waiting_requests=1 << 16,
)
_WORDS = [
    "river",
    "stone",
    "quiet",
    "morning",
    "ledger",
    "copper",
    "window",
    "garden",
    "signal",
    "harbour",
    "meadow",
    "thread",
    "lantern",
    "engine",
    "paper",
    "winter",
]


class _Chat:
    """One user's chat: every request begins with all that was said."""

    def __init__(self, number: int, system: int, words: int) -> None:
        self.number = number
        text = " ".join(_WORDS[(system * 7 + place * (system + 3)) % len(_WORDS)] for place in range(words))
        self.messages: list[dict[str, str]] = [{"role": "system", "content": f"Assistant {system}. {text}"}]


async def _served(url: str, arguments: argparse.Namespace, label: str) -> dict[str, Any]:
    random = np.random.default_rng(arguments.seed)
    weights = 1 / np.arange(1, 21)
    systems = random.choice(20, arguments.chats, p=weights / weights.sum()).tolist()
    waiting = iter([_Chat(number, system, arguments.system_words) for number, system in enumerate(systems)])
    ttft_s: list[float] = []
    tokens = {"prompt": 0, "cached": 0}
    answers: dict[int, list[str]] = {}
    async with aiohttp.ClientSession(url) as session:
        with tqdm(total=arguments.chats * arguments.turns, desc=label) as bar:

            async def user() -> None:
                for chat in waiting:
                    for turn in range(arguments.turns):
                        chat.messages.append(
                            {"role": "user", "content": f"Question {chat.number} {turn}: tell me about {_WORDS[chat.number % 16]}."}
                        )
                        # As clients ask who say nothing of sampling, and with a seed, so that the answers can be compared.
                        got = await streamed_chat(session, chat.messages, temperature=1, seed=chat.number, max_tokens=arguments.max_tokens)
                        ttft_s.append(got.ttft_s)
                        tokens["prompt"] += got.usage["prompt_tokens"]
                        tokens["cached"] += got.usage["prompt_tokens_details"]["cached_tokens"]
                        chat.messages.append({"role": "assistant", "content": got.text})
                        answers.setdefault(chat.number, []).append(got.text)
                        bar.update()

            await asyncio.gather(*(user() for _ in range(arguments.users)))
    return {
        "hit_rate": round(tokens["cached"] / tokens["prompt"], 4),
        "ttft_ms": _percentiles(ttft_s),
        "requests": len(ttft_s),
        "answers": answers,
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{share}": round(1e3 * float(np.percentile(seconds, share)), 1) for share in (50, 90, 99)}


def serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same chats through each routing, each with a pipeline of its own."""
    results: dict[str, Any] = {}
    expected: Any = None
    for name in POLICIES:
        variables = {
            "GATEWAY_ROUTING": name,
            "COMPUTE_KV_CACHE_BYTES": str(arguments.kv_mib << 20),
            "COMPUTE_THREADS": "1",
            "COMPUTE_OPENMP_SPINS": "0",
        }
        with tempfile.TemporaryDirectory() as runtime:
            port = free_port()
            with running(plan_one_of_each(port, Path(runtime), variables, num_computes=3)):
                measured = asyncio.run(_served(f"http://127.0.0.1:{port}", arguments, name))
        answers = measured.pop("answers")
        if expected is not None and answers != expected:
            raise SystemExit(f"answers differ with {name}: replicas do not compute the same")
        expected = answers
        results[name] = measured
    return results


def simulate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same chats through each routing, in simulated time."""
    results = {}
    for name, make in POLICIES.items():
        budget = PageBudget(64 << 20)
        replicas = [SimulatedReplica(CONFIG, budget) for _ in range(arguments.replicas)]
        chats = Chats(users=arguments.simulated_users, chats=arguments.simulated_chats)
        began = time.perf_counter()
        run = FleetRun(replicas, make(), chats, COST, seed=arguments.seed).run()
        given = [replica.submitted for replica in replicas]
        results[name] = {
            "hit_rate": round(run.hit_rate, 4),
            "ttft_ms": _percentiles(run.ttft_s),
            "requests": len(run.ttft_s),
            "most_of_mean": round(max(given) / (sum(given) / len(given)), 2),
            "took_s": round(time.perf_counter() - began, 1),
        }
        print(name, results[name])
    return results


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("served", "simulated", "both"), default="both")
    parser.add_argument("--chats", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--system-words", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--kv-mib", type=int, default=96, help="of each replica: less than all chats need")
    parser.add_argument("--replicas", type=int, default=64, help="simulated")
    parser.add_argument("--simulated-users", type=int, default=1500)
    parser.add_argument("--simulated-chats", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "what": "routing by prefix, by load and at random: prefix cache hit rate and time to the first token",
        "finished_at": "",
        "hardware": describe_hardware(),
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
    }
    if arguments.part != "simulated":
        document["served, 3 replicas of SmolLM2"] = serve(arguments)
    if arguments.part != "served":
        document[f"simulated, {arguments.replicas} replicas of 13B"] = simulate(arguments)
    document["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
