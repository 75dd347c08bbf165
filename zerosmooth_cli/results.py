"""The files of a result: named by prompt, seed and settings, so that none is ever mixed up or made
twice. Each carries the record of what decides it and of what made it."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import string
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zerosmooth import __version__
from zerosmooth.fields import UserError
from zerosmooth.files import remove_left, whole
from zerosmooth.pipeline import Video
from zerosmooth.settings import Output, Settings
from zerosmooth.video import (
    as_comment,
    check_writer,
    enlargement,
    picture,
    side_by_side,
    write_picture,
    write_video,
)

from .comments import read_comment
from .page import Page

MOST_NAMES = 5_000_000  # without digests
PREVIEW = "preview.gif"  # of coarse key frames, and the comment in it
LETTERS = 200  # of a name: file systems take 255 bytes, of which some are for what is added


@dataclass(frozen=True)
class Result:
    """The files of one subject and seed. name: what people call the subject; identity: all that
    identifies it; checkpoint_digest: `Checkpoint.sha256`; lengths and play_fps: frames, and frames
    a second, of each stage's file."""

    folder: Path
    name: str
    identity: dict[str, Any]
    seed: int
    settings: Settings
    checkpoint_digest: str
    lengths: list[int]
    play_fps: list[float]
    output: Output = Output()

    @property
    def decided(self) -> dict[str, Any]:
        """All that decides what the files show."""
        return {**self.identity, "seed": self.seed, "checkpoint_digest": self.checkpoint_digest,
                "settings": asdict(self.settings), "play_fps": self.play_fps}

    @property
    def suffix(self) -> str:
        return ".gif" if self.output.gif else ".mp4"

    def path(self, stage: int = -1, suffix: str = "") -> Path:
        """A stage's path, the last one's by default. UserError for a name that no file can have."""
        template = self.output.name
        of = {**asdict(self.settings), "prompt": self.name, "seed": self.seed,
              "frames": self.lengths[stage], "digest": digest([self.decided, self.suffix])}
        try:
            name = template.format(**{k: slug(v) if type(v) is str else v for k, v in of.items()})
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise UserError(f"name={template}: {error}; write {{prompt}}, {{seed:03}}, {{frames}}, "
                            "{digest} or {any_setting}") from error
        allowed = re.fullmatch(r"[^\W_][^<>:\"/\\|?*]*", name) and name.isprintable()
        if not allowed or len(name.encode()) > LETTERS:
            raise UserError(f"name={template} makes {name[:60]!r}; a name begins with a letter or "
                            f"digit and has up to {LETTERS} bytes, none of them <>:\"/\\|?*; "
                            "--outdir names the folder")
        return self.folder / f"{name}{suffix}"

    @property
    def record(self) -> Path:
        """The json, which is written last: where it is, the result is whole."""
        return self.path(suffix=".json")

    @property
    def stages(self) -> list[int]:
        """The stages whose videos are written."""
        count = self.settings.cascade.stages
        return [count - 1] if self.output.densest_only else list(range(count))

    @property
    def videos(self) -> list[Path]:
        """One for each of `stages`."""
        named = "frames" in (field for _, field, *_ in string.Formatter().parse(self.output.name))
        return [self.path(s, self.suffix if named else f"_{self.lengths[s]}f{self.suffix}")
                for s in self.stages]

    @property
    def beside(self) -> dict[str, Path]:
        """What goes beside the videos, by what it is."""
        there = {}
        if self.output.picture:
            there["picture"] = self.path(suffix=".png")
        if self.output.side_by_side:
            there["side by side"] = self.path(suffix=f"_side_by_side{self.suffix}")
        return there

    @property
    def files(self) -> list[Path]:
        """All files but the record."""
        return [*self.videos, *self.beside.values()]

    def lacks(self) -> str | None:
        """What a finished result lacks, in words: a file that is damaged, gone, or asked for only
        now. Empty if it was never finished; None if it is whole. UserError if something else has
        the name of one of its files."""
        for path in (self.record, *self.files):
            if path.is_dir() or path.exists() and not self._own(path):
                raise UserError(f"{path} is there already, and not this video: move it away, or "
                                "change --outdir or --set name=..")
        if not self.record.exists():
            return ""
        record = read_json(self.record)
        sizes = record.get("files") if isinstance(record, dict) else None
        if not isinstance(sizes, dict) or any(record.get(k) != v for k, v in self.decided.items()):
            return f"{self.record} is damaged or gone"
        for path in self.files:
            if path.name not in sizes:
                return f"{path} was not asked for before"
            if not path.is_file() or path.stat().st_size != sizes[path.name]:
                return f"{path} is damaged or gone"
        return None

    def _own(self, path: Path) -> bool:
        """Whether a file is of this result: by the digest in its name, else by its record."""
        if "{digest}" in self.output.name:
            return True
        try:
            record = json.loads(read_comment(path))
            return all(record.get(key) == value for key, value in self.decided.items())
        except (ValueError, RecursionError, AttributeError):
            return False

    def write(self, video: Video, made_by: dict[str, Any], facts: dict[str, Any]) -> list[Path]:
        """Write the videos, what goes beside them, and last the record. Returns the videos' paths.

        made_by: what else is needed to remake it, written into every file; facts: what goes into
        the json alone."""
        frames = [stage.numpy() for stage in video.frames]
        made = {**self.decided, **made_by, "versions": versions()}
        comment, rates = as_comment(made), self.play_fps
        for path, s in zip(self.videos, self.stages):
            write_video(path, frames[s], rates[s], comment)
        for what, path in self.beside.items():
            if what == "picture":
                write_picture(path, picture(frames, rates), comment)
            else:
                write_video(path, side_by_side(frames, rates), rates[-1], comment)
        shown = {"frames": [len(frames[s]) for s in self.stages],
                 "enlarged": enlargement(frames[0]),
                 "files": {path.name: path.stat().st_size for path in self.files}}
        write_json(self.record, {**made, **shown, **facts})
        return self.videos


