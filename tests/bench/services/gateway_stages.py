"""Tokenizer and compute for `gateway_capacity`: the stages' interfaces over real gRPC, with nothing behind them that takes time.

The replica makes steps: in each, every request that is under way gets one token, in frames of so many rows as real samplers send them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop

from triserve.rpc.server import ServiceServer
from triserve.v1 import common_pb2, compute_pb2, compute_pb2_grpc, sampler_pb2, tokenizer_pb2, tokenizer_pb2_grpc

VOCAB_SIZE = 32000
PROMPT_IDS = list(range(1000, 1064))
_WORDS = [f" word{number}" for number in range(16)]
_FINGERPRINT = common_pb2.Fingerprint(tokenizer_sha256="ab" * 32, weights_revision="cd" * 32)


def answer(num_tokens: int) -> str:
    """The text that every request of so many tokens is answered with."""
    return "".join(_WORDS[index % len(_WORDS)] for index in range(num_tokens))


class IdleTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Has the same ids for every prompt."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds it to a server."""
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(self, server)

    async def GetTokenizerInfo(self, request: Any, context: Any) -> tokenizer_pb2.GetTokenizerInfoResponse:
        """A plain model's."""
        return tokenizer_pb2.GetTokenizerInfoResponse(
            fingerprint=_FINGERPRINT,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=[2],
            has_chat_template=True,
            max_input_bytes=1 << 22,
            takes_more=True,
        )

    async def Encode(self, request: Any, context: Any) -> tokenizer_pb2.EncodeResponse:
        """The same ids."""
        return tokenizer_pb2.EncodeResponse(token_ids=PROMPT_IDS)

    async def Decode(self, request: Any, context: Any) -> tokenizer_pb2.DecodeResponse:
        """No text."""
        return tokenizer_pb2.DecodeResponse()

    async def Tokenize(
        self, request_iterator: AsyncIterator[tokenizer_pb2.TokenizeRequest], context: Any
    ) -> AsyncIterator[tokenizer_pb2.TokenizeResponse]:
        """Answers one request after the other."""
        encoded = tokenizer_pb2.EncodeResponse(token_ids=PROMPT_IDS, system_tokens=16, encode_us=100)
        async for message in request_iterator:
            others = [tokenizer_pb2.TokenizeResponse(request=one.request, encoded=encoded) for one in message.more]
            yield tokenizer_pb2.TokenizeResponse(request=message.request, encoded=encoded, more=others)


@dataclass
class _Running:
    """A request under way."""

    number: int
    max_tokens: int
    position: int = 0


class SteppingCompute(compute_pb2_grpc.ComputeServiceServicer):
    """Gives every request its tokens.

    Args:
        rows: most of them in a frame.
        step_s: seconds from the begin of a step to the next, where the gateway takes frames so fast; 0 = as fast as it does.
    """

    def __init__(self, *, rows: int, step_s: float) -> None:
        self._rows = rows
        self._step_s = step_s
        self._info = compute_pb2.GetComputeInfoResponse(
            fingerprint=_FINGERPRINT, max_model_len_tokens=8192, logits_width=VOCAB_SIZE, dtype="bfloat16", device="cpu"
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds it to a server."""
        compute_pb2_grpc.add_ComputeServiceServicer_to_server(self, server)

    async def GetComputeInfo(self, request: Any, context: Any) -> compute_pb2.GetComputeInfoResponse:
        """A plain replica's."""
        return self._info

    async def Generate(
        self, request_iterator: AsyncIterator[compute_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[compute_pb2.GenerateResponse]:
        """Takes requests and makes steps."""
        running: dict[int, _Running] = {}
        came = asyncio.Event()
        reader = asyncio.create_task(self._read(request_iterator, running, came))
        yield compute_pb2.GenerateResponse(hello=self._info)
        loop = asyncio.get_running_loop()
        try:
            while True:
                await came.wait()
                due = loop.time() + self._step_s
                waiting = list(running.values())
                for begin in range(0, len(waiting), self._rows):
                    yield _frame(waiting[begin : begin + self._rows], running)
                if not running:
                    came.clear()
                await asyncio.sleep(max(0.0, due - loop.time()))
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[compute_pb2.GenerateRequest], running: dict[int, _Running], came: asyncio.Event) -> None:
        async for message in requests:
            for request in message.submit:
                running[request.request] = _Running(request.request, request.stopping.max_tokens)
                came.set()
            for number in message.cancel:
                running.pop(number, None)


def _frame(step: list[_Running], running: dict[int, _Running]) -> compute_pb2.GenerateResponse:
    """One token for each of the requests; those that have all of theirs are taken out."""
    ended = [one.number for one in step if one.position + 1 >= one.max_tokens]
    frame = sampler_pb2.DeltaFrame(
        request=[one.number for one in step],
        epoch=[0] * len(step),
        first_position=[one.position for one in step],
        num_tokens=[1] * len(step),
        text=[_WORDS[one.position % len(_WORDS)] for one in step],
        finish_reason=[
            common_pb2.FINISH_REASON_LENGTH if one.position + 1 >= one.max_tokens else common_pb2.FINISH_REASON_UNSPECIFIED for one in step
        ],
        token=[5000 + one.position % len(_WORDS) for one in step],
    )
    message = compute_pb2.GenerateResponse(
        started=[
            compute_pb2.RequestStarted(request=one.number, cached_tokens=16, queue_us=10, prefill_us=10) for one in step if not one.position
        ],
        parcels=[frame.SerializeToString()],
        ended=[compute_pb2.RequestEnded(request=number, outcome=compute_pb2.REQUEST_OUTCOME_FINISHED) for number in ended],
    )
    for one in step:
        one.position += 1
    for number in ended:
        del running[number]
    return message


async def _serve(arguments: argparse.Namespace) -> None:
    compute = SteppingCompute(rows=arguments.rows, step_s=arguments.step_ms / 1000)
    stages = {
        "tokenizer": ServiceServer(["triserve.v1.TokenizerService"], IdleTokenizer().register, "127.0.0.1:0"),
        "compute": ServiceServer(["triserve.v1.ComputeService"], compute.register, "127.0.0.1:0"),
    }
    for server in stages.values():
        await server.start()
        await server.health.set_ready(True)
    print(json.dumps({name: f"127.0.0.1:{server.port}" for name, server in stages.items()}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serves until it is ended; says on standard output where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=0.0)
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
