"""Converts a published checkpoint into one safetensors file for sample.py.

    python -m weights_convert vc2 model.ckpt -o vc2.safetensors
    python -m weights_convert vc1 model.ckpt -o vc1.safetensors --dtype float16
    python -m weights_convert lavie lavie_base.pt --sd stable-diffusion-v1-4/ -o lavie.safetensors
    python -m weights_convert svd svd_xt.safetensors -o our_svd_xt.safetensors
    python -m weights_convert svd stable-video-diffusion-img2vid/ -o our_svd.safetensors
    python -m weights_convert --family my_family.py SOURCE -o mine.safetensors

Every tensor of the source is placed, or dropped by name; anything else is an error, and then
nothing is written. `python -m weights_convert FAMILY --help` says what else a family's files need.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from math import prod
from pathlib import Path

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch loads
    import zerosmooth  # noqa: F401  before torch, whose threads are told how to wait

import torch
from tqdm import tqdm

from zerosmooth.checkpoint import save, try_out
from zerosmooth.families import FAMILIES
from zerosmooth.family import Family, load_family
from zerosmooth_cli.command import run_command

from .engine import ConversionError
from .source import SETS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse(argv: list[str]) -> tuple[Family, argparse.Namespace]:
    """The family, and the arguments, some of which are its own. UserError if there is none."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--family")
    name = first.parse_known_args(argv)[0].family
    named = next((word for word in argv if word in FAMILIES), None)
    family = FAMILIES.get(named or "") if name is None else load_family(name, FAMILIES)
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--family", metavar="FILE", help="Python file or module that defines another family")
    if name is None:
        add("name", metavar="FAMILY", choices=FAMILIES, help=", ".join(FAMILIES))
    add("source", type=Path, help="the published checkpoint: a file, or a folder")
    add("-o", "--output", type=Path, required=True, help="the safetensors file to write")
    add("--dtype", choices=DTYPES, default="float32",
        help="of the written tensors (default: float32)")
    add("--overwrite", action="store_true", help="replace the output file if it exists")
    add("--weights", choices=SETS, help="which ones, of a file that holds both the weights and "
                                        "their running average")
    if family is not None:
        family.conversion.add_arguments(parser)
    args = parser.parse_args(argv)
    return family or FAMILIES[args.name], args


def convert_to_file(family: Family, args: argparse.Namespace) -> int:
    """Check all that can be checked, then write. ConversionError for what will not do."""
    output, dtype = args.output, DTYPES[args.dtype]
    if output.suffix != ".safetensors":
        raise ConversionError(f"the output {output} must end in .safetensors")
    if output.exists() and not output.is_file():
        what = "a folder" if output.is_dir() else "no regular file"
        raise ConversionError(f"the output {output} is {what}; name a file")
    if output.exists() and not args.overwrite:
        raise ConversionError(f"{output} exists; add --overwrite to replace it")
    if not output.absolute().parent.is_dir():
        raise ConversionError(f"the folder of {output} does not exist")
    if not os.access(output.absolute().parent, os.W_OK):
        raise ConversionError(f"the folder of {output} cannot be written to")
    source = family.conversion.open(args.source, args)
    if output.exists() and any(output.samefile(file) for file in source.files):
        raise ConversionError(f"{output} is the source itself; write to another file")
    if args.weights and not source.chosen:
        raise ConversionError(f"{source.name} holds one set of weights alone; leave --weights out")
    if source.chosen:
        other = SETS[source.chosen == "plain"]
        print(f"{source.name} holds the weights and their running average (ema): {source.chosen} "
              f"is taken; --weights {other} takes the other")
    config = family.conversion.variant(family.config, source, args)
    try:
        shapes = try_out(family, config)
    except ValueError as error:
        raise ConversionError(f"the configs of {source.path} do not fit: {error}") from error
    size = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
    free = shutil.disk_usage(output.absolute().parent).free
    if free < size * 1.01:
        raise ConversionError(
            f"{output} needs {size / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free")
    tensors = family.conversion.tensors(family.name, source.checked(dtype), config, shapes)
    bar = tqdm(tensors, total=len(shapes), desc=family.name, unit=" tensors")
    save(output, family, config, bar, dtype, source.name, source.sha256())
    print(f"{output}: {output.stat().st_size / 1e9:.2f} GB, {len(shapes)} tensors as {args.dtype}")
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command("weights_convert", lambda: convert_to_file(*parse(argv)),
                       "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
