"""What is seen of a run while it runs: its progress, coarse key frames, and the page of what is
finished."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from zerosmooth.extensions import METHODS
from zerosmooth.settings import Output, Settings
from zerosmooth.video import write_video

from .page import Page, live, results
from .results import PREVIEW

LINES = 10.0  # seconds from one line to the next, at least, where no terminal shows a bar
LONG = 0.02  # and this share of the time so far: a day has some 500 lines
OFTEN = 5.0  # seconds between two previews, at least
SHARE = 0.05  # of the time may go into them


class Progress:
    """One bar over all videos, stages and steps. silent: shows nothing, since another process
    does."""

    def __init__(self, videos: int, silent: bool = False) -> None:
        self.videos, self._silent = videos, silent
        self._finished, self._part = 0, 0.0  # videos, and the share of the current one that is done
        self._began, self._said = time.perf_counter(), 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def at(self, part: float, text: str) -> None:
        """Show that this share of the current video is done. text: what of it that is."""
        self._part = part
        if self._silent:
            return
        seconds = time.perf_counter() - self._began
        if sys.stderr.isatty():
            if self._bar is None:  # what is said before work begins would run into it
                form = "{percentage:3.0f}% |{bar}| {desc}"
                self._bar = tqdm(total=1.0, bar_format=form, leave=False, dynamic_ncols=True)
            self._bar.set_description_str(self.said(text), refresh=False)
            self._bar.n = self.share
            self._bar.refresh()
        elif seconds - self._said >= max(LINES, LONG * seconds):
            self._said = seconds
            print(f"{self.share:4.0%}  {self.said(text)}", file=sys.stderr)

    def end(self, videos: int = 1) -> None:
        """The current videos are made, or cannot be."""
        self._finished, self._part = self._finished + videos, 0.0
        self.clear()

    def clear(self) -> None:
        """Take the bar away until there is more to show, so that a line can be printed."""
        if self._bar is not None:
            self._bar.clear()

    @property
    def share(self) -> float:
        """Of the whole run that is done, 0 to 1."""
        return min(1.0, (self._finished + self._part) / max(1, self.videos))

    def said(self, text: str) -> str:
        """Which video, what of it, and how long the rest takes."""
        which = f"video {min(self._finished + 1, self.videos)} of {self.videos}"
        seconds, share = time.perf_counter() - self._began, self.share
        left = [f"{duration(seconds / share - seconds)} left"] if share else []
        return ", ".join([which, text, *left])


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Live:
    """`with Live(..)` around a run of some videos. fps: of key frames, as they play; silent: as in
    `Progress`. UserError if the folder has a page that is not ours."""

    def __init__(self, folder: Path, videos: int, settings: Settings, fps: float, output: Output,
                 silent: bool = False) -> None:
        self._folder, self._fps, self._keep, self._silent = folder, fps, output.preview, silent
        self._settings, cascade = settings, settings.cascade
        self._frames = [cascade.frames_of(stage) for stage in range(cascade.stages)]
        self._page = Page(folder) if output.page and not silent else None
        self.bar = Progress(videos, silent)
        self._next = 0.0  # when there may be a preview again
        self._name, self._step = "", ""
        self._kept = False  # whether there is a preview of ours to remove

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.bar.__exit__()
        with suppress(*([OSError] if kind else [])):  # what ended the run is what is to be said
            if self._page is not None:
                self._page.write(results(self._folder))
            if self._kept:
                (self._folder / PREVIEW).unlink(missing_ok=True)

    @contextmanager
    def video(self, name: str) -> Iterator[None]:
        """Around the making of one."""
        self._name, self._step = name, "step 1"
        self._write(None)
        try:
            yield
        finally:
            self.bar.end()

    def progress(self, done: int, of: int) -> None:
        """Of `Pipeline.sample`. A stage's share of the work is that of its frames."""
        if METHODS[self._settings.method].slides is not None:
            self._step = f"network run {done} of {of}"
            self.bar.at(done / of, self._step)
            return
        steps = of // len(self._frames)
        step, stage = divmod(done - 1, len(self._frames))
        first = self._settings.first_step(steps)  # from which on longer videos are there
        key, every = self._frames[0], sum(self._frames)
        made = min(step, first) * key + max(0, step - first) * every
        made += sum(self._frames[: stage + 1])
        self._step = f"step {step + 1} of {steps}"
        self.bar.at(made / (first * key + (steps - first) * every), self._step)

    def preview(self, look: Callable[[], list[Tensor]]) -> None:
        """Of `Pipeline.sample`. Where it is time for one, it is shown."""
        wanted = self._keep or self._page is not None
        if self._silent or not wanted or (began := time.perf_counter()) < self._next:
            return
        frames = look()[0].numpy()
        if self._keep:
            write_video(self._folder / PREVIEW, frames, min(self._fps, 50), PREVIEW)  # a GIF's most
            self._kept = True
        self._write(frames)
        now = time.perf_counter()
        self._next = now + max(OFTEN, (now - began) / SHARE)

    def _write(self, frames: np.ndarray | None) -> None:
        if self._page is not None:
            made = live(self._name, self.bar.said(self._step), self.bar.share, frames, self._fps)
            self._page.write(results(self._folder), made)
