"""The outside of checkpoint files: what they are, by their first bytes, their header and the names of their tensors.

safetensors' own reader checks a header's types and sizes, and that the tensors fill the file without gaps or overlaps.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

FORMAT, VERSION = "zerosmooth", "1"
SAFETENSORS, PICKLE, JSON = "a safetensors file", "a PyTorch pickle", "JSON text, a config or an index"
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
)

LOOKS = {  # parts of tensor names, and the published checkpoint that has them
    "time_stack": "Stable Video Diffusion in its authors' layout (weights_convert svd)",
    "temporal_transformer_blocks": "Stable Video Diffusion in diffusers' layout (weights_convert svd FOLDER)",
    "attn_temp": "LaVie (weights_convert lavie)",
    "image_proj_model": "VideoCrafter's image-to-video model",
    "relative_position_k": "VideoCrafter1 (weights_convert vc1)",
    "temopral_conv": "VideoCrafter2 (weights_convert vc2)",
    "model.diffusion_model.": "Stable Diffusion for images",
}


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be loaded; the text says what it is instead and what to do."""


@dataclass(frozen=True)
class Header:
    """Of a safetensors file. dtypes: as it calls them, "F32"; start: of the tensors' bytes in the file."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    start: int


def file_kind(path: Path) -> str:
    """What a file is, by its first bytes. CheckpointError if it is no file, or cannot be read."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not path.is_file():  # to read a pipe or a device could take for ever
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; give a checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    return next(
        (kind for pattern, kind in KINDS if re.match(pattern, head, re.DOTALL)), "neither a pickle nor safetensors"
    )


def read_header(path: Path) -> Header:
    """Of a whole safetensors file. CheckpointError if it is anything else."""
    if (kind := file_kind(path)) != SAFETENSORS:
        todo = (
            "convert it first: python -m weights_convert --help" if kind == PICKLE else "download or convert it again"
        )
        raise CheckpointError(f"{path} is {kind}; {todo}")
    try:
        with safe_open(path, "pt") as file, path.open("rb") as start:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return Header(
                {name: tuple(x.get_shape()) for name, x in slices.items()},
                {name: x.get_dtype() for name, x in slices.items()},
                file.metadata() or {},
                8 + struct.unpack("<Q", start.read(8))[0],
            )
    except SafetensorError as error:
        size, end = path.stat().st_size, _announced_size(path)
        if end is None or size == end:
            what = f"has a damaged header ({str(error).rpartition(': ')[2][:80]})"
        else:
            what = f"{'is cut off' if size < end else 'has bytes too many'}: {size:,} of them, its header says {end:,}"
        raise CheckpointError(f"{path} {what}; download or convert it again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def _announced_size(path: Path) -> int | None:
    """Bytes of a file that safetensors refuses, as far as its header says, else None."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size - 8:
            return min(8 + length, 2**63)
        try:
            entries = json.loads(file.read(length))
            return 8 + length + max(int(x["data_offsets"][1]) for key, x in entries.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
            return None


def looks_like(names: Iterable[str]) -> str:
    """What the tensor names of somebody's checkpoint look like."""
    names = list(names)
    for part, what in LOOKS.items():
        if any(part in name for name in names):
            return what
    return f"nothing known here; its first tensors are {', '.join(names[:3]) or 'missing'}"


def sha256(path: Path, start: int = 0, end: int | None = None) -> str:
    """Of a file's bytes from `start` to before `end`, or to its end; in hexadecimal."""
    digest, left = hashlib.sha256(), path.stat().st_size if end is None else end - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
