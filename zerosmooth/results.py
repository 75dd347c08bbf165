"""The files of a result: named by prompt, seed and settings, so that none is ever mixed up or made twice."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imageio.v3 as iio
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .pipeline import Video
from .settings import Settings
from .video import enlargement, picture, write_video


@dataclass(frozen=True)
class Result:
    """The files of one subject and seed, and the record of them. name: what people call the subject; identity: all that
    it is; checkpoint_sha256: of the checkpoint's file; play_fps: of each stage's file."""

    folder: Path
    name: str
    identity: dict[str, Any]
    seed: int
    settings: Settings
    checkpoint_sha256: str
    play_fps: list[float]
    suffix: str = ".mp4"

    @property
    def decided(self) -> dict[str, Any]:
        """All that decides what the files show."""
        return {
            **self.identity,
            "seed": self.seed,
            "checkpoint_sha256": self.checkpoint_sha256,
            "settings": self.settings.as_json(),
            "play_fps": self.play_fps,
        }

    @property
    def stem(self) -> str:
        """The prompt or the image's name, the seed, and a digest of all that decides."""
        return stem(self.name, self.seed, [self.decided, self.suffix])

    @property
    def record(self) -> Path:
        """The json, which is written last: where it is, the result is whole."""
        return self.folder / f"{self.stem}.json"

    def finished(self) -> bool:
        """Whether all files of the result are there."""
        try:
            return all((self.folder / name).exists() for name in json.loads(self.record.read_text())["files"])
        except (OSError, ValueError, KeyError):
            return False

    def write(self, video: Video, facts: dict[str, Any]) -> list[Path]:
        """Write a video a stage, a picture, and the record with `facts` in it too. Returns the videos' paths."""
        frames = [stage.numpy() for stage in video.frames]
        videos = [self.folder / f"{self.stem}_{len(x)}f{self.suffix}" for x in frames]
        for path, x, fps in zip(videos, frames, self.play_fps):
            write_video(path, x, fps)
        image = self.folder / f"{self.stem}.png"
        iio.imwrite(image, picture(frames, self.play_fps))
        record = {
            **self.decided,
            "frames": [len(x) for x in frames],
            "enlarged": enlargement(frames[0]),
            "files": [path.name for path in [*videos, image]],
            **facts,
            "versions": versions(),
        }
        write_json(self.record, record)
        return videos


def stem(text: str, seed: int, everything: list[Any]) -> str:
    """A file's name without its suffix: a text that people read, a seed, and a digest of everything that matters."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return f"{slug}_seed{seed}_{digest[:12]}"


def versions() -> dict[str, str]:
    """Of what computes."""
    packages = {name: version(name) for name in ("torch", "numpy", "imageio")}
    return {"zerosmooth": __version__, **packages, "python": platform.python_version()}


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write a json file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file({name: x.contiguous() for name, x in tensors.items()}, part)
    part.replace(path)
