"""A headless Chromium without a network, driven by its own protocol over a pipe; needs no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Tab": 9, "Home": 36, "End": 35}
_ALONE = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-proxy-server"]
"""Nothing can be reached but this machine, by its address."""
_PATIENCE = 30.0
_START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
"""The browser listens on descriptor 3 and answers on 4."""


def executable() -> str | None:
    """Path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what a browser leaves behind."""
    return tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)


def _high(descriptor: int) -> int:
    """The same file at a descriptor that is not 3 or 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Browser:
    """One page. Whatever goes wrong in it is kept in :attr:`complaints`: errors, dialogs, requests to anywhere but the file itself.

    :ivar scratch: its temporary files.
    :param str origin: of a server on this machine that may be asked as well, such as ``http://127.0.0.1:8000``.
    """

    def __init__(self, folder: Path, dark: bool = False, origin: str | None = None) -> None:
        self._origin = origin
        program = executable()
        assert program is not None
        their_in, self._write = map(_high, os.pipe())
        self._read, their_out = map(_high, os.pipe())
        command = [program, *_FLAGS, f"--user-data-dir={folder}", "--window-size=1400,950", *_ALONE, "about:blank"]
        start = [sys.executable, "-c", _START, str(their_in), str(their_out), *command]
        self.scratch = scratch()  # what it leaves when it is killed; the path of a socket in it must be short
        environment = {**os.environ, "TMPDIR": self.scratch.name}
        self._process = subprocess.Popen(
            start, pass_fds=(their_in, their_out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(their_in)
        os.close(their_out)
        self._buffer, self._count, self._events = b"", 0, []  # type: tuple[bytes, int, list[dict[str, Any]]]
        self.complaints: list[str] = []
        self._session: str | None = None
        try:
            self._prepare(dark)
        except BaseException:
            self.close()
            raise

    def _prepare(self, dark: bool) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        if self._origin is None:
            self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self.scratch.cleanup()

    def _send(self, method: str, **params: Any) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._count

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        number = self._send(method, **params)
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _message(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            self._buffer += os.read(self._read, 1 << 20)
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        self._events.append({"method": event})
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif (event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning")) or event == "Log.entryAdded":
            self.complaints.append(str(params))
        elif event == "Page.javascriptDialogOpening":
            self.complaints.append(f"a dialog: {params['message']}")
            self._send("Page.handleJavaScriptDialog", accept=True)
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith(self._own):
            self.complaints.append(f"a request: {params['request']['url']}")

    @property
    def _own(self) -> tuple[str, ...]:
        return ("file:",) if self._origin is None else ("file:", "data:", f"{self._origin}/")

    def open(self, path: Path) -> None:
        self.visit(path.as_uri())

    def visit(self, address: str) -> None:
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._message()

    def evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def point(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, width: int, height: int) -> bytes:
        """A picture of the page at a size of the window, as PNG."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def press(self, key: str, control: bool = False) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=_KEYS[key],
                modifiers=2 if control else 0,
                **(text if kind == "keyDown" else {}),
            )
