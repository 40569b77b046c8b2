"""`triserve bench`: sends many requests to a server and reports how fast it answers.

Of Triserve, prompts are random token ids and answers have exactly the lengths that were asked for: a server that sends more or fewer tokens
gets no figures. Other servers of OpenAI's API are sent chats of so many random words, and their answers end where they end; tokens are those
that the stream's usage tells.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import uvloop
from tqdm import tqdm

from gateway.cli.api import ApiClient, ApiError, ModelInfo
from gateway.cli.chat import add_server_arguments, explain
from gateway.cli.hardware import describe_hardware
from gateway.cli.measuring.any_server import WORDS
from gateway.cli.measuring.load import Exchange, Target, make_target, read_exchange, run_closed, run_open, send
from gateway.cli.measuring.measurement import Measured, Outcome
from gateway.cli.measuring.report import Report, WrongAnswers, as_table, make_report
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, PlannedRequest, WorkloadConfig, make_workload, read_lengths
from gateway.cli.options import readable_file, real, whole, writable_file

DEFAULT_CONCURRENCY = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_server_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="name of the model (default: the first that the server lists)")
    parser.add_argument("--requests", type=whole(1), default=64, metavar="N", help="how many requests to send (default: %(default)s)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--rate",
        type=real(above=0),
        metavar="R",
        help="send R requests per second on average, at random times, however many are under way",
    )
    pace.add_argument("--concurrency", type=whole(1), metavar="C", help=f"keep C requests under way (default: {DEFAULT_CONCURRENCY})")
    parser.add_argument(
        "--seed", type=whole(-(2**63), 2**63 - 1), default=0, help="the same seed gives the same requests (default: %(default)s)"
    )
    parser.add_argument(
        "--lengths", type=readable_file, default=BUNDLED_LENGTHS, metavar="FILE", help="CSV of prompt and answer lengths (default: bundled)"
    )
    parser.add_argument("--scale", type=real(above=0), default=1.0, metavar="F", help="multiply all lengths by F (default: %(default)s)")
    parser.add_argument("--max-input", type=whole(1), metavar="N", help="longest prompt; longer ones are cut to it")
    parser.add_argument("--max-output", type=whole(1), metavar="N", help="longest answer; longer ones are cut to it")
    parser.add_argument(
        "--temperature",
        type=real(0, 100),
        default=0.0,
        metavar="T",
        help="0 = the likeliest tokens, above = drawn, as clients do by default (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=real(above=0), default=600.0, metavar="SECONDS", help="give up on a request after this (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=writable_file, metavar="FILE", help="also write the figures, and those of each request, to a JSON file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures; returns the exit status."""
    try:
        status: int = uvloop.run(_run(arguments))
        return status
    except ApiError as error:
        sys.stderr.write(f"triserve bench: {explain(error)}\n")
        return 1
    except (ValueError, OSError, WrongAnswers) as error:
        sys.stderr.write(f"triserve bench: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


async def _run(arguments: argparse.Namespace) -> int:
    config = WorkloadConfig(
        num_requests=arguments.requests,
        seed=arguments.seed,
        rate=arguments.rate,
        scale=arguments.scale,
        max_prompt=arguments.max_input,
        max_output=arguments.max_output,
    )
    concurrency = DEFAULT_CONCURRENCY if arguments.concurrency is None else arguments.concurrency
    async with ApiClient(arguments.url, api_key=arguments.api_key, ca=arguments.ca) as client:
        model = await client.model(arguments.model)
    exact = model.max_model_len is not None and model.vocab_size is not None
    if not exact:
        sys.stderr.write(
            f"{arguments.url} does not say that it is Triserve: it is measured as any server of OpenAI's API, by words and usage\n"
        )
    requests = make_workload(config, read_lengths(arguments.lengths), vocab_size=model.vocab_size or len(WORDS))
    if model.max_model_len is not None:
        require_fitting(requests, model.name, model.max_model_len)
    target = make_target(
        arguments.url,
        model=model.name,
        api_key=arguments.api_key,
        ca=arguments.ca,
        timeout_s=arguments.timeout,
        exact=exact,
        temperature=arguments.temperature,
    )
    outcomes = await _send_all(requests, target, concurrency=None if config.rate is not None else concurrency)
    report = make_report(outcomes)
    sys.stdout.write(as_table(report) + "\n")
    if arguments.output is not None:
        text = json.dumps(_document(arguments, model, report, outcomes), indent=1)
        # Once, after the last request: nothing is under way that this could hold up.
        arguments.output.write_text(text + "\n")
    return 0 if report.completed else 1


def require_fitting(requests: list[PlannedRequest], name: str, max_model_len: int) -> None:
    """Refuses a workload with a request that is longer than the model's context.

    Raises:
        ValueError: says how many, and what to do.
    """
    totals = [len(request.prompt_token_ids) + request.output_tokens for request in requests]
    too_long = sum(total > max_model_len for total in totals)
    if too_long:
        raise ValueError(
            f"{too_long} of {len(requests)} requests are longer than the {max_model_len} tokens of {name}, the longest has "
            f"{max(totals)}: make them shorter with --scale, --max-input or --max-output"
        )


async def _send_all(requests: list[PlannedRequest], target: Target, *, concurrency: int | None) -> list[Outcome]:
    exchanges: list[Exchange] = []
    with tqdm(total=len(requests), unit="request", file=sys.stderr, dynamic_ncols=True) as bar:
        failed = 0

        def take(exchange: Exchange) -> None:
            nonlocal failed
            exchanges.append(exchange)
            failed += not exchange.looks_well
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()

        began_s = time.perf_counter()
        if concurrency is None:
            await run_open(requests, partial(send, target), take=take)
        else:
            await run_closed(requests, partial(send, target), concurrency=concurrency, take=take)
    return [read_exchange(exchange, began_s=began_s, exact=target.exact) for exchange in exchanges]


def _document(arguments: argparse.Namespace, model: ModelInfo, report: Report, outcomes: list[Outcome]) -> dict[str, Any]:
    """All that one needs to understand, and to repeat, the run."""
    workload = {
        name: getattr(arguments, name)
        for name in ("requests", "seed", "rate", "concurrency", "scale", "max_input", "max_output", "temperature")
    }
    measured = sorted((one for one in outcomes if isinstance(one, Measured)), key=lambda one: one.request.index)
    return {
        "triserve": version("triserve"),
        "python": platform.python_version(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["triserve", *sys.argv[1:]]),
        "client_hardware": describe_hardware(),
        "model": model._asdict(),
        "workload": {**workload, "lengths": arguments.lengths.name},
        "figures": report.as_json(),
        "requests": [
            {
                "index": one.request.index,
                "prompt_tokens": one.prompt_tokens,
                "output_tokens": one.output_tokens,
                "sent_at_s": round(one.sent_at_s, 6),
                "ttft_ms": round(one.ttft_s * 1000, 3),
                "e2e_ms": round(one.e2e_s * 1000, 3),
            }
            for one in measured
        ],
    }
