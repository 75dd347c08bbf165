"""Opens the files and folders that checkpoints are published in, one tensor at a time, and says
what is wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zerosmooth.checkpoint import (
    FORMAT,
    JSON,
    PICKLE,
    SAFETENSORS,
    CheckpointError,
    file_kind,
    read_header,
    sha256,
)

from .engine import ConversionError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of files in a Hugging Face folder
ENDS = (  # the first one found is taken; an index names the shards that a file was cut into
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".fp16.safetensors",
    ".safetensors.index.fp16.json", ".fp16.safetensors.index.json", ".fp16.bin")
WRAPPERS = ("ema", "state_dict", "module", "model")  # keys of dicts around the weights
# in names of networks that were wrapped for training, or compiled
WRAPPED = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_forward_module)\.")
AVERAGED = "model_ema."
SETS = ("plain", "ema")  # of weights: as training left them, and their running average
LORA = r"(^|[._])(lora|hada|lokr)[._]"
LISTED = r"^\d+$"  # of tensors in a list
BARE = ("builtins bytearray", "__builtin__ bytearray")  # in a pickle: memory of any size
STEPS = 1_000_000  # of a pickle: a checkpoint takes some 40 a tensor, each up to 300 bytes
BETTER = "take the file in float16 or float32"
UNFIT = {  # a pattern that some name in a file matches, and what such a file is
    LORA: "holds a LoRA, not a whole checkpoint; merge it into its checkpoint and convert that",
    LISTED: "holds a list of tensors, without names; give the file with the network's weights",
    r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale)$":
        f"has weights scaled to 8-bit floats (fp8); {BETTER}",
    r"\.(absmax|quant_map|quant_state\..*|qweight|qzeros)$": f"has quantised weights; {BETTER}",
}


@dataclass(frozen=True)
class Source:
    """A published checkpoint. shapes: of its tensors; read: returns one of them; files: its own;
    chosen: which of SETS it is, where there are both; metadata: of a safetensors file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    files: tuple[Path, ...]
    chosen: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its files, for the record."""
        if len(self.files) == 1:
            return self.files[0].name
        return " + ".join(map(_short, self.files))

    def sha256(self) -> str:
        """Of its file; if there are several, of what `sha256sum` prints for them."""
        if len(self.files) == 1:
            return sha256(self.files[0])
        lines = "".join(f"{sha256(file)}  {_short(file)}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def checked(self, dtype: torch.dtype) -> Source:
        """The same, whose `read` raises a ConversionError at a tensor that `dtype` cannot hold."""
        return replace(self, read=lambda name: _finite(self.path, name, self.read(name), dtype))


def open_folder(path: Path, parts: tuple[str, ...]) -> dict[str, Source]:
    """The parts (subfolders) of a Hugging Face folder. ConversionError if one is missing."""
    if not path.is_dir():
        raise ConversionError(f"{path} is not a folder with {', '.join(parts)} in it")
    sources = {}
    for part in parts:
        names = [stem + end for end in ENDS for stem in STEMS]
        file = next((path / part / name for name in names if (path / part / name).exists()), None)
        if file is None:
            raise ConversionError(
                f"{path / part} has no weights; looked for {', '.join(names[:3])}, ..")
        sources[part] = open_source(file)
    return sources


def with_unet(source: Source, path: Path, prefixes: Mapping[str, str]) -> Source:
    """A source with another UNet, from a file of its own.

    prefixes: by layout, how some name in such a file begins -> what goes before all its names in a
    whole checkpoint. ConversionError if it is not of these.
    """
    unet = open_source(path)
    begins = next((begin for begin in prefixes
                   if any(name.startswith(begin) for name in unet.shapes)), None)
    whole = tuple(prefixes.values())
    if begins is None and not all(name.startswith(whole) for name in unet.shapes):
        raise ConversionError(
            f"{path} is no UNet of this family: nothing in it begins with {' or '.join(prefixes)}")
    theirs = {(prefixes[begins] if begins else "") + name: name for name in unet.shapes}
    shapes = {name: shape for name, shape in source.shapes.items() if not name.startswith(whole)}
    shapes |= {ours: unet.shapes[name] for ours, name in theirs.items()}

    def read(name: str) -> Tensor:
        return unet.read(theirs[name]) if name in theirs else source.read(name)

    return Source(source.path, shapes, read, (*source.files, *unet.files),
                  source.chosen or unet.chosen)


def join(path: Path, sources: dict[str, Source]) -> Source:
    """Several sources as one; their names come before their tensors' names."""
    shapes = {f"{part}.{name}": shape for part, source in sources.items()
              for name, shape in source.shapes.items()}

    def read(name: str) -> Tensor:
        part, _, rest = name.partition(".")
        return sources[part].read(rest)

    return Source(path, shapes, read,
                  tuple(file for source in sources.values() for file in source.files),
                  next((source.chosen for source in sources.values() if source.chosen), ""))


