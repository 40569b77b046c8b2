"""An encoding that is traced leaves one span in its tokenizer, however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.recorded_spans import RecordedSpans
from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.service import TokenizerService
from tokenizer_svc.settings import Settings
from triserve.rpc.channel import open_channel
from triserve.rpc.traces.context import SpanContext
from triserve.v1 import tokenizer_pb2 as pb
from triserve.v1 import tokenizer_pb2_grpc

CALLER = SpanContext.root()


def text(content: str, traceparent: str = CALLER.traceparent, **options: Any) -> pb.EncodeRequest:
    return pb.EncodeRequest(text=pb.TextInput(text=content), traceparent=traceparent, **options)


async def test_each_encoding_that_is_traced_leaves_a_span_and_others_none(tmp_path: Path) -> None:
    recorded = RecordedSpans.in_real_time()
    service = TokenizerService(Settings(model=write_model_folder(tmp_path / "model"), listen="127.0.0.1:0"), recorded.tracer)
    await service.start()
    try:
        async with open_channel(f"127.0.0.1:{service.port}") as channel:
            stub: tokenizer_pb2_grpc.TokenizerServiceAsyncStub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
            encoded = await stub.Encode(text("1 2 3"))
            assert (await stub.Encode(text("1 2 3", ""))).token_ids == encoded.token_ids
            assert (await stub.Encode(text("1 2 3", CALLER.traceparent[:-1] + "0"))).token_ids == encoded.token_ids
            await stub.Encode(text("4 " * 2000))
            for wrong in (text("1 2 3", max_tokens=1), pb.EncodeRequest(traceparent=CALLER.traceparent)):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.Encode(wrong)
            with pytest.raises(grpc.aio.AioRpcError, match="traceparent has 56 characters, the limit is 55"):
                await stub.Encode(text("1 2 3", CALLER.traceparent + "0"))
    finally:
        await service.stop()
    assert {(span.name, span.kind, span.context.trace_id, span.parent_id) for span in recorded.spans} == {
        ("encode", "server", CALLER.trace_id, CALLER.span_id)
    }
    assert [span.error for span in recorded.spans] == [None, None, "prompt_too_long", "invalid_request"]
    assert recorded.spans[0].attributes == {"gen_ai.usage.input_tokens": len(encoded.token_ids)}
