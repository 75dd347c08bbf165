"""The outside of checkpoint files: what they are, by their first bytes, their header and the names of their tensors."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path

FORMAT, VERSION = "zerosmooth", "1"


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


def is_pickle(path: Path) -> bool:
    """Whether a file starts as `torch.save` files do, zipped or not, and not as safetensors do."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80")


def read_header(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Tensors' entries and metadata of a safetensors file. CheckpointError if it is not a whole one."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; convert it first: python -m weights_convert --help")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty; download or convert it again")
    if is_pickle(path):
        raise CheckpointError(f"{path} is a PyTorch pickle; convert it first: python -m weights_convert --help")
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise CheckpointError(f"{path} is not a safetensors file, or it is cut off; download or convert it again")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    if size != end:
        raise CheckpointError(
            f"{path} has {size:,} bytes where its header asks for {end:,}: it is cut off; download or convert it again"
        )
    return header, metadata


def looks_like(names: Iterable[str]) -> str:
    """What the tensor names of somebody's checkpoint look like."""
    names = list(names)
    for part, what in LOOKS.items():
        if any(part in name for name in names):
            return what
    return f"nothing known here; its first tensors are {', '.join(names[:3]) or 'missing'}"


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
