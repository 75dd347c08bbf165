"""Opens the files that checkpoints are published in, one tensor at a time, and says what is wrong with a file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from zerosmooth.checkpoint import FORMAT, CheckpointError, is_pickle, read_header

from .engine import ConversionError


@dataclass(frozen=True)
class Source:
    """A published checkpoint. shapes: of its tensors; read: one of them."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


def open_source(path: Path) -> Source:
    """ConversionError, with what the file looks like instead, if it is no whole checkpoint."""
    if not path.exists():
        raise ConversionError(f"{path} does not exist")
    if path.is_dir():
        raise ConversionError(f"{path} is a folder; give the checkpoint file in it")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise ConversionError(f"{path} is empty; download it again")
    if is_pickle(path):
        return _open_pickle(path)
    if head[8:9] == b"{":
        return _open_safetensors(path)
    kind = (
        "a web page" if head.lstrip().lower().startswith((b"<!doc", b"<html")) else "neither a pickle nor safetensors"
    )
    pointer = "; it is a Git LFS pointer, not the file itself" if head.startswith(b"version https://") else ""
    raise ConversionError(f"{path} is {kind}{pointer}; download it again")


def _open_safetensors(path: Path) -> Source:
    try:
        header, metadata = read_header(path)
    except CheckpointError as error:
        raise ConversionError(str(error)) from error
    if metadata.get("format") == FORMAT:
        raise ConversionError(
            f"{path} is converted already ({metadata.get('family')}); sample.py --ckpt {path} takes it"
        )
    file = safe_open(path, "pt")
    return Source(path, {name: tuple(entry["shape"]) for name, entry in header.items()}, file.get_tensor)


def _open_pickle(path: Path) -> Source:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{path} holds Python objects besides tensors, or is damaged, and is not read further: {first}. "
            "If you trust it, load it yourself and save its state_dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"{path} cannot be read, it is cut off or damaged ({first}); download it again"
        ) from error
    for key in ("state_dict", "module"):  # Lightning's name for the weights, and DeepSpeed's
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        name.removeprefix("_forward_module."): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, Tensor)
    }
    return Source(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
