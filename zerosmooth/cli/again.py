"""Makes a video again, from the record in any of its files: what it says becomes what the flags say by default.

A record is not to be trusted: it may come with a video from anywhere. Its values are checked as any other settings;
code that it names is not run; files that it names are used if they have the digest that it names, too.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, find
from ..comments import read_comment
from ..config import build
from ..header import sha256
from ..results import versions
from ..settings import Running, Settings, device_of


@dataclass(frozen=True)
class Record:
    """What a file says of how it was made, as `results.Result` wrote it. threads: of the CPU; torch, zerosmooth: their
    versions."""

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
    compiled: bool = False  # apart, since `Running` asks for a compiler, which this machine may lack
    device: str = "cpu"
    threads: int = 0
    torch: str = ""
    zerosmooth: str = ""


LIKE = Record("", Settings(), (), 0)  # of the classes that one has


def read_record(file: Path) -> Record:
    """Of a video, picture or json of ours. ValueError, which says why, if there is none that can be used."""
    text = read_comment(file)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not {"checkpoint_digest", "settings", "seed"} <= values.keys():
        raise ValueError(
            f"{file} has no record of how it was made; give a video, picture or json as sample.py wrote it: other "
            "programs, and many websites, leave the record out when they save it again"
        )
    try:
        made = values.get("versions")
        if isinstance(made, dict):
            values |= {key: made[key] for key in ("torch", "zerosmooth") if key in made}
        if isinstance(running := values.get("running"), dict):
            running.pop("device", None)  # this machine may have none of that name
            values["compiled"] = running.pop("compile", False)
        return build(LIKE, {field.name: values[field.name] for field in fields(Record) if field.name in values})
    except ValueError as error:
        raise ValueError(f"{file} has a record that will not do: {error}") from error


def defaults(file: Path, record: Record, said: Namespace) -> dict[str, Any]:
    """What the flags of sample.py say where they were not given, by name. said: those that were. ValueError for a
    checkpoint or an image that is not there."""
    found: dict[str, Any] = {"seed": record.seed, "gif": file.suffix.lower() == ".gif"}
    found |= {name: value for name, value in asdict(record.running).items() if name != "device"}
    found["compile"] = record.compiled
    if said.prompt_file is None:
        found["prompt"] = record.prompt
    if record.image_sha256 is not None and said.image is None:
        found["image"] = _image(file, record)
    if record.play_fps and record.play_fps[0] != record.settings.fps and said.fps is None:
        n = said.scales or record.settings.cascade.scale_of(record.settings.cascade.stages - 1)
        found["save_fps"] = n * record.play_fps[0]  # the same seconds at any scale
    if said.ckpt is None:
        if _is_remote(record.checkpoint) or not find(record.checkpoint or "/").is_file():
            raise ValueError(
                f"{file} was made with the checkpoint {record.checkpoint}, which is not there; name it: --ckpt FILE"
            )
        found["ckpt"] = record.checkpoint
    return found


def _image(file: Path, record: Record) -> Path:
    """The image that a record names, where it was or beside the file."""
    name = Path(record.image or "").name
    places = [Path(path) for path in (record.image_path or "", file.parent / name) if not _is_remote(str(path))]
    there = [path for path in places if path.is_file()]
    if same := next((path for path in there if sha256(path) == record.image_sha256), None):
        return same
    what = f"{there[0]} is another one now" if there else "it is not there any more"
    raise ValueError(
        f"{file} was made from the image {record.image_path or name}, and {what}; name the image to use: --image FILE"
    )


def _is_remote(path: str) -> bool:
    """Whether to look for a path would ask another machine, which Windows does with the user's name."""
    return path.startswith(("//", "\\\\"))


def notes(file: Path, record: Record, checkpoint: Checkpoint, named: bool, device: str) -> Iterator[str]:
    """What is not as it was when the file was made. named: whether the checkpoint was named, not taken from the record.
    ValueError if it was not, and is another one now."""
    if (found := checkpoint.sha256()) != record.checkpoint_digest:
        other = f"{file} was made with another checkpoint than {checkpoint.path}"
        if not named:
            digests = f"sha256 {record.checkpoint_digest[:16]}, now {found[:16]}"
            raise ValueError(f"{other} as it is now ({digests}); name the one to use: --ckpt FILE")
        yield f"{other}, so this will be another video"
    kind = device_of(device).type
    then = {"device": record.device.partition(":")[0], "torch": record.torch, "zerosmooth": record.zerosmooth}
    now = {"device": kind, **{key: versions()[key] for key in ("torch", "zerosmooth")}}
    if kind == "cpu":
        then["threads"], now["threads"] = str(record.threads), str(torch.get_num_threads())
    if differ := [key for key in then if then[key] != now[key]]:
        was, here = (", ".join(f"{key} {of[key]}" for key in differ) for of in (then, now))
        yield f"it was made with {was}, here with {here}: frames may differ by rounding"
