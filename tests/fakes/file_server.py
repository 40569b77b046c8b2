"""A server of files on loopback that can break off, forget ranges, refuse and redirect, and notes what it was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What it serves and what it was asked.

    Attributes:
        files: contents by path.
        cut_after: bytes of a body after which the connection ends, once for each path.
        redirects: where to instead, by path.
        ranges: whether it knows the header Range.
        token: the bearer token without which it refuses; "" = none.
        asked: path, Range and Authorization of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    token: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def paths(self) -> list[str]:
        """Paths that were asked for, in order."""
        return [path for path, _, _ in self.asked]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers one GET."""
        path, asked_range, said = handler.path, handler.headers.get("Range", ""), handler.headers.get("Authorization", "")
        self.asked.append((path, asked_range, said))
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[path])
            handler.end_headers()
        elif self.token and said != f"Bearer {self.token}":
            handler.send_error(401)
        elif path not in self.files:
            handler.send_error(404)
        else:
            self._send(handler, path, asked_range)

    def _send(self, handler: BaseHTTPRequestHandler, path: str, asked_range: str) -> None:
        body, match = self.files[path], re.fullmatch(r"bytes=(\d+)-", asked_range)
        start = int(match[1]) if match is not None and self.ranges else 0
        if start and start >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start:][: self.cut_after.pop(path, None)])


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    """Runs a server on a free port of loopback; its `url` ends in a slash."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}/"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
