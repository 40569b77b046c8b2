"""Text made beside the next step, against steps that wait for the text of the one before.

A real sampler's process gets frames of drawn tokens over gRPC, as of a compute replica whose step takes a fixed time on a device; it ends them by
its stop strings, turns them into text and answers. The switch is whether a step begins before the frame of the one before is answered.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial

import uvloop
from tokenizers import Tokenizer

from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.ablations.comparison import Comparison, Figures, Subject, in_turns
from tests.bench.ablations.engines import Setup
from tests.bench.services.stage_capacity import running_stage, sample_texts
from triserve.rpc.channel import open_channel
from triserve.v1 import common_pb2, sampler_pb2, sampler_pb2_grpc

_STEP_MS = 10.0
_STOP = ("####", "<END>", "\n\n\n\n", "User:")
_NUM_TOKENS = 100


class _Replica:
    """Steps of a fixed time, each of whose tokens go to a sampler.

    Args:
        tokens: Every request's answer.
        rows: Requests at once.
        logits_width: Of the model.
        waits: Whether a step waits for the answer to the one before.
    """

    def __init__(self, tokens: Sequence[int], rows: int, logits_width: int, *, waits: bool) -> None:
        self._tokens = tokens
        self._rows = rows
        self._width = logits_width
        self._waits = waits
        self._answered = 0
        self._has_answered = asyncio.Condition()
        self.texts: dict[int, str] = {}
        self.seconds = 0.0

    async def run(self, target: str) -> None:
        """Computes one batch of requests to its end."""
        async with open_channel(target) as channel:
            stub = sampler_pb2_grpc.SamplerServiceStub(channel)
            info = await stub.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
            call = stub.Sample(self._frames(info.fingerprint))
            async for response in call:
                for parcel in response.parcels:
                    frame = sampler_pb2.DeltaFrame.FromString(parcel.delta_frame)
                    for number, text in zip(frame.request, frame.text, strict=True):
                        self.texts[number] = self.texts.get(number, "") + text
                async with self._has_answered:
                    self._answered = max(self._answered, response.frame)
                    self._has_answered.notify_all()
                if self._answered == len(self._tokens):
                    break
            self.seconds = time.perf_counter() - self._began
            call.cancel()

    def _is_answered(self, position: int) -> bool:
        return self._answered >= position

    async def _frames(self, fingerprint: common_pb2.Fingerprint) -> AsyncIterator[sampler_pb2.SampleRequest]:
        hello = sampler_pb2.ComputeHello(compute_name="bench", logits_width=self._width, fingerprint=fingerprint)
        yield sampler_pb2.SampleRequest(hello=hello)
        numbers = range(1, self._rows + 1)
        self._began = time.perf_counter()
        due = self._began
        for position, token in enumerate(self._tokens):
            if self._waits:
                async with self._has_answered:
                    await self._has_answered.wait_for(partial(self._is_answered, position))
                due = time.perf_counter()
            # On a device the next step runs while this process sends what the last one gave.
            due += _STEP_MS / 1e3
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            yield sampler_pb2.SampleRequest(
                frame=position + 1,
                open=[self._open(number) for number in numbers] if not position else [],
                request=numbers,
                position=[position] * self._rows,
                token=[token] * self._rows,
            )

    def _open(self, number: int) -> sampler_pb2.OpenRequest:
        return sampler_pb2.OpenRequest(
            request=number,
            gateway=1,
            gateway_request=number,
            request_id=f"bench-{number}",
            prompt_token_ids=self._tokens[:64],
            sampling=common_pb2.SamplingParams(temperature=1.0, top_p=1.0, repetition_penalty=1.0, seed=number),
            stopping=common_pb2.StoppingParams(max_tokens=len(self._tokens), stop_strings=_STOP),
        )


def pipelining(setup: Setup) -> Iterator[Comparison]:
    """Requests a second of a batch whose answers have as many tokens each."""
    model = resolve_model(None, download_from_hub, os.environ).folder
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    (text,) = sample_texts(400, 1)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids[:_NUM_TOKENS]
    with running_stage("sampler", "triserve.v1.SamplerService", model) as (target, _):

        def run(rows: int, *, waits: bool) -> Figures:
            async def replica() -> _Replica:
                one = _Replica(tokens, rows, tokenizer.get_vocab_size(), waits=waits)
                await one.run(target)
                return one

            done = uvloop.run(replica())
            assert done.texts == dict.fromkeys(range(1, rows + 1), tokenizer.decode(tokens)), "every text is that of its tokens"
            return {"requests_per_s": rows / done.seconds}

        for rows in (16,) if setup.is_quick else (16, 64, 256):
            run(rows, waits=False)
            ways = {
                "steps wait for text": partial(run, rows, waits=True),
                "text beside the next step": partial(run, rows, waits=False),
            }
            case = f"steps of {_STEP_MS:.0f} ms, {rows} requests at once, answers of {len(tokens)}, 4 stop strings"
            subject = Subject("stage pipelining", case, "PPL: QPS +5-20 %", "every text is that of its tokens")
            yield from subject.rows(in_turns(ways, setup.rounds), ("requests_per_s",))
