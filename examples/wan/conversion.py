"""Where the tensors of the published files go: those of Wan-AI/Wan2.1-T2V-1.3B, and those of the
folder of the same name that ends in -Diffusers. The text encoder's stay where they are, under the
names of `transformers`."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from weights_convert import configs, diffusers
from weights_convert.conversion import Conversion
from weights_convert.diffusers import BOTH
from weights_convert.engine import ConversionError, Rows, Table, same
from weights_convert.ldm import joined
from weights_convert.source import Source, join, open_folder, open_source
from zerosmooth.config import ModelConfig

from .autoencoder import WanAutoencoderConfig

# what configs say, in either layout
NETWORK: configs.Fields = {
    "num_attention_heads": ("heads", None), "num_heads": ("heads", None),
    "attention_head_dim": ("head_dim", None), "num_layers": ("layers", None),
    "ffn_dim": ("feed_forward", None), "freq_dim": ("time_dim", None)}
NETWORK_NEEDS = {
    "patch_size": ([1, 2, 2],), "eps": (1e-6,), "model_type": ("t2v",), "cross_attn_norm": (True,),
    "qk_norm": ("rms_norm_across_heads",), "image_dim": (None,), "added_kv_proj_dim": (None,)}
VAE: configs.Fields = {"latents_mean": ("mean", None), "latents_std": ("std", None)}
VAE_NEEDS: dict[str, tuple[Any, ...]] = {
    "is_residual": (False,), "patch_size": (None,), "attn_scales": ([],)}
SAMPLER: configs.Fields = {
    "_class_name": ("kind", {"UniPCMultistepScheduler": "unipc",
                             "FlowMatchEulerDiscreteScheduler": "euler"}),
    "flow_shift": ("shift", None), "shift": ("shift", None)}
SAMPLER_NEEDS = {
    "prediction_type": ("flow_prediction",), "use_flow_sigmas": (True,), "solver_order": (2,),
    "solver_type": ("bh2",), "final_sigmas_type": ("zero",), "num_train_timesteps": (1000,),
    "use_karras_sigmas": (False,), "use_exponential_sigmas": (False,), "use_beta_sigmas": (False,),
    "use_dynamic_shifting": (False,), "invert_sigmas": (False,), "stochastic_sampling": (False,),
    "shift_terminal": (None,), "lower_order_final": (True,), "disable_corrector": ([],)}


def attends(theirs: str, ours: str, parts: str, out: str, joins: str) -> Rows:
    """theirs: the module; parts: its projections, with a hole for q, k, v; joins: which of ours are
    one tensor."""
    rows = [(f"{theirs}.{out}.*", f"{ours}.to_out.*"), *same_in(theirs, ours, "norm_q", "norm_k")]
    for letters in joins.split():
        rows += joined(f"{theirs}.{parts}", f"{ours}.to_{letters}", " ".join(letters), BOTH)
    return rows


def same_in(theirs: str, ours: str, *names: str) -> Rows:
    return Table(same(*names)).within(f"{theirs}.", f"{ours}.")


def block(self_attn: str, cross_attn: str, parts: str, out: str, norm: str, table: str, ff: str,
          ff_out: str) -> Rows:
    return Table([
        (table, "table"), (f"{norm}.*", "norm.*"),
        *attends(self_attn, "attn", parts, out, "qkv"),
        *attends(cross_attn, "cross_attn", parts, out, "q kv"),
        (f"{ff}.*", "ff.proj_in.*"), (f"{ff_out}.*", "ff.proj_out.*"),
    ]).within("blocks.{}.", "blocks.{}.")


DIFFUSERS = Table([
    ("patch_embedding.*", "patches.*"), ("condition_embedder.time_proj.*", "modulation.*"),
    *diffusers.mlp("condition_embedder.time_embedder", "time_embedding"),
    *diffusers.mlp("condition_embedder.text_embedder", "caption"),
    *block("attn1", "attn2", "to_{part}", "to_out.0", "norm2", "scale_shift_table",
           "ffn.net.0.proj", "ffn.net.2"),
    ("scale_shift_table", "table_out"), *same("proj_out")])
AUTHORS = Table([
    ("patch_embedding.*", "patches.*"), ("time_projection.1.*", "modulation.*"),
    ("time_embedding.*", "time_embedding.*"), ("text_embedding.*", "caption.*"),
    *block("self_attn", "cross_attn", "{part}", "o", "norm3", "modulation", "ffn.0", "ffn.2"),
    ("head.modulation", "table_out"), ("head.head.*", "proj_out.*")])
TEXT = Table([  # the authors' names -> those of transformers
    ("token_embedding.weight", "shared.weight"), ("norm.weight", "encoder.final_layer_norm.weight"),
    *Table([("norm1.weight", "0.layer_norm.weight"), ("norm2.weight", "1.layer_norm.weight"),
            ("pos_embedding.embedding.weight", "0.SelfAttention.relative_attention_bias.weight"),
            ("attn.*", "0.SelfAttention.*"), ("ffn.gate.0.weight", "1.DenseReluDense.wi_0.weight"),
            ("ffn.fc1.weight", "1.DenseReluDense.wi_1.weight"),
            ("ffn.fc2.weight", "1.DenseReluDense.wo.weight"),
            ]).within("blocks.{}.", "encoder.block.{}.layer.")])

OURS = Table([*same("norm1", "conv1", "norm2", "conv2"), ("conv_shortcut.*", "skip.*")])
THEIRS = Table([("residual.0.*", "norm1.*"), ("residual.2.*", "conv1.*"),
                ("residual.3.*", "norm2.*"), ("residual.6.*", "conv2.*"), ("shortcut.*", "skip.*")])
RESAMPLE = Table([("resample.1.*", "conv.*"), ("time_conv.*", "time.*")])


def vae(c: WanAutoencoderConfig, authors: bool) -> Table:
    """Blocks of all levels are one list in the encoder, and in the authors' decoder too."""
    res, middle, ends, quant = (
        (THEIRS, ("middle.0", "middle.1", "middle.2"),
         [("conv1.*", "conv_in.*"), ("head.0.*", "norm_out.*"), ("head.2.*", "conv_out.*")],
         [("conv1.*", "quant_conv.*"), ("conv2.*", "post_quant_conv.*")]) if authors else
        (OURS, ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
         same("conv_in", "norm_out", "conv_out"), same("quant_conv", "post_quant_conv")))
    both = Table([
        *ends, *res.within(f"{middle[0]}.", "middle.res1."), (f"{middle[1]}.*", "middle.attn.*"),
        *res.within(f"{middle[2]}.", "middle.res2.")])
    rows = [*quant, *both.within("encoder.", "encoder."), *both.within("decoder.", "decoder.")]
    down, up = ("encoder.downsamples", "decoder.upsamples") if authors else (
        "encoder.down_blocks", "decoder.up_blocks")
    for level in range(len(c.channel_mult)):
        ours, n = f"levels.{level}", c.res_blocks + 1
        for i in range(n):
            at = f"{up}.{level * (n + 1) + i}" if authors else f"{up}.{level}.resnets.{i}"
            rows += res.within(f"{at}.", f"decoder.{ours}.res.{i}.")
            if i < n - 1:
                rows += res.within(f"{down}.{level * n + i}.", f"encoder.{ours}.res.{i}.")
        at = f"{up}.{level * (n + 1) + n}" if authors else f"{up}.{level}.upsamplers.0"
        rows += RESAMPLE.within(f"{down}.{level * n + n - 1}.", f"encoder.{ours}.resample.")
        rows += RESAMPLE.within(f"{at}.", f"decoder.{ours}.resample.")
    return Table(rows)


