"""Tells from a chat template how its model sets reasoning apart from an answer."""

from __future__ import annotations

# What stands behind reasoning, and what the contract calls it. A template that looks for it, to leave reasoning out of earlier turns, shows it too.
_ENDS = {
    "</think>": "think",
    "[/THINK]": "brackets",
    "</thinking>": "thinking",
    "</reasoning>": "reasoning",
    "</seed:think>": "seed",
    "<|channel|>analysis": "harmony",
}


def reasoning_format(source: str) -> str:
    """The name of the form; empty = the template knows none."""
    return next((name for end, name in _ENDS.items() if end in source), "")
