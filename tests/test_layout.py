"""The tree keeps its promises: top level, file lengths, and torch in compute_svc alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "Makefile",
    ".ci",
    ".dockerignore",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "protos",
    "tokenizer_svc",
    "compute_svc",
    "sampler_svc",
    "gateway",
    "prompt_cache",
    "deploy",
    "tests",
}
CPU_ENTRY_POINTS = (
    "tokenizer_svc.__main__",
    "sampler_svc.__main__",
    "gateway.__main__",
    "gateway.cli.__main__",
    "prompt_cache",
    "triserve.rpc.server",
)


def _tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [path for line in listing.stdout.splitlines() if (path := Path(line)) and (ROOT / path).exists()]


def test_the_top_level_holds_what_the_design_says_and_nothing_else() -> None:
    assert {path.parts[0] for path in _tracked()} <= TOP_LEVEL


def test_no_file_is_much_over_400_lines() -> None:
    long = {
        str(path): count
        for path in _tracked()
        if path.suffix == ".py"
        and not path.stem.endswith(("_pb2", "_pb2_grpc"))
        and (count := len((ROOT / path).read_text().splitlines())) > 420
    }
    assert not long


@pytest.mark.parametrize("module", CPU_ENTRY_POINTS)
def test_no_cpu_service_imports_torch_nor_what_only_traces_need(module: str) -> None:
    # redis-py imports OpenTelemetry itself, where that is installed.
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'triserve.rpc.traces.otlp'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("service", ["gateway", "tokenizer_svc", "compute_svc", "sampler_svc"])
def test_grpc_is_told_to_write_no_notes_before_it_is_imported(service: str) -> None:
    """It looks once, when it is imported; its notes would stand in the lines of logs and on terminals."""
    code = f"import sys, {service}, os; assert 'grpc' not in sys.modules; print(os.environ['GRPC_VERBOSITY'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, "PYTHONPATH": str(ROOT)}
    )
    assert ended.stdout == "ERROR\n"


@pytest.mark.parametrize("module", ["prompt_cache", "gateway.__main__", "gateway.cli.__main__", "gateway.cli.cache_embedder"])
def test_the_gateway_starts_without_what_only_an_embedder_needs(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit(str(sorted({{'numpy', 'onnx', 'onnxruntime', 'safetensors', 'tokenizers'}} & set(sys.modules))))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ended.stderr == "[]\n"
