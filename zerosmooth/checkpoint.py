"""Checkpoint files: safetensors files that say themselves what they are.

The metadata holds the format's version, the family, the full config and the source; the tensors
are those of `family.Networks`, by name. `describe` checks a file without reading its tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import prod
from pathlib import Path

import torch
from einops import EinopsError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import LETTERS, ModelConfig
from .families import FAMILIES
from .family import Family, Networks
from .fields import UserError, near
from .files import one_line, whole
from .guidance import Guidance, Inputs
from .pipeline import Pipeline
from .settings import Settings, default_dtype, device_of, settings_for

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
    "condition_embedder": "Wan 2.1 (weights_convert --family examples.wan FOLDER)",
    "head.modulation": "Wan 2.1 (weights_convert --family examples.wan FOLDER)",
    "temporal_transformer_blocks":
        "Stable Video Diffusion in diffusers' layout (weights_convert svd FOLDER)",
    "attn_temp": "LaVie (weights_convert lavie)",
    "image_proj_model": "VideoCrafter's image-to-video model",
    "relative_position_k": "VideoCrafter1 (weights_convert vc1)",
    "temopral_conv": "VideoCrafter2 (weights_convert vc2)",
    "model.diffusion_model.": "Stable Diffusion for images",
}
ASSETS = Path(str(files("zerosmooth"))) / "assets"
DEFAULT = "vc2-small"  # ships with the package
PENDING = "tensors-sha256-".ljust(64, "-")  # stands in the header until the tensors are written
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
Shapes = dict[str, tuple[int, ...]]


class CheckpointError(UserError):
    """A file is not a checkpoint that can be loaded; the text says why, and what to do."""


@dataclass(frozen=True)
class Header:
    """Of a safetensors file. dtypes: as safetensors writes them, "F32"; start: of the tensors'
    bytes in the file."""

    shapes: Shapes
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's header. source, source_sha256: the file that it was converted from."""

    path: Path
    family: Family
    config: ModelConfig
    shapes: Shapes = field(repr=False)  # of its tensors
    dtype: str  # of its tensors, as safetensors writes it: "F32", "F16" or "BF16"
    bytes: int
    source: str
    source_sha256: str
    tensors_sha256: str  # of the tensors' bytes; empty in files of older versions
    start: int  # of the tensors' bytes in the file
    words: tuple[str, ...] = ()  # of the prompts that it was trained on; none if it knows any

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that it was not trained on, each once."""
        said = dict.fromkeys(re.findall(r"\w+", prompt.lower()))
        return [word for word in said if word not in self.words] if self.words else []

    def sha256(self) -> str:
        """The digest that identifies the file: of its header, which holds the tensors' digest, so
        that they need not be read; of the whole file where the header lacks it."""
        return sha256(self.path, 0, self.start if self.tensors_sha256 else None)

    def lengths(self, settings: Settings) -> list[int]:
        """How many frames each stage's video has."""
        cascade = settings.cascade
        latents = [cascade.frames_of(stage) for stage in range(cascade.stages)]
        return [self.family.frames(self.config, f) for f in latents]

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


def find(name: str | Path) -> Path:
    """The file of a checkpoint given by path, or by the name of one that ships with the package."""
    path = Path(name)
    return path if path.exists() or path.suffix else ASSETS / f"{name}.safetensors"


def shipped() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def describe(path: str | Path, family: Family | None = None) -> Checkpoint:
    """Read a checkpoint's header, and check it against the networks that its config describes.

    path: or the name of one that ships; family: the file's, if it is not a built-in one.
    CheckpointError if the file is anything but a whole checkpoint of ours.
    """
    asked, path = Path(path), find(path)
    if not path.exists():
        own, beside = shipped(), asked.parent.glob("*.safetensors")
        hint = f"give a converted checkpoint, or one that ships with this: {', '.join(own)}"
        raise CheckpointError(f"{asked} does not exist; {near(str(asked), [*own, *beside], hint)}")
    header = read_header(path)
    metadata, shapes, dtypes = header.metadata, header.shapes, set(header.dtypes.values())
    known = FAMILIES if family is None else {family.name: family}
    name, version = metadata.get("family", ""), metadata.get("format_version", "")
    problem = None
    if metadata.get("format") != FORMAT:
        problem = f"is not a converted checkpoint: it looks like {looks_like(shapes)}; {CONVERT}"
    elif version != VERSION:
        problem = f"has format version {version[:40]!r}, not {VERSION!r}; convert it again"
    elif name not in known:
        problem = (f"is of family {name[:40]!r}, not {', '.join(known)}; add --family with the "
                   "file that defines it")
    elif len(dtypes) != 1 or not dtypes <= set(NAMES.values()):
        problem = (f"has tensors of {', '.join(sorted(dtypes))}; one of F32, F16, BF16 is needed: "
                   "convert it again")
    if problem:
        raise CheckpointError(f"{path} {problem}")
    try:
        config = known[name].config.like(metadata.get("config", ""))
        if config.family != name:
            raise UserError(f"it is of family {config.family[:40]!r}, the file of {name!r}")
        expected = try_out(known[name], config)
    except ValueError as error:
        raise CheckpointError(f"{path} has an invalid config: {error}; convert it again") from error
    problems = [f"lacks {n}" for n in expected.keys() - shapes.keys()]
    problems += [f"has an unexpected {n}" for n in shapes.keys() - expected.keys()]
    problems += [f"has {n} of {shapes[n]} for {expected[n]}"
                 for n in expected.keys() & shapes.keys() if shapes[n] != expected[n]]
    if problems:
        raise CheckpointError(f"{path} has tensors that do not fit its config: it "
                              f"{', '.join(sorted(problems)[:3])}; convert it again")
    source, source_sha256, tensors_sha256 = (
        metadata.get(key, "") for key in ("source", "source_sha256", "tensors_sha256"))
    return Checkpoint(path, known[name], config, shapes, dtypes.pop(), path.stat().st_size,
                      source, source_sha256, tensors_sha256, header.start,
                      tuple(re.findall(r"\w+", metadata.get("words", "")[:LETTERS])))


