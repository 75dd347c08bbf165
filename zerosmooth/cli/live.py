"""What is seen of a run while it runs: its progress, coarse key frames, and the page of what is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from ..cascade import Cascade
from ..page import Page, live, results
from ..video import write_video
from .progress import Progress

OFTEN = 5.0  # seconds between two previews, at least
SHARE = 0.05  # of the time may go into them
PREVIEW = "preview.gif"


class Live:
    """`with Live(..)` around a run of some videos. fps: of key frames, as they play; keep: previews in a file too;
    silent: of a process beside the one that shows it. ValueError if the folder has a page that is not ours."""

    def __init__(
        self, folder: Path, videos: int, cascade: Cascade, fps: float, keep: bool, silent: bool = False
    ) -> None:
        self._folder, self._fps, self._keep, self._silent = folder, fps, keep, silent
        self._cascade = cascade
        self._frames = [cascade.frames_of(stage) for stage in range(cascade.stages)]
        self._page, self._bar = Page(folder), Progress(videos, silent)
        self._next = 0.0  # when there may be a preview again
        self._name, self._step = "", ""
        self._kept = False  # whether there is a preview of ours to remove

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.close()
        if self._silent:
            return
        with suppress(*([OSError] if kind else [])):  # what ended the run is what is to be said
            self._page.write(results(self._folder))
            if self._kept:
                (self._folder / PREVIEW).unlink(missing_ok=True)

    def drop(self) -> None:
        """A video is there already."""
        self._bar.drop()

    @contextmanager
    def video(self, name: str) -> Iterator[None]:
        """Around the making of one."""
        self._name, self._step = name, "step 1"
        self._write(None)
        try:
            yield
        finally:
            self._bar.end()

    def progress(self, done: int, of: int) -> None:
        """Of `Pipeline.sample`. A stage's share of the work is that of its frames."""
        steps = of // len(self._frames)
        step, stage = divmod(done - 1, len(self._frames))
        first = self._cascade.first_step(steps)  # from which on longer videos are there
        later, total = max(0, step - first), sum(self._frames)
        made = min(step, first) * self._frames[0] + later * total + sum(self._frames[: stage + 1])
        self._step = f"step {step + 1} of {steps}"
        self._bar.at(made / (first * self._frames[0] + (steps - first) * total), self._step)

    def preview(self, look: Callable[[], list[Tensor]]) -> None:
        """Of `Pipeline.sample`. Where it is time for one, it is shown."""
        if self._silent or (began := time.perf_counter()) < self._next:
            return
        frames = look()[0].numpy()
        if self._keep:
            write_video(self._folder / PREVIEW, frames, min(self._fps, 50))  # the most that a GIF plays
            self._kept = True
        self._write(frames)
        now = time.perf_counter()
        self._next = now + max(OFTEN, (now - began) / SHARE)

    def _write(self, frames: np.ndarray | None) -> None:
        if self._silent:
            return
        said = self._bar.said(self._step)
        self._page.write(results(self._folder), live(self._name, said, self._bar.share, frames, self._fps))
