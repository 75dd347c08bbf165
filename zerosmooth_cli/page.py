"""One web page of a folder's videos: their stages side by side on one clock, in a single file; and
the same player for notebooks.

The page is written anew as videos arrive. It keeps the entries of videos that have not changed, and
shows stills, so that all stages are in step to the frame in every browser: see `page.html`.
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
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from zerosmooth.fields import UserError
from zerosmooth.files import whole
from zerosmooth.video import VIDEO_SUFFIXES, busiest_line, read_video

NAME = "index.html"
AGAIN = "python -m zerosmooth --again"  # which works installed and in a clone
FORMAT = 2  # of an entry: those of another format are made anew
MOST = 64_000_000  # characters of all entries: what browsers still open quickly
WIDEST = 512  # pixels: larger videos are shrunk to this
ACROSS = 4  # stills in a row and a column of a sheet: at most 2048 pixels, which phones can decode
LOSSLESS = 128  # pixels: stills up to this are exact, larger ones WebP of quality 90
OURS = '<meta name="generator" content="zerosmooth">'
SCRIPT = '<script type="application/json" %s>%s</script>'
ENTRY = re.compile("^" + SCRIPT % ('class="entry" data-key="([^"]*)"', ".*") + "$", re.MULTILINE)

Entry = dict[str, Any]
Panel = tuple[str, str, np.ndarray, float, "str | None"]  # label, note, frames, fps, file
Found = tuple[str, Callable[[], "Entry | None"]]  # an entry's key, and what makes it if it can


class Page:
    """`index.html` of a folder. UserError if there is one that is not ours."""

    def __init__(self, folder: Path) -> None:
        self.path = path = folder / NAME
        self._text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if OURS not in self._text and not template().startswith(self._text):  # ours, if cut off
            raise UserError(f"{path} is a page of something else; use another folder")
        self._entries = {html.unescape(m[1]): m[0] for m in ENTRY.finditer(self._text)}

    def write(self, found: Iterable[Found], live: Entry | None = None) -> None:
        """Write the page of what is found, in this order, up to MOST; an empty folder gets none.

        live: the entry of the video that is being made. OSError if it cannot be written.
        """
        entries: dict[str, str] = {}
        left_out = size = 0
        for key, make in found:
            key = f"{key} {FORMAT}"
            if size >= MOST:
                left_out += 1
            elif line := self._entries.get(key) or _entry_script(key, make()):
                entries[key] = line
                size += len(line)
        self._entries = entries
        folder, n = self.path.absolute().parent.name, len(entries)
        about = f"{n} result{'s' * (n != 1)} in {folder}"
        if left_out:
            about += f"; the latest of {n + left_out}"
        head = {"title": f"{folder}: zerosmooth", "about": about, "live": live}
        text = _filled(head, entries.values())
        if text != self._text and (entries or live or self._text):
            with whole(self.path) as part:  # names of files may be no text
                part.write_text(text, encoding="utf-8", errors="backslashreplace")
            self._text = text


@cache
def template() -> str:
    """The page without its data."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _filled(head: dict[str, Any], entries: Iterable[str]) -> str:
    return template().replace("<!-- data -->", "\n".join([_script(head, 'id="page"'), *entries]))


def player(title: str, note: str, panels: Sequence[Panel]) -> str:
    """HTML that plays videos in step within another page, as a notebook is: see `entry`."""
    head = {"title": title, "about": "", "live": None, "inside": True}
    text = _filled(head, [_entry_script("", entry("", title, note, panels))])
    style = "width: 100%; height: 480px; border: 0"
    return f'<iframe srcdoc="{html.escape(text)}" style="{style}"></iframe>'


def _entry_script(key: str, made: Entry | None) -> str:
    return _script(made, f'class="entry" data-key="{html.escape(key)}"') if made else ""


def _script(content: Any, attributes: str) -> str:
    return SCRIPT % (attributes, json.dumps(content).replace("<", "\\u003c"))  # no "</script>"


def results(folder: Path) -> Iterator[Found]:
    """The results of `sample.py` in a folder, the latest first."""
    records = [(path.stat().st_mtime_ns, path) for path in folder.glob("[!.]*.json")]
    for changed, path in sorted(records, reverse=True):
        yield f"{path.stem} {changed}", partial(_result, path)


def _result(path: Path) -> Entry | None:
    """The entry of a record; None if the file is none, or a video of it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        frames, settings = record["frames"], record["settings"]
        rates = record["play_fps"][-len(frames):]  # of the densest alone, if no other is there
        names = [name for name in record["files"] if name.endswith(VIDEO_SUFFIXES)][: len(frames)]
        panels = [(f"{f} frames", f"{fps:g} fps", read_video(path.parent / name, f), fps, name)
                  for name, f, fps in zip(names, frames, rates, strict=True)]
        prompt, image = record.get("prompt"), record.get("image")
        note = [image if prompt else None, f"seed {record['seed']}", record["family"],
                f"preset {settings['preset']}", f"{frames[-1] / rates[-1]:.3g} s"]
        facts = {name: record.get(name) for name in ("seed", "checkpoint", "device", "seconds")}
        listed = {**settings, **facts, **record["versions"]}
        return entry(path.stem, prompt or image or path.stem, " · ".join(filter(None, note)),
                     panels, record["enlarged"]) | {
            "settings": {name: value for name, value in listed.items() if value is not None},
            "command": f"{AGAIN} {shlex.quote(str(path.parent / names[-1]))}"}
    except (OSError, LookupError, TypeError, ValueError, RecursionError):
        return None


def entry(key: str, title: str, note: str, panels: Sequence[Panel], enlarged: int = 1) -> Entry:
    """What the page needs of videos that it shows side by side.

    panels: of each a label, a note, frames (uint8 f h w 3), frames a second, and its file in the
    folder or None. enlarged: the whole factor by which the frames were enlarged.
    """
    if not panels:
        return {"title": title, "note": note, "panels": []}
    frames = panels[0][2]  # whose busiest line is shown of all
    height, width = (side // enlarged for side in frames.shape[1:3])
    scale = min(1.0, WIDEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    axis, line = busiest_line(frames)
    return {"key": key, "title": title, "note": note, "cell": size, "across": ACROSS,
            "line": [axis, line * size[2 - axis] // frames.shape[axis]],
            "panels": [{"label": label, "note": more, "fps": fps, "frames": len(x), "file": file,
                        "sheets": sheets(x, size)} for label, more, x, fps, file in panels]}


def sheets(frames: np.ndarray, size: tuple[int, int]) -> list[str]:
    """WebP images of ACROSS x ACROSS frames each, as data URIs. frames: uint8 f h w 3; size: width
    and height of a frame in them."""
    stills = [np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(
        size, Image.Resampling.BOX)) for frame in frames]
    stills += [np.zeros_like(stills[0])] * (-len(stills) % ACROSS)
    made = []
    for start in range(0, len(stills), ACROSS**2):
        sheet = rearrange(np.stack(stills[start : start + ACROSS**2]),
                          "(row column) h w c -> (row h) (column w) c", column=ACROSS)
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "WEBP", lossless=max(size) <= LOSSLESS, quality=90,
                                    method=2)
        made.append("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode())
    return made


def live(title: str, note: str, share: float, frames: np.ndarray | None, fps: float) -> Entry:
    """The entry of the video that is being made. share: of the run that is done; frames: its coarse
    preview, uint8 f h w 3, or None; fps: the preview's."""
    panels = [] if frames is None else [("key frames", "coarse preview", frames, fps, None)]
    return entry("live", title, note, panels) | {"share": share, "written": time.time()}
