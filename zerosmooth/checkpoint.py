"""Checkpoint files: one safetensors file that says of itself what it is.

Its metadata holds the format's version, the family, the full config, and where it comes from; its tensors are those
of `family.Networks`, by name. `describe` looks at any file and says what it is, without reading its tensors.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path

import torch
from einops import EinopsError
from safetensors import safe_open
from torch import Tensor

from .config import ModelConfig
from .families import FAMILIES
from .family import Family, Networks
from .files import one_line, whole
from .guidance import Guidance, Inputs
from .header import FORMAT, VERSION, CheckpointError, looks_like, read_header, sha256
from .pipeline import Pipeline
from .settings import default_dtype, device_of, settings_for

DEFAULT = "vc2-small"  # ships with the package
PENDING = "tensors-sha256-".ljust(64, "-")  # its place, until the tensors are written
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's header. shapes: of its tensors. source, source_sha256: the file it was converted from.
    tensors_sha256: of its tensors' bytes, which begin at `start`; empty in files of before that was stored."""

    path: Path
    family: Family
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    dtype: str  # of its tensors, as safetensors calls it: "F32", "F16" or "BF16"
    bytes: int
    source: str
    source_sha256: str
    tensors_sha256: str = ""
    start: int = 0

    def sha256(self) -> str:
        """What tells the file from any other: the digest of its header, which holds that of its tensors, so that they
        need not be read; of the whole file where its header does not."""
        return sha256(self.path, 0, self.start if self.tensors_sha256 else None)

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
    """What a checkpoint file is, checked against the networks its config asks for, which are tried out without data.
    Reads the header only.

    family: of the file, where it is none of those that are built in. CheckpointError if the file is anything else
    than a whole checkpoint of ours.
    """
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a converted checkpoint: it looks like {looks_like(header.shapes)}; "
            "convert it first: python -m weights_convert --help"
        )
    if (version := metadata.get("format_version", "")) != VERSION:
        raise CheckpointError(
            f"{path} has format version {version[:40]!r}, this code reads {VERSION!r}; convert it again with this code"
        )
    name = metadata.get("family", "")
    known = FAMILIES if family is None else {family.name: family}
    if name not in known:
        raise CheckpointError(
            f"{path} is of family {name[:40]!r}, not {', '.join(known)}; add --family with the file that defines it"
        )
    family = known[name]
    try:
        config = family.config.like(metadata.get("config", ""))
        if config.family != name:
            raise ValueError(f"it is of family {config.family[:40]!r}, the file of {name!r}")
        expected = try_out(family, config)
    except ValueError as error:
        raise CheckpointError(f"{path} has a config that will not do: {error}; convert it again") from error
    shapes = header.shapes
    problems = [f"lacks {n}" for n in expected.keys() - shapes.keys()]
    problems += [f"has an unexpected {n}" for n in shapes.keys() - expected.keys()]
    problems += [f"has {n} of {shapes[n]} for {s}" for n, s in expected.items() if n in shapes and shapes[n] != s]
    if problems:
        raise CheckpointError(
            f"{path} has tensors that are not those of its config, so one of the two was changed: "
            f"it {', '.join(sorted(problems)[:3])}; convert it again"
        )
    dtypes = set(header.dtypes.values())
    if len(dtypes) != 1 or not dtypes <= set(NAMES.values()):
        raise CheckpointError(
            f"{path} has tensors of {', '.join(sorted(dtypes))}; one of F32, F16, BF16 is needed: convert it again"
        )
    source, source_sha256, tensors_sha256 = (
        metadata.get(key, "") for key in ("source", "source_sha256", "tensors_sha256")
    )
    size = path.stat().st_size
    return Checkpoint(
        path, family, config, shapes, dtypes.pop(), size, source, source_sha256, tensors_sha256, header.start
    )


def try_out(family: Family, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Build the networks of a config and run them once on two small frames, all without data. Returns the names and
    shapes of their tensors. ValueError if they do not fit together, or if the config's own settings do not fit them."""
    try:
        settings = settings_for(family, config)
        with torch.device("meta"), torch.no_grad():
            networks = Networks(family, config)
            pixels = torch.empty(1, 3, 16 * config.side, 16 * config.side)
            branches = family.branches(networks, Inputs([""], pixels, pixels), settings)
            told = family.condition(config, settings.fps, settings)
            latents = [side // config.vae.factor for side in pixels.shape[2:]]
            x = torch.empty(1, 2, config.vae.latent_channels, *latents)
            guided = Guidance(networks.unet, branches, settings)
            networks.vae.decode(guided(x, 1.0, None if told is None else told.to("meta"), None)[0])
    except (RuntimeError, ArithmeticError, LookupError, EinopsError) as error:
        raise ValueError(f"its networks do not fit together ({one_line(error)})") from error
    return {name: tuple(p.shape) for name, p in networks.state_dict().items()}


def check_tensors(checkpoint: Checkpoint) -> None:
    """Read all tensors of a file. CheckpointError if they are not those that were written, or hold NaN or infinity."""
    written = checkpoint.tensors_sha256
    if written and written != sha256(checkpoint.path, checkpoint.start):
        raise CheckpointError(f"{checkpoint.path} has other tensors than were written to it; convert it again")
    with safe_open(checkpoint.path, "pt") as file:
        for name in checkpoint.shapes:
            if not torch.isfinite(file.get_tensor(name)).all():
                raise CheckpointError(f"{checkpoint.path} has NaN or infinity in {name}; convert it again")


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

    dtype: of the networks; None: `default_dtype`. family: see `describe`. CheckpointError if the
    file will not do.
    """
    return load_described(describe(find(name), family), device, dtype)


def load_described(checkpoint: Checkpoint, device: str | torch.device, dtype: torch.dtype | None = None) -> Pipeline:
    """A pipeline from a checkpoint that was looked at. ValueError for a device that is not there, or another dtype."""
    device = device_of(device)
    dtype = getattr(torch, default_dtype(device)) if dtype is None else dtype
    if dtype not in NAMES:
        raise ValueError(f"dtype={dtype!r}; use one of {', '.join(map(str, NAMES))}")
    with torch.device("meta"):
        networks = Networks(checkpoint.family, checkpoint.config)
    dtypes = networks.dtypes(dtype)
    with safe_open(checkpoint.path, "pt") as file:  # cast before they move: a GPU never holds the file's precision
        tensors = {key: file.get_tensor(key).to(dtypes[key]).to(device) for key in checkpoint.shapes}
    for key, x in tensors.items():
        if not torch.isfinite(x).all():
            raise CheckpointError(
                f"{checkpoint.path}: {key} has NaN, infinity, or values beyond the range of {dtypes[key]}; "
                "sample.py --check tells which; in the last case use --dtype bfloat16 or float32"
            )
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
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "family": family.name,
        "config": config.to_json(),
        "source": source,
        "source_sha256": source_sha256,
        "tensors_sha256": PENDING,
    }
    header: dict[str, object] = {"__metadata__": metadata}
    shapes, offset = tensor_shapes(family, config), 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with whole(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, tensor), expected in zip(tensors, shapes, strict=True):
            if name != expected:
                raise AssertionError(f"{name} came where {expected} belongs")
            content = tensor.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(content)
            file.write(content)
        if file.tell() != 8 + len(text) + offset:
            raise AssertionError(f"{file.tell()} bytes written, {8 + len(text) + offset} announced")
        file.seek(8 + text.index(PENDING.encode()))
        file.write(digest.hexdigest().encode())
