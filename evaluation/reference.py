"""The features of the real videos that FVD compares with, of a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from zerosmooth.files import remove_left
from zerosmooth.results import write_tensors
from zerosmooth.video import find_videos, read_video

from .detectors import Detector
from .jobs import whole_tensors


class RealVideos:
    """The features of a folder's videos, kept in `into`, a file a video. ValueError if it has fewer than two."""

    def __init__(self, folder: Path, into: Path, detector: Detector) -> None:
        self.folder, self.detector = folder, detector
        self.videos = find_videos(folder)
        if len(self.videos) < 2:
            raise ValueError(
                f"{folder} has one video; FVD needs two real ones or more, and means something of hundreds"
            )
        which = f"{folder.resolve()}, {detector.protocol}"
        self.into = into / hashlib.sha256(which.encode()).hexdigest()[:8]

    def measure(self, rank: int = 0, world: int = 1) -> None:
        """Write this process's share of the features, those that are not there yet."""
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
        name = hashlib.sha256(which.encode()).hexdigest()[:16]
        return self.into / f"{path.stem}-{name}.features"