def check_outputs(folder: Path, settings: Settings, lengths: list[int], output: Output,
                  results: Iterable[Result]) -> None:
    """Make the folder of results ready. UserError if results cannot be written there."""
    check_folder(folder, settings, lengths)
    if output.page:
        Page(folder)  # which refuses one that is not ours
    there = folder / PREVIEW
    if output.preview and there.exists() and PREVIEW.encode() not in there.read_bytes():
        raise UserError(f"{there} is no preview of ours; move it away")
    remove_left(folder.absolute())
    check_writer(folder, ".gif" if output.gif else ".mp4")
    check_names(results)


def check_folder(folder: Path, settings: Settings, lengths: list[int]) -> None:
    """Make a folder of results. UserError if it is a file or a link to nothing, or if its disk
    could not hold one result, videos of so many frames, uncompressed."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise UserError(f"--outdir {folder}: {path} is a link to {path.readlink()}, which is "
                            "not there; make that folder, or remove the link")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--outdir {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    worst = sum(lengths) * settings.height * settings.width * 3 + 50_000_000
    if (free := shutil.disk_usage(folder).free) < worst:
        raise UserError(f"{folder} has {free / 1e6:.0f} MB free; one result may need "
                        f"{worst / 1e6:.0f} MB")


def check_names(results: Iterable[Result]) -> None:
    """UserError for a name that no file can have, that two results share, or that something else
    has already."""
    names: set[Path] = set()
    for result in results:
        result.lacks()
        if "{digest}" in result.output.name:
            return
        new = {result.record, *result.files}
        if len(names) > MOST_NAMES:
            raise UserError(f"name={result.output.name} for over {MOST_NAMES:,} files, which are "
                            "all compared first; add {digest}")
        if both := names & new:
            raise UserError(f"name={result.output.name} gives two videos the name {min(both)}; add "
                            "{prompt}, {seed} or {digest}")
        names |= new


def slug(text: str) -> str:
    """A text that people read, as a part of a file's name that any file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "prompt"


def digest(everything: list[Any]) -> str:
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]


def stem(text: str, seed: int, everything: list[Any]) -> str:
    """A file's name without its suffix: a text that people read, a seed, and a digest."""
    return f"{slug(text)}_seed{seed}_{digest(everything)}"


def versions() -> dict[str, str]:
    """The versions of what computes."""
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
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # of odd file names


def write_json(path: Path, content: Any) -> None:
    """Write a json file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    with whole(path) as part:
        save_file({name: x.contiguous() for name, x in tensors.items()}, part)