def table(config: ModelConfig, names: Collection[str] = ()) -> Table:
    """Of names that begin with transformer. and vae., in either layout."""
    network = AUTHORS if "transformer.head.head.weight" in names else DIFFUSERS
    autoencoder = vae(config.vae, "vae.conv1.weight" in names)
    return Table([*network.within("transformer.", "unet."), *autoencoder.within("vae.", "vae.")])


class WanConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--text_folder", type=Path,
                            help="the folder from which prompts will be encoded (default: the "
                                 "source), see docs/wan.md")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        if (path / "transformer").is_dir():
            return join(path, open_folder(path, ("transformer", "vae")))
        network = open_folder(path.parent, (path.name,))[path.name]
        files = sorted(path.glob("*VAE*.pth"))
        if len(files) != 1:
            raise ConversionError(f"{path} has neither a folder vae/ nor one Wan2.1_VAE.pth")
        return join(path, {"transformer": network, "vae": open_source(files[0])})

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        folder = (args.text_folder or source.path).absolute()
        print(f"prompts will be encoded by the UMT5 in {folder}, which is not a part of the output")
        part = "transformer" if (source.path / "transformer").is_dir() else "."
        network, autoencoder, sampler = (configs.said(source.path / file) for file in (
            f"{part}/config.json", "vae/config.json", "scheduler/scheduler_config.json"))
        return replace(config, unet=network.over(config.unet, NETWORK, NETWORK_NEEDS),
                       vae=autoencoder.over(config.vae, VAE, VAE_NEEDS),
                       sampler=sampler.over(config.sampler, SAMPLER, SAMPLER_NEEDS),
                       encoder=replace(config.encoder, folder=str(folder)))
