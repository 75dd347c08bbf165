"""The files of a result: named by prompt, seed and settings, so that none is ever mixed up or made twice. Each carries
the record of what decides it and of what made it."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .comments import as_comment, read_comment
from .files import whole
from .naming import NAME, digest, fields, fill, slug
from .pipeline import Video
from .settings import Settings
from .video import enlargement, picture, side_by_side, write_picture, write_video


@dataclass(frozen=True)
class Result:
    """The files of one subject and seed, and the record of them. name: what people call the subject; identity: all that
    it is; checkpoint_digest: `Checkpoint.sha256`; play_fps: of each stage's file; template: of names (see `naming`);
    picture, side_by_side: what is written beside the videos."""

    folder: Path
    name: str
    identity: dict[str, Any]
    seed: int
    settings: Settings
    checkpoint_digest: str
    play_fps: list[float]
    suffix: str = ".mp4"
    template: str = NAME
    picture: bool = True
    side_by_side: bool = False

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

    def path(self, stage: int = -1, suffix: str = "") -> Path:
        """Of what a stage has. A template that has no frames in it gives the same one for all stages."""
        cascade = self.settings.cascade
        frames = cascade.frames_of(stage % cascade.stages)
        everything = digest([self.decided, self.suffix]) if "{digest" in self.template else ""
        of = {**fields(self.settings), "prompt": self.name, "seed": self.seed, "frames": frames, "digest": everything}
        return self.folder / f"{fill(self.template, **of)}{suffix}"

    @property
    def record(self) -> Path:
        """The json, which is written last: where it is, the result is whole."""
        return self.path(suffix=".json")

    @property
    def videos(self) -> list[Path]:
        """One a stage."""
        cascade = self.settings.cascade
        ends = [self.suffix] * cascade.stages
        if "{frames" not in self.template:
            ends = [f"_{cascade.frames_of(stage)}f{self.suffix}" for stage in range(cascade.stages)]
        return [self.path(stage, end) for stage, end in enumerate(ends)]

    @property
    def beside(self) -> dict[str, Path]:
        """What goes beside the videos, by what it is."""
        there = {
            "picture": self.path(suffix=".png"),
            "side by side": self.path(suffix=f"_side_by_side{self.suffix}"),
        }
        return {what: there[what] for what, asked in zip(there, (self.picture, self.side_by_side)) if asked}

    @property
    def files(self) -> list[Path]:
        """All but the record."""
        return [*self.videos, *self.beside.values()]

    def taken(self) -> Path | None:
        """A file of another result, or of none, that has a name of this one's."""
        for path in (self.record, *self.files):
            if path.exists() and not all(_recorded(path).get(key) == value for key, value in self.decided.items()):
                return path
        return None

    def lacks(self) -> str | None:
        """Of a result that was finished, what is damaged, gone or asked for only now, in words; empty if none was
        finished; None if it is whole. ValueError if a folder is where a file belongs."""
        if blocked := next((path for path in (self.record, *self.files) if path.is_dir()), None):
            raise ValueError(f"{blocked} is a folder, where a file of a result belongs; move it away")
        if not self.record.exists():
            return ""
        record = read_json(self.record)
        sizes = record.get("files") if isinstance(record, dict) else None
        if not isinstance(sizes, dict) or any(record.get(key) != value for key, value in self.decided.items()):
            return f"{self.record} is damaged or gone"
        for path in self.files:
            if path.name not in sizes:
                return f"{path} was not asked for before"
            if not path.is_file() or path.stat().st_size != sizes[path.name]:
                return f"{path} is damaged or gone"
        return None

    def write(self, video: Video, made_by: dict[str, Any], facts: dict[str, Any]) -> list[Path]:
        """Write a video a stage, what goes beside them, and last the record. Returns the videos' paths.

        made_by: what it takes to make it again, beside what decides: it is in every file; facts: in the json alone."""
        frames = [stage.numpy() for stage in video.frames]
        made = {**self.decided, **made_by, "versions": versions()}
        comment = as_comment(made)
        for path, x, fps in zip(self.videos, frames, self.play_fps, strict=True):
            write_video(path, x, fps, comment)
        for what, path in self.beside.items():
            if what == "picture":
                write_picture(path, picture(frames, self.play_fps), comment)
            else:
                write_video(path, side_by_side(frames, self.play_fps), self.play_fps[-1], comment)
        record = {
            **made,
            "frames": [len(x) for x in frames],
            "enlarged": enlargement(frames[0]),
            "files": {path.name: path.stat().st_size for path in self.files},
            **facts,
        }
        write_json(self.record, record)
        return self.videos


def _recorded(path: Path) -> dict[str, Any]:
    """The record that a file carries; empty if it has none."""
    try:
        record = json.loads(read_comment(path))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def stem(text: str, seed: int, everything: list[Any]) -> str:
    """A file's name without its suffix: a text that people read, a seed, and a digest of everything that matters."""
    return f"{slug(text)}_seed{seed}_{digest(everything)}"


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
