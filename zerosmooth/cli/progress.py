"""How far a run is: one bar over all videos, stages and steps; where no terminal shows one, a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINES = 10.0  # seconds from one line to the next, at least
LONG = 0.02  # and this share of the time so far: a day has some 500 lines


class Progress:
    """`with Progress(videos) as progress`. silent: of a process beside the one that shows it."""

    def __init__(self, videos: int, silent: bool = False) -> None:
        self._videos, self._silent = videos, silent
        self._finished, self._part = 0, 0.0  # videos, and the share of the current one that is done
        self._began = time.perf_counter()
        self._said = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def drop(self) -> None:
        """A video need not be made: it is there already."""
        self._videos -= 1

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
        """The current video is made, or cannot be; or as many as were made at once."""
        self._finished, self._part = self._finished + videos, 0.0
        self.clear()

    def clear(self) -> None:
        """Take the bar away until there is more to show, so that a line can be printed."""
        if self._bar is not None:
            self._bar.clear()

    @property
    def share(self) -> float:
        """Of the whole run that is done, 0 to 1."""
        return min(1.0, (self._finished + self._part) / max(1, self._videos))

    def said(self, text: str) -> str:
        """Which video, what of it, and how long the rest takes."""
        which = f"video {min(self._finished + 1, self._videos)} of {self._videos}"
        seconds, share = time.perf_counter() - self._began, self.share
        return ", ".join([which, text, *([f"{duration(seconds / share - seconds)} left"] if share else [])])


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
