"""Few-step checkpoints against what their authors' code computed; run by `tests.parity`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from weights_convert.engine import Table, convert
from weights_convert.lora import merged
from weights_convert.source import Source
from weights_convert.videocrafter import CONVERSION, NETWORK, UNET, named
from zerosmooth.cascade import sample_cascade
from zerosmooth.config import ModelConfig
from zerosmooth.families import FAMILIES
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.samplers import EulerConfig
from zerosmooth.settings import settings_for

from .parity import Reference, error, frames_first, run_sampler, sizes, toy, weight


def in_memory(tensors: dict[str, Tensor]) -> Source:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    return Source(Path("reference"), shapes, tensors.__getitem__, (Path("reference"),))


def t2v_turbo(reference: Reference) -> tuple[torch.nn.Module, ModelConfig]:
    """Our UNet, with the weights and the merged LoRA, which comes as a list in the authors'
    order."""
    base = in_memory({name: weight(name, tuple(shape))
                      for name, shape in reference.json("keys").items()})
    lora = [weight(name, tuple(shape)) for name, shape in reference.json("lora").items()]
    listed = in_memory({str(i): x for i, x in enumerate(lora)})
    source = merged(*named(base, listed), Table(UNET.within(NETWORK, "unet.")), 1.0)
    config = CONVERSION.variant(sizes(reference), source, Namespace(unet=None))
    with torch.device("meta"):
        unet = FAMILIES["vc2"].unet(config.unet)
    expected = {f"unet.{name}": tuple(p.shape) for name, p in unet.state_dict().items()}
    state = dict(convert(CONVERSION.table(config, source.shapes), source.shapes, source.read,
                         expected))
    unet.load_state_dict({name.removeprefix("unet."): x for name, x in state.items()}, assign=True)
    return unet.to(reference.device, reference.dtype).eval().requires_grad_(False), config


def check_t2v_turbo(reference: Reference) -> float:
    """One evaluation, then whole runs of 4 and 8 steps, as `Guidance` and `sample_cascade` make
    them."""
    unet, config = t2v_turbo(reference)
    family, context = FAMILIES["vc2"], reference["context"].to(reference.dtype)
    scale, fps = float(reference["guidance"]), float(reference["fps"])
    x = frames_first(reference, reference["x"]).to(reference.dtype)
    told = torch.tensor([[fps, scale]], device=reference.device)
    ours = unet(x, reference["timesteps"], context, told)
    errors = [error(ours, frames_first(reference, reference["y"]))]
    for steps, known in reference.json("steps").items():
        noise = frames_first(reference, reference[f"noise{steps}"].flatten(0, 1))
        config = replace(config, sampler=replace(config.sampler, consistency=known))
        settings = settings_for(family, config, steps=int(steps), scale=1, key_frames=x.shape[1],
                                guidance_scale=scale)
        sampler = config.sampler.sampler(settings.steps, settings.eta)
        if sampler.timesteps != reference[f"timesteps{steps}"].tolist():
            return float("inf")
        guided = Guidance(unet, [Branch(context)], settings)
        (ours,) = sample_cascade(lambda i, s, x, stage: guided(x, sampler.timestep(i),
                                                               family.condition(config, fps,
                                                                                settings), stage),
                                 sampler,
                                 settings.cascade, lambda i: frames_first(reference,
                                                                          reference["latents"])
                                 if i < 0 else noise[i : i + 1], settings.bus())
        errors.append(error(ours, frames_first(reference, reference[f"y{steps}"])))
    return max(errors)


def check_animatelcm(reference: Reference) -> float:
    """Noise levels, timesteps and whole runs on a toy network."""
    errors = []
    for steps in (1, 4, 8):
        sampler = EulerConfig(consistency=40).sampler(steps, 1.0)
        errors.append((sampler.start(torch.ones(())) / reference["init_noise_sigma"]
                       - 1).abs().item())
        errors.append(error(torch.from_numpy(sampler.sigmas).float(), reference[f"sigmas{steps}"]))
        told = torch.tensor([sampler.timestep(i) for i in range(steps)])
        errors.append((told - reference[f"timesteps{steps}"]).abs().max().item())
        ours = run_sampler(sampler,
                           sampler.start(reference["x"]), lambda x, step: toy(x, 0.3, 0.1 * step),
                           reference[f"noise{steps}"])
        errors.append(error(ours, reference[f"y{steps}"]))
    return max(errors)


CHECKS = {("vc2", "consistency"): check_t2v_turbo, ("svd", "consistency"): check_animatelcm}
