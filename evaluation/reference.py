"""Features of a folder's real videos, with which FVD compares."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from zerosmooth.fields import UserError
from zerosmooth.files import remove_left
from zerosmooth.results import write_tensors
from zerosmooth.video import find_videos, read_video

from .detectors import Detector
from .jobs import whole_tensors


class RealVideos:
    """The features of a folder's videos, kept in `into`, one file for each. UserError if there are
    fewer than two."""

    def __init__(self, folder: Path, into: Path, detector: Detector) -> None:
        self.folder, self.detector = folder, detector
        self.videos = find_videos(folder)
        if len(self.videos) < 2:
            raise UserError(f"{folder} has one video; FVD needs two real ones or more, better "
                            "hundreds")
        self.into = into / _digest(f"{folder.resolve()}, {detector.protocol}")[:8]

    def measure(self, rank: int = 0, world: int = 1) -> None:
        """Write this process's share of the features that are not there yet."""
        self.into.mkdir(parents=True, exist_ok=True)
        remove_left(self.into.absolute())
        for path in tqdm(self.videos[rank::world], desc="real videos", disable=rank > 0):
            if not whole_tensors(file := self._file(path)):
                write_tensors(file, {"FVD": self.detector(torch.from_numpy(read_video(path)))})

    def features(self) -> Tensor:
        """n d, once all are measured."""
        return torch.stack([load_file(self._file(path))["FVD"] for path in self.videos])

    def _file(self, path: Path) -> Path:
        facts = path.stat()  # a video that was replaced is measured again
        which = f"{path.relative_to(self.folder)}, {facts.st_size}, {facts.st_mtime_ns}"
        return self.into / f"{path.stem}-{_digest(which)[:16]}.features"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
