"""The same load on any server that completes token ids as OpenAI's API does, every answer's length checked."""

from __future__ import annotations

import time
from functools import partial

import uvloop

from gateway.cli.event_stream import DONE
from gateway.cli.measuring.http_transcript import Piece, Response
from gateway.cli.measuring.load import Exchange, make_target, run_closed, send
from gateway.cli.measuring.measurement import Failed, Measured, Outcome, Wrong, error_message, event_object, measure
from gateway.cli.measuring.report import Report, make_report
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, PlannedRequest, WorkloadConfig, make_workload, read_lengths
from tests.bench.peers.contender import Figures, ServedLoad

_TIMEOUT_S = 600.0
_WARM_UP_TOKENS = 16


def planned(load: ServedLoad, vocabulary: int) -> list[PlannedRequest]:
    """The requests of a load."""
    config = WorkloadConfig(num_requests=load.num_requests, seed=load.seed, scale=load.scale)
    return make_workload(config, read_lengths(BUNDLED_LENGTHS), vocab_size=vocabulary)


def longest_request(load: ServedLoad, vocabulary: int) -> int:
    """Tokens of prompt and answer."""
    return max(len(one.prompt_token_ids) + one.output_tokens for one in planned(load, vocabulary))


def measure_server(url: str, model: str, load: ServedLoad, vocabulary: int) -> Figures:
    """Output tokens per second, requests per second and median TTFT, by the names of their columns.

    Raises:
        ValueError: A request failed.
        WrongAnswers: An answer is longer or shorter than asked for.
    """
    lengths = read_lengths(BUNDLED_LENGTHS)
    short = WorkloadConfig(num_requests=load.concurrency, seed=load.seed + 1, max_prompt=_WARM_UP_TOKENS, max_output=_WARM_UP_TOKENS)
    _ask(url, model, make_workload(short, lengths, vocab_size=vocabulary), load)
    report = _ask(url, model, planned(load, vocabulary), load)
    assert report.ttft_ms is not None, "something was measured"
    return {
        load.name: report.output_tokens_per_s,
        f"{load.name}, requests/s": report.requests_per_s,
        f"{load.name}, TTFT p50 ms": report.ttft_ms.p50,
    }


def _ask(url: str, model: str, requests: list[PlannedRequest], load: ServedLoad) -> Report:
    target = make_target(url, model=model, api_key="", timeout_s=_TIMEOUT_S, temperature=load.temperature)
    exchanges: list[Exchange] = []
    began_s = time.perf_counter()
    uvloop.run(run_closed(requests, partial(send, target), concurrency=load.concurrency, take=exchanges.append))
    report = make_report([_read(exchange, began_s) for exchange in exchanges])
    if report.failed:
        raise ValueError(f"{url} has failed: {report.failed}")
    return report


def _read(exchange: Exchange, began_s: float) -> Outcome:
    if exchange.problem:
        return Failed(exchange.request, exchange.problem)
    pieces = [Piece(at_s - began_s, data) for at_s, data in zip(exchange.times, exchange.data, strict=True)]
    return measure(exchange.request, exchange.sent_at_s - began_s, pieces, read_times)


def read_times(request: PlannedRequest, sent_at_s: float, response: Response) -> Outcome:
    """Of each event with a choice; how many tokens came is what the server counted, which all of these do."""
    at_s: list[float] = []
    usage: dict[str, int] = {}
    for event in response.events:
        if event.data == DONE:
            continue
        chunk = event_object(event.data)
        if chunk.get("error"):
            return Failed(request, f"the stream ended in an error: {error_message(event.data)}")
        usage = chunk.get("usage") or usage
        if chunk.get("choices"):
            at_s.append(event.at_s)
    expected = {"prompt_tokens": len(request.prompt_token_ids), "completion_tokens": request.output_tokens}
    for name, value in expected.items():
        if usage.get(name) != value:
            return Wrong(request, f"usage.{name} is {usage.get(name)}, it should be {value}")
    if not at_s:
        return Wrong(request, "no event has a choice")
    return Measured(
        request=request,
        sent_at_s=sent_at_s,
        delta_at_s=tuple(at_s),
        delta_tokens=(1,) * (len(at_s) - 1) + (request.output_tokens - len(at_s) + 1,),
        prompt_tokens=len(request.prompt_token_ids),
    )
