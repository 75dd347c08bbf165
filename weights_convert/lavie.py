"""Where the tensors of LaVie's `lavie_base.pt` and of a Stable Diffusion 1.4 folder go."""

from __future__ import annotations

from collections.abc import Collection

from zerosmooth.config import ModelConfig

from . import diffusers
from .engine import Table
from .ldm import PROJECTIONS, cross_attention, feed_forward, norms, self_attention

BLOCK = "transformer_blocks.{}", "blocks.{}"
TRANSFORMER = Table(
    [
        *PROJECTIONS,
        *norms(*BLOCK, "norm1", "norm2", "norm3"),
        ("transformer_blocks.{}.norm_temp.*", "blocks.{}.norm_temporal.*"),
        *self_attention("transformer_blocks.{}.attn1", "blocks.{}.self_attn"),
        *cross_attention("transformer_blocks.{}.attn2", "blocks.{}.cross_attn"),
        *self_attention("transformer_blocks.{}.attn_temp", "blocks.{}.temporal_attn"),
        (
            "transformer_blocks.{}.attn_temp.time_rel_pos_bias.relative_attention_bias.weight",
            "blocks.{}.temporal_attn.position.bias",
        ),
        *feed_forward("transformer_blocks.{}.ff", "blocks.{}.ff"),
    ]
)


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """All three networks, with the names of their folders before their tensors'."""
    return Table(
        [
            *diffusers.unet(config.unet, diffusers.RES, TRANSFORMER).within("unet.", "unet."),
            *diffusers.vae(config.vae).within("vae.", "vae."),
            *diffusers.TEXT.within("text_encoder.", "encoder."),
        ],
        dropped={
            "*.rotary_emb.freqs": "constants, computed",
            "text_encoder.text_model.embeddings.position_ids": "0, 1, 2, ..",
        },
    )
