"""The oracle table: every family, every check.

Columns: logits, the largest error of whole sequences in one forward pass, in terms of the spread (standard deviation) of the oracle's logits;
invariance, in how many ways of computing a sequence its logits are, bit for bit, those of the sequence whole and alone; greedy, continuations
in merge steps; prefix, with a cached prefix (and how many tokens were cached); preemption, with too few pages (and how many requests gave
theirs up); bfloat16, the error in bfloat16 in terms of the oracle's own. A dash: the oracle computes in float32 alone.

With another device than the CPU this engine computes there and the oracles on the CPU. What is not compared there: that a prompt is answered
from the cache as it was without, where two tokens are equally good; each is held against the oracle as everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
import transformers

from compute_svc.models.registry import ALL_FAMILIES
from tests.environment import describe_environment
from tests.oracle.cases import Case, all_cases
from tests.oracle.checks import BFLOAT16_FACTOR, BFLOAT16_SLACK, CHECKS, TIE, TOLERANCE
from tests.oracle.table import Line, compare, header, layout


def main(arguments: Sequence[str] | None = None, known: Sequence[Case] | None = None) -> int:
    """Prints the table.

    Args:
        arguments: Of the command line; None = the process's own.
        known: Cases to choose from; None = all there are.

    Returns:
        The exit status: 1 if anything fails.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help="type/variant; * stands for anything, a type of model or a file of compute_svc/models/families for all of its",
    )
    parser.add_argument("--check", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="the columns")
    parser.add_argument("--json", type=Path, help="a results file to write")
    parser.add_argument("--threads", type=int, default=1, help="models this small gain nothing from a second")
    parser.add_argument("--device", default="cpu", help="where this engine computes: cpu, cuda or cuda:N")
    chosen = parser.parse_args(arguments)
    device = _device(parser, chosen.device)
    known = all_cases() if known is None else known
    cases = [case for case in known if not chosen.cases or any(_is_meant(case, pattern) for pattern in chosen.cases)]
    unknown = [pattern for pattern in chosen.cases if not any(_is_meant(case, pattern) for case in cases)]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}")
    torch.set_num_threads(chosen.threads)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    started = time.monotonic()
    _say(header(cases, chosen.check))
    lines = []
    for case in cases:
        lines.append(compare(case, chosen.check, device))
        _say(layout(lines[-1], cases, chosen.check))
    failures = [f"{line.case.name} {check}: {what}" for line in lines for check, what in line.failures.items()]
    num_checks = sum(len(line.figures) + len(line.failures) for line in lines)
    _say("", *failures, f"{len(cases)} cases, {num_checks} checks, {len(failures)} failed, {time.monotonic() - started:.0f} s")
    if chosen.json is not None:
        _write(chosen.json, lines, chosen.check, device)
    return 1 if failures else 0


def _is_meant(case: Case, pattern: str) -> bool:
    if any(family.name == pattern and case.architecture in family.ARCHITECTURES for family in ALL_FAMILIES):
        return True
    return case.family == pattern or fnmatch(case.name, pattern)


def _device(parser: argparse.ArgumentParser, name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device).add_(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {name} cannot compute here: {str(error).splitlines()[0]}")
    return device


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _write(path: Path, lines: Sequence[Line], checks: Sequence[str], device: torch.device) -> None:
    document = {
        "what": "every model family beside another implementation of it, on the same small random checkpoints",
        **describe_environment(device),
        "limits_of_spread": {"logits": TOLERANCE, "tie": TIE, "bfloat16_slack": BFLOAT16_SLACK},
        "limits": {"bfloat16_factor": BFLOAT16_FACTOR},
        "checks": list(checks),
        "failed": sum(len(line.failures) for line in lines),
        "cases": [line.as_json() for line in lines],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
