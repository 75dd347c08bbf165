"""What checkpoint files are: by their first bytes, their header and the names of their tensors.

The header is checked by safetensors: types, sizes, and that tensors fill the file without gaps.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .fields import UserError
from .files import one_line

FORMAT, VERSION = "zerosmooth", "1"
CONVERT = "convert it first: python -m weights_convert --help"
AGAIN = "download or convert it again"
SAFETENSORS, PICKLE, JSON = "a safetensors file", "a PyTorch pickle", "JSON, a config or an index"
KINDS = (  # first bytes of a file, and what it is
    (rb"\Z", "empty"),
    (rb"GGUF", "a GGUF file, of quantised weights"),
    (rb".{8}\{", SAFETENSORS),
    (rb"PK|\x80", PICKLE),
    (rb"(?i)\s*<(!doc|html|\?xml)", "a web page"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (rb"\s*[{\[]", JSON),
    (rb"\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive"),
    (rb"\x89HDF|\x93NUMPY", "of another library (HDF5 or NumPy)"),
    (rb"", "neither a pickle nor safetensors"),
)
LOOKS = {  # parts of tensor names, and the published checkpoint that has them
    "time_stack": "Stable Video Diffusion in its authors' layout (weights_convert svd)",
    "caption_projection": "Latte (weights_convert --family examples/latte.py FOLDER)",
    "temporal_transformer_blocks":
        "Stable Video Diffusion in diffusers' layout (weights_convert svd FOLDER)",
    "attn_temp": "LaVie (weights_convert lavie)",
    "image_proj_model": "VideoCrafter's image-to-video model",
    "relative_position_k": "VideoCrafter1 (weights_convert vc1)",
    "temopral_conv": "VideoCrafter2 (weights_convert vc2)",
    "model.diffusion_model.": "Stable Diffusion for images",
}


class CheckpointError(UserError):
    """A file is not a checkpoint that can be loaded; the text says why, and what to do."""


@dataclass(frozen=True)
class Header:
    """Of a safetensors file. dtypes: as safetensors writes them, "F32"; start: of the tensors'
    bytes in the file."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    start: int


def file_kind(path: Path) -> str:
    """What a file is, by its first bytes. CheckpointError if it is no file or cannot be read."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not path.is_file():  # a pipe might never end
        what = "a folder" if path.is_dir() else "no regular file"
        raise CheckpointError(f"{path} is {what}; give a checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    return next(kind for pattern, kind in KINDS if re.match(pattern, head, re.DOTALL))


def read_header(path: Path) -> Header:
    """The header of a whole safetensors file. CheckpointError if it is anything else."""
    if (kind := file_kind(path)) != SAFETENSORS:
        raise CheckpointError(f"{path} is {kind}; {CONVERT if kind == PICKLE else AGAIN}")
    try:
        with safe_open(path, "pt") as tensors, path.open("rb") as file:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}
            return Header({name: tuple(x.get_shape()) for name, x in slices.items()},
                          {name: x.get_dtype() for name, x in slices.items()},
                          tensors.metadata() or {}, 8 + struct.unpack("<Q", file.read(8))[0])
    except (SafetensorError, OSError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{path} is cut off or damaged ({reason}); {AGAIN}") from error


def looks_like(names: Iterable[str]) -> str:
    """Which published checkpoint has tensors of these names."""
    names = list(names)
    for part, what in LOOKS.items():
        if any(part in name for name in names):
            return what
    return f"nothing known here; its first tensors are {', '.join(names[:3]) or 'missing'}"


def sha256(path: Path, start: int = 0, end: int | None = None) -> str:
    """The digest of a file's bytes from `start` to before `end` (None: all), in hexadecimal."""
    digest, left = hashlib.sha256(), path.stat().st_size if end is None else end - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
