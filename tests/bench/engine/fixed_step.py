"""A model whose step takes a fixed time, as on a device that computes while the host waits; and a compute replica with it.

`python -m tests.bench.engine.fixed_step` is what `python -m compute_svc` is, with this model: FIXED_STEP_MS and FIXED_STEP_WIDTH say how long a step
takes and how many logits a row has.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.model import Model
from compute_svc.engine.server import EngineServer
from compute_svc.engine.steps.step_drawing import DrawConfig, DrawPlace
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.replica.engine_client import EngineHost
from compute_svc.replica.service import ComputeService
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.settings import Settings
from triserve.rpc.server import run_service

_ROWS = 512
_PAGES = 1 << 15
_PAGE_SIZE_TOKENS = 16
# Spread of a language model's logits.
_SPREAD = 3.0


class FixedStepModel:
    """Implements the engine's `Model` with logits that were made beforehand.

    Args:
        step_s: Seconds from the beginning of a step until its logits are there.
        width: Number of logits of a row.
    """

    def __init__(self, step_s: float, width: int) -> None:
        self._step_s = step_s
        self._logits = torch.randn((_ROWS, width), generator=torch.Generator().manual_seed(1)) * _SPREAD
        self.num_steps = 0

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """See the engine's `Model`."""
        end = time.perf_counter() + self._step_s
        rows = len(batch.logit_rows)
        first = self.num_steps * 7 % (_ROWS - rows + 1)
        self.num_steps += 1
        time.sleep(max(0.0, end - time.perf_counter()))
        return self._logits[first : first + rows]


def fixed_step_engine(step_s: float, width: int, *, max_running: int = 256, place: DrawPlace = DrawPlace.DEVICE) -> Engine:
    """An engine over that model."""
    return engine_over(FixedStepModel(step_s, width), width, max_running=max_running, place=place)


def engine_over(model: Model, width: int, *, max_running: int = 256, place: DrawPlace = DrawPlace.DEVICE) -> Engine:
    """An engine with more KV pages than it needs, of one number a token, over a model of these benchmarks."""
    config = SchedulerConfig(
        page_size_tokens=_PAGE_SIZE_TOKENS,
        num_pages=_PAGES,
        max_model_len_tokens=8192,
        step_budget_tokens=max(4096, max_running),
        max_running_requests=max_running,
        max_waiting_requests=4096,
    )
    kv = KvPageStore(1, _PAGES, _PAGE_SIZE_TOKENS, 1, 1, torch.float32, torch.device("cpu"))
    return Engine(model, kv, config, logits_width=width, device=torch.device("cpu"), drawing=DrawConfig(place))


def _build(settings: Settings) -> Engine:
    torch.set_num_threads(settings.threads)
    step_s = float(os.environ["FIXED_STEP_MS"]) / 1000
    place = DrawPlace[settings.draw.upper()]
    return fixed_step_engine(step_s, int(os.environ["FIXED_STEP_WIDTH"]), max_running=settings.max_running_requests, place=place)


class _Engine:
    """Implements `EngineHost`: the engine's process with this model."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def wait(self) -> str:
        """See `EngineHost`."""
        return f"ended with status {await asyncio.to_thread(self._process.wait)}"

    def kill(self) -> None:
        """See `EngineHost`."""
        self._process.kill()

    def used_s(self) -> float | None:
        """See `EngineHost`."""
        return None


def _launch(connection: socket.socket, environment: Mapping[str, str], *, module: str) -> EngineHost:
    command = (sys.executable, "-m", module, str(connection.fileno()))
    return _Engine(subprocess.Popen(command, pass_fds=(connection.fileno(),), env=environment))


def run_replica(module: str, build: Callable[[Settings], Engine]) -> None:
    """What `python -m compute_svc` does, with an engine of `build`. `module` is what calls this: its engine's process runs it again."""
    if len(sys.argv) > 1:
        EngineServer(socket.socket(fileno=int(sys.argv[1])), build).run()
    else:
        run_service("compute", Settings, partial(ComputeService, launch=partial(_launch, module=module)))


if __name__ == "__main__":
    run_replica("tests.bench.engine.fixed_step", _build)
