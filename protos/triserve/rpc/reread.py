"""What files say, for as long as a process runs: read again when one of them was replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Stamp(NamedTuple):
    """Changes when a file is replaced, by whatever means: written in place, renamed over, or a link to it changed."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Reread(Generic[T]):
    """The last that could be read of some files. Looking costs a `stat` of each; any thread may look.

    A replacement that cannot be read leaves what was read before in use, and the log says so once.

    Args:
        files: Where they are.
        read: Reads them all.
        refused: What `read` raises where they are not what they should be; its words name the file and no content.

    Raises:
        Exception: what `read` raises, this first time alone.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T], *, refused: type[Exception]) -> None:
        self._files = tuple(files)
        self._read = read
        self._refused = refused
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._value = read()

    def current(self) -> T:
        """What the files say now, as far as that can be read."""
        if self._look() != self._stamps:
            with self._lock:
                self._read_again()
        return self._value

    def _read_again(self) -> None:
        stamps = self._look()
        if stamps == self._stamps:
            return
        names = ", ".join(map(str, self._files))
        try:
            value = self._read()
        except self._refused as error:
            # Files that change while they are read are looked at again; nothing is wrong with them yet.
            if self._look() == stamps:
                self._stamps = stamps
                logger.error("%s; what was read before stays in use", error)
            return
        if self._look() == stamps:
            self._stamps, self._value = stamps, value
            logger.info("read again, for it was replaced: %s", names)

    def _look(self) -> tuple[_Stamp | None, ...]:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> _Stamp | None:
    """None = it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
