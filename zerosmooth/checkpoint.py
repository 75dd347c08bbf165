"""Checkpoint files: one safetensors file that says of itself what it is.

Its metadata holds the format's version, the family, the full config, and where it comes from; its tensors are those
of `pipeline.Networks`, by name. `describe` looks at any file and says what it is, without reading its tensors.
"""

from __future__ import annotations

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

from .config import ModelConfig
from .families import FAMILIES
from .family import Family, Networks
from .header import FORMAT, VERSION, CheckpointError, looks_like, read_header
from .pipeline import Pipeline

DEFAULT = "vc2-small"  # ships with the package
SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's header. shapes: of its tensors. source, source_sha256: the file it was converted from."""

    path: Path
    family: Family
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


def describe(path: Path, family: Family | None = None) -> Checkpoint:
    """What a checkpoint file is, checked against the networks its config asks for. Reads the header only.

    family: of the file, where it is none of those that are built in. CheckpointError if the file is anything else
    than a whole checkpoint of ours.
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
    name = metadata.get("family", "")
    known = FAMILIES if family is None else {family.name: family}
    if name not in known:
        raise CheckpointError(
            f"{path} is of family {name!r}, not {', '.join(known)}; add --family with the file that defines it"
        )
    family = known[name]
    try:
        config = family.config.like(metadata["config"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} has a config that cannot be read ({error}); convert it again") from error
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    expected = tensor_shapes(family, config)
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
    return Checkpoint(path, family, config, shapes, dtypes.pop(), path.stat().st_size, *source)


def tensor_shapes(family: Family, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the networks of a config have; builds nothing."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Networks(family, config).state_dict().items()}


def load(
    name: str | Path = DEFAULT,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    family: Family | None = None,
) -> Pipeline:
    """A pipeline from a checkpoint, given by path or by the name of one that ships with the package.

    dtype: of the networks; None: float32 on the CPU, float16 elsewhere. family: see `describe`. CheckpointError if the
    file will not do.
    """
    return load_described(describe(find(name), family), device, dtype)


def load_described(checkpoint: Checkpoint, device: str | torch.device, dtype: torch.dtype | None = None) -> Pipeline:
    """A pipeline from a checkpoint that was looked at."""
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    with torch.device("meta"):
        networks = Networks(checkpoint.family, checkpoint.config)
    dtypes = networks.dtypes(dtype)
    with safe_open(checkpoint.path, "pt") as file:  # cast before they move: a GPU never holds the file's precision
        tensors = {key: file.get_tensor(key).to(dtypes[key]).to(device) for key in checkpoint.shapes}
    networks.load_state_dict(tensors, assign=True)
    return Pipeline(checkpoint.family, checkpoint.config, networks)


def save(
    path: Path,
    family: Family,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    source: str,
    source_sha256: str,
) -> None:
    """Write a checkpoint, one tensor after the other, so that it never stands in memory whole.

    tensors: all of `tensor_shapes(family, config)`, in its order. Nothing is left at `path` if it fails.
    """
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": VERSION,
            "family": family.name,
            "config": config.to_json(),
            "source": source,
            "source_sha256": source_sha256,
        }
    }
    offset = 0
    for name, shape in tensor_shapes(family, config).items():
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for (name, tensor), expected in zip(tensors, tensor_shapes(family, config)):
                if name != expected:
                    raise AssertionError(f"{name} came where {expected} belongs")
                file.write(tensor.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy().data)
        if part.stat().st_size != 8 + len(text) + offset:
            raise AssertionError(f"{part.stat().st_size} bytes written, {8 + len(text) + offset} announced")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
