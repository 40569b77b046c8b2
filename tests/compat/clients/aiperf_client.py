"""AIPerf: a benchmark of a few streamed chats with made-up prompts, and what its report counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compat.clients.checks import FOLDER, MODEL, require, run

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 32, 8


def hub_cache(folder: Path) -> str:
    """A cache of the hub with the server's tokenizer in it, under the name that comes back: AIPerf takes no folder where it is offline."""
    model = folder / "models--triserve--smollm2"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0")
    (model / "snapshots").mkdir()
    (model / "snapshots" / "0").symlink_to(FOLDER)
    return "triserve/smollm2"


def profile(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        options = {
            "--url": url,
            "--model": MODEL,
            "--tokenizer": hub_cache(Path(cache)),
            "--endpoint-type": "chat",
            "--concurrency": "2",
            "--request-count": str(REQUESTS),
            "--isl": str(PROMPT_TOKENS),
            "--osl": str(OUTPUT_TOKENS),
            "--extra-inputs": json.dumps({"ignore_eos": True, "min_tokens": OUTPUT_TOKENS}),
            "--artifact-dir": folder,
            "--ui": "none",
        }
        pairs = [part for pair in options.items() for part in pair]
        command = [
            str(Path(sys.executable).with_name("aiperf")),
            "profile",
            "--streaming",
            "--no-gpu-telemetry",
            "--use-server-token-count",
            *pairs,
        ]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=240, env={**os.environ, "HF_HUB_CACHE": cache})
        (report,) = (json.loads(path.read_text()) for path in Path(folder).rglob("profile_export_aiperf.json"))
    require(report["request_count"]["avg"] == REQUESTS, "all requests answered")
    require(report["output_sequence_length"]["avg"] == OUTPUT_TOKENS, "as many tokens as were asked for")
    require(report["time_to_first_token"]["avg"] > 0, "a time to the first token")


run("aiperf", {"streamed chats": profile})
