"""Reference files of the families in `examples/` that make videos from prompts: what `tests.parity`
does with them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from weights_convert.engine import convert
from zerosmooth.attention import frame_positions
from zerosmooth.bus import HiddenStateBus, Stage
from zerosmooth.cascade import Cascade, sample_cascade
from zerosmooth.config import Sampling
from zerosmooth.family import Family, Networks
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.videocrafter import UNetConfig
from zerosmooth.samplers import DDIM, DDIMConfig, Sampler

from .parity import (
    Reference,
    diffusers_skeleton,
    error,
    frames_first,
    operators_of,
    run_unet,
    scales_of,
    toy,
    vae_config,
    weight,
)

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import animatediff  # noqa: E402 - the package does not know it
import latte  # noqa: E402
import modelscope  # noqa: E402


def animatediff_unet(c: dict) -> animatediff.AnimateDiffConfig:
    if "motion_module_kwargs" in c:  # the authors' own
        motion = c["motion_module_kwargs"]
        late = "v2" if c["motion_module_mid_block"] else "v3"
        return animatediff.AnimateDiffConfig(**diffusers_skeleton(c), heads=c["attention_head_dim"],
                                             groups=c["norm_num_groups"],
                                             motion_heads=motion["num_attention_heads"],
                                             version=late if c["use_inflated_groupnorm"] else "v1")
    return animatediff.AnimateDiffConfig(**diffusers_skeleton(c), heads=c["num_attention_heads"],
                                         groups=c["norm_num_groups"],
                                         motion_heads=c["motion_num_attention_heads"],
                                         motion_groups=c["norm_num_groups"], version="v2"
                                         if c["use_motion_mid_block"] else "v3", norms="diffusers")


def modelscope_unet(c: dict) -> UNetConfig:
    return replace(modelscope.FAMILY.config.unet, **diffusers_skeleton(c),
                   head_dim=c["attention_head_dim"], groups=c["norm_num_groups"])


def latte_network(c: dict) -> latte.LatteConfig:
    return latte.LatteConfig(c["in_channels"], c["out_channels"] // 2, c["num_attention_heads"],
                             c["attention_head_dim"], c["num_layers"], c["patch_size"],
                             c["sample_size"] // c["patch_size"], c["caption_channels"],
                             c["video_length"])


FAMILIES: dict[str, Family] = {family.name: family for family in (
    animatediff.FAMILY, modelscope.FAMILY, latte.FAMILY)}
UNETS: dict[str, Callable[[dict], object]] = {
    "animatediff": animatediff_unet, "modelscope": modelscope_unet, "latte": latte_network}
FOLDERS = {"latte": "transformer."}  # of the network's names


def build(reference: Reference) -> Networks:
    """Our networks with the reference's weights; parts that the reference does not have stay empty.

    Positions' tables are among its keys: a converter drops them, so nothing is made of them here.
    """
    family, c = FAMILIES[reference.family], reference.json("config")
    parts = {"unet", "vae"} & c.keys() or {"unet"}
    config = replace(family.config, unet=UNETS[family.name](c.get("unet", c)))
    if "vae" in parts:
        config = replace(config, vae=vae_config(c["vae"]))
    with torch.device("meta"):
        networks = Networks(family, config)
    # before a name it is no part of what fixes the weights
    folder = "" if "unet" in c else FOLDERS.get(family.name, "unet.")
    shapes = {f"{folder}{name}": tuple(shape) for name, shape in reference.json("keys").items()}
    expected = {name: tuple(p.shape) for name, p in networks.state_dict().items()
                if name.partition(".")[0] in parts}
    table = family.conversion.table(config, shapes)
    state = convert(table, shapes, lambda name: weight(name.partition(".")[2], shapes[name]),
                    expected)
    networks.load_state_dict(dict(state), strict=False, assign=True)
    return networks.eval().requires_grad_(False)


def ddim(c: dict) -> DDIMConfig:
    """diffusers' DDIM scheduler, of its config."""
    return DDIMConfig(beta_start=c["beta_start"], beta_end=c["beta_end"],
                      beta_schedule={"linear": "linear",
                                     "scaled_linear": "sqrt_linear"}[c["beta_schedule"]],
                      spacing=c.get("timestep_spacing", "leading"),
                      first_timestep=c.get("steps_offset", 0),
                      ends_clean=c.get("set_alpha_to_one", True))


def sampler_of(reference: Reference) -> DDIM:
    c = reference.json("scheduler") if "scheduler" in reference.metadata else reference.json(
        "config").get("scheduler")
    config = ddim(c) if c else FAMILIES[reference.family].config.sampler
    return config.sampler(int(reference.number("steps")), float(reference.metadata.get("eta", 0)))


