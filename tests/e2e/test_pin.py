"""`triserve pin` against real processes: a chat under a pinned system prompt finds it computed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.e2e.local_pipeline import Pipeline

ROOT = Path(__file__).parents[2]

SYSTEM = "You are a patient assistant of a small team that serves language models, and you answer in one short sentence of plain words."


def _pin(pipeline: Pipeline, *options: str) -> subprocess.CompletedProcess[str]:
    replicas = [argument for target in pipeline.computes() for argument in ("--compute", target)]
    command = [sys.executable, "-m", "gateway.cli", "pin", "--url", pipeline.url, *replicas, *options]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=60)


def _cached_tokens(pipeline: Pipeline, client: OpenAI, **body: Any) -> int:
    before = sum(load.cached_tokens for load in pipeline.loads())
    messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "What is a page?"}]
    client.chat.completions.create(model=client.models.list().data[0].id, messages=messages, max_tokens=4, temperature=0, extra_body=body)
    return sum(load.cached_tokens for load in pipeline.loads()) - before


def test_a_pinned_system_prompt_is_there_for_the_first_chat(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "system.txt"
    path.write_text(SYSTEM, encoding="utf-8")
    pinned = _pin(pipeline, "--system-file", str(path))
    assert pinned.returncode == 0, pinned.stderr
    match = re.search(r"(\d+) of (\d+) tokens pinned, (\d+) of them computed", pinned.stdout)
    assert match is not None, pinned.stdout
    assert int(match[1]) >= 16 and int(match[2]) - int(match[1]) < 16
    with OpenAI(base_url=f"{pipeline.url}/v1", api_key="-", default_headers={"Cache-Control": "no-store"}) as client:
        assert _cached_tokens(pipeline, client) >= int(match[1])
    again = _pin(pipeline, "--system", SYSTEM)
    assert ", 0 of them computed" in again.stdout
    assert "unpinned" in _pin(pipeline, "--system", SYSTEM, "--unpin").stdout
    assert "was not pinned" in _pin(pipeline, "--system", SYSTEM, "--unpin").stdout


def test_what_cannot_be_pinned_is_said(pipeline: Pipeline) -> None:
    short = _pin(pipeline, "--system", "", "--tenant", "nobody")
    assert short.returncode == 1
    assert short.stderr.startswith("triserve pin: ")
    gone = _pin(pipeline, "--system", SYSTEM, "--compute", "127.0.0.1:1", "--timeout", "1")
    assert gone.returncode == 1
    assert "127.0.0.1:1: " in gone.stderr
    _pin(pipeline, "--system", SYSTEM, "--unpin")
