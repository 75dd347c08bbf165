"""A real Firefox without a window, driven by its own protocol, Marionette; nothing to install."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

PATH = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
PREFERENCES = {"marionette.port": 0, "datareporting.policy.dataSubmissionEnabled": False,
               "app.update.enabled": False, "browser.shell.checkDefaultBrowser": False}
SHIFT, ARROWS = "\ue008", {"ArrowLeft": "\ue012", "ArrowRight": "\ue014"}  # as WebDriver has them


class Firefox:
    """`with Firefox(folder) as browser`: one page; folder: of its profile."""

    def __init__(self, folder: Path) -> None:
        assert PATH is not None
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});"
                 for name, value in PREFERENCES.items())
        (folder / "user.js").write_text("\n".join(lines))
        self._process = subprocess.Popen(
            [PATH, "--headless", "--marionette", "--no-remote", "--profile", folder],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._number, port, end = 0, folder / "MarionetteActivePort", time.monotonic() + 120
        while not (port.exists() and port.read_text()):
            if time.monotonic() > end or self._process.poll() is not None:
                self._process.kill()
                raise TimeoutError("Firefox does not start")
            time.sleep(0.05)
        self._socket = socket.create_connection(("127.0.0.1", int(port.read_text())), 60)
        self._file = self._socket.makefile("rb")
        self._read()  # its greeting
        self.call("WebDriver:NewSession", pageLoadStrategy="normal")

    def __enter__(self) -> Firefox:
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.call("Marionette:Quit", flags=["eForceQuit"])
            self._process.wait(20)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._file.close()
            self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Of the protocol: its result. RuntimeError if it fails."""
        self._number += 1
        message = json.dumps([0, self._number, method, parameters]).encode()
        self._socket.sendall(b"%d:" % len(message) + message)
        _, _, error, result = self._read()
        if error is not None:
            raise RuntimeError(f"{method}: {error}")
        return result

    def _read(self) -> Any:
        length = b""
        while (byte := self._file.read(1)) != b":":
            if not byte:
                raise RuntimeError("Firefox is gone")
            length += byte
        return json.loads(self._file.read(int(length)))

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """A file of the disk, in a window whose page has this size."""
        self.call("WebDriver:Navigate", url=path.absolute().as_uri())
        extra = self.run("[outerWidth - innerWidth, outerHeight - innerHeight]")
        self.call("WebDriver:SetWindowRect", width=width + extra[0], height=height + extra[1])
        self.until(f"innerWidth === {width} && innerHeight === {height}")

    def run(self, script: str) -> Any:
        """The value of an expression of the page, whose own names it sees."""
        script = f"return window.eval({json.dumps(script)})"
        return self.call("WebDriver:ExecuteScript", script=script, args=[])["value"]

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true. TimeoutError if it does not become so."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} stays false")
            time.sleep(0.02)

    def press(self, key: str, shift: bool = False) -> None:
        keys = [*([SHIFT] if shift else []), ARROWS.get(key, key)]
        actions = [{"type": "keyDown", "value": value} for value in keys]
        actions += [{"type": "keyUp", "value": value} for value in reversed(keys)]
        self._act("key", actions)

    def drag(self, *points: tuple[float, float]) -> None:
        """With the pointer's button held, from point to point; of one point a click."""
        moves = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 20}
                 for x, y in points]
        self._act("pointer", [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:],
                              {"type": "pointerUp", "button": 0}])

    def _act(self, kind: str, actions: list[dict[str, Any]]) -> None:
        self.call("WebDriver:PerformActions",
                  actions=[{"type": kind, "id": kind, "actions": actions}])

    def picture(self, path: Path) -> None:
        shot = self.call("WebDriver:TakeScreenshot", full=False)
        path.write_bytes(base64.b64decode(shot["value"]))
