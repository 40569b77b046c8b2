"""Where a token is drawn cannot change which: with the logits, in the samplers, and with an audit, against real processes."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import grpc
import pytest

from tests.e2e.local_pipeline import Pipeline
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plain": {},
    "hot": {"temperature": 1.7, "n": 3},
    "filters": {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "bias and stops": {"logit_bias": {"40": 4, "41": -100}, "min_tokens": 8, "stop": ["e."]},
    "more filters": {"temperature": 1.5, "typical_p": 0.9, "top_n_sigma": 2, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    "rules": {"bad_words": ["is", "the"], "banned_token_ids": [40, 41], "dry_multiplier": 0.8, "dry_allowed_length": 1},
    "log-probabilities": {"logprobs": 5, "temperature": 1.1},
}


def _answers(pipeline: Pipeline) -> dict[str, Any]:
    answers = {}
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    for name, fields in KINDS.items():
        body = json.dumps({"model": "tiny", "prompt": "What is Triserve?", "max_tokens": 24, "seed": 11, **fields}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{pipeline.url}/v1/completions", body, headers), timeout=60) as response:
            choices = json.load(response)["choices"]
        answers[name] = [(choice["text"], choice["finish_reason"], choice["logprobs"]) for choice in choices]
    return answers


def _audits(pipeline: Pipeline) -> tuple[int, int]:
    """Audited rows and disagreements of the one sampler."""
    (process,) = pipeline.parts("sampler_svc")
    with grpc.insecure_channel(process.environ()["SAMPLER_LISTEN"]) as channel:
        info = sampler_pb2_grpc.SamplerServiceStub(channel).GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest(), timeout=60)
    return info.audited_rows, info.audit_disagreements


@pytest.mark.parametrize(
    "environment",
    [{"COMPUTE_DRAW": "service"}, {"COMPUTE_AUDITED_SHARE": "1"}, {"COMPUTE_DRAW": "service", "COMPUTE_AUDITED_SHARE": "0.5"}],
    ids=["in the samplers", "audited", "in the samplers and audited"],
)
def test_the_same_request_gives_the_same_bytes_wherever_it_is_drawn(pipeline: Pipeline, environment: dict[str, str]) -> None:
    other = Pipeline(["--dtype", "float32"], environment=environment)
    other.start()
    try:
        assert _answers(other) == _answers(pipeline)
        audited, disagreements = _audits(other)
    finally:
        other.stop()
    assert (audited > 0, disagreements) == ("COMPUTE_AUDITED_SHARE" in environment, 0)
    assert _audits(pipeline) == (0, 0)
