"""A real, headless Chromium, driven over its DevTools protocol. Not installed by `make setup`: tests that need it say so where it is missing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    # A container's root has no namespaces to make a sandbox of; the pages are our own.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    # The server is on this machine, whatever the environment says.
    "--no-proxy-server",
    "--metrics-recording-only",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
)
_LISTENING = "DevTools listening on "
_PATIENCE_S = 30.0
_POLL_S = 0.02
_MAX_MESSAGE_BYTES = 64 << 20


def find_chromium() -> str | None:
    """The program; None if there is none on the PATH."""
    return next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)


class PageFailed(AssertionError):
    """A script of the test's raised in the page."""


class Chromium:
    """One browser's DevTools. Made by `connected`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._contexts: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Asks for something and returns what comes of it.

        Raises:
            AssertionError: the browser refuses.
        """
        number = next(self._numbers)
        coming = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        await self._socket.send_json(message)
        async with asyncio.timeout(_PATIENCE_S):
            answer = await coming
        assert "error" not in answer, f"{method}: {answer}"
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, address: str, *, width: int = 1000, height: int = 800, dark: bool = False) -> Page:
        """A page in a profile of its own: what others keep it does not see."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        self._contexts.append(context)
        target = (await self.call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session, address)
        for domain in ("Runtime", "Log", "Page", "Network"):
            await page.call(f"{domain}.enable")
        await page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await page.call("Emulation.setEmulatedMedia", features=[scheme])
        await page.call("Browser.grantPermissions", browserContextId=context, permissions=["clipboardReadWrite"])
        await page.load()
        return page

    async def close(self) -> None:
        """Closes all pages, and stops listening."""
        for context in self._contexts:
            await self.call("Target.disposeBrowserContext", browserContextId=context)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        async for received in self._socket:
            message = received.json()
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].take(message["method"], message["params"])


class Page:
    """One page."""

    def __init__(self, browser: Chromium, session: str, address: str) -> None:
        self._browser = browser
        self._session = session
        self._address = address
        self._loaded = asyncio.Event()
        # What the browser complains of: scripts that raise, policies that are broken. Refusals of the server are none.
        self.complaints: list[str] = []
        # Addresses asked for.
        self.requests: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks the browser for something of this page."""
        return await self._browser.call(method, session=self._session, **params)

    async def load(self) -> None:
        """Goes to the address, anew if it is there already."""
        self._loaded.clear()
        failure = (await self.call("Page.navigate", url=self._address)).get("errorText")
        assert failure is None, f"{self._address}: {failure}"
        async with asyncio.timeout(_PATIENCE_S):
            await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise.

        Raises:
            PageFailed: it raised.
        """
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise PageFailed(result["exceptionDetails"].get("exception", {}).get("description", result["exceptionDetails"]["text"]))
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Returns when an expression is true.

        Raises:
            AssertionError: it does not come to be; shows the page.
        """
        look = f"new Promise((done) => {{ const look = () => (({condition}) ? done(true) : setTimeout(look, 5)); look(); }})"
        try:
            await self.run(look)
        except TimeoutError:
            raise AssertionError(f"still not so: {condition}\n{await self.run('document.body.innerText')}") from None

    async def text(self, selector: str) -> list[str]:
        """What each such element shows."""
        found: list[str] = await self.run(f"[...document.querySelectorAll({selector!r})].map((one) => one.innerText)")
        return found

    async def click(self, selector: str) -> None:
        """Presses the middle of the first such element that is shown."""
        await self.until(f"document.querySelector({selector!r})?.checkVisibility()")
        where = await self.run(
            f"(() => {{ const one = document.querySelector({selector!r}); one.scrollIntoView({{block: 'nearest'}}); "
            "const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    async def type(self, text: str) -> None:
        """Writes into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Presses a key: Enter, Escape, Tab."""
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            modifiers = 8 if shift else 0
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers, **more)

    async def screenshot(self) -> str:
        """A picture, PNG in base64."""
        return str((await self.call("Page.captureScreenshot", format="png"))["data"])

    def take(self, method: str, params: dict[str, Any]) -> None:
        """Hears what the browser tells of the page."""
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error" and params["entry"]["source"] != "network":
            self.complaints.append(str(params["entry"]))


@contextlib.contextmanager
def running_chromium(program: str) -> Iterator[str]:
    """Starts a browser with an empty profile, says where it listens, and ends it."""
    with tempfile.TemporaryDirectory(prefix="triserve-chromium-", ignore_cleanup_errors=True) as profile:
        said = Path(profile) / "said"
        with said.open("wb") as output:
            command = (program, *_FLAGS, f"--user-data-dir={profile}")
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield _listening(process, said)
        finally:
            # Its helpers too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Chromium]:
    """The DevTools of a browser that runs; what was opened in it is closed at the end."""
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=_MAX_MESSAGE_BYTES) as socket:
        browser = Chromium(socket)
        try:
            yield browser
        finally:
            await browser.close()


def _listening(process: subprocess.Popen[bytes], said: Path) -> str:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        for line in said.read_text(errors="replace").splitlines():
            if line.startswith(_LISTENING):
                return line.removeprefix(_LISTENING).strip()
        time.sleep(_POLL_S)
    raise AssertionError(f"the browser did not start:\n{said.read_text(errors='replace')}")
