"""How many examples a property is tried on: its own number, or a tenth of it under `--hypothesis-profile quick`."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

_USUAL = 100


def examples(count: int, **others: Any) -> settings:
    """So many examples in `make test`, in proportion fewer or more under a profile that has fewer or more than hypothesis' usual 100.

    Args:
        count: Of this property, because one example costs much or finds little.
        others: Further settings, of a state machine for instance.
    """
    return settings(max_examples=max(1, count * settings().max_examples // _USUAL), **others)
