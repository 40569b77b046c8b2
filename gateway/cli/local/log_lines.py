"""Cuts a stream of bytes into lines of text, of bounded length."""

from __future__ import annotations

MAX_LINE_BYTES = 16 * 1024


class LineCutter:
    """Lines of one stream, whatever pieces its bytes come in; a longer line is cut at `MAX_LINE_BYTES`."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that the bytes complete, without their ends; bytes that are not UTF-8 become U+FFFD."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [piece for line in whole for piece in _cut(line)]
        *long, self._rest = _cut(self._rest)
        return [_text(line) for line in lines + long]

    def end(self) -> list[str]:
        """The last line, if the stream did not end with a line's end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


def _cut(line: bytes) -> list[bytes]:
    return [line[start : start + MAX_LINE_BYTES] for start in range(0, len(line), MAX_LINE_BYTES)] or [b""]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode(errors="replace")
