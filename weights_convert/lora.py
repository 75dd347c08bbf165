"""Low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685), merged into weights as they are
converted."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from math import prod
from pathlib import Path

from torch import Tensor

from .engine import ConversionError, Table
from .source import LISTED, LORA, Source, open_source

Named = Callable[[Source, Source], tuple[Source, Source]]
FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.default)?\.weight")
ALPHA = re.compile(r"(.+?)(?:[._]lora)?\.alpha")
WORDS = (  # of layers' names, where kohya's have no dots
    "down_blocks up_blocks mid_block transformer_blocks motion_modules temporal_transformer "
    "attention_blocks to_q to_k to_v to_out proj_in proj_out time_emb_proj conv_shortcut conv_in "
    "conv_out text_model self_attn q_proj k_proj v_proj out_proj").split()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--lora", type=Path, action="append", default=[], help="to merge; may be repeated")
    add("--lora_scale", type=float, action="append", default=[], help="of each --lora (default: 1)")


def merge(source: Source, table: Table, args: argparse.Namespace,
          named: Named = lambda *both: both) -> Source:
    """A source with the LoRAs that the command line asks for. named: gives both the names that
    `layer_of` knows. ConversionError if one does not fit."""
    scales = args.lora_scale or [1.0] * len(args.lora)
    if len(scales) != len(args.lora):
        raise ConversionError(
            f"{len(args.lora)} --lora and {len(scales)} --lora_scale; give one scale for each")
    for path, scale in zip(args.lora, scales):
        source = merged(*named(source, open_source(path, takes=(LORA, LISTED))), table, scale)
    return source


def layer_of(name: str) -> str:
    """The weight that a layer of a LoRA updates, named as in a folder of Stable Diffusion, or as in
    latent diffusion.

    name: as kohya's scripts, diffusers of any year, PEFT or AnimateDiff's authors write it.
    """
    for kohya, part in {"lora_unet_": "unet.", "lora_te_": "text_encoder."}.items():
        if name.startswith(kohya):
            name = part + name.removeprefix(kohya).replace("_", ".")
            for word in WORDS:
                name = name.replace(word.replace("_", "."), word)
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    if not name.startswith(("unet.", "text_encoder.", "model.diffusion_model.")):
        name = f"unet.{name}"
    return f"{name}.0.weight" if name.endswith("to_out") else f"{name}.weight"


def merged(source: Source, lora: Source, table: Table, scale: float) -> Source:
    """A source that reads each weight W as W + scale * alpha / rank * up @ down.

    alpha is the rank where the file has none. PEFT keeps it in another file: scale is then
    lora_alpha / r. Updates of weights that the table drops are ignored. ConversionError if a tensor
    of the LoRA has no place, or another shape.
    """
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for name in lora.shapes:
        if match := FACTOR.fullmatch(name) or ALPHA.fullmatch(name):
            kind = match[2] if match.re is FACTOR else "alpha"
            kind = {"A": "down", "B": "up"}.get(kind, kind)
            layers.setdefault(layer_of(match[1]), {})[kind] = name
        else:
            unknown.append(name)
    places = {place: name for name in source.shapes if (place := table.place(name)) is not None}
    updates = {}
    for layer, names in layers.items():
        if table.drops(layer):
            continue
        place = table.place(layer)
        changed = None if place is None else places.get(place)
        if changed is None or not {"down", "up"} <= names.keys():
            unknown += names.values()
            continue
        down, up = lora.shapes[names["down"]], lora.shapes[names["up"]]
        shape = source.shapes[changed]
        if (up[0], prod(up[1:]), prod(down[1:])) != (shape[0], down[0], prod(shape[1:])):
            raise ConversionError(
                f"{lora.name} has {layer} as {up} times {down}, for a weight of {shape}")
        updates[changed] = names
    if unknown or not updates:
        raise ConversionError(f"{lora.name} is no LoRA of these networks; {len(unknown)} of its "
                              f"tensors have no place: {unknown[:3]}")

    def read(name: str) -> Tensor:
        weight = source.read(name)
        if name not in updates:
            return weight
        down, up = (lora.read(updates[name][side]).float().flatten(1) for side in ("down", "up"))
        alpha = float(lora.read(updates[name]["alpha"])) if "alpha" in updates[name] else len(down)
        return weight.float() + (scale * alpha / len(down)) * (up @ down).reshape(weight.shape)

    return Source(source.path, source.shapes, read, (*source.files, *lora.files))
