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
import torch
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .pipeline import Video
from .video import enlargement, picture, write_video


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file, one a line; blank lines and # lines are skipped. ValueError if it has none."""
    if not path.is_file():
        raise ValueError(f"the prompt file {path} does not exist")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 text ({error})") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"the prompt file {path} has no prompts")
    return prompts


@dataclass(frozen=True)
class Result:
    """The files of one prompt or image and seed. settings: all that decides what the videos show."""

    folder: Path
    subject: str  # the prompt, or the image's file name
    seed: int
    settings: dict[str, Any]
    suffix: str = ".mp4"

    @property
    def stem(self) -> str:
        """The prompt or the image's name, the seed, and a digest of all settings."""
        return stem(self.subject, self.seed, [self.subject, self.seed, self.settings, self.suffix])

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

    def write(self, video: Video, play_fps: list[float], facts: dict[str, Any]) -> list[Path]:
        """Write a video a stage, a picture, and the record with `facts` in it too. Returns the videos' paths."""
        frames = [stage.numpy() for stage in video.frames]
        videos = [self.folder / f"{self.stem}_{len(x)}f{self.suffix}" for x in frames]
        for path, x, fps in zip(videos, frames, play_fps):
            write_video(path, x, fps)
        image = self.folder / f"{self.stem}.png"
        iio.imwrite(image, picture(frames, play_fps))
        record = {
            "image" if "image_sha256" in self.settings else "prompt": self.subject,
            "seed": self.seed,
            **self.settings,
            "frames": [len(x) for x in frames],
            "play_fps": play_fps,
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


def device_of(name: str | None) -> torch.device:
    """The device asked for, or a GPU where there is one. ValueError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is no device; use cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name} is neither cpu nor cuda, on which alone this is tested; use one of them")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def out_of_memory(error: RuntimeError) -> str | None:
    """What to tell if the device, or the machine, had no more memory, else None; on the CPU torch has no class of its
    own for that."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return None
    return f"the device is out of memory: {str(error).partition(chr(10))[0]}".rstrip(": ")


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """The precision asked for, or what suits the device."""
    return getattr(torch, name or ("float32" if device.type == "cpu" else "float16"))
