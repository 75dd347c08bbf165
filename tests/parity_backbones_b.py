"""Checks of `tests.parity` for DynamiCrafter (`examples/dynamicrafter.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from weights_convert.engine import Table, convert
from zerosmooth.bus import HiddenStateBus, Stage
from zerosmooth.cascade import Cascade, sample_cascade
from zerosmooth.config import Sampling
from zerosmooth.guidance import Branch, Guidance

from .parity import (
    Reference,
    error,
    frames_first,
    ldm_skeleton,
    operators_of,
    run_sampler,
    scales_of,
    toy,
    weight,
)

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import dynamicrafter  # noqa: E402 - an example, not a part of the package


def load(reference: Reference, network: nn.Module, table: Table, prefix: str) -> nn.Module:
    """A network of ours with the reference's weights. table: of the names behind a prefix; others
    are left out."""
    shapes = {name: tuple(shape) for name, shape in reference.json("keys").items()}
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    table = Table(table.within(prefix, ""),
                  {prefix + name: why for name, why in table.dropped.items()})
    network.load_state_dict(dict(convert(table, shapes, lambda name: weight(name, shapes[name]),
                                         expected)))
    return network.eval().requires_grad_(False)


def unet_of(reference: Reference) -> dynamicrafter.DynamiCrafterUNet:
    c = reference.json("config")
    config = dynamicrafter.DynamiCrafterConfig(**ldm_skeleton(c), frames=c["temporal_length"],
                                               learned_scale=c.get(
            "image_cross_attention_scale_learnable", False))
    return load(reference, dynamicrafter.DynamiCrafterUNet(config), dynamicrafter.UNET,
                "model.diffusion_model.")


def run_unet(reference: Reference, unet: nn.Module, told: Tensor, s: str = "", stage: Stage
             | None = None) -> float:
    x, y = (frames_first(reference, reference[f"{name}{s}"]) for name in "xy")
    return error(unet(x, reference["timesteps"], reference["context"], told, stage), y)


def check_unet(reference: Reference) -> float:
    return run_unet(reference, unet_of(reference), reference["fs"])


def check_windowed(reference: Reference) -> float:
    (start, end), *others = reference["windows"].tolist()
    stride = others[0][0] - start if others else end
    bus = HiddenStateBus(end, (2,), overlap=end - stride)
    return run_unet(reference, unet_of(reference), reference["fs"],
                    stage=bus.stage(1, strength=0.0))


def check_zerosmooth(reference: Reference) -> float:
    unet, frames, fps = unet_of(reference), reference.json("frames"), reference.json("fps")
    bus = HiddenStateBus(frames[0], scales_of(frames), correction=operators_of(reference))
    views = [bus.stage(s, strength=float(reference["strength"])) for s in range(len(frames))]
    return max(run_unet(reference, unet, torch.tensor([fps[s]]), str(s), view)
               for s, view in enumerate(views))


def check_run(reference: Reference) -> float:
    """A whole run of the network and DDIM: of a cascade, or of its first stage alone."""
    names = [name for name in ("y_latents", *(f"y{s}" for s in range(9)))
             if name in reference.tensors]
    ys = [frames_first(reference, reference[name]) for name in names]
    frames = [y.shape[1] for y in ys]
    if len(ys) > 1:
        cascade = Cascade(frames[0], scales_of(frames), correction=operators_of(reference))
        fps = reference.json("fps")
    else:
        cascade, fps = Cascade(frames[0], ()), [reference.json("fs")]
    config = dynamicrafter.MODELS[reference.metadata["model"]]
    for name in ("guidance_scale", "guidance_rescale"):
        if getattr(config.defaults, name) != reference.number(name):
            raise ValueError(f"the reference has another {name} than ours")
    sampler = config.sampler.sampler(int(reference.number("steps")), reference.number("eta"))
    image = frames_first(reference, reference["image_latent"])[:, 0]
    branches = [Branch(reference["context"], image), Branch(reference["uncond"], image)]
    guided = Guidance(unet_of(reference), branches, config.defaults)

    def noise(step: int) -> Tensor:
        return frames_first(reference, reference["latents"] if step < 0
                            else reference["noise"][step])

    def network(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
        return guided(x, sampler.timestep(step), torch.tensor(fps[index]), stage)

    return max(error(ours, y)
               for ours, y in zip(sample_cascade(network, sampler, cascade, noise, cascade.bus()),
                                  ys))


def check_samplers(reference: Reference) -> float:
    errors = []
    for model, settings in reference.json("settings").items():
        t = {k.removeprefix(f"{model}."): x for k, x in reference.tensors.items()}
        config = dynamicrafter.MODELS[model]
        sampler = config.sampler.sampler(50, 1.0)
        for steps in (10, 50):
            if config.sampler.timesteps(steps)[::-1] != t[f"timesteps{steps}"].tolist():
                return float("inf")
        alphas = config.sampler.alphas_cumprod()
        errors.append(error(torch.from_numpy(alphas).float(), t["alphas_cumprod"]))
        if "scale50" in t:
            before = sampler.alpha_prev / alphas[[*sampler.timesteps[1:], 0]] ** 0.5
            for name, ours in {"scale50": sampler.scale, "scale_prev50": before}.items():
                errors.append(error(torch.from_numpy(ours[::-1].copy()).float(), t[name]))

        class Toy(nn.Module):
            def project_context(self, context: Tensor) -> Tensor:
                return context

            def forward(self, x: Tensor, step: Tensor, context: Tensor, *_: object) -> Tensor:
                return toy(x, context.view(-1, 1, 1, 1, 1), step.view(-1, 1, 1, 1, 1) / 1000)

        branches = [Branch(torch.tensor([[[c]]])) for c in (0.3, -0.2)]
        guided = Guidance(Toy(), branches,
                          Sampling(guidance_scale=7.5,
                                   guidance_rescale=settings["guidance_rescale"]))
        x, noise = frames_first(reference, t["x"]), [frames_first(reference, z) for z in t["noise"]]
        for eta in (0.0, 1.0):
            run = partial(run_sampler, config.sampler.sampler(len(noise), eta), x)
            ours = run(lambda x, step: guided(x, step, None, None), noise if eta else None)
            errors.append(error(ours, frames_first(reference, t[f"eta{int(eta)}.y"])))
    return max(errors)


def check_resampler(reference: Reference) -> float:
    c = reference.json("config")
    config = dynamicrafter.ResamplerConfig(width=c["dim"], layers=c["depth"], heads=c["heads"],
                                           head_dim=c["dim_head"], tokens=c["num_queries"],
                                           frames=c["video_length"], image_width=c["embedding_dim"],
                                           out=c["output_dim"])
    resampler = load(reference, dynamicrafter.Resampler(config), dynamicrafter.RESAMPLER,
                     "image_proj_model.")
    return error(resampler(reference["x"]), reference["y"])


def check_image_encoder(reference: Reference) -> float:
    c = reference.json("config")
    config = dynamicrafter.ImageConfig(c["image_size"], c["patch_size"], c["width"],
                                       c["width"] // c["head_width"], c["layers"])
    tower = load(reference, dynamicrafter.TokenTower(config), dynamicrafter.IMAGE,
                 "embedder.model.visual.")
    pixels = tower.prepare(reference["image"])
    return max(error(pixels, reference["pixels"]), error(tower(pixels), reference["y_tokens"]))


CHECKS: dict[tuple[str, str], Callable[[Reference], float]] = {  # by family and kind
    ("dynamicrafter", "unet"): check_unet,
    ("dynamicrafter", "windowed"): check_windowed,
    ("dynamicrafter", "zerosmooth"): check_zerosmooth,
    ("dynamicrafter", "cascade"): check_run,
    ("dynamicrafter", "sampling"): check_run,
    ("dynamicrafter", "samplers"): check_samplers,
    ("dynamicrafter", "resampler"): check_resampler,
    ("dynamicrafter", "image_encoder"): check_image_encoder,
}
