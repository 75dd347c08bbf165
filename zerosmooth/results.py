"""The files of a result: named by prompt, seed and settings, so that none is ever mixed up or made twice."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .files import whole
from .pipeline import Video
from .settings import Settings
from .video import enlargement, picture, write_picture, write_video


@dataclass(frozen=True)
class Result:
    """The files of one subject and seed, and the record of them. name: what people call the subject; identity: all that
    it is; checkpoint_digest: `Checkpoint.sha256`; play_fps: of each stage's file."""

    folder: Path
    name: str
    identity: dict[str, Any]
    seed: int
    settings: Settings
    checkpoint_digest: str
    play_fps: list[float]
    suffix: str = ".mp4"

    @property
    def decided(self) -> dict[str, Any]:
        """All that decides what the files show."""
        return {
            **self.identity,
            "seed": self.seed,
            "checkpoint_digest": self.checkpoint_digest,
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

    @property
    def files(self) -> list[Path]:
        """A video a stage, and the picture."""
        cascade, stem = self.settings.cascade, self.stem
        frames = [cascade.frames_of(stage) for stage in range(cascade.stages)]
        names = [*(f"{stem}_{n}f{self.suffix}" for n in frames), f"{stem}.png"]
        return [self.folder / name for name in names]

    def lacks(self) -> str | None:
        """What is damaged or gone of a result that was finished; empty if none was; None if it is whole. ValueError if
        a folder is where a file belongs."""
        if blocked := next((path for path in (self.record, *self.files) if path.is_dir()), None):
            raise ValueError(f"{blocked} is a folder, where a file of a result belongs; move it away")
        if not self.record.exists():
            return ""
        record = read_json(self.record)
        sizes = record.get("files") if isinstance(record, dict) else None
        if not isinstance(sizes, dict) or any(record.get(key) != value for key, value in self.decided.items()):
            return self.record.name
        for path in self.files:
            if not path.is_file() or path.stat().st_size != sizes.get(path.name):
                return path.name
        return None

    def write(self, video: Video, facts: dict[str, Any]) -> list[Path]:
        """Write a video a stage, a picture, and the record with `facts` in it too. Returns the videos' paths."""
        frames = [stage.numpy() for stage in video.frames]
        *videos, image = self.files
        for path, x, fps in zip(videos, frames, self.play_fps, strict=True):
            write_video(path, x, fps)
        write_picture(image, picture(frames, self.play_fps))
        record = {
            **self.decided,
            "frames": [len(x) for x in frames],
            "enlarged": enlargement(frames[0]),
            "files": {path.name: path.stat().st_size for path in self.files},
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


def read_json(path: Path) -> Any:
    """What a json file holds; None if it is not one, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # of file names that are no text


def write_json(path: Path, content: Any) -> None:
    """Write a json file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    with whole(path) as part:
        save_file({name: x.contiguous() for name, x in tensors.items()}, part)
