"""The table of faults that were found names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", (ROOT / "tests" / "findings.md").read_text())))


@pytest.mark.parametrize("name", NAMED)
def test_what_holds_a_finding_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    text = (ROOT / path).read_text()
    assert not test or f"def {test}(" in text


def test_every_row_names_what_holds_it() -> None:
    rows = [
        line
        for line in (ROOT / "tests" / "findings.md").read_text().splitlines()
        if re.match(r"\| (E|S|Public|Command|Page|Real|Other|Newcomer|Mutation)", line)
    ]
    assert len(rows) > 40 and all("`tests/" in row or "open:" in row for row in rows)
