"""The process: starts small, serves, leaves on SIGTERM, and says in one line why it cannot start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.service import SERVICE
from triserve.rpc.channel import is_ready, open_channel
from triserve.v1 import tokenizer_pb2 as pb
from triserve.v1 import tokenizer_pb2_grpc

PATIENCE_S = 30
ROOT = Path(__file__).parents[3]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model")


def environment(model_folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
    return {"TOKENIZER_MODEL": str(model_folder), "TOKENIZER_LISTEN": "127.0.0.1:0", "PATH": os.environ["PATH"], "PYTHONPATH": path}


def resident_bytes_of(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def test_the_process_serves_small_without_torch_and_leaves_on_sigterm(model_folder: Path) -> None:
    code = "import sys, tokenizer_svc.__main__ as m; m.main(); print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environment(model_folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    while (found := re.search(rb"listening on port (\d+)", await process.stderr.readline())) is None:
        pass
    async with open_channel(f"127.0.0.1:{found[1].decode()}") as channel:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        assert await is_ready(channel, SERVICE, timeout_s=PATIENCE_S)
        assert (await stub.Encode(pb.EncodeRequest(text=pb.TextInput(text="hello")))).token_ids
    resident_bytes = resident_bytes_of(process.pid)
    process.send_signal(signal.SIGTERM)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, out.strip()) == (0, b"[]")
    assert resident_bytes < 150 * 1024 * 1024


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("chat_template.jinja", "{% if %}", "chat template has an error on line 1"),
        ("tokenizer.json", "{}", "has no model with a vocabulary"),
        ("model.safetensors", "", "has no fingerprint"),
    ],
)
def test_a_folder_that_cannot_be_served_ends_the_process_with_one_line(model_folder: Path, file: str, content: str, says: str) -> None:
    (model_folder / file).write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "tokenizer_svc"]
    ended = subprocess.run(command, env=environment(model_folder), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and says in ended.stderr
