"""Lines carry their part's name; on a terminal, colours and a line that changes in place."""

from __future__ import annotations

import errno
import io

from gateway.cli.console import Console


def make(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(stream, terminal=terminal, names=("gateway", "redis")), stream


def test_lines_begin_with_the_name_of_their_part() -> None:
    console, stream = make()
    console.line("hello", part="redis")
    console.line("own")
    assert stream.getvalue() == "redis   | hello\nown\n"


def test_only_a_terminal_gets_colours_and_a_status() -> None:
    console, stream = make()
    console.status("starting")
    assert stream.getvalue() == ""
    console, stream = make(terminal=True)
    console.line("hello", part="redis")
    assert stream.getvalue() == "\x1b[33mredis   | \x1b[0mhello\n"


def test_the_status_stays_below_the_lines() -> None:
    console, stream = make(terminal=True)
    console.status("starting")
    console.line("hello")
    console.status("")
    assert stream.getvalue() == "\r\x1b[Kstarting" + "\r\x1b[Khello\nstarting" + "\r\x1b[K"


class ClosedTerminal(io.StringIO):
    """What a terminal is to its programs when its window was closed."""

    def write(self, text: str) -> int:
        """Fails."""
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_was_closed_is_no_error() -> None:
    console = Console(ClosedTerminal(), terminal=True, names=())
    console.status("starting")
    console.line("hello")
    with console.held():
        console.line("held")


def test_held_lines_come_afterwards_and_in_order() -> None:
    console, stream = make()
    with console.held():
        console.line("one")
        console.line("two")
        assert stream.getvalue() == ""
    console.line("three")
    assert stream.getvalue() == "one\ntwo\nthree\n"
