"""Where the tensors of VideoCrafter's `model.ckpt` go."""

from __future__ import annotations

from .engine import Table

RES = Table(
    [
        ("in_layers.0.*", "norm1.*"),
        ("in_layers.2.*", "conv1.*"),
        ("emb_layers.1.*", "emb.*"),
        ("out_layers.0.*", "norm2.*"),
        ("out_layers.3.*", "conv2.*"),
        ("skip_connection.*", "skip.*"),
        ("temopral_conv.conv1.0.*", "temporal_conv.norms.0.*"),  # spelt so in the checkpoint
        ("temopral_conv.conv1.2.*", "temporal_conv.convs.0.*"),
        *((f"temopral_conv.conv{i + 1}.0.*", f"temporal_conv.norms.{i}.*") for i in (1, 2, 3)),
        *((f"temopral_conv.conv{i + 1}.3.*", f"temporal_conv.convs.{i}.*") for i in (1, 2, 3)),
    ]
)

FRAME = [  # around the blocks of both kinds of transformer
    ("norm.*", "norm.*"),
    ("proj_in.*", "proj_in.*"),
    ("proj_out.*", "proj_out.*"),
    ("transformer_blocks.{}.norm1.*", "blocks.{}.norm1.*"),
    ("transformer_blocks.{}.norm2.*", "blocks.{}.norm2.*"),
    ("transformer_blocks.{}.norm3.*", "blocks.{}.norm3.*"),
    ("transformer_blocks.{}.ff.net.0.proj.*", "blocks.{}.ff.proj_in.*"),
    ("transformer_blocks.{}.ff.net.2.*", "blocks.{}.ff.proj_out.*"),
]


def self_attention(source: str, target: str) -> list[tuple[str, str]]:
    return [
        *((f"{source}.to_{x}.weight", f"{target}.to_qkv.weight#{i}") for i, x in enumerate("qkv")),
        (f"{source}.to_out.0.*", f"{target}.to_out.*"),
        (f"{source}.relative_position_k.embeddings_table", f"{target}.position.keys"),
        (f"{source}.relative_position_v.embeddings_table", f"{target}.position.values"),
    ]


SPATIAL = Table(
    FRAME
    + self_attention("transformer_blocks.{}.attn1", "blocks.{}.self_attn")
    + [
        ("transformer_blocks.{}.attn2.to_q.weight", "blocks.{}.cross_attn.to_q.weight"),
        ("transformer_blocks.{}.attn2.to_k.weight", "blocks.{}.cross_attn.to_kv.weight#0"),
        ("transformer_blocks.{}.attn2.to_v.weight", "blocks.{}.cross_attn.to_kv.weight#1"),
        ("transformer_blocks.{}.attn2.to_out.0.*", "blocks.{}.cross_attn.to_out.*"),
    ]
)
TEMPORAL = Table(
    FRAME
    + self_attention("transformer_blocks.{}.attn1", "blocks.{}.attn1")
    + self_attention("transformer_blocks.{}.attn2", "blocks.{}.attn2")
)

UNET = Table(
    [
        ("time_embed.*", "time_embedding.*"),
        ("fps_embedding.*", "fps_embedding.*"),
        ("input_blocks.0.0.*", "conv_in.*"),
        *TEMPORAL.within("init_attn.0.", "init_attn."),
        ("input_blocks.{}.0.op.*", "encoder.{-1}.*"),
        *RES.within("input_blocks.{}.0.", "encoder.{-1}.res."),
        *SPATIAL.within("input_blocks.{}.1.", "encoder.{-1}.spatial."),
        *TEMPORAL.within("input_blocks.{}.2.", "encoder.{-1}.temporal."),
        *RES.within("middle_block.0.", "middle.res."),
        *SPATIAL.within("middle_block.1.", "middle.spatial."),
        *TEMPORAL.within("middle_block.2.", "middle.temporal."),
        *RES.within("middle_block.3.", "middle.res2."),
        *((f"output_blocks.{{}}.{i}.conv.*", "decoder.{}.upsample.conv.*") for i in (1, 3)),
        *RES.within("output_blocks.{}.0.", "decoder.{}.res."),
        *SPATIAL.within("output_blocks.{}.1.", "decoder.{}.spatial."),
        *TEMPORAL.within("output_blocks.{}.2.", "decoder.{}.temporal."),
        ("out.0.*", "norm_out.*"),
        ("out.2.*", "conv_out.*"),
    ]
)

