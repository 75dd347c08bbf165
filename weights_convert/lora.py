"""Low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685), merged into weights as they are
converted."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerosmooth.fields import short

from .engine import ConversionError, Table
from .source import LISTED, LORA, Source, open_source

Named = Callable[[Source, Source], tuple[Source, Source]]
FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.[^.]+)?\.weight")
ALPHA = re.compile(r"(.+?)(?:[._]lora)?\.alpha")
WORDS = (  # of layers' names, where kohya's have no dots
    "down_blocks up_blocks mid_block transformer_blocks motion_modules temporal_transformer "
    "attention_blocks to_q to_k to_v to_out proj_in proj_out time_emb_proj conv_shortcut conv_in "
    "conv_out text_model self_attn q_proj k_proj v_proj out_proj").split()

TWICE = "{} updates one weight twice, by {} and {}; save one of them"
BEGINS = {"lora_unet_": "unet.", "lora_te_": "text_encoder.", "lora_te1_": "text_encoder.",
          "diffusion_model.": "model.diffusion_model."}  # of names that begin otherwise here
OTHERS = {  # a pattern that some name matches, and whose file it is
    r"^(lora_te2_|conditioner\.|text_encoder_2\.)": "for Stable Diffusion XL, another network",
    r"^(lora_transformer_|transformer\.|diffusion_model\.(double_|single_|joint_)?blocks\.)":
        "for a diffusion transformer, another network",
    r"[._]hada[._]": "a LoHa, not a LoRA", r"[._]lokr[._]": "a LoKr, not a LoRA",
    r"[._]b?oft[._]": "an OFT, not a LoRA", r"\.lora_mid\.": "a LoCon of three factors, not a LoRA",
    r"\.dora_scale$|lora_magnitude_vector": "a DoRA, not a LoRA",
    r"\.diff(_b)?$": "made of whole differences, not a LoRA",
}


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
    if any(not isfinite(scale) for scale in scales):
        raise ConversionError("--lora_scale is no finite number; the default is 1")
    for path, scale in zip(args.lora, scales):
        source = merged(*named(source, open_source(path, takes=(LORA, LISTED))), table, scale)
    return source


def layer_of(name: str) -> str:
    """The weight that a layer of a LoRA updates, named as in a folder of Stable Diffusion, or as in
    latent diffusion.

    name: as kohya's scripts, ComfyUI, diffusers of any year, PEFT or AnimateDiff's authors write
    it.
    """
    begin = next((begin for begin in BEGINS if name.startswith(begin)), "")
    name = BEGINS.get(begin, "") + name.removeprefix(begin)
    if begin.endswith("_"):  # kohya's have no dots
        name = name.replace("_", ".").replace("text.encoder.", "text_encoder.", 1)
        for word in WORDS:
            name = name.replace(word.replace("_", "."), word)
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    if not name.startswith(("unet.", "text_encoder.", "model.diffusion_model.")):
        name = f"unet.{name}"
    return f"{name}.0.weight" if name.endswith("to_out") else f"{name}.weight"


def merged(source: Source, lora: Source, table: Table, scale: float) -> Source:
    """A source that reads each weight W as W + scale * alpha / rank * up @ down.

    alpha is what the file's tensors say, or its metadata, where diffusers writes PEFT's, or else
    the rank. PEFT itself keeps it in another file: scale is then lora_alpha / r. Updates of weights
    that the table drops are ignored. ConversionError if a tensor of the LoRA has no place, or
    another shape or kind of numbers, or a weight has two updates.
    """
    layers: dict[str, dict[str, str]] = {}  # by what is before a factor's name
    unknown = []
    for name in lora.shapes:
        if match := FACTOR.fullmatch(name) or ALPHA.fullmatch(name):
            kind = match[2] if match.re is FACTOR else "alpha"
            kind = {"A": "down", "B": "up"}.get(kind, kind)
            if (other := layers.setdefault(match[1], {}).setdefault(kind, name)) != name:
                raise ConversionError(TWICE.format(lora.name, other, name))
        else:
            unknown.append(name)
    places = {place: name for name in source.shapes if (place := table.place(name)) is not None}
    updates: dict[str, dict[str, str]] = {}
    for begin, names in layers.items():
        if table.drops(layer := layer_of(begin)):
            continue
        place = table.place(layer)
        changed = None if place is None else places.get(place)
        if changed is None or not {"down", "up"} <= names.keys():
            unknown += names.values()
            continue
        down, up = lora.shapes[names["down"]], lora.shapes[names["up"]]
        shape = source.shapes[changed]
        if (not down or not up or not down[0]
                or (up[0], prod(up[1:]), prod(down[1:])) != (shape[0], down[0], prod(shape[1:]))):
            raise ConversionError(
                f"{lora.name} has {layer} as {up} times {down}, for a weight of {shape}")
        if changed in updates:
            raise ConversionError(TWICE.format(lora.name, updates[changed]["up"], names["up"]))
        updates[changed] = names
    if unknown or not updates:
        kinds = (what for pattern, what in OTHERS.items()
                 if any(re.search(pattern, name) for name in lora.shapes))
        why = next(kinds, "no LoRA of these networks")
        raise ConversionError(f"{lora.name} is {why}; {len(unknown)} of its tensors have no place: "
                              f"{unknown[:3]}")
    factors, told = lora.checked(torch.float32), adapter(lora)
    alphas = {}
    for changed, names in updates.items():
        part = layer_of(names["up"]).split(".")[0]
        if (alpha := told.get(f"{part}.lora_alpha", told.get("lora_alpha"))) is not None:
            alphas[changed] = float(alpha)
        for side in ("down", "up"):
            factors.read(names[side])
        if "alpha" in names:
            alphas[changed] = _number(lora, names["alpha"])

    def read(name: str) -> Tensor:
        weight = source.read(name)
        if name not in updates:
            return weight
        down, up = (lora.read(updates[name][side]).float().flatten(1) for side in ("down", "up"))
        alpha = alphas.get(name, float(len(down)))
        return weight.float() + (scale * alpha / len(down)) * (up @ down).reshape(weight.shape)

    return replace(source, read=read, files=(*source.files, *lora.files))


def adapter(lora: Source) -> dict[str, Any]:
    """PEFT's settings in a file that diffusers wrote, such as unet.lora_alpha. ConversionError if
    they cannot be followed."""
    try:
        told = dict(json.loads(lora.metadata.get("lora_adapter_metadata", "{}")))
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{lora.name} has damaged settings ({error})") from error
    for key, value in told.items():
        name = key.split(".")[-1]
        number = isinstance(value, (int, float)) and isfinite(value)
        if name == "lora_alpha" and not number or (
                name in ("alpha_pattern", "use_rslora", "use_dora") and value):
            raise ConversionError(f"{lora.name} says {key} is {short(value)}, which is not "
                                  "possible here; merge it with diffusers, and convert the result")
    return told


def _number(lora: Source, name: str) -> float:
    """An alpha. ConversionError if it is not one finite number."""
    if prod(lora.shapes[name]) == 1:
        alpha = lora.read(name)
        if not alpha.is_complex() and isfinite(value := float(alpha)):
            return value
    raise ConversionError(f"{lora.name} has {name} of {lora.shapes[name]}; one finite number is "
                          "needed")
