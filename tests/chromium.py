"""A real Chromium without a window, driven through two pipes by its own debugging protocol; nothing
to install."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
KEYS = {
    " ": ("Space", 32),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowRight": ("ArrowRight", 39),
    "q": ("KeyQ", 81)
}
SHIFT = 8


class Chromium:
    """`with Chromium(folder) as browser`: one page; folder: of its profile."""

    def __init__(self, folder: Path) -> None:
        assert PATH is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # it takes commands from file 3 and answers into file 4
        command = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--no-first-run"
        ]
        self._process = subprocess.Popen(
            [
                "bash", "-c", command,
                str(theirs_in),
                str(theirs_out), PATH, *flags, f"--user-data-dir={folder}"
            ],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._numbers, self._session = b"", itertools.count(1), {}
        self.errors: list[str] = []  # of scripts
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target,
                                   flatten=True)["sessionId"]
        }
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._out)  # which ends it
        os.close(self._in)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Of the protocol: its result. RuntimeError if it fails."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            if answer.get(
                    "method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not (part := os.read(self._in, 1 << 20)):
                raise RuntimeError("Chromium is gone")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self,
             path: Path,
             width: int = 1280,
             height: int = 900,
             dark: bool = False,
             still: bool = False) -> None:
        """A file of the disk. still: as for people who want nothing to move by itself."""
        self.call("Emulation.setDeviceMetricsOverride",
                  width=width,
                  height=height,
                  deviceScaleFactor=1,
                  mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is. RuntimeError if it throws."""
        done = self.call("Runtime.evaluate",
                         expression=script,
                         returnByValue=True,
                         awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> None:
        """Wait until an expression is true. TimeoutError if it does not become so."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} stays false; {self.errors}")
            time.sleep(0.02)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, number = KEYS[key]
        told = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent",
                      type=kind,
                      x=x,
                      y=y,
                      button="left",
                      clickCount=1,
                      buttons=1)

    def picture(self, path: Path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
