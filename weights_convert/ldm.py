"""Names in the code bases that grew from latent diffusion's: VideoCrafter's and Stability's.

Inside a transformer, diffusers has the same names, and so has LaVie.
"""

from __future__ import annotations

from .engine import Rows, Table, same

RES = Table([
    ("in_layers.0.*", "norm1.*"), ("in_layers.2.*", "conv1.*"), ("emb_layers.1.*", "emb.*"),
    ("out_layers.0.*", "norm2.*"), ("out_layers.3.*", "conv2.*"), ("skip_connection.*", "skip.*")])
PROJECTIONS = same("norm", "proj_in", "proj_out")  # around the blocks of a transformer
BLOCK, OURS = "transformer_blocks.{}", "blocks.{}"


def feed_forward(source: str, target: str) -> Rows:
    return [(f"{source}.net.0.proj.*", f"{target}.proj_in.*"),
            (f"{source}.net.2.*", f"{target}.proj_out.*")]


def joined(source: str, target: str, parts: str, kinds: tuple[str, ...] = ("weight",)) -> Rows:
    """Rows of layers that are parts of one of ours. source: with {part} for the name of one;
    parts: these names, in order; kinds: of tensors."""
    return [(f"{source.replace('{part}', part)}.{kind}", f"{target}.{kind}#{i}")
            for kind in kinds for i, part in enumerate(parts.split())]


def self_attention(source: str, target: str) -> Rows:
    return [*joined(f"{source}.to_{{part}}", f"{target}.to_qkv", "q k v"),
            (f"{source}.to_out.0.*", f"{target}.to_out.*")]


def cross_attention(source: str, target: str) -> Rows:
    return [(f"{source}.to_q.*", f"{target}.to_q.*"),
            *joined(f"{source}.to_{{part}}", f"{target}.to_kv", "k v"),
            (f"{source}.to_out.0.*", f"{target}.to_out.*")]


def norms(source: str, target: str, *names: str) -> Rows:
    return Table(same(*names)).within(f"{source}.", f"{target}.")


def unet(*parts: tuple[str, Table]) -> Table:
    """A UNet of Stable Diffusion's skeleton. parts: what each block holds, in order, beginning with
    the ResNet block: our name for it, and the names inside."""
    rows = [("time_embed.*", "time_embedding.*"), ("input_blocks.0.0.*", "conv_in.*"),
            ("input_blocks.{}.0.op.*", "encoder.{-1}.*"),
            ("out.0.*", "norm_out.*"), ("out.2.*", "conv_out.*")]
    rows += [(f"output_blocks.{{}}.{i}.conv.*", "decoder.{}.upsample.conv.*")
             for i in (1, len(parts))]
    for i, (name, table) in enumerate(parts):
        rows += table.within(f"input_blocks.{{}}.{i}.", f"encoder.{{-1}}.{name}.")
        rows += table.within(f"middle_block.{i}.", f"middle.{name}.")
        rows += table.within(f"output_blocks.{{}}.{i}.", f"decoder.{{}}.{name}.")
    return Table(rows + parts[0][1].within(f"middle_block.{len(parts)}.", "middle.res2."))


VAE_RES = Table([*same("norm1", "conv1", "norm2", "conv2"), ("nin_shortcut.*", "skip.*")])


def vae_ends(res: Table) -> Rows:
    """What an encoder and a decoder share. res: their ResNet blocks."""
    return [
        *same("conv_in", "norm_out", "conv_out"),
        *res.within("mid.block_1.", "middle.res1."), *res.within("mid.block_2.", "middle.res2."),
        ("mid.attn_1.norm.*", "middle.attn.norm.*"),
        *joined("mid.attn_1.{part}", "middle.attn.to_qkv", "q k v", ("weight", "bias")),
        ("mid.attn_1.proj_out.*", "middle.attn.to_out.*")]


VAE_ENCODER = Table([
    *vae_ends(VAE_RES), *VAE_RES.within("down.{}.block.{}.", "levels.{}.res.{}."),
    ("down.{}.downsample.conv.*", "levels.{}.resample.*")])


def vae_decoder(res: Table) -> Table:
    return Table([*vae_ends(res), *res.within("up.{}.block.{}.", "levels.{}.res.{}."),
                  ("up.{}.upsample.conv.*", "levels.{}.resample.conv.*")])


VAE = Table([
    *VAE_ENCODER.within("encoder.", "encoder."),
    *vae_decoder(VAE_RES).within("decoder.", "decoder."), *same("quant_conv", "post_quant_conv")])

TOWER = Table([  # OpenCLIP's, of text or images
    ("ln_1.*", "norm1.*"), ("attn.in_proj_weight", "to_qkv.weight"),
    ("attn.in_proj_bias", "to_qkv.bias"), ("attn.out_proj.*", "to_out.*"), ("ln_2.*", "norm2.*"),
    ("mlp.c_fc.*", "fc1.*"), ("mlp.c_proj.*", "fc2.*"),
]).within("transformer.resblocks.{}.", "blocks.{}.")
TEXT = Table([*same("token_embedding"), ("positional_embedding", "positional_embedding"), *TOWER,
              ("ln_final.*", "norm_out.*")])