def open_source(path: Path, takes: tuple[str, ...] = (), weights: str | None = None) -> Source:
    """ConversionError, which says what it looks like, if a file is no whole checkpoint. takes: keys
    of UNFIT that are allowed; weights: which of SETS, if a file has both (None: those that its kind
    is published for)."""
    source = one_set(_open(path, weights), weights)
    for pattern, what in UNFIT.items():
        if pattern not in takes and any(re.search(pattern, name) for name in source.shapes):
            raise ConversionError(f"{path} {what}")
    return source


def one_set(source: Source, weights: str | None) -> Source:
    """Without the averages that a file holds beside its weights, as latent diffusion names them; or
    with them instead. ConversionError if those of its network are not all there."""
    shapes = {name: shape for name, shape in source.shapes.items() if not name.startswith(AVERAGED)}
    if len(shapes) == len(source.shapes):
        return source
    if weights != "ema":
        return replace(source, shapes=shapes, chosen="plain")
    twins = {name: AVERAGED + name.removeprefix("model.").replace(".", "") for name in shapes
             if name.startswith("model.")}
    for name, twin in twins.items():
        if source.shapes.get(twin) != source.shapes[name]:
            raise ConversionError(f"{source.name} lacks an average of {name}, {twin}; take its "
                                  "plain weights")
    return replace(source, shapes=shapes, chosen="ema",
                   read=lambda name: source.read(twins.get(name, name)))


def _open(path: Path, weights: str | None) -> Source:
    try:
        kind = file_kind(path)
        if kind == PICKLE:
            return _open_pickle(path, weights)
        if kind == SAFETENSORS:
            return _open_safetensors(path)
        if kind == JSON and ".index." in path.name:
            return _open_shards(path, weights)
    except ConversionError:
        raise
    except CheckpointError as error:
        raise ConversionError(str(error)) from error
    raise ConversionError(f"{path} is {kind}; download the checkpoint itself, again if need be")


def _open_safetensors(path: Path) -> Source:
    found = read_header(path)
    if found.metadata.get("format") == FORMAT:
        family = found.metadata.get("family", "")[:40]
        raise ConversionError(
            f"{path} is converted already ({family}); sample.py --ckpt {path} takes it")
    source = _unwrapped(path, found.shapes, safe_open(path, "pt").get_tensor)
    return replace(source, metadata=found.metadata)


