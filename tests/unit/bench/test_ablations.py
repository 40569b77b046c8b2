"""The benchmarks that switch one thing: what is switched, and what is made of figures."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.kv.page_store import KvPageStore
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.wire.request import Request
from gateway.cli.measuring.workload import PlannedRequest
from tests.bench.ablations.comparison import Subject, as_markdown, in_turns
from tests.bench.ablations.engines import Load
from tests.bench.ablations.merge_step import StopTheWorldEngine
from tests.bench.engine.step_cost import WIDTH, FreeModel
from tests.bench.engine.step_picture import drawn
from tests.bench.engine.step_profile import PARTS, Clock


def _engine(kind: type[Engine]) -> Engine:
    config = SchedulerConfig(16, 64, 128, 16, 8, 8)
    kv = KvPageStore(1, 64, 16, 1, 1, torch.float32, torch.device("cpu"))
    return kind(FreeModel(8), kv, config, logits_width=WIDTH, device=torch.device("cpu"))


def _steps(engine: Engine) -> list[tuple[int, int]]:
    """Decode rows and prompt chunks of each step of two requests, of which the second comes while the first answers."""
    none = np.empty(0, dtype=np.int64)
    engine.submit(Request(0, "a", np.arange(4), none, 8, 0.0))
    steps = []
    for number in range(10):
        if number == 3:
            engine.submit(Request(1, "b", np.arange(20, 60), none, 2, 0.0))
        plan = engine.plan(0.0)
        steps.append((len(plan.decodes), len(plan.prefills)))
        engine.run(plan)
        engine.assert_consistent()
    return steps


def test_answers_stop_while_a_prompt_is_computed_where_steps_are_not_merged() -> None:
    assert _steps(_engine(Engine)) == [(0, 1), (1, 0), (1, 0), (1, 1), (1, 1), (1, 1), (2, 0), (1, 0), (0, 0), (0, 0)]
    assert _steps(_engine(StopTheWorldEngine)) == [(0, 1), (1, 0), (1, 0), (0, 1), (0, 1), (0, 1), (2, 0), (1, 0), (1, 0), (1, 0)]


def test_a_client_that_asks_for_more_ends_its_answer_where_it_would_have_ended() -> None:
    planned = [PlannedRequest(number, 0.0, list(range(5 + number)), 3 + number) for number in range(6)]
    exact = Load(_engine(Engine), planned).run()
    assert Load(_engine(Engine), planned, 100).run().tokens == exact.tokens == {number: [7] * (3 + number) for number in range(6)}


def test_ways_take_turns() -> None:
    called: list[str] = []

    def run(name: str) -> dict[str, float]:
        called.append(name)
        return {"figure": float(len(called))}

    runs = in_turns({"off": lambda: run("off"), "on": lambda: run("on")}, 2)
    assert called == ["off", "on", "off", "on"]
    assert runs == {"off": [{"figure": 1.0}, {"figure": 3.0}], "on": [{"figure": 2.0}, {"figure": 4.0}]}


def test_a_ratio_is_of_the_same_round_and_above_one_where_on_is_better() -> None:
    runs = {"off": [{"speed": 1.0, "wait_ms": 8.0}, {"speed": 10.0, "wait_ms": 4.0}], "on": [{"speed": 2.0, "wait_ms": 2.0}] * 2}
    speed, wait = Subject("switch", "case", "claim", "checked").rows(runs, ("speed", "wait_ms"))
    assert (speed.ratio["min"], speed.ratio["max"]) == (0.2, 2.0)
    assert (wait.ratio["min"], wait.ratio["max"]) == (2.0, 4.0)
    assert "| switch | case | speed | off: 5.5 | on: 2 | 1.10 (0.20-2.00) | claim | checked |" in as_markdown([speed.as_json()])


def test_a_part_within_another_counts_for_itself_alone() -> None:
    times = iter(range(100))
    clock = Clock(lambda: float(next(times)))
    inner = clock.timed("head", lambda: next(times))
    clock.timed(lambda: "draw", lambda: (inner(), inner()))()
    assert (clock.seconds["head"], clock.seconds["draw"]) == (4.0, 3.0)


def test_a_picture_has_a_bar_for_each_part() -> None:
    parts = {part: float(index) for index, part in enumerate(PARTS)}
    found = {"requests": 1, "context_tokens": 8, "step_ms": 2.0, "parts_ms": parts, "parts_percent": parts}
    root = ET.fromstring(drawn(found, "a model <&>"))
    bars = [one for one in root.iter() if one.get("class") == "bar"]
    assert len(bars) == len(PARTS)
    assert max(bars, key=lambda one: float(one.get("width", "0"))) is bars[-1]
