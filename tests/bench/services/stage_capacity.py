"""What one core of a tokenizer and of a sampler carries: tokens per second, and rows per second, from the CPU time that they take.

Both are real processes with the tokenizer of SmolLM2, asked over gRPC as a gateway and a compute replica ask. Answers are counted and looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import uvloop
from tokenizers import Tokenizer

from gateway.cli.hardware import describe_hardware
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from gateway.clients.tokenizer import TokenizerPeer
from tests.bench.summary import summary_of
from tests.e2e.local_pipeline import wait_until
from tests.ports import free_port
from triserve.rpc.channel import is_ready, open_channel
from triserve.v1 import common_pb2, sampler_pb2, sampler_pb2_grpc, tokenizer_pb2

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results" / "stage_capacity.json"
_PATIENCE_S = 60.0
# Chats that are asked for and not answered, as of a busy gateway; and frames, as of a replica.
_AT_ONCE = 64
_FRAME_WINDOW = 4


@contextmanager
def running_stage(stage: str, service: str, model: Path) -> Iterator[tuple[str, psutil.Process]]:
    target = f"127.0.0.1:{free_port()}"
    settings = {f"{stage.upper()}_LISTEN": target, f"{stage.upper()}_MODEL": str(model)}
    process = subprocess.Popen([sys.executable, "-m", f"{stage}_svc"], cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: asyncio.run(_is_ready(target, service)), f"the {stage} is ready", timeout_s=_PATIENCE_S)
        yield target, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def _is_ready(target: str, service: str) -> bool:
    async with open_channel(target) as channel:
        return await is_ready(channel, service, timeout_s=1.0)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def sample_texts(num_words: int, count: int) -> list[str]:
    """Prose of so many words each, all different: what the repository says of itself."""
    words = " ".join(path.read_text() for path in sorted(ROOT.glob("**/*.md")) if ".venv" not in path.parts).split(" ")
    starts = [number * 37 % max(1, len(words) - num_words) for number in range(count)]
    return [" ".join(words[start : start + num_words]) for start in starts]


async def _tokenize(target: str, texts: Sequence[str]) -> int:
    """Has chats encoded as a gateway does; their tokens."""
    ready = asyncio.Event()
    peer = TokenizerPeer(target, on_change=ready.set)
    peer.start()
    left = iter(texts)

    async def ask() -> int:
        total = 0
        for text in left:
            chat = tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage(role="user", content=text)])
            answer = await peer.encode(tokenizer_pb2.EncodeRequest(chat=chat))
            assert answer.token_ids, "every chat has tokens"
            total += len(answer.token_ids)
        return total

    await ready.wait()
    total = sum(await asyncio.gather(*(ask() for _ in range(_AT_ONCE))))
    await peer.close()
    return total


class _Replica:
    """Sends frames of drawn tokens, and counts the text that comes of them.

    Args:
        tokens: what every request is answered with.
        rows: of a frame.
        logits_width: of the model.
        stop: strings at which answers end; none of them is in the text.
    """

    def __init__(self, tokens: Sequence[int], *, rows: int, logits_width: int, stop: Sequence[str]) -> None:
        self._tokens = tokens
        self._rows = rows
        self._width = logits_width
        self._stop = stop
        self.texts: dict[int, str] = {}

    async def run(self, target: str, num_frames: int) -> None:
        """Sends frames and reads every answer."""
        window = asyncio.Semaphore(_FRAME_WINDOW)
        async with open_channel(target) as channel:
            stub = sampler_pb2_grpc.SamplerServiceStub(channel)
            info = await stub.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
            call = stub.Sample(self._frames(num_frames, window, info.fingerprint))
            done = 0
            async for response in call:
                for parcel in response.parcels:
                    frame = sampler_pb2.DeltaFrame.FromString(parcel.delta_frame)
                    for number, text in zip(frame.request, frame.text, strict=True):
                        self.texts[number] = self.texts.get(number, "") + text
                for _ in range(response.frame - done):
                    window.release()
                done = max(done, response.frame)
                if done == num_frames:
                    break
            call.cancel()

    async def _frames(
        self, num_frames: int, window: asyncio.Semaphore, fingerprint: common_pb2.Fingerprint
    ) -> AsyncIterator[sampler_pb2.SampleRequest]:
        hello = sampler_pb2.ComputeHello(compute_name="bench", logits_width=self._width, fingerprint=fingerprint)
        yield sampler_pb2.SampleRequest(hello=hello)
        length = len(self._tokens)
        for frame in range(num_frames):
            await window.acquire()
            round_number, position = divmod(frame, length)
            numbers = [round_number * self._rows + row + 1 for row in range(self._rows)]
            opened = [self._open(number) for number in numbers] if not position else []
            yield sampler_pb2.SampleRequest(
                frame=frame + 1,
                open=opened,
                request=numbers,
                position=[position] * self._rows,
                token=[self._tokens[position]] * self._rows,
            )

    def _open(self, number: int) -> sampler_pb2.OpenRequest:
        return sampler_pb2.OpenRequest(
            request=number,
            gateway=1,
            gateway_request=number,
            request_id=f"bench-{number}",
            prompt_token_ids=self._tokens[:64],
            sampling=common_pb2.SamplingParams(temperature=1.0, top_p=1.0, repetition_penalty=1.0, seed=number),
            stopping=common_pb2.StoppingParams(max_tokens=len(self._tokens), stop_strings=self._stop),
        )


def _measure_tokenizer(model: Path, num_words: int, count: int) -> dict[str, float]:
    with running_stage("tokenizer", "triserve.v1.TokenizerService", model) as (target, process):
        texts = sample_texts(num_words, count)
        uvloop.run(_tokenize(target, texts[:_AT_ONCE]))
        before, began = _cpu_s(process), time.perf_counter()
        tokens = uvloop.run(_tokenize(target, texts))
        cpu_s, took_s = _cpu_s(process) - before, time.perf_counter() - began
    return {
        "tokens_per_request": tokens / count,
        "tokens_per_core_s": tokens / cpu_s,
        "requests_per_core_s": count / cpu_s,
        "cpu_us_per_request": 1e6 * cpu_s / count,
        "tokens_per_s": tokens / took_s,
    }


def _measure_sampler(model: Path, rows: int, num_frames: int, stop: Sequence[str]) -> dict[str, float]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = sample_texts(400, 1)[0]
    tokens = tokenizer.encode(text, add_special_tokens=False).ids[:256]
    with running_stage("sampler", "triserve.v1.SamplerService", model) as (target, process):

        def run(frames: int) -> dict[int, str]:
            replica = _Replica(tokens, rows=rows, logits_width=tokenizer.get_vocab_size(), stop=stop)
            uvloop.run(replica.run(target, frames))
            return replica.texts

        run(len(tokens))
        before, began = _cpu_s(process), time.perf_counter()
        texts = run(num_frames)
        cpu_s, took_s = _cpu_s(process) - before, time.perf_counter() - began
    assert len(texts) == rows * -(-num_frames // len(tokens)), "every request was answered"
    assert texts[1] == tokenizer.decode(tokens), "the text is that of the tokens"
    return {
        "rows_per_core_s": rows * num_frames / cpu_s,
        "cpu_us_per_row": 1e6 * cpu_s / rows / num_frames,
        "rows_per_s": rows * num_frames / took_s,
    }


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = resolve_model(None, download_from_hub, os.environ).folder
    tokenizer: dict[str, Any] = {}
    for num_words, count in ((40, 4000), (400, 1000), (3000, 200)):
        summary = summary_of([_measure_tokenizer(model, num_words, count) for _ in range(arguments.rounds)])
        tokenizer[f"{num_words} words"] = summary
        print(f"tokenizer, {num_words} words: {summary['tokens_per_core_s']['median']:.0f} tokens a core and second", flush=True)
    sampler: dict[str, Any] = {}
    for name, rows, stop in (
        ("8 rows", 8, ()),
        ("64 rows", 64, ()),
        ("256 rows", 256, ()),
        ("64 rows, 4 stop strings", 64, ("####", "<END>", "\n\n\n\n", "User:")),
    ):
        frames = arguments.frames * 64 // rows if rows > 64 else arguments.frames
        summary = summary_of([_measure_sampler(model, rows, frames, stop) for _ in range(arguments.rounds)])
        sampler[name] = summary
        print(f"sampler, {name}: {summary['rows_per_core_s']['median']:.0f} rows a core and second", flush=True)
    document = {
        "what": "CPU time of a tokenizer's and of a sampler's process with the tokenizer of SmolLM2",
        "triserve": version("triserve"),
        "tokenizers": version("tokenizers"),
        "grpcio": version("grpcio"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": arguments.rounds,
        "tokenizer": tokenizer,
        "sampler": sampler,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
