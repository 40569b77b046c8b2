"""Bars of where the time of a step goes, as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

_WIDTH, _BAR, _GAP, _LEFT, _TOP, _RIGHT = 720, 22, 8, 170, 40, 130
_STYLE = """
svg { --ink: #1c2024; --soft: #6b7280; --page: #ffffff; --bar: #2060c0 }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e9ed; --soft: #9aa4b2; --page: #14171b; --bar: #7fb0ff } }
.page { fill: var(--page) } text { font: 12px system-ui, sans-serif; fill: var(--soft) } .title { font-weight: 600; fill: var(--ink) }
.bar { fill: var(--bar) }
"""


def drawn(found: dict[str, Any], about: str) -> str:
    """A picture of one size of the batch."""
    parts, shares = found["parts_ms"], found["parts_percent"]
    height = _TOP + len(parts) * (_BAR + _GAP) + 8
    requests = f"{found['requests']} request{'s' * (found['requests'] > 1)}"
    title = f"A decode step of {requests} at {found['context_tokens']} tokens: {found['step_ms']:.2f} ms. {about}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{height}"/><text class="title" x="12" y="22">{escape(title)}</text>',
        *_bars(parts, shares),
        "</svg>\n",
    ]
    return "\n".join(lines)


def _bars(parts: dict[str, float], shares: dict[str, float]) -> Iterable[str]:
    longest = max(parts.values())
    for index, (part, value) in enumerate(parts.items()):
        y = _TOP + index * (_BAR + _GAP)
        width = max(1.0, (_WIDTH - _LEFT - _RIGHT) * max(0.0, value) / longest)
        text = y + _BAR * 0.7
        yield f'<text x="{_LEFT - 10}" y="{text:.1f}" text-anchor="end">{escape(part)}</text>'
        yield f'<rect class="bar" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
        yield f'<text x="{_LEFT + width + 8:.1f}" y="{text:.1f}">{value:.3g} ms, {shares[part]:.1f} %</text>'
