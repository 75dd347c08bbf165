"""Names of diffusers and transformers: the skeleton of a UNet, the autoencoder, CLIP's towers."""

from __future__ import annotations

from collections.abc import Sequence

from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.unet import SkeletonConfig

from .engine import Table

RES = Table([("norm1.*", "norm1.*"), ("conv1.*", "conv1.*"), ("time_emb_proj.*", "emb.*"),
             ("norm2.*", "norm2.*"), ("conv2.*", "conv2.*"), ("conv_shortcut.*", "skip.*")])
TOWER = [  # of text or images
    *(
        (f"encoder.layers.{{}}.self_attn.{x}_proj.{kind}", f"blocks.{{}}.to_qkv.{kind}#{i}")
        for kind in ("weight", "bias")
        for i, x in enumerate("qkv")
    ),
    ("encoder.layers.{}.self_attn.out_proj.*", "blocks.{}.to_out.*"),
    ("encoder.layers.{}.layer_norm1.*", "blocks.{}.norm1.*"),
    ("encoder.layers.{}.layer_norm2.*", "blocks.{}.norm2.*"),
    ("encoder.layers.{}.mlp.fc1.*", "blocks.{}.fc1.*"),
    ("encoder.layers.{}.mlp.fc2.*", "blocks.{}.fc2.*"),
]
TEXT = Table([("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
              ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
              *((f"text_model.{source}", target) for source, target in TOWER),
              ("text_model.final_layer_norm.*", "norm_out.*")])
IMAGE = Table(
    [
        ("vision_model.embeddings.class_embedding", "class_embedding"),
        ("vision_model.embeddings.patch_embedding.weight", "patch_embedding.weight"),
        ("vision_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("vision_model.pre_layrnorm.*", "norm_in.*"),  # spelt so in the checkpoint
        *((f"vision_model.{source}", target) for source, target in TOWER),
        ("vision_model.post_layernorm.*", "norm_out.*"),
        ("visual_projection.weight", "proj_out.weight"),
    ]
)


def mlp(source: str, target: str) -> list[tuple[str, str]]:
    return [(f"{source}.linear_1.*", f"{target}.0.*"), (f"{source}.linear_2.*", f"{target}.2.*")]


def unet(c: SkeletonConfig, lists: Sequence[tuple[str, str, Table]]) -> Table:
    """A UNet's skeleton. Its levels hold lists of ResNet blocks, of transformers, ..; ours are
    blocks of one each, in one list down and one up. lists: (their name, what it is in a block of
    ours, names inside)."""
    levels, each = len(c.channel_mult), c.res_blocks + 1  # blocks of a level, and what leads to the next one
    rows = [("conv_in.*", "conv_in.*"), *mlp("time_embedding", "time_embedding")]
    for theirs, ours, table in lists:
        for level in range(levels):
            for i in range(each):
                block = level * each + i
                rows += table.within(f"down_blocks.{level}.{theirs}.{i}.",
                                     f"encoder.{block}.{ours}.")
                rows += table.within(f"up_blocks.{level}.{theirs}.{i}.", f"decoder.{block}.{ours}.")
        rows += table.within(f"mid_block.{theirs}.0.", f"middle.{ours}.")
        if ours.startswith("res"):  # of which the middle has two
            rows += table.within(f"mid_block.{theirs}.1.",
                                 f"middle.{ours.replace('res', 'res2', 1)}.")
    for level in range(levels):
        last = level * each + each - 1
        rows.append((f"down_blocks.{level}.downsamplers.0.conv.*", f"encoder.{last}.*"))
        rows.append((f"up_blocks.{level}.upsamplers.0.conv.*", f"decoder.{last}.upsample.conv.*"))
    return Table([*rows, ("conv_norm_out.*", "norm_out.*"), ("conv_out.*", "conv_out.*")])


def vae(c: AutoencoderConfig, decoder_res: Table = RES) -> Table:
    """An autoencoder. Attention has new names or those of before 2023; levels of the decoder count
    the other way."""
    last = len(c.channel_mult) - 1
    rows: list[tuple[str, str]] = []
    for part, res in {"encoder": RES, "decoder": decoder_res}.items():
        middle = f"{part}.mid_block.attentions.0.", f"{part}.middle.attn."
        rows += [(f"{part}.conv_in.*", f"{part}.conv_in.*")]
        rows += res.within(f"{part}.mid_block.resnets.0.", f"{part}.middle.res1.")
        rows += res.within(f"{part}.mid_block.resnets.1.", f"{part}.middle.res2.")
        rows += [(f"{middle[0]}group_norm.*", f"{middle[1]}norm.*")]
        for i, (new, old) in enumerate((("to_q", "query"), ("to_k", "key"), ("to_v", "value"))):
            for name in (new, old):
                rows += [(f"{middle[0]}{name}.{kind}", f"{middle[1]}to_qkv.{kind}#{i}")
                         for kind in ("weight", "bias")]
        rows += [(f"{middle[0]}{name}.*", f"{middle[1]}to_out.*")
                 for name in ("to_out.0", "proj_attn")]
        rows += [(f"{part}.conv_norm_out.*", f"{part}.norm_out.*"),
                 (f"{part}.conv_out.*", f"{part}.conv_out.*")]
    rows += RES.within("encoder.down_blocks.{}.resnets.{}.", "encoder.levels.{}.res.{}.")
    rows += [("encoder.down_blocks.{}.downsamplers.0.conv.*", "encoder.levels.{}.resample.*")]
    for level in range(last + 1):
        source, target = f"decoder.up_blocks.{last - level}.", f"decoder.levels.{level}."
        rows += decoder_res.within(f"{source}resnets.{{}}.", f"{target}res.{{}}.")
        rows += [(f"{source}upsamplers.0.conv.*", f"{target}resample.conv.*")]
    return Table([*rows, ("quant_conv.*", "quant_conv.*"),
                  ("post_quant_conv.*", "post_quant_conv.*")])
