"""GuideLLM: a benchmark of a few requests with made-up prompts, and what its report counts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compat.clients.checks import FOLDER, MODEL, require, run

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 32, 8


def benchmark(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--backend": f"kind=openai_http,target={url},model={MODEL}",
            "--tokenizer": f"kind=huggingface_auto,model={FOLDER}",
            "--data": f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}",
            "--profile": "kind=concurrent,streams=2",
            "--constraint": f"kind=max_requests,count={REQUESTS}",
            "--output": f"kind=json,path={folder}/report.json",
        }
        pairs = [part for pair in options.items() for part in pair]
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console", *pairs]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=240)
        report = json.loads(Path(folder, "report.json").read_text())
    requests = report["benchmarks"][0]["requests"]
    require(len(requests["successful"]) == REQUESTS and not requests["errored"], "all requests answered")
    require(all(request["output_tokens"] == OUTPUT_TOKENS for request in requests["successful"]), "as many tokens as were asked for")


run("guidellm", {"concurrent requests": benchmark})
