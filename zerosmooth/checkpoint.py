"""Checkpoint files: one safetensors file that says of itself what it is.

Its metadata holds the format's version, the family, the full config, and where it comes from; its tensors are those
of `pipeline.Networks`, by name. `describe` looks at any file and says what it is, without reading its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .config import FAMILIES, ModelConfig
from .pipeline import Networks, Pipeline

FORMAT, VERSION = "zerosmooth", "1"
DEFAULT = "vc2-small"  # ships with the package
SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


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
class Checkpoint:
    """A checkpoint's header. shapes: of its tensors. source, source_sha256: the file it was converted from."""

    path: Path
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    dtype: str  # of its tensors, as safetensors calls it: "F32", "F16" or "BF16"
    bytes: int
    source: str
    source_sha256: str

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


def find(name: str | Path) -> Path:
    """The file of a checkpoint given by path, or by the name of one that ships with the package."""
    path = Path(name)
    if path.exists() or path.suffix:
        return path
    return Path(str(files("zerosmooth"))) / "assets" / f"{name}.safetensors"


def shipped() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(path.stem for path in (Path(str(files("zerosmooth"))) / "assets").glob("*.safetensors"))


def is_pickle(path: Path) -> bool:
    """Whether a file starts as `torch.save` files do, zipped or not, and not as safetensors do."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80")


def read_header(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Tensors' entries and metadata of a safetensors file. CheckpointError if it is not a whole one."""
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; give a converted checkpoint, or one that ships with this: {', '.join(shipped())}"
        )
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


def describe(path: Path) -> Checkpoint:
    """What a checkpoint file is, checked against the networks its config asks for. Reads the header only.

    CheckpointError if it is anything else than a whole checkpoint of ours.
    """
    header, metadata = read_header(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a converted checkpoint: it looks like {looks_like(header)}; "
            "convert it first: python -m weights_convert --help"
        )
    if metadata.get("format_version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata.get('format_version')}, this code reads {VERSION}; convert it again"
        )
    if metadata.get("family") not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{path} is of family {metadata.get('family')}, which this code does not know: {known}")
    try:
        config = ModelConfig.from_json(metadata["config"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} has a config that cannot be read ({error}); convert it again") from error
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    expected = tensor_shapes(config)
    problems = [f"lacks {n}" for n in expected.keys() - shapes.keys()]
    problems += [f"has an unexpected {n}" for n in shapes.keys() - expected.keys()]
    problems += [f"{n} is {shapes[n]} for {s}" for n, s in expected.items() if n in shapes and shapes[n] != s]
    if problems:
        raise CheckpointError(f"{path} does not fit its config: {'; '.join(sorted(problems)[:3])}; convert it again")
    dtypes = {entry["dtype"] for entry in header.values()}
    if len(dtypes) != 1 or not dtypes <= set(NAMES.values()):
        raise CheckpointError(f"{path} has tensors of {', '.join(sorted(dtypes))}; one of F32, F16, BF16 is needed")
    offset = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        end = offset + prod(entry["shape"]) * SIZES[entry["dtype"]]
        if entry["data_offsets"] != [offset, end]:
            raise CheckpointError(f"{path} is damaged: {name} does not lie where its shape says; convert it again")
        offset = end
    source = metadata.get("source", ""), metadata.get("source_sha256", "")
    return Checkpoint(path, config, shapes, dtypes.pop(), path.stat().st_size, *source)


def looks_like(names: Iterable[str]) -> str:
    """What the tensor names of somebody's checkpoint look like."""
    names = list(names)
    for part, what in LOOKS.items():
        if any(part in name for name in names):
            return what
    return f"nothing known here; its first tensors are {', '.join(names[:3]) or 'missing'}"


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the networks of a config have; builds nothing."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Networks(config).state_dict().items()}


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def load(name: str | Path = DEFAULT, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Pipeline:
    """A pipeline from a checkpoint, given by path or by the name of one that ships with the package.

    dtype: of the networks; None: float32 on the CPU, float16 elsewhere. CheckpointError if the file will not do.
    """
    checkpoint = describe(find(name))
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    with torch.device("meta"):
        networks = Networks(checkpoint.config)
    dtypes = networks.dtypes(dtype)
    with safe_open(checkpoint.path, "pt") as file:  # cast before they move: a GPU never holds the file's precision
        tensors = {key: file.get_tensor(key).to(dtypes[key]).to(device) for key in checkpoint.shapes}
    networks.load_state_dict(tensors, assign=True)
    return Pipeline(checkpoint.config, networks)


def save(
    path: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    source: str,
    source_sha256: str,
) -> None:
    """Write a checkpoint, one tensor after the other, so that it never stands in memory whole.

    tensors: all of `tensor_shapes(config)`, in its order. Nothing is left at `path` if it fails.
    """
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": VERSION,
            "family": config.family,
            "config": config.to_json(),
            "source": source,
            "source_sha256": source_sha256,
        }
    }
    offset = 0
    for name, shape in tensor_shapes(config).items():
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for (name, tensor), expected in zip(tensors, tensor_shapes(config)):
                if name != expected:
                    raise AssertionError(f"{name} came where {expected} belongs")
                file.write(tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)
        if part.stat().st_size != 8 + len(text) + offset:
            raise AssertionError(f"{part.stat().st_size} bytes written, {8 + len(text) + offset} announced")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
