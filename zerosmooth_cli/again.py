"""Remakes a video from the record in any of its files: what the record says becomes the default.

A record is not to be trusted: the video may come from anywhere. Its values are checked like any
other settings. Code that it names is not run. Files that it names are used only if their digest is
the record's.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch

from zerosmooth.checkpoint import Checkpoint, find, sha256
from zerosmooth.config import build
from zerosmooth.fields import UserError, printable
from zerosmooth.settings import Output, Running, Settings, device_of

from .comments import read_comment
from .results import versions

WORK = 16  # times what a checkpoint's own settings take: a stranger's record asks for no more


@dataclass(frozen=True)
class Record:
    """What a file says about how it was made, as `results.Result` wrote it. threads: of the CPU;
    torch, zerosmooth: their versions."""

    checkpoint_digest: str
    settings: Settings
    play_fps: tuple[float, ...]
    seed: int
    prompt: str | None = None
    image: str | None = None
    image_sha256: str | None = None
    image_path: str | None = None
    checkpoint: str = ""
    running: Running = Running()
    device: str = "cpu"
    threads: int = 0
    torch: str = ""
    zerosmooth: str = ""


def read_record(file: Path) -> Record:
    """The record in a video, picture or json of ours. UserError, which says why, if there is none
    that can be used."""
    try:
        values = json.loads(read_comment(file))
    except (json.JSONDecodeError, RecursionError):
        values = None
    if not isinstance(values, dict) or not {"checkpoint_digest", "settings", "seed"} <= set(values):
        raise UserError(
            f"{file} has no record of how it was made; give a video, picture or json as sample.py "
            "wrote it: other programs, and many websites, drop the record when they save a file")
    if isinstance(made := values.get("versions"), dict):
        values |= {key: made[key] for key in ("torch", "zerosmooth") if key in made}
    if isinstance(running := values.get("running"), dict):
        for name in ("device", "compile"):  # this machine may lack what they need
            running.pop(name, None)
    names = [field.name for field in fields(Record) if field.name in values]
    try:
        like = Record("", Settings(), (), 0)
        return build(like, {name: values[name] for name in names})
    except UserError as error:
        raise UserError(f"the record in {file} cannot be used: {error}") from error


def recall(args: Namespace, record: Record, said: dict[str, Any]) -> Output:
    """Fill in from a record what the command line leaves open. said: the settings that it names.
    Returns how the video is written by default. UserError for a checkpoint or an image that is not
    there."""
    file, s = args.again, record.settings
    args.seed = record.seed if args.seed is None else args.seed
    if args.prompt is None and args.prompt_file is None:
        args.prompt = record.prompt
    if record.image_sha256 is not None and args.image is None:
        args.image = _image(file, record)
    if args.ckpt is None:
        path = record.checkpoint
        if _is_remote(path) or not find(path or "/").is_file():
            raise UserError(f"{file} was made with the checkpoint {path}, which is not there; name "
                            "it: --ckpt FILE")
        args.ckpt = path
    own: dict[str, Any] = {"gif": file.suffix.lower() == ".gif"}
    if record.play_fps and record.play_fps[0] != s.fps and "fps" not in said:
        own["save_fps"] = said.get("scale", s.scale) * record.play_fps[0]  # the same seconds
    return Output(**own)


def check_work(file: Path, settings: Settings, own: Settings, said: Collection[str]) -> None:
    """UserError if a record, not the command line, asks for over WORK times the work of the
    checkpoint's own settings."""
    times = {name: getattr(settings, name) / getattr(own, name)
             for name in ("height", "width", "steps", "scale") if name not in said}
    if (work := prod(max(1, x) for x in times.values())) > WORK:
        flags = " ".join(f"--{k} {getattr(settings, k)}" for k, x in times.items() if x > 1)
        raise UserError(f"the record in {file} asks for {work:,.0f} times the work of this "
                        "checkpoint's own settings. Add --check to see what it takes; if you want "
                        f"it, say so: {flags}")


def _image(file: Path, record: Record) -> Path:
    """The image that a record names, where it was or beside the file."""
    name = Path(record.image or "").name
    paths = [record.image_path or "", str(file.parent / name)]
    there = [Path(path) for path in paths if not _is_remote(path) and Path(path).is_file()]
    if same := next((path for path in there if sha256(path) == record.image_sha256), None):
        return same
    what = f"{there[0]} is another one now" if there else "it is not there any more"
    raise UserError(f"{file} was made from the image {record.image_path or name}, and {what}; name "
                    "the image to use: --image FILE")


def _is_remote(path: str) -> bool:
    """Whether looking for a path would contact another machine, to which Windows sends the user's
    name."""
    return path.startswith(("//", "\\\\"))


def notes(file: Path, record: Record, checkpoint: Checkpoint, named: bool,
          device: str) -> Iterator[str]:
    """What differs from when the file was made. named: whether the command line names the
    checkpoint. UserError if it does not, and the record's checkpoint has changed."""
    if (found := checkpoint.sha256()) != record.checkpoint_digest:
        other = f"{file} was made with another checkpoint than {checkpoint.path}"
        if not named:
            digests = f"sha256 {record.checkpoint_digest[:16]}, now {found[:16]}"
            raise UserError(f"{other} as it is now ({digests}); name the one to use: --ckpt FILE")
        yield f"{other}, so this will be another video"
    now = {"device": device_of(device).type,
           **{key: versions()[key] for key in ("torch", "zerosmooth")}}
    then = {"device": record.device.partition(":")[0], "torch": record.torch,
            "zerosmooth": record.zerosmooth}
    if now["device"] == "cpu":
        then["threads"], now["threads"] = str(record.threads), str(torch.get_num_threads())
    if differ := [key for key in then if then[key] != now[key]]:
        was, here = (", ".join(f"{key} {of[key]}" for key in differ) for of in (then, now))
        yield printable(f"it was made with {was}, here with {here}: frames may differ by rounding")
