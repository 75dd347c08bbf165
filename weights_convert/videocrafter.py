"""Where the tensors of VideoCrafter's `model.ckpt` go."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from zerosmooth.samplers import DDIMConfig

from .conversion import Conversion
from .engine import ConversionError, Table
from .ldm import PROJECTIONS, RES, TEXT, VAE, cross_attention, feed_forward, norms, self_attention
from .source import Source

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

TEMPORAL_CONV = Table(
    [
        ("conv1.0.*", "norms.0.*"),
        ("conv1.2.*", "convs.0.*"),
        *((f"conv{i + 1}.0.*", f"norms.{i}.*") for i in (1, 2, 3)),
        *((f"conv{i + 1}.3.*", f"convs.{i}.*") for i in (1, 2, 3)),
    ]
)
VC_RES = Table([*RES.rows, *TEMPORAL_CONV.within("temopral_conv.", "temporal_conv.")])  # spelt so in the checkpoint
BLOCK = "transformer_blocks.{}", "blocks.{}"
FRAME = [
    *PROJECTIONS,
    *norms(*BLOCK, "norm1", "norm2", "norm3"),
    *feed_forward("transformer_blocks.{}.ff", "blocks.{}.ff"),
]
SPATIAL = Table(
    FRAME
    + self_attention("transformer_blocks.{}.attn1", "blocks.{}.self_attn")
    + cross_attention("transformer_blocks.{}.attn2", "blocks.{}.cross_attn")
)
TEMPORAL = Table(
    FRAME
    + [
        row
        for name in ("attn1", "attn2")
        for row in (
            *self_attention(f"transformer_blocks.{{}}.{name}", f"blocks.{{}}.{name}"),
            *(
                (
                    f"transformer_blocks.{{}}.{name}.relative_position_{x}.embeddings_table",
                    f"blocks.{{}}.{name}.position.{ours}",
                )
                for x, ours in (("k", "keys"), ("v", "values"))
            ),
        )
    ]
)

UNET = Table(
    [
        ("time_embed.*", "time_embedding.*"),
        ("fps_embedding.*", "fps_embedding.*"),
        ("input_blocks.0.0.*", "conv_in.*"),
        *TEMPORAL.within("init_attn.0.", "init_attn."),
        ("input_blocks.{}.0.op.*", "encoder.{-1}.*"),
        *VC_RES.within("input_blocks.{}.0.", "encoder.{-1}.res."),
        *SPATIAL.within("input_blocks.{}.1.", "encoder.{-1}.spatial."),
        *TEMPORAL.within("input_blocks.{}.2.", "encoder.{-1}.temporal."),
        *VC_RES.within("middle_block.0.", "middle.res."),
        *SPATIAL.within("middle_block.1.", "middle.spatial."),
        *TEMPORAL.within("middle_block.2.", "middle.temporal."),
        *VC_RES.within("middle_block.3.", "middle.res2."),
        *((f"output_blocks.{{}}.{i}.conv.*", "decoder.{}.upsample.conv.*") for i in (1, 3)),
        *VC_RES.within("output_blocks.{}.0.", "decoder.{}.res."),
        *SPATIAL.within("output_blocks.{}.1.", "decoder.{}.spatial."),
        *TEMPORAL.within("output_blocks.{}.2.", "decoder.{}.temporal."),
        ("out.0.*", "norm_out.*"),
        ("out.2.*", "conv_out.*"),
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


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """The whole checkpoint. The block of the text tower behind those that run is dropped."""
    text = "cond_stage_model.model."
    return Table(
        [
            *UNET.within("model.diffusion_model.", "unet."),
            *VAE.within("first_stage_model.", "vae."),
            *TEXT.within(text, "encoder."),
        ],
        dropped={
            f"{text}transformer.resblocks.{config.encoder.layers}.*": "the condition is what the block before gives",
            f"{text}text_projection": "of the pooled text, which is not used",
            f"{text}logit_scale": "of CLIP's own training",
            f"{text}attn_mask": "causal, computed",
            **{name: "of the noise schedule, computed" for name in BUFFERS},
        },
    )


class VideoCrafterConversion(Conversion):
    def check(self, source: Source, config: ModelConfig) -> None:
        """The schedule's buffers are dropped; but if they are there, they must be the family's."""
        assert isinstance(config.sampler, DDIMConfig)
        ours = {"alphas_cumprod": config.sampler.alphas_cumprod()}
        if config.sampler.data_scale != 1:
            ours["scale_arr"] = config.sampler.data_scales()
        elif "scale_arr" in source.shapes:
            raise ConversionError("the source scales its data (it has scale_arr), this family does not")
        for name, values in ours.items():
            if name in source.shapes:
                theirs = source.read(name).double().numpy()
                if len(theirs) < len(values) or not np.allclose(theirs[: len(values)], values, atol=1e-4):
                    raise ConversionError(f"the source has another noise schedule ({name})")


CONVERSION = VideoCrafterConversion(table)
