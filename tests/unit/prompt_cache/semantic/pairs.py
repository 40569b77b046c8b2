"""Pairs of questions, one a line, for the guards' unit tests. They were written beside the guards: they show that nothing is lost, not how good it is."""

from __future__ import annotations

from pathlib import Path

from prompt_cache.semantic.guards import GUARDS
from prompt_cache.semantic.normalise import normalise
from prompt_cache.semantic.parsing.parse import parse


def pairs(name: str) -> list[tuple[str, str]]:
    """The pairs of a file beside this one."""
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return [(first.strip(), second.strip()) for first, _, second in (line.partition(" | ") for line in lines)]


def refused_by(first: str, second: str) -> str | None:
    """The first guard that tells two questions apart."""
    mine, theirs = parse(normalise(first)), parse(normalise(second))
    return next((name for name, guard in GUARDS.items() if guard(mine, theirs) is not None), None)
