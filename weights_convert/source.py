"""Opens the files and folders that checkpoints are published in, one tensor at a time, and says what is wrong."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from zerosmooth.header import FORMAT, CheckpointError, is_pickle, read_header, sha256

from .engine import ConversionError


@dataclass(frozen=True)
class Source:
    """A published checkpoint. shapes: of its tensors; read: one of them; files: that it lies in."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Of its files, for the record."""
        return " + ".join(_short(file) for file in self.files) if len(self.files) > 1 else self.files[0].name

    def sha256(self) -> str:
        """Of its file; of a list of their digests and names, as `sha256sum` prints it, if there are several."""
        if len(self.files) == 1:
            return sha256(self.files[0])
        lines = "".join(f"{sha256(file)}  {_short(file)}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of files in a Hugging Face folder
ENDS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")  # the first that is there is taken


def open_folder(path: Path, parts: tuple[str, ...]) -> dict[str, Source]:
    """The parts (subfolders) of a Hugging Face folder.

    ConversionError if one of them is missing.
    """
    if not path.is_dir():
        raise ConversionError(f"{path} is not a folder with {', '.join(parts)} in it")
    sources = {}
    for part in parts:
        names = [stem + end for end in ENDS for stem in STEMS]
        file = next((path / part / name for name in names if (path / part / name).exists()), None)
        if file is None:
            raise ConversionError(f"{path / part} has no weights; looked for {', '.join(names[:4])}, ..")
        sources[part] = open_source(file)
    return sources


def join(path: Path, sources: dict[str, Source]) -> Source:
    """Several sources as one; their names go before their tensors'."""
    shapes = {f"{part}.{name}": shape for part, source in sources.items() for name, shape in source.shapes.items()}

    def read(name: str) -> Tensor:
        part, _, rest = name.partition(".")
        return sources[part].read(rest)

    return Source(path, shapes, read, tuple(file for source in sources.values() for file in source.files))


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
    return Source(path, {name: tuple(entry["shape"]) for name, entry in header.items()}, file.get_tensor, (path,))


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
    for key in ("ema", "state_dict", "module"):  # LaVie's name for the weights, Lightning's, and DeepSpeed's
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        name.removeprefix("_forward_module.").removeprefix("module."): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, Tensor)
    }
    return Source(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__, (path,))


def _short(file: Path) -> str:
    return "/".join(file.absolute().parts[-2:])


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
