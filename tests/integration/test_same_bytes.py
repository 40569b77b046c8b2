"""The same request gives the same bytes: alone, among others, behind a prefix hit, and in a process that was started anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from compute_svc.replica.engine_client import EngineClient, EngineFailed
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import EngineInfo, Load, PrefixStats, Rows, StepOutput
from tests.fakes.checkpoints import save_checkpoint
from triserve.rpc.errors import ServiceError
from triserve.rpc.sampling import Sampling
from triserve.v1 import sampler_pb2

PATIENCE_S = 60
OTHERS = 24
ASKED = 1
Answer = list[tuple[int, bytes, bytes]]


class _Listener:
    """Keeps every bit of the rows of one request."""

    def __init__(self) -> None:
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: dict[int, Answer] = {}
        self.cached_tokens: dict[int, int] = {}
        self.ended: set[int] = set()
        self.news = asyncio.Event()

    def on_engine_loaded(self, info: EngineInfo, load: Load) -> None:
        self.loaded.set_result(None)

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        if output.rows is not None:
            self._keep(output.rows)
        self.cached_tokens |= {started.number: started.cached_tokens for started in output.started}
        assert all(released.error is None for released in output.released)
        self.ended |= {released.number for released in output.released}
        self.news.set()

    def _keep(self, rows: Rows) -> None:
        logits = {one.row: one.logits for one in rows.logits}
        logprobs = {one.row: sampler_pb2.RowLogprobs(logprob=one.logprob, top_logprob=one.top_logprob) for one in rows.logprobs}
        for index, number in enumerate(rows.numbers.tolist()):
            bits = (logits[index], logprobs[index].SerializeToString())
            self.answers.setdefault(number, []).append((int(rows.tokens[index]), *bits))

    async def wait_for(self, *numbers: int) -> None:
        while not self.ended.issuperset(numbers):
            self.news.clear()
            await self.news.wait()

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        raise error

    def on_engine_admitted(self, numbers: list[int]) -> None: ...

    def on_engine_unpinned(self, number: int, was_pinned: bool) -> None: ...

    def on_engine_stats(self, number: int, stats: PrefixStats) -> None: ...

    def on_engine_failed(self, error: EngineFailed) -> None:
        raise error


def _request(number: int, prompt: list[int], tenant: str) -> Request:
    sampling = Sampling(seed=5, top_logprobs=20)
    return Request(number, tenant, np.array(prompt, dtype=np.int64), np.empty(0, dtype=np.int64), 24, 0.0, sampling=sampling)


async def _started(settings: Settings) -> tuple[EngineClient, _Listener]:
    listener = _Listener()
    client = EngineClient(listener)
    await client.start(settings)
    await listener.loaded
    return client, listener


@pytest.mark.parametrize(("dtype", "kv_format"), [("float32", "auto"), ("bfloat16", "auto"), ("float32", "int8-g32")])
@pytest.mark.usefixtures("import_path")
async def test_bits_do_not_depend_on_batch_prefix_or_process(tmp_path: Path, dtype: str, kv_format: str) -> None:
    save_checkpoint(tmp_path, "qwen3")
    (tmp_path / "tokenizer.json").write_text("{}")
    settings = Settings.model_validate(
        {
            "model": tmp_path,
            "threads": 1,
            "kv_cache_bytes": 1 << 22,
            "dtype": dtype,
            "kv_format": kv_format,
            "step_budget_tokens": 64,
            "max_running_requests": 32,
            "audited_share": 1.0,
        }
    )
    random = np.random.default_rng(3)
    prompt = random.integers(0, 97, 75).tolist()
    async with asyncio.timeout(PATIENCE_S):
        client, listener = await _started(settings)
        client.submit(_request(ASKED, prompt, "alone"))
        await listener.wait_for(ASKED)
        alone = listener.answers[ASKED]
        for number in range(10, 10 + OTHERS):
            client.submit(_request(number, random.integers(0, 97, int(random.integers(3, 90))).tolist(), "others"))
            if number == 10 + OTHERS // 2:
                client.submit(_request(2, prompt, "among others"))
        client.submit(_request(3, prompt, "alone"))
        await listener.wait_for(2, 3)
        await client.stop()
        assert len(alone) == 24
        assert listener.cached_tokens[2] == 0 and listener.answers[2] == alone, "among others"
        assert listener.cached_tokens[3] == 64 and listener.answers[3] == alone, "behind a prefix hit"
        client, listener = await _started(settings)
        client.submit(_request(ASKED, prompt, "alone"))
        await listener.wait_for(ASKED)
        await client.stop()
        assert listener.answers[ASKED] == alone, "in a process that was started anew"
