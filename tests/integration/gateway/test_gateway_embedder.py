"""A gateway that is to have a semantic cache and cannot says so in one line, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import Settings
from triserve.rpc.server import load_settings


def _started(**variables: str) -> subprocess.CompletedProcess[str]:
    """What a gateway says that does not start."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environment = {
        **own,
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "GATEWAY_GRPC_LISTEN": "127.0.0.1:0",
        "GATEWAY_SEMANTIC_CACHE": "on",
        **variables,
    }
    return subprocess.run([sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "GATEWAY_SEMANTIC_CACHE needs GATEWAY_EMBEDDER"),
        ({"GATEWAY_EMBEDDER": "ngrams", "GATEWAY_CACHE": "false"}, "GATEWAY_SEMANTIC_CACHE needs GATEWAY_CACHE"),
        ({"GATEWAY_EMBEDDER": "ngrams", "GATEWAY_SEMANTIC_STORE": "flat"}, "GATEWAY_SEMANTIC_STORE=flat needs GATEWAY_REDIS_URL"),
        (
            {"GATEWAY_EMBEDDER": "ngrams", "GATEWAY_SEMANTIC_JUDGE": "http://x/y"},
            "GATEWAY_SEMANTIC_JUDGE needs GATEWAY_SEMANTIC_JUDGE_MODEL",
        ),
        ({"GATEWAY_EMBEDDER": "ngrams", "GATEWAY_SEMANTIC_JUDGE_KEY": "k"}, "need GATEWAY_SEMANTIC_JUDGE"),
    ],
    ids=["no embedder", "no cache", "no redis", "a judge without a model", "a judge's key alone"],
)
def test_what_a_semantic_cache_lacks_among_the_settings_is_named(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"GATEWAY_SEMANTIC_CACHE": "on", **variables}.items():
        monkeypatch.setenv(name, value)
    # What a process begins with; that it ends there, and how, others show.
    with pytest.raises(SystemExit) as ended:
        load_settings(Settings)
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GATEWAY_EMBEDDER": "ftp://x/y"}, "GATEWAY_EMBEDDER"),
        (
            {"GATEWAY_EMBEDDER": "ngrams", "GATEWAY_SEMANTIC_JUDGE": "x/y", "GATEWAY_SEMANTIC_JUDGE_MODEL": "m"},
            "GATEWAY_SEMANTIC_JUDGE: url must be",
        ),
        ({"GATEWAY_EMBEDDER": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
    ids=["no folder", "a judge that is no address", "a folder that is not there"],
)
def test_what_a_semantic_cache_cannot_use_is_named(variables: dict[str, str], words: str) -> None:
    ended = _started(**variables)
    assert ended.returncode == 1 and words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('No module named onnxruntime', name='onnxruntime')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = _started(GATEWAY_EMBEDDER="ngrams", PYTHONPATH=paths)
    assert ended.returncode == 1 and "onnxruntime is not installed: pip install 'triserve[semantic]'" in ended.stderr
    assert "Traceback" not in ended.stderr
