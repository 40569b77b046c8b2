"""What `triserve up` shows: lines with a part's name before them, and one line that changes in place on a terminal."""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_COLOURS = (36, 33, 32, 35, 34, 31)
_ERASE = "\r\x1b[K"
_MAX_HELD_LINES = 2000


class Console:
    """Writes whole lines to one stream. When nobody can read them any more (a closed terminal, a reader that left), they are dropped.

    Args:
        stream: where to.
        terminal: whether it is a terminal that shows colours and can erase a line.
        names: the parts, in the order of their colours.
    """

    def __init__(self, stream: TextIO, *, terminal: bool, names: tuple[str, ...]) -> None:
        self._stream = stream
        self._terminal = terminal
        self._width = max((len(name) for name in names), default=0)
        self._colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
        self._status = ""
        self._held: deque[str] | None = None

    def line(self, text: str, *, part: str = "") -> None:
        """Writes one line.

        Args:
            text: without a line's end.
            part: whose line it is; "" = the command's own.
        """
        line = f"{self._prefix(part)}{text}\n"
        if self._held is not None:
            self._held.append(line)
        else:
            self._write(line)

    def status(self, text: str) -> None:
        """Shows what is going on now, below all lines, until the next status; "" = nothing. Only a terminal shows it."""
        # A line that the terminal wraps could not be erased again.
        text = text[: shutil.get_terminal_size().columns - 1]
        if self._terminal and self._held is None and text != self._status:
            self._status = text
            self._send(_ERASE + text)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps lines back while something else writes to the terminal; the oldest go if there are too many."""
        self.status("")
        self._held = deque(maxlen=_MAX_HELD_LINES)
        try:
            yield
        finally:
            held, self._held = self._held, None
            for line in held:
                self._write(line)

    def _write(self, line: str) -> None:
        self._send(f"{_ERASE}{line}{self._status}" if self._status else line)

    def _send(self, text: str) -> None:
        # The processes that are watched must not suffer for it.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def _prefix(self, part: str) -> str:
        if not part:
            return ""
        name = f"{part:<{self._width}} | "
        return f"\x1b[{self._colours[part]}m{name}\x1b[0m" if self._terminal else name