def guided(reference: Reference, networks: Networks) -> Guidance:
    branches = [Branch(reference["context"]), Branch(reference["uncond"])]
    return Guidance(networks.unet, branches,
                    Sampling(guidance_scale=reference.number("guidance_scale")))


def walk(sampler: Sampler, x: Tensor, network: Callable[[int, Tensor], Tensor], noise: Tensor
         | None) -> Iterator[Tensor]:
    """x after every step."""
    for i in range(len(sampler)):
        output = network(i, sampler.network_input(i, x))
        x = sampler.step(i, x, sampler.x0(i, x, output), None if noise is None else noise[i])
        yield x


def check_unet(reference: Reference) -> float:
    return run_unet(reference, build(reference))


def check_windowed(reference: Reference) -> float:
    (start, end), (after, _) = reference["windows"].tolist()[:2]
    bus = HiddenStateBus(end - start, (2,), overlap=end - after)
    return run_unet(reference, build(reference), stage=bus.stage(1, strength=0.0))


def check_zerosmooth(reference: Reference) -> float:
    networks, frames = build(reference), reference.json("frames")
    bus = HiddenStateBus(frames[0], scales_of(frames), correction=operators_of(reference))
    strength = float(reference["strength"])
    return max(run_unet(reference, networks, str(s), bus.stage(s, strength=strength))
               for s in range(len(frames)))


