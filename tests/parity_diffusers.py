"""As `tests.parity`, of diffusers' own networks with the bus put into them:
`examples/diffusers_bus.py`.

python -m tests.parity_diffusers FILE...        # of Stable Video Diffusion, AnimateDiff and Latte,
in diffusers' names
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    StableVideoDiffusionPipeline,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from zerosmooth.bus import HiddenStateBus

from .parity import BOUND, RUN_BOUND, Reference, error, main, operators_of, read, scales_of, weight

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import diffusers_bus  # noqa: E402 - an example, not a part of the package

SVD_SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                 "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0,
                 "steps_offset": 1, "timestep_spacing": "leading", "timestep_type": "continuous",
                 "use_karras_sigmas": True}


def filled(module: nn.Module, prefix: str = "") -> nn.Module:
    """With the weights of `tests.parity`'s rule; prefix: of the names in the reference. Constants
    stay."""
    constant = ("pos_embed.pe", "position_ids")
    state = module.state_dict()
    state |= {k: weight(prefix + k, tuple(v.shape)) for k, v in state.items()
              if not k.endswith(constant)}
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def unet_of(reference: Reference, config: dict | None = None, prefix: str = "") -> nn.Module:
    kind = {"svd": UNetSpatioTemporalConditionModel,
            "latte": LatteTransformer3DModel}.get(reference.family, UNetMotionModel)
    return filled(kind.from_config(config or reference.json("config")), prefix)


def told(reference: Reference, s: str, frames: int) -> tuple[Tensor, Tensor, Any]:
    """What a network is told beside x: timesteps, context, and what is added to it."""
    t = reference.tensors
    if reference.family == "svd":
        return t["timesteps"], t["context"], t[f"added_time_ids{s}"]
    if reference.family == "latte":
        return t["timesteps"], t["context"], None
    return t["timesteps"], t["context"].repeat_interleave(frames, dim=0), None


def svd_like(reference: Reference) -> bool:
    """Whether frames come before channels."""
    return reference.family == "svd"


def check_unet(reference: Reference) -> float:
    unet, x = unet_of(reference), reference["x"]
    with diffusers_bus.on_bus(unet):
        step, context, added = told(reference, "", x.shape[2])
        more = {} if added is None else {"added_time_ids": added}
        return error(unet(x, step, context, **more).sample, reference["y"])


def check_zerosmooth(reference: Reference) -> float:
    unet, frames, errors = unet_of(reference), reference.json("frames"), []
    bus = HiddenStateBus(frames[0], scales_of(frames), correction=operators_of(reference))
    with diffusers_bus.on_bus(unet) as seat:
        for s, f in enumerate(frames):
            seat.stage = bus.stage(s, strength=float(reference["strength"]))
            step, context, added = told(reference, str(s), f)
            more = {} if added is None else {"added_time_ids": added}
            y = reference[f"y{s}"]  # of Latte perhaps without the second half of the channels
            ours = unet(reference[f"x{s}"], step, context, **more).sample
            errors.append(error(ours if svd_like(reference) else ours[:, : y.shape[1]], y))
    return max(errors)


def animatediff(unet: nn.Module, vae: nn.Module | None, scheduler: dict) -> AnimateDiffPipeline:
    pipeline = AnimateDiffPipeline(vae=vae, text_encoder=None, tokenizer=None, unet=unet,
                                   motion_adapter=None, scheduler=DDIMScheduler(**scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latte(transformer: nn.Module, vae: nn.Module | None, scheduler: dict) -> LattePipeline:
    pipeline = LattePipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=transformer,
                             scheduler=DDIMScheduler.from_config(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def svd(unet: nn.Module, vae: nn.Module | None, image_encoder: nn.Module
        | None) -> StableVideoDiffusionPipeline:
    pipeline = StableVideoDiffusionPipeline(vae=vae, image_encoder=image_encoder, unet=unet,
                                            scheduler=EulerDiscreteScheduler(**SVD_SCHEDULER),
                                            feature_extractor=CLIPImageProcessor())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded_svd(unet: nn.Module, context: Tensor, z: Tensor) -> tuple[StableVideoDiffusionPipeline,
                                                                      tuple[int, int]]:
    """A pipeline that takes any image of the size that comes with it for one that is encoded
    already."""
    pipeline = svd(unet, AutoencoderKLTemporalDecoder(block_out_channels=(32, 64)), None)
    both = [torch.cat([torch.zeros_like(x), x]) for x in (context, z)]
    pipeline._encode_image, pipeline._encode_vae_image = lambda *_: both[0], lambda *_, **__: both[
        1]
    return pipeline, (2 * z.shape[-2], 2 * z.shape[-1])


def check_cascade(reference: Reference) -> float:
    t = reference.tensors
    ys = [t[f"y{s}"] for s in range(9) if f"y{s}" in t]
    frames = [y.shape[1 if svd_like(reference) else 2] for y in ys]
    settings = {"correction": operators_of(reference), "key_frames": frames[0]}
    run = {"num_inference_steps": int(reference.number("steps")), "latents": t["latents"],
           "output_type": "latent"}
    unet = unet_of(reference)
    if svd_like(reference):
        pipeline, (height, width) = encoded_svd(unet, t["context"], t["image_latent"])
        outputs = diffusers_bus.smooth(pipeline, frames[-1],
                                       **settings)(Image.new("RGB", (width, height)), height=height,
                                                   width=width, fps=reference.base_fps,
                                                   min_guidance_scale=reference.number(
                "min_guidance_scale"), max_guidance_scale=reference.number("max_guidance_scale"),
                                                   motion_bucket_id=reference.number(
                "motion_bucket_id"), noise_aug_strength=reference.number("noise_aug_strength"),
                                                   **run)
    else:
        made = latte if reference.family == "latte" else animatediff
        pipeline = made(unet, None, reference.json("scheduler"))
        height, width = (side * pipeline.vae_scale_factor for side in t["latents"].shape[-2:])
        outputs = diffusers_bus.smooth(pipeline, frames[-1], **settings)(
            prompt_embeds=t["context"],
            negative_prompt_embeds=t["uncond"],
            negative_prompt=None,
            height=height,
            width=width,
            guidance_scale=reference.number("guidance_scale"),
            eta=reference.number("eta"),
            **run,
        )
    return max(error(output.frames, y) for output, y in zip(outputs, ys, strict=True))


def check_pipeline(reference: Reference) -> float:
    """The first stage alone, from an image or a prompt's embedding to frames, not clipped."""
    t, steps, stack = reference.tensors, int(reference.number("steps")), ExitStack()
    if reference.family == "svd":
        parts = {"unet": unet_of(reference, reference.json("unet"), "unet."),
                 "vae": filled(AutoencoderKLTemporalDecoder.from_config(reference.json("vae")),
                               "vae."),
                 "image_encoder": filled(CLIPVisionModelWithProjection(CLIPVisionConfig(
                        **reference.json("image_encoder"))), "image_encoder.")}
        pipeline, axis = svd(**parts), 1
        given = {"image": Image.fromarray(t["image"].numpy()), "fps": reference.base_fps,
                 **{name: reference.number(name)
                    for name in ("min_guidance_scale", "max_guidance_scale")},
                 **{name: reference.number(name)
                    for name in ("motion_bucket_id", "noise_aug_strength")}}
        module = sys.modules[StableVideoDiffusionPipeline.__module__]
        stack.enter_context(diffusers_bus.replaced(module,
                                                   "randn_tensor", lambda *_, **__: t[
                    "augmentation_noise"]))
    else:
        config = reference.json("config")
        vae = filled(AutoencoderKL.from_config({**config["vae"], "scaling_factor": 0.18215}))
        pipeline, axis = animatediff(unet_of(reference, config["unet"]), vae,
                                     config["scheduler"]), 2
        given = {"prompt_embeds": t["context"], "negative_prompt_embeds": t["uncond"],
                 "guidance_scale": reference.number("guidance_scale"),
                 "eta": reference.number("eta")}
    factor = pipeline.vae_scale_factor
    seen: list[Tensor] = []
    plain = pipeline.decode_latents

    def decode(latents: Tensor, *args: Any) -> Tensor:
        seen.extend([latents, plain(latents, *args)])
        return seen[-1]

    stack.enter_context(diffusers_bus.replaced(pipeline, "decode_latents", decode))
    with stack:
        run = diffusers_bus.smooth(pipeline, t["latents"].shape[axis], t["latents"].shape[axis])
        height, width = (side * factor for side in t["latents"].shape[-2:])
        run(**given, latents=t["latents"], num_inference_steps=steps, height=height, width=width,
            output_type="pt")
    return max(error(seen[0], t["y_latents"]), error(seen[1], t["y_frames"]))


CHECKS = {"unet": check_unet, "zerosmooth": check_zerosmooth, "cascade": check_cascade,
          "pipeline": check_pipeline}


@torch.no_grad()
def check(path: Path) -> tuple[float, float]:
    """Error and bound of a reference file. ValueError if it is not in diffusers' names, or of
    another kind."""
    reference = read(path)
    if reference.kind not in CHECKS or reference.metadata["key_layout"] != "diffusers":
        names = reference.metadata["key_layout"]
        raise ValueError(f"{path.name}: kind {reference.kind!r}, names {names!r}: not known")
    return CHECKS[reference.kind](reference), RUN_BOUND if reference.kind in ("pipeline",
                                                                              "cascade") else BOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], check))