def try_out(family: Family, config: ModelConfig) -> Shapes:
    """Run a config's networks on two small frames, without data. Returns `tensor_shapes`.

    ValueError if they do not fit together, or if the config's own settings do not fit them.
    """
    try:
        settings = settings_for(family, config)
        with torch.device("meta"), torch.no_grad():
            networks = Networks(family, config)
            pixels = torch.empty(1, 3, 16 * config.side, 16 * config.side)
            branches = family.branches(networks, Inputs([""], pixels, pixels), settings)
            condition = family.condition(config, settings.fps, settings)
            latents = [side // config.vae.factor for side in pixels.shape[2:]]
            x = torch.empty(1, 2, config.vae.latent_channels, *latents)
            guided = Guidance(networks.unet, branches, settings)
            networks.vae.decode(guided(x, 1.0, condition, None)[0])
    except (RuntimeError, ArithmeticError, LookupError, EinopsError) as error:
        raise UserError(f"its networks do not fit together ({one_line(error)})") from error
    return {name: tuple(x.shape) for name, x in networks.state_dict().items()}


def tensor_shapes(family: Family, config: ModelConfig) -> Shapes:
    """Names and shapes of the tensors of a config's networks, which are not allocated."""
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in Networks(family, config).state_dict().items()}


def check_digest(checkpoint: Checkpoint) -> None:
    """CheckpointError if the tensors are not those that were written, as far as the file tells."""
    path, written = checkpoint.path, checkpoint.tensors_sha256
    if written and written != sha256(path, checkpoint.start):
        raise CheckpointError(f"{path} is damaged: it has other tensors than were written to it; "
                              f"{AGAIN}")


def read_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file, by name. CheckpointError, first, as `check_digest`; where the file has
    no digest, for a matrix of zeros, as damage leaves it."""
    check_digest(checkpoint)
    with safe_open(checkpoint.path, "pt") as file:
        for name in checkpoint.shapes:
            x = file.get_tensor(name)
            if not checkpoint.tensors_sha256 and x.ndim > 1 and not x.any():
                raise CheckpointError(f"{checkpoint.path} has zeros alone in {name}, and no digest "
                                      "that tells whether it is whole; convert it again")
            yield name, x


def check_tensors(checkpoint: Checkpoint) -> None:
    """Read all tensors of a file. CheckpointError as `read_tensors`, and for NaN or infinity."""
    for name, x in read_tensors(checkpoint):
        if not torch.isfinite(x).all():
            raise CheckpointError(
                f"{checkpoint.path} has NaN or infinity in {name}; convert it again")


def load(name: str | Path = DEFAULT, device: str | torch.device = "cpu",
         dtype: torch.dtype | None = None, family: Family | None = None) -> Pipeline:
    """A pipeline from a checkpoint, given by path or by the name of one that ships with the code.

    dtype: of the networks; None: `default_dtype`. family: see `describe`. CheckpointError if the
    file is no such checkpoint; UserError for a device that is not there, or another dtype.
    """
    return load_described(describe(name, family), device, dtype)


def load_described(checkpoint: Checkpoint, device: str | torch.device,
                   dtype: torch.dtype | None = None) -> Pipeline:
    """As `load`, from what `describe` returned. CheckpointError as `read_tensors`, too."""
    device = device_of(device)
    dtype = getattr(torch, default_dtype(device)) if dtype is None else dtype
    if dtype not in NAMES:
        raise UserError(f"dtype={dtype!r}; use one of {', '.join(map(str, NAMES))}")
    with torch.device("meta"):
        networks = Networks(checkpoint.family, checkpoint.config).cast(dtype)
    dtypes = {name: x.dtype for name, x in networks.state_dict().items()}
    tensors = {}
    for name, x in read_tensors(checkpoint):  # cast on the CPU: a GPU holds `dtype` alone
        tensors[name] = x = x.to(dtypes[name]).to(device)
        if not torch.isfinite(x).all():
            raise CheckpointError(
                f"{checkpoint.path}: {name} has NaN, infinity or values beyond the range of "
                f"{x.dtype}; sample.py --check tells which: convert it again, or use --dtype "
                "bfloat16 or float32")
    networks.load_state_dict(tensors, assign=True)
    return Pipeline(checkpoint.family, checkpoint.config, networks)


def save(path: Path, family: Family, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]],
         dtype: torch.dtype, source: str, source_sha256: str, words: Sequence[str] = ()) -> None:
    """Write a checkpoint tensor by tensor, so that it need not fit into memory.

    tensors: all of `tensor_shapes(family, config)`, in its order; words: see `Checkpoint`. Nothing
    is left at `path` if it fails.
    """
    header: dict[str, object] = {"__metadata__": {
        "format": FORMAT, "format_version": VERSION, "family": family.name,
        "config": config.to_json(), "source": source, "source_sha256": source_sha256,
        "tensors_sha256": PENDING, **({"words": " ".join(words)} if words else {})}}
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
        for (name, x), (expected, shape) in zip(tensors, shapes.items(), strict=True):
            if name != expected or x.shape != shape:
                raise AssertionError(f"{name} of {tuple(x.shape)} for {expected} of {shape}")
            x = x.detach().to("cpu", dtype).contiguous()
            content = x.flatten().view(torch.uint8).numpy().data
            digest.update(content)
            file.write(content)
        file.seek(8 + text.index(PENDING.encode()))
        file.write(digest.hexdigest().encode())
