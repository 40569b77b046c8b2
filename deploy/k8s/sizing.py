#!/usr/bin/env python3
"""How many pods of each CPU stage a load needs: `python deploy/k8s/sizing.py --tokens-per-s 2500 --replicas 4`.

What a core carries is read from the files of `tests.bench.services.gateway_capacity` and `tests.bench.services.stage_capacity`, measured on the processor that they name. Run the
two on a node of yours and give their files for figures of your own.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

_RESULTS = Path(__file__).parents[2] / "tests" / "bench" / "results"
# One that is lost, or replaced, must not be all there is.
_LEAST_PODS = 2


class Costs(NamedTuple):
    """CPU time, microseconds.

    Attributes:
        gateway_request: Of a request with one token.
        gateway_token: Of each token of a stream.
        tokenizer_request: Of a prompt, whatever its length.
        tokenizer_token: Of each of its tokens.
        sampler_row: Of each token of an answer.
    """

    gateway_request: float
    gateway_token: float
    tokenizer_request: float
    tokenizer_token: float
    sampler_row: float


class Load(NamedTuple):
    """What is asked of a cluster.

    Attributes:
        requests_per_s: As many come as end.
        prompt_tokens: Mean of a request.
        answer_tokens: Mean of a request.
    """

    requests_per_s: float
    prompt_tokens: float
    answer_tokens: float


class Need(NamedTuple):
    """Of one stage.

    Attributes:
        cores: Kept busy.
        pods: That ask for one core each.
    """

    cores: float
    pods: int


def costs_of(gateway: dict[str, Any], stages: dict[str, Any]) -> Costs:
    """What the files of the benches come to.

    Args:
        gateway: Of `tests.bench.services.gateway_capacity`.
        stages: Of `tests.bench.services.stage_capacity`.

    Raises:
        KeyError: A kind of load is missing.
    """
    request = gateway["kinds"]["requests"]["cpu_us_per_request"]["median"]
    streams = gateway["kinds"]["long streams"]
    points = [(one["tokens_per_request"]["median"], one["cpu_us_per_request"]["median"]) for one in stages["tokenizer"].values()]
    tokenizer_request, tokenizer_token = line_through(points)
    return Costs(
        gateway_request=request,
        gateway_token=(streams["cpu_us_per_request"]["median"] - request) / (streams["max_tokens"] - 1),
        tokenizer_request=tokenizer_request,
        tokenizer_token=tokenizer_token,
        sampler_row=stages["sampler"]["64 rows"]["cpu_us_per_row"]["median"],
    )


def line_through(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Height at 0 and slope of the line nearest to the points by least squares, the height no less than 0."""
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return max(0.0, mean_y - slope * mean_x), slope


def needs(load: Load, costs: Costs, *, utilisation: float) -> dict[str, Need]:
    """Cores and pods by stage.

    Args:
        load: What is asked.
        costs: What a core carries.
        utilisation: Share of a pod's core at which it is no longer enough, as the autoscaler's target.
    """
    tokens = load.answer_tokens
    us_per_request = {
        "gateway": costs.gateway_request + (tokens - 1) * costs.gateway_token,
        "tokenizer": costs.tokenizer_request + load.prompt_tokens * costs.tokenizer_token,
        "sampler": tokens * costs.sampler_row,
    }
    cores = {stage: load.requests_per_s * us / 1e6 for stage, us in us_per_request.items()}
    return {stage: Need(busy, max(_LEAST_PODS, math.ceil(busy / utilisation))) for stage, busy in cores.items()}


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokens-per-s", type=_positive, required=True, help="answer tokens a second of one compute replica, at the load it is to carry"
    )
    parser.add_argument("--replicas", type=int, default=1, help="compute replicas")
    parser.add_argument("--prompt-tokens", type=_positive, default=1000.0, help="mean of a request")
    parser.add_argument("--answer-tokens", type=_positive, default=250.0, help="mean of a request")
    parser.add_argument("--utilisation", type=_positive, default=0.6, help="the autoscaler's target, share of a core")
    parser.add_argument("--gateway-results", type=Path, default=_RESULTS / "gateway_capacity.json")
    parser.add_argument("--stage-results", type=Path, default=_RESULTS / "stage_capacity.json")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    options = _parser().parse_args(arguments)
    gateway, stages = (json.loads(path.read_text()) for path in (options.gateway_results, options.stage_results))
    costs = costs_of(gateway, stages)
    tokens_per_s = options.tokens_per_s * options.replicas
    load = Load(tokens_per_s / options.answer_tokens, options.prompt_tokens, options.answer_tokens)
    print(
        f"{tokens_per_s:,.0f} answer tokens a second: {load.requests_per_s:,.1f} requests a second of {load.prompt_tokens:g} and {load.answer_tokens:g} tokens"
    )
    print(f"{'stage':10} {'busy cores':>10} {'pods':>5}   of one core, busy to {options.utilisation:.0%} at most")
    for stage, need in needs(load, costs, utilisation=options.utilisation).items():
        print(f"{stage:10} {need.cores:10.2f} {need.pods:5d}")
    print(
        f"measured on {gateway['hardware']['processor']}, {gateway['finished_at'][:10]}, and {stages['hardware']['processor']}, {stages['finished_at'][:10]}"
    )


if __name__ == "__main__":
    main()
