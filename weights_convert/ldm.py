"""Names that the code bases share which grew from latent diffusion's: VideoCrafter's and
Stability's.

What is inside a transformer has the same names in diffusers, and so in LaVie.
"""

from __future__ import annotations

from .engine import Table

RES = Table([("in_layers.0.*", "norm1.*"), ("in_layers.2.*", "conv1.*"),
             ("emb_layers.1.*", "emb.*"), ("out_layers.0.*", "norm2.*"),
             ("out_layers.3.*", "conv2.*"), ("skip_connection.*", "skip.*")])
PROJECTIONS = [  # around the blocks of a transformer
    ("norm.*", "norm.*"),
    ("proj_in.*", "proj_in.*"),
    ("proj_out.*", "proj_out.*"),
]


def feed_forward(source: str, target: str) -> list[tuple[str, str]]:
    return [(f"{source}.net.0.proj.*", f"{target}.proj_in.*"),
            (f"{source}.net.2.*", f"{target}.proj_out.*")]


def self_attention(source: str, target: str) -> list[tuple[str, str]]:
    return [*((f"{source}.to_{x}.weight", f"{target}.to_qkv.weight#{i}")
              for i, x in enumerate("qkv")), (f"{source}.to_out.0.*", f"{target}.to_out.*")]


def cross_attention(source: str, target: str) -> list[tuple[str, str]]:
    return [(f"{source}.to_q.weight", f"{target}.to_q.weight"),
            (f"{source}.to_k.weight", f"{target}.to_kv.weight#0"),
            (f"{source}.to_v.weight", f"{target}.to_kv.weight#1"),
            (f"{source}.to_out.0.*", f"{target}.to_out.*")]


def norms(source: str, target: str, *names: str) -> list[tuple[str, str]]:
    return [(f"{source}.{name}.*", f"{target}.{name}.*") for name in names]


def unet(res: Table, transformer: Table) -> Table:
    """A UNet of Stable Diffusion's skeleton, whose blocks are a ResNet block and a transformer."""
    return Table([("time_embed.*", "time_embedding.*"), ("input_blocks.0.0.*", "conv_in.*"),
                  ("input_blocks.{}.0.op.*", "encoder.{-1}.*"),
                  *res.within("input_blocks.{}.0.", "encoder.{-1}.res."),
                  *transformer.within("input_blocks.{}.1.", "encoder.{-1}.transformer."),
                  *res.within("middle_block.0.", "middle.res."),
                  *transformer.within("middle_block.1.", "middle.transformer."),
                  *res.within("middle_block.2.", "middle.res2."),
                  *((f"output_blocks.{{}}.{i}.conv.*", "decoder.{}.upsample.conv.*")
                    for i in (1, 2)), *res.within("output_blocks.{}.0.", "decoder.{}.res."),
                  *transformer.within("output_blocks.{}.1.", "decoder.{}.transformer."),
                  ("out.0.*", "norm_out.*"), ("out.2.*", "conv_out.*")])


VAE_RES = Table([("norm1.*", "norm1.*"), ("conv1.*", "conv1.*"), ("norm2.*", "norm2.*"),
                 ("conv2.*", "conv2.*"), ("nin_shortcut.*", "skip.*")])


def vae_ends(res: Table) -> Table:
    """What an encoder and a decoder share. res: their ResNet blocks."""
    return Table([("conv_in.*", "conv_in.*"), *res.within("mid.block_1.", "middle.res1."),
                  ("mid.attn_1.norm.*", "middle.attn.norm.*"),
                  *((f"mid.attn_1.{x}.weight", f"middle.attn.to_qkv.weight#{i}")
                    for i, x in enumerate("qkv")),
                  *((f"mid.attn_1.{x}.bias", f"middle.attn.to_qkv.bias#{i}")
                    for i, x in enumerate("qkv")),
                  ("mid.attn_1.proj_out.*", "middle.attn.to_out.*"),
                  *res.within("mid.block_2.", "middle.res2."), ("norm_out.*", "norm_out.*"),
                  ("conv_out.*", "conv_out.*")])


VAE_ENCODER = Table([*vae_ends(VAE_RES).rows,
                     *VAE_RES.within("down.{}.block.{}.", "levels.{}.res.{}."),
                     ("down.{}.downsample.conv.*", "levels.{}.resample.*")])


def vae_decoder(res: Table) -> Table:
    return Table([*vae_ends(res).rows, *res.within("up.{}.block.{}.", "levels.{}.res.{}."),
                  ("up.{}.upsample.conv.*", "levels.{}.resample.conv.*")])


VAE = Table([*VAE_ENCODER.within("encoder.", "encoder."),
             *vae_decoder(VAE_RES).within("decoder.", "decoder."), ("quant_conv.*", "quant_conv.*"),
             ("post_quant_conv.*", "post_quant_conv.*")])

TOWER = Table(  # OpenCLIP's, of text or images
    [
        ("transformer.resblocks.{}.ln_1.*", "blocks.{}.norm1.*"),
        ("transformer.resblocks.{}.attn.in_proj_weight", "blocks.{}.to_qkv.weight"),
        ("transformer.resblocks.{}.attn.in_proj_bias", "blocks.{}.to_qkv.bias"),
        ("transformer.resblocks.{}.attn.out_proj.*", "blocks.{}.to_out.*"),
        ("transformer.resblocks.{}.ln_2.*", "blocks.{}.norm2.*"),
        ("transformer.resblocks.{}.mlp.c_fc.*", "blocks.{}.fc1.*"),
        ("transformer.resblocks.{}.mlp.c_proj.*", "blocks.{}.fc2.*"),
    ]
)
TEXT = Table([("token_embedding.weight", "token_embedding.weight"),
              ("positional_embedding", "positional_embedding"), *TOWER.rows,
              ("ln_final.*", "norm_out.*")])
