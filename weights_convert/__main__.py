"""Converts a published checkpoint into one safetensors file for sample.py.

    python -m weights_convert vc2 model.ckpt -o vc2.safetensors
    python -m weights_convert vc1 model.ckpt -o vc1.safetensors --dtype float16

Every tensor of the source is placed, or dropped by name; anything else is an error, and then nothing is written.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from zerosmooth.checkpoint import looks_like, save, sha256, tensor_shapes
from zerosmooth.config import FAMILIES, ModelConfig

from . import videocrafter
from .engine import ConversionError, convert
from .source import Source, open_source

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert_file(family: str, source: Source, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, read one at a time. ConversionError, at once, if the source is not this family's."""
    table = videocrafter.table(config.text.layers)
    try:
        tensors = convert(table, source.shapes, source.read, tensor_shapes(config))
        check_schedule(source, config)
    except ConversionError as error:
        raise ConversionError(
            f"{source.path} is not {family}: {error}. It looks like {looks_like(source.shapes)}"
        ) from None
    return tensors


def check_schedule(source: Source, config: ModelConfig) -> None:
    """The schedule's buffers are dropped; but if they are there, they must be the family's."""
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
    parser.add_argument("source", type=Path, help="the published checkpoint, a .ckpt or .safetensors file")
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
        source = open_source(args.source)
        shapes = tensor_shapes(config)
        size = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
        free = shutil.disk_usage(args.output.absolute().parent).free
        if free < size * 1.01:
            raise ConversionError(f"{args.output} needs {size / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free")
        tensors = convert_file(args.family, source, config)
        bar = tqdm(tensors, total=len(shapes), desc=args.family, unit=" tensors")
        save(args.output, config, bar, dtype, args.source.name, sha256(args.source))
    except (ConversionError, OSError) as error:
        print(f"weights_convert: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {args.output.stat().st_size / 1e9:.2f} GB, {len(shapes)} tensors as {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
