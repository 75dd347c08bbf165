"""Converts a published checkpoint into one safetensors file for sample.py.

    python -m weights_convert vc2 model.ckpt -o vc2.safetensors
    python -m weights_convert vc1 model.ckpt -o vc1.safetensors --dtype float16
    python -m weights_convert lavie lavie_base.pt --sd stable-diffusion-v1-4/ -o lavie.safetensors
    python -m weights_convert svd svd_xt.safetensors -o our_svd_xt.safetensors
    python -m weights_convert svd stable-video-diffusion-img2vid/ -o our_svd.safetensors

Every tensor of the source is placed, or dropped by name; anything else is an error, and then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from zerosmooth.checkpoint import looks_like, save, tensor_shapes
from zerosmooth.config import FAMILIES, ModelConfig
from zerosmooth.samplers import DDIMConfig

from . import lavie, svd, videocrafter
from .engine import ConversionError, convert
from .source import Source, join, open_folder, open_source

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TABLES = {"vc2": videocrafter.table, "vc1": videocrafter.table, "lavie": lavie.table, "svd": svd.table}


def open_family(family: str, path: Path, sd: Path | None) -> Source:
    """A family's source, whatever files it lies in. ConversionError if something is missing."""
    if (family == "lavie") != (sd is not None):
        raise ConversionError(
            "LaVie's file is its UNet only; add --sd with a Stable Diffusion 1.4 folder that has vae/ and text_encoder/"
            if sd is None
            else f"--sd is for LaVie; {family} needs no Stable Diffusion folder"
        )
    if sd is not None:
        return join(path, {"unet": open_source(path), **open_folder(sd, ("vae", "text_encoder"))})
    if family == "svd" and path.is_dir():
        return join(path, open_folder(path, ("unet", "vae", "image_encoder")))
    return open_source(path)


def convert_file(family: str, source: Source, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, read one at a time. ConversionError, at once, if the source is not this family's."""
    table = TABLES[family](config, source.shapes)
    try:
        tensors = convert(table, source.shapes, source.read, tensor_shapes(config))
        if family in ("vc2", "vc1"):
            check_schedule(source, config)
        if family == "lavie":
            check_rotary(source)
    except ConversionError as error:
        looks = looks_like(source.shapes)
        other = "; it is incomplete, or changed" if f"convert {family}" in looks else f". It looks like {looks}"
        raise ConversionError(f"{source.name} is not {family}: {error}{other}") from None
    return tensors


def frames_of(path: Path, asked: int | None) -> int:
    """Frames that a Stable Video Diffusion was trained on: as asked, as its folder's config says, or by its name.

    ConversionError if none of them tells.
    """
    if asked is not None:
        return asked
    config = path / "unet" / "config.json"
    if config.exists():
        try:
            return int(json.loads(config.read_text())["num_frames"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConversionError(f"{config} does not tell num_frames ({error}); add --num_frames 14 or 25") from error
    name = path.absolute().stem.lower()
    if re.search(r"(^|[-_])xt([-_]|$)", name):
        return 25
    if re.search(r"(^|[-_])(svd|img2vid)([-_]|$)", name):
        return 14
    raise ConversionError(f"{path} does not say which variant it is; add --num_frames 14, or 25 for an xt one")


def check_rotary(source: Source) -> None:
    """The rotary embedding's frequencies are dropped; but they must be the constants that they are taken for."""
    for name in source.shapes:
        if name.endswith("rotary_emb.freqs"):
            theirs = source.read(name).double().numpy()
            if not np.allclose(theirs, 10_000.0 ** (-np.arange(len(theirs)) / len(theirs)), atol=1e-3):
                raise ConversionError(f"the source has other rotary frequencies ({name})")


def check_schedule(source: Source, config: ModelConfig) -> None:
    """The schedule's buffers are dropped; but if they are there, they must be the family's."""
    assert isinstance(config.sampler, DDIMConfig)
    ours = {"alphas_cumprod": config.sampler.alphas_cumprod()}
    if config.sampler.data_scale != 1:
        ours["scale_arr"] = config.sampler.data_scales()
    elif "scale_arr" in source.shapes:
        raise ConversionError("the source scales its data (it has scale_arr), this family does not")
    for name, values in ours.items():
        if name in source.shapes:
            theirs = source.read(name).double().numpy()
            if len(theirs) < len(values) or not np.allclose(theirs[: len(values)], values, atol=1e-4):
                raise ConversionError(f"the source has another noise schedule ({name})")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m weights_convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=FAMILIES, help="what the source is")
    parser.add_argument("source", type=Path, help="the published checkpoint: a file, or for svd a diffusers folder too")
    parser.add_argument(
        "--sd", type=Path, help="lavie only: the Stable Diffusion 1.4 folder with vae/ and text_encoder/"
    )
    parser.add_argument(
        "--num_frames",
        type=int,
        choices=(14, 25),
        help="svd only: frames the model was trained on (default: as a folder's unet/config.json says; of a file, "
        "25 if xt is a word of its name, else 14 if svd is one)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the written tensors (default: float32)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    args = parser.parse_args()
    config, dtype = FAMILIES[args.family], DTYPES[args.dtype]
    try:
        if args.output.suffix != ".safetensors":
            raise ConversionError(f"the output {args.output} must end in .safetensors")
        if args.output.exists() and not args.overwrite:
            raise ConversionError(f"{args.output} exists; add --overwrite to replace it")
        if not args.output.absolute().parent.is_dir():
            raise ConversionError(f"the folder of {args.output} does not exist")
        if args.family == "svd":
            config = replace(config, unet=replace(config.unet, frames=frames_of(args.source, args.num_frames)))
        elif args.num_frames is not None:
            raise ConversionError(f"--num_frames is for svd; {args.family} has one variant")
        source = open_family(args.family, args.source, args.sd)
        if args.output.exists() and any(args.output.samefile(file) for file in source.files):
            raise ConversionError(f"{args.output} is the source itself; write to another file")
        shapes = tensor_shapes(config)
        size = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
        free = shutil.disk_usage(args.output.absolute().parent).free
        if free < size * 1.01:
            raise ConversionError(f"{args.output} needs {size / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free")
        tensors = convert_file(args.family, source, config)
        bar = tqdm(tensors, total=len(shapes), desc=args.family, unit=" tensors")
        save(args.output, config, bar, dtype, source.name, source.sha256())
    except (ConversionError, OSError) as error:
        print(f"weights_convert: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {args.output.stat().st_size / 1e9:.2f} GB, {len(shapes)} tensors as {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
