"""Markers of a grammar, such as those around a tool call, as rules in Lark's syntax."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def marker_rules(markers: Sequence[str], special_ids: Mapping[str, int]) -> str:
    """What the contract promises of markers: `marker_N`, `until_N` and `WITHOUT_N`.

    Args:
        markers: of the grammar.
        special_ids: special tokens by their names, which markers may be.
    """
    lines = [""]
    for number, marker in enumerate(markers):
        text = json.dumps(marker, ensure_ascii=False)
        token = special_ids.get(marker)
        lines.append(f"WITHOUT_{number}: {_without(marker)}")
        if token is None:
            lines += [f"marker_{number}: {text}", f"UNTIL_{number}: /(?s:.*)/ {text}", f"until_{number}[lazy]: UNTIL_{number}"]
        else:
            lines += [f"marker_{number}: <[{token}]>", f"until_{number}: WITHOUT_{number} marker_{number}"]
    return "\n".join(lines)


def _without(marker: str) -> str:
    """A terminal: any text in which the marker does not occur."""
    first, *others = [f"\\x{{{ord(character):x}}}" for character in marker]
    if first in others:
        return f"/(?s:.*)/ & ~(/(?s:.*)/ {json.dumps(marker, ensure_ascii=False)} /(?s:.*)/)"
    # Markers begin with a character that is nowhere else in them: behind each such one the others do not follow. Said so it costs far less
    # than the negation, which may go beyond the limits.
    tails = ["".join(others[:count]) + f"([^{first}{other}][^{first}]*)?" for count, other in enumerate(others)]
    return f"/[^{first}]*({first}({'|'.join(tails)}))*/" if others else f"/[^{first}]*/"
