"""`python -m tests.parser_cases`: answers with tool calls as models of each kind write them, read whole and in pieces of every size.

Each must come out as the calls that were written, with the reasoning before them set apart, however it is cut. Writes a results file, and ends with 1
where one does not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.tools.answer_parser import ReasoningFormat
from tests.fakes.tool_answers import TOOLS, WRITERS, Heard, WrittenCall, cut, form_of, heard_in

RESULTS = Path(__file__).parent / "bench" / "results" / "parser_cases.json"
_THINK = ReasoningFormat("<think>", "</think>")
_THOUGHTS = "Which one? The first: {no} [call] < here."
_STRINGS = ("", "Paris", 'say "so"', "a\\b", "{x} [y], (z)", "é ∑ 🙂", "two\nlines", "1", "None")


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7 if depth < 2 else 5)
    if kind == 5:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {f"k{index}": _value(rng, depth + 1) for index in range(rng.randrange(3))}
    return (rng.choice(_STRINGS), rng.randrange(-9, 10_000), rng.random(), rng.random() < 0.5, None)[kind]


def _calls(rng: random.Random) -> list[WrittenCall]:
    names = sorted(TOOLS)
    return [
        WrittenCall(rng.choice(names), json.dumps({f"a{index}": _value(rng) for index in range(rng.randrange(4))}, ensure_ascii=False))
        for _ in range(rng.randrange(1, 4))
    ]


def _is_right(heard: Heard, written: list[WrittenCall], thoughts: str) -> bool:
    said = [(name, json.loads(arguments)) for name, arguments in heard.calls]
    return said == [(call.name, json.loads(call.arguments)) for call in written] and (heard.content, heard.reasoning) == ("", thoughts)


def cases(name: str, way: int, answers: int, seed: int) -> dict[str, int]:
    """What became of so many answers in one of the ways of a format.

    Returns:
        How many answers were read in how many cuttings, how many of those gave another reading than the whole, and how many wholes were not what was written.
    """
    rng = random.Random(f"{seed} {name} {way}")
    counts = {"answers": 0, "cuttings": 0, "cut_otherwise": 0, "wrong": 0}
    for number in range(answers):
        written = _calls(rng)
        text, thoughts = WRITERS[name][way](written), ""
        # Harmony's own messages of thoughts are another test's.
        form = form_of(name, reasoning=None if name == "harmony" else _THINK)
        if name != "harmony" and number % 2:
            text, thoughts = f"{_THINK.begin}{_THOUGHTS}{_THINK.end}\n\n{text}", _THOUGHTS
        whole = heard_in(form, [text])
        pieces = [list(text), *(cut(text, [rng.randrange(len(text) + 1) for _ in range(rng.randrange(1, 9))]) for _ in range(8))]
        counts["answers"] += 1
        counts["cuttings"] += len(pieces)
        counts["cut_otherwise"] += sum(heard_in(form, one) != whole for one in pieces)
        counts["wrong"] += not _is_right(whole, written, thoughts)
    return counts


def main() -> None:
    """Reads them all, prints a table and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=500, help="in each way in which models write calls")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    table = {
        f"{name} {way}": cases(name, way, arguments.answers, arguments.seed) for name, ways in WRITERS.items() for way in range(len(ways))
    }
    for name, counts in table.items():
        print(f"{name:12} {counts}")
    document = {
        "what": "answers with tool calls, read whole and in pieces",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": arguments.seed,
        "cases": table,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(any(counts["cut_otherwise"] or counts["wrong"] for counts in table.values()))


if __name__ == "__main__":
    main()