VAE_RES = Table(
    [
        ("norm1.*", "norm1.*"),
        ("conv1.*", "conv1.*"),
        ("norm2.*", "norm2.*"),
        ("conv2.*", "conv2.*"),
        ("nin_shortcut.*", "skip.*"),
    ]
)
VAE_ENDS = Table(  # what encoder and decoder share
    [
        ("conv_in.*", "conv_in.*"),
        *VAE_RES.within("mid.block_1.", "middle.res1."),
        ("mid.attn_1.norm.*", "middle.attn.norm.*"),
        *((f"mid.attn_1.{x}.weight", f"middle.attn.to_qkv.weight#{i}") for i, x in enumerate("qkv")),
        *((f"mid.attn_1.{x}.bias", f"middle.attn.to_qkv.bias#{i}") for i, x in enumerate("qkv")),
        ("mid.attn_1.proj_out.*", "middle.attn.to_out.*"),
        *VAE_RES.within("mid.block_2.", "middle.res2."),
        ("norm_out.*", "norm_out.*"),
        ("conv_out.*", "conv_out.*"),
    ]
)
VAE = Table(
    [
        *VAE_ENDS.within("encoder.", "encoder."),
        *VAE_RES.within("encoder.down.{}.block.{}.", "encoder.levels.{}.res.{}."),
        ("encoder.down.{}.downsample.conv.*", "encoder.levels.{}.resample.*"),
        *VAE_ENDS.within("decoder.", "decoder."),
        *VAE_RES.within("decoder.up.{}.block.{}.", "decoder.levels.{}.res.{}."),
        ("decoder.up.{}.upsample.conv.*", "decoder.levels.{}.resample.conv.*"),
        ("quant_conv.*", "quant_conv.*"),
        ("post_quant_conv.*", "post_quant_conv.*"),
    ]
)

TEXT = Table(
    [
        ("token_embedding.weight", "token_embedding.weight"),
        ("positional_embedding", "positional_embedding"),
        ("transformer.resblocks.{}.ln_1.*", "blocks.{}.norm1.*"),
        ("transformer.resblocks.{}.attn.in_proj_weight", "blocks.{}.to_qkv.weight"),
        ("transformer.resblocks.{}.attn.in_proj_bias", "blocks.{}.to_qkv.bias"),
        ("transformer.resblocks.{}.attn.out_proj.*", "blocks.{}.to_out.*"),
        ("transformer.resblocks.{}.ln_2.*", "blocks.{}.norm2.*"),
        ("transformer.resblocks.{}.mlp.c_fc.*", "blocks.{}.fc1.*"),
        ("transformer.resblocks.{}.mlp.c_proj.*", "blocks.{}.fc2.*"),
        ("ln_final.*", "norm_out.*"),
    ]
)

BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "scale_arr",
)


def table(text_layers: int) -> Table:
    """The whole checkpoint. text_layers: blocks of the text tower that run; the one behind them is dropped."""
    text = "cond_stage_model.model."
    return Table(
        [
            *UNET.within("model.diffusion_model.", "unet."),
            *VAE.within("first_stage_model.", "vae."),
            *TEXT.within(text, "text."),
        ],
        dropped={
            f"{text}transformer.resblocks.{text_layers}.*": "the text condition is the output of the block before",
            f"{text}text_projection": "of the pooled text, which is not used",
            f"{text}logit_scale": "of CLIP's own training",
            f"{text}attn_mask": "causal, computed",
            **{name: "of the noise schedule, computed" for name in BUFFERS},
        },
    )