def check_cascade(reference: Reference) -> float:
    ys = [frames_first(reference, reference[f"y{s}"]) for s in range(99)
          if f"y{s}" in reference.tensors]
    frames = [y.shape[1] for y in ys]
    cascade = Cascade(frames[0], scales_of(frames), correction=operators_of(reference))
    sampler, network = sampler_of(reference), guided(reference, build(reference))

    def noise(step: int) -> Tensor:
        return frames_first(reference, reference["latents"] if step < 0
                            else reference["noise"][step])

    def told(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
        return network(x, sampler.timestep(step), None, stage)

    return max(error(ours, y)
               for ours, y in zip(sample_cascade(told, sampler, cascade, noise, cascade.bus()), ys))


def check_sampling(reference: Reference) -> float:
    """A run from given conditions: its last latents, and where the file has them the first step's,
    and the frames."""
    networks, sampler, t = build(reference), sampler_of(reference), reference.tensors
    network = guided(reference, networks)
    noise = [frames_first(reference, x) for x in t["noise"]] if sampler.stochastic else None
    x = sampler.start(frames_first(reference, t["latents"]))
    steps = list(walk(sampler, x, lambda i, x: network(x, sampler.timestep(i), None, None), noise))
    errors = [error(steps[-1], frames_first(reference, t["y_latents"]))]
    if "timesteps" in t and [sampler.timestep(i)
                             for i in range(len(sampler))] != t["timesteps"].tolist():
        return float("inf")
    if "y_step0" in t:
        errors.append(error(steps[0], frames_first(reference, t["y_step0"])))
    if "y_steps" in t:
        errors += [error(x, frames_first(reference, y)) for x, y in zip(steps, t["y_steps"])]
    if "y_frames" in t:
        frames = rearrange(networks.vae.decode(steps[-1][0]), "f c h w -> 1 c f h w")
        errors.append(error(frames, t["y_frames"]))
    return max(errors)


def check_samplers(reference: Reference) -> float:
    """DDIM in each of the settings that the file has, on a toy network."""
    t, errors = reference.tensors, []
    for name in {name.partition(".")[0] for name in t if "." in name}:
        scheduler = re.search(r"\{.*\}", reference.metadata[name])
        assert scheduler is not None
        config = ddim(json.loads(scheduler[0]))
        errors.append(error(torch.from_numpy(config.alphas_cumprod()).float(), t["alphas_cumprod"]))
        errors.append(float(np.abs(DDIM(config, 10).alpha_prev[-1] ** 2
                                   - float(t[f"{name}.final_alpha_cumprod"]))))
        for steps in (10, 25):
            if DDIM(config, steps).timesteps != t[f"{name}.timesteps{steps}"].tolist():
                return float("inf")
        for eta in (0.0, 1.0):
            sampler = DDIM(config, len(t["noise"]), eta)

            def network(i: int, x: Tensor, sampler: DDIM = sampler) -> Tensor:
                step = sampler.timestep(i) / 1000
                return toy(x, -0.2, step) + 7.5 * (toy(x, 0.3, step) - toy(x, -0.2, step))

            *_, ours = walk(sampler, t["x"], network, t["noise"] if eta else None)
            errors.append(error(ours, t[f"{name}.eta{int(eta)}.y"]))
    return max(errors)


class Watched:
    """What modules of Latte's network gave out, by their published names."""

    NAMES = {"pos_embed": "patches", "caption_projection": "caption", "adaln": "modulation"}

    def __init__(self, network: nn.Module) -> None:
        self.outputs: dict[str, Tensor] = {}
        for path, module in network.named_modules():
            module.register_forward_hook(partial(self.keep, path))

    def keep(self, path: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        self.outputs[path] = output

    def error(self, name: str, theirs: Tensor, network: nn.Module) -> float:
        """Of `act.*` in a file."""
        path = name.replace("temporal_transformer_", "temporal_").replace("transformer_",
                                                                          "spatial_")
        ours = self.outputs[self.NAMES.get(path, path)]
        if path == "pos_embed":
            ours = rearrange(ours, "n d h w -> n (h w) d") + network.token_positions(ours)
        elif path.startswith("spatial"):
            ours = ours.flatten(0, 1)
        elif path.startswith("temporal"):
            ours = rearrange(ours, "b f l d -> (b l) f d")
        return error(ours, theirs)


def check_transformer(reference: Reference) -> float:
    """Latte's network: all of its output, and what the file has of its layers' outputs."""
    t, network = reference.tensors, build(reference).unet
    watched, context = Watched(network), t["context"]
    if "context_mask" in t:
        context = torch.cat([context, t["context_mask"][..., None]], dim=-1)
    x, y = frames_first(reference, t["x"]), frames_first(reference, t["y"])
    errors = [error(network.predict(x, t["timesteps"], context, None), y)]
    for name in t:
        kind, _, rest = name.partition(".")
        if kind == "act":
            errors.append(watched.error(rest, t[name], network))
    if "position.frames" in t:
        h = torch.empty(1, network.config.dim, *(side // 2 for side in x.shape[-2:]))
        frames = latte.sines_first(frame_positions(x.shape[1], None), network.config.dim)
        errors += [error(frames, t["position.frames"]),
                   error(network.token_positions(h), t["position.tokens"])]
    return max(errors)


def check_latte_zerosmooth(reference: Reference) -> float:
    """As the other families' networks, whose output has no second half."""
    network, t, frames = build(reference).unet, reference.tensors, reference.json("frames")
    bus = HiddenStateBus(frames[0], scales_of(frames), correction=operators_of(reference))
    errors = []
    for s in range(len(frames)):
        stage = bus.stage(s, strength=float(t["strength"]))
        x, y = (frames_first(reference, t[f"{name}{s}"]) for name in "xy")
        ours = network.predict(x, t["timesteps"], t["context"], stage)[:, :, : y.shape[2]]
        errors.append(error(ours, y))
    return max(errors)


def check_latte_text(reference: Reference) -> float:
    """T5's states, and what is made of those of each prompt alone. ImportError without
    transformers."""
    from transformers import T5Config, T5EncoderModel

    t, shapes = reference.tensors, reference.json("keys")
    with torch.inference_mode(False), torch.no_grad():
        t5 = T5EncoderModel(T5Config(**reference.json("config"))).eval()
        state = {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
        missing = t5.load_state_dict(state, strict=False)
    if set(missing.missing_keys) - {"encoder.embed_tokens.weight"} or missing.unexpected_keys:
        return float("inf")
    texts = {f"{i}": ids[:n] for i, (ids, n) in enumerate(zip(t["ids"], t["mask"].sum(1)))}
    texts["x"] = t["negative_ids"][0, : t["negative_mask"].sum()]

    class Known:
        pad_token_id = 0

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": texts[text].tolist()}

    encoder = latte.PromptEncoder(latte.T5Config(width=t5.config.d_model))
    states = [encoder.run(Known(), t5, text, whole=True).states for text in texts]
    errors = [error(torch.stack(states), torch.cat([t["y_states"], t["y_negative_states"]]))]
    with patch.multiple(latte, ENCODED={}, folder_of=lambda _: "",
                        load_t5=Mock(return_value=(Known(), t5))):
        for i in range(len(t["ids"])):
            contexts = encoder.encode([f"{i}"], "x", torch.device("cpu"), torch.float32)
            errors += [error(ours, t[f"y_{name}{i}"])
                       for ours, name in zip(contexts, ("context", "uncond"))]
    return max(errors)


CHECKS: dict[tuple[str, str], Callable[[Reference], float]] = {  # by family and kind
    (family, kind): check for family in FAMILIES for kind, check in {
        "unet": check_unet, "windowed": check_windowed, "zerosmooth": check_zerosmooth,
        "cascade": check_cascade, "pipeline": check_sampling, "sampling": check_sampling,
        "samplers": check_samplers}.items()}
CHECKS |= {("latte", "transformer"): check_transformer,
           ("latte", "zerosmooth"): check_latte_zerosmooth, ("latte", "text"): check_latte_text}