def _open_pickle(path: Path, weights: str | None) -> Source:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        _measure(path, zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        tensors, chosen = _state_dict(content, weights)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ConversionError(f"{path} {_unreadable(error)}") from error
    if not tensors:
        keys = ", ".join(map(str, list(content)[:3]))[:99] if isinstance(content, dict) else ""
        what = f"a {type(content).__name__}{keys and f' of {keys}'}"
        raise ConversionError(f"{path} holds no tensors by name, but {what}; give the file with "
                              "the network's weights")
    return replace(_unwrapped(path, shapes, tensors.__getitem__), chosen=chosen)


def _measure(path: Path, zipped: bool) -> None:
    """ConversionError for a pickle that would take far more memory than its file: it is looked
    through before anything of it is made."""
    with path.open("rb") as file:
        streams: list[Any] = [file] * 5  # the older format has five, then the tensors
        if zipped:
            archive = zipfile.ZipFile(file)
            held = [x for x in archive.infolist() if re.search(r"(^|/)data(/|\.pkl$)", x.filename)]
            if any(entry.compress_type for entry in held):
                raise ConversionError(f"{path} is a compressed archive, as torch.save writes none; "
                                      "download it again, or load it and torch.save it")
            streams = [archive.open(x) for x in held if x.filename.endswith("data.pkl")]
        try:
            steps = chain.from_iterable(map(pickletools.genops, streams))
            large = any(i > STEPS or argument in BARE for i, (_, argument, _) in enumerate(steps))
        except (ValueError, pickle.UnpicklingError):
            return  # it is damaged, which reading it tells better
    if large:
        raise ConversionError(f"{path} holds far more than tensors (a pickle of over {STEPS:,} "
                              "steps, or bare memory); torch.save its state_dict alone")


def _state_dict(content: Any, weights: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors by name in what a pickle holds, taken out of the dicts around them; and which of
    SETS they are, if it holds both."""
    chosen = ""
    for _ in WRAPPERS:  # and no more: a dict may hold itself
        around = content if isinstance(content, dict) else {}
        inner = [x for key in WRAPPERS if isinstance(x := around.get(key), dict) and x]
        if len(inner) > 1 and inner[0] is around.get("ema"):
            chosen = weights or "ema"
            inner = inner[chosen == "plain" :]
        content = inner[0] if inner else content
    if isinstance(content, list):
        content = {str(i): x for i, x in enumerate(content)}
    items = content.items() if isinstance(content, dict) else ()
    return {name: x for name, x in items if isinstance(name, str) and isinstance(x, Tensor)}, chosen


def _unreadable(error: Exception) -> str:
    """What to tell of a pickle that torch cannot read, whose own words are for programmers."""
    text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
    if found := re.search(r"GLOBAL (\S+)", text):
        return (f"holds Python objects besides tensors ({found[1][:80]}), which could run code, "
                "and is not read; if you trust it, load it and torch.save its state_dict alone")
    if "TorchScript" in text:
        return "is a TorchScript program, not a checkpoint; download the weights it was made from"
    first = re.split(r"(?<=\.)\s|\n", text)[0] or type(error).__name__
    return f"cannot be read, it is cut off or damaged ({first[:200]}); download it again"


def _open_shards(path: Path, weights: str | None) -> Source:
    """The files that an index names, as one."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        if not names or any(Path(name).name != name or len(name) > 255 for name in names):
            raise ValueError("it names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(
            f"{path} is no index of shards ({error}); download it again") from error
    shards = [_open(path.parent / name, weights) for name in names]
    owner = {name: shard for shard in shards for name in shard.shapes}
    if missing := [name for name in places if WRAPPED.sub("", name) not in owner]:
        raise ConversionError(f"{path} names tensors that its files lack, {missing[0][:80]} for "
                              "one; download it again")
    shapes = {name: shard.shapes[name] for name, shard in owner.items()}
    return Source(path, shapes, lambda name: owner[name].read(name),
                  tuple(shard.path for shard in shards),
                  next((shard.chosen for shard in shards if shard.chosen), ""))


def _unwrapped(path: Path, shapes: Mapping[str, tuple[int, ...]],
               read: Callable[[str], Tensor]) -> Source:
    """A file's tensors under the names that they had before something wrapped the network."""
    theirs = {WRAPPED.sub("", name): name for name in shapes}
    if len(theirs) < len(shapes):
        raise ConversionError(
            f"{path} has tensors both with and without module. in their names; save one of each")
    shapes = {ours: shapes[name] for ours, name in theirs.items()}
    return Source(path, shapes, lambda name: read(theirs[name]), (path,))


def _finite(path: Path, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    if not x.is_floating_point() or x.layout != torch.strided or x.is_meta:
        raise ConversionError(
            f"{path} has {name} as {x.dtype}, {x.layout}; plain floating-point numbers are needed")
    wide = x.float() if x.dtype.itemsize == 1 else x  # 8-bit floats know no isfinite
    if not torch.isfinite(wide).all():
        raise ConversionError(
            f"{path} has NaN or infinity in {name}; take another file, its training went wrong")
    if not torch.isfinite(wide.to(dtype)).all():
        raise ConversionError(
            f"{path} has numbers up to {wide.abs().max():.3g} in {name}, and {dtype} ends at "
            f"{torch.finfo(dtype).max:.3g}; use --dtype bfloat16 or float32")
    return x


def _short(file: Path) -> str:
    return "/".join(file.absolute().parts[-2:])
