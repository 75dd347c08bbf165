"""One web page of a folder's videos: their stages side by side on one clock, in one file that needs no other.

The page is made from what lies in the folder, and made again as videos arrive: what the last one holds of videos that
are still there is taken over as it is. It shows stills, in step to the frame in every browser: see `page.html`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .results import read_json, write_text
from .video import VIDEO_SUFFIXES, busiest_line, read_video

NAME = "index.html"
FORMAT = 1  # of an entry: one of another format is made again
MOST = 64_000_000  # characters of all entries: what browsers still open quickly
WIDEST = 512  # pixels: larger videos are shrunk to it
ACROSS = 4  # stills in a row and a column of a sheet: at most 2048 pixels a side, which phones decode too
LOSSLESS = 128  # pixels: up to there stills are kept exactly, above as WebP of quality 90
OURS = '<meta name="generator" content="zerosmooth">'
ENTRY = re.compile(r'^<script type="application/json" class="entry" data-key="([^"]*)">.*</script>$', re.MULTILINE)

Found = tuple[str, Callable[[], "dict[str, Any] | None"]]  # what names an entry, and what makes it, or finds it damaged


class Page:
    """`index.html` of a folder. ValueError if there is one that is not ours."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        if OURS not in self._text and not template().startswith(self._text):  # nor a damaged one of ours
            raise ValueError(f"{self.path} is a page of something else; use another folder")
        self._entries = {html.unescape(match[1]): match[0] for match in ENTRY.finditer(self._text)}  # lines of the page

    def write(self, found: Iterable[Found], live: dict[str, Any] | None = None) -> None:
        """Write the page with what is found, in this order, up to MOST; none if that is nothing. live: the entry of
        what is being made, see `live`. OSError if it cannot be written."""
        entries: dict[str, str] = {}
        left_out = size = 0
        for key, make in found:
            if size >= MOST:
                left_out += 1
                continue
            key = f"{key} {FORMAT}"
            line = self._entries.get(key)
            if line is None and (made := make()):
                line = _script(made, f'class="entry" data-key="{html.escape(key)}"')
            if line is not None:
                entries[key] = line
                size += len(line)
        self._entries = entries
        folder, n = self.path.absolute().parent.name, len(entries)
        about = f"{n} result{'s' * (n != 1)} in {folder}" + f"; the latest of {n + left_out}" * (left_out > 0)
        head = {"title": f"{folder}: zerosmooth", "about": about, "live": live}
        data = "\n".join([_script(head, 'id="page"'), *entries.values()])
        text = template().replace("<!-- data -->", data)
        if text != self._text and (entries or live or self._text):
            write_text(self.path, text)
            self._text = text


@cache
def template() -> str:
    """The page without its data."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _script(content: Any, attributes: str) -> str:
    text = json.dumps(content).replace("<", "\\u003c")  # it may hold "</script>"
    return f'<script type="application/json" {attributes}>{text}</script>'


def results(folder: Path) -> Iterator[Found]:
    """The results of `sample.py` in a folder, the latest first."""
    records = [(path.stat().st_mtime_ns, path) for path in folder.glob("[!.]*.json")]
    for changed, path in sorted(records, reverse=True):
        yield f"{path.stem} {changed}", lambda path=path: _result(path)  # type: ignore[misc]


def _result(path: Path) -> dict[str, Any] | None:
    """The entry of a record; None if it is none, or a video of it is damaged."""
    record = read_json(path)
    try:
        frames, enlarged = record["frames"], record["enlarged"]
        rates = record["play_fps"][-len(frames):]
        names = [name for name in record["files"] if name.endswith(VIDEO_SUFFIXES)][: len(frames)]
        videos = [read_video(path.parent / name, f) for name, f in zip(names, frames)]
        panels = [
            (f"{len(x)} frames", f"{fps:g} fps", x, fps, name)
            for x, fps, name in zip(videos, rates, names, strict=True)
        ]
        title = record.get("prompt") or record.get("image") or path.stem
        what = [record.get("image") if record.get("prompt") else None, f"seed {record['seed']}", record["family"]]
        what += [f"preset {record['settings']['preset']}", f"{frames[-1] / rates[-1]:.3g} s"]
        facts = {name: record.get(name) for name in ("seed", "checkpoint", "device", "seconds")}
        settings = {**flat(record["settings"]), **facts, **record["versions"]}
        return entry(path.stem, title, " · ".join(filter(None, what)), panels, enlarged) | {
            "settings": {name: value for name, value in settings.items() if value is not None},
            "command": shlex.join(["python", "sample.py", "--again", str(path.parent / names[-1])]),
        }
    except (KeyError, TypeError, ValueError):
        return None


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their names, those of settings within them too."""
    inner = [flat(value) if isinstance(value, dict) else {name: value} for name, value in settings.items()]
    return {name: value for part in inner for name, value in part.items()}


def entry(
    key: str, title: str, note: str, panels: Sequence[tuple[str, str, np.ndarray, float, str | None]], enlarged: int = 1
) -> dict[str, Any]:
    """What the page is told of videos that are shown side by side. panels: of each a name, what else is said, frames
    (uint8 f h w 3), frames a second, its file in the folder; enlarged: a whole factor, by which they were."""
    frames = panels[0][2]  # whose busiest line is shown of all
    height, width = (side // enlarged for side in frames.shape[1:3])
    scale = min(1.0, WIDEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    axis, line = busiest_line(frames)
    return {
        "key": key,
        "title": title,
        "note": note,
        "cell": size,
        "across": ACROSS,
        "line": [axis, line * size[2 - axis] // frames.shape[axis]],
        "panels": [
            {"label": name, "note": more, "fps": fps, "frames": len(x), "file": file, "sheets": sheets(x, size)}
            for name, more, x, fps, file in panels
        ],
    }


def sheets(frames: np.ndarray, size: tuple[int, int]) -> list[str]:
    """WebP images of ACROSS x ACROSS frames each as data URIs. frames: uint8 f h w 3; size: width, height in it."""
    width, height = size
    made = []
    for start in range(0, len(frames), ACROSS**2):
        part = frames[start : start + ACROSS**2]
        sheet = Image.new("RGB", (min(len(part), ACROSS) * width, -(-len(part) // ACROSS) * height))
        for i, frame in enumerate(part):
            still = Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BOX)
            sheet.paste(still, (i % ACROSS * width, i // ACROSS * height))
        file = io.BytesIO()
        sheet.save(file, "WEBP", lossless=max(size) <= LOSSLESS, quality=90, method=2)
        made.append("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode())
    return made


def live(title: str, note: str, share: float, frames: np.ndarray | None, fps: float) -> dict[str, Any]:
    """The entry of what is being made. share: of the run that is done; frames: coarse ones, uint8 f h w 3, if there
    are some yet; fps: theirs."""
    panels = [] if frames is None else [("key frames", "coarse preview", frames, fps, None)]
    made = entry("live", title, note, panels) if panels else {"title": title, "note": note, "panels": []}
    return made | {"share": share, "written": time.time()}
