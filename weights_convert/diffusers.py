"""Names of diffusers and transformers: the skeleton of a UNet, the autoencoder, CLIP's towers."""

from __future__ import annotations

from collections.abc import Sequence

from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.unet import SkeletonConfig

from .engine import Rows, Table, same
from .ldm import joined

BOTH = "weight", "bias"
POSITION_IDS = "embeddings.position_ids"  # 0, 1, 2, .., which older files have
RES = Table([*same("norm1", "conv1", "norm2", "conv2"), ("time_emb_proj.*", "emb.*"),
             ("conv_shortcut.*", "skip.*")])
TOWER = Table([  # of text or images
    *joined("self_attn.{part}_proj", "to_qkv", "q k v", BOTH),
    ("self_attn.out_proj.*", "to_out.*"), ("layer_norm1.*", "norm1.*"),
    ("layer_norm2.*", "norm2.*"), ("mlp.fc1.*", "fc1.*"), ("mlp.fc2.*", "fc2.*")])
TEXT = Table([
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *TOWER.within("text_model.encoder.layers.{}.", "blocks.{}."),
    ("text_model.final_layer_norm.*", "norm_out.*")])
IMAGE = Table([
    ("vision_model.embeddings.class_embedding", "class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "patch_embedding.weight"),
    ("vision_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("vision_model.pre_layrnorm.*", "norm_in.*"),  # spelt so in the checkpoint
    *TOWER.within("vision_model.encoder.layers.{}.", "blocks.{}."),
    ("vision_model.post_layernorm.*", "norm_out.*"),
    ("visual_projection.weight", "proj_out.weight")])


def mlp(source: str, target: str) -> Rows:
    return [(f"{source}.linear_1.*", f"{target}.0.*"), (f"{source}.linear_2.*", f"{target}.2.*")]


def unet(c: SkeletonConfig, lists: Sequence[tuple[str, str, Table]]) -> Table:
    """A UNet's skeleton. Each of its levels holds lists of ResNet blocks, transformers, ..; our
    blocks hold one of each and form one list down and one up. lists: (theirs, what it is in our
    block, the names inside)."""
    levels = len(c.channel_mult)
    each = c.res_blocks + 1  # blocks of a level, with what leads to the next one
    rows = [("conv_in.*", "conv_in.*"), *mlp("time_embedding", "time_embedding")]
    for theirs, ours, table in lists:
        for block in range(levels * each):
            at = f"{block // each}.{theirs}.{block % each}"
            rows += table.within(f"down_blocks.{at}.", f"encoder.{block}.{ours}.")
            rows += table.within(f"up_blocks.{at}.", f"decoder.{block}.{ours}.")
        rows += table.within(f"mid_block.{theirs}.0.", f"middle.{ours}.")
        if ours.startswith("res"):  # of which the middle has two
            second = ours.replace("res", "res2", 1)
            rows += table.within(f"mid_block.{theirs}.1.", f"middle.{second}.")
    for level in range(levels):
        last = level * each + each - 1
        rows.append((f"down_blocks.{level}.downsamplers.0.conv.*", f"encoder.{last}.*"))
        rows.append((f"up_blocks.{level}.upsamplers.0.conv.*", f"decoder.{last}.upsample.conv.*"))
    return Table([*rows, ("conv_norm_out.*", "norm_out.*"), ("conv_out.*", "conv_out.*")])


def vae(c: AutoencoderConfig, decoder_res: Table = RES) -> Table:
    """An autoencoder. Its attention has today's names, or those of before 2023; the levels of the
    decoder are counted the other way."""
    attention = Table([("group_norm.*", "norm.*"),
                       *joined("{part}", "to_qkv", "to_q to_k to_v", BOTH),
                       *joined("{part}", "to_qkv", "query key value", BOTH),
                       ("to_out.0.*", "to_out.*"), ("proj_attn.*", "to_out.*")])

    def ends(res: Table) -> Table:
        return Table([*same("conv_in", "conv_out"), ("conv_norm_out.*", "norm_out.*"),
                      *res.within("mid_block.resnets.0.", "middle.res1."),
                      *res.within("mid_block.resnets.1.", "middle.res2."),
                      *attention.within("mid_block.attentions.0.", "middle.attn.")])

    rows = [*ends(RES).within("encoder.", "encoder."),
            *ends(decoder_res).within("decoder.", "decoder."),
            *RES.within("encoder.down_blocks.{}.resnets.{}.", "encoder.levels.{}.res.{}."),
            ("encoder.down_blocks.{}.downsamplers.0.conv.*", "encoder.levels.{}.resample.*"),
            *same("quant_conv", "post_quant_conv")]
    for level in range(levels := len(c.channel_mult)):
        source, target = f"decoder.up_blocks.{levels - 1 - level}.", f"decoder.levels.{level}."
        rows += decoder_res.within(f"{source}resnets.{{}}.", f"{target}res.{{}}.")
        rows += [(f"{source}upsamplers.0.conv.*", f"{target}resample.conv.*")]
    return Table(rows)
