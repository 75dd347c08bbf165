"""The trained interpolators against what their authors' code computed, for `parity`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from evaluation.interpolators import lavie, ldmvfi
from evaluation.interpolators.ldmvfi import LDMVFI
from evaluation.interpolators.vqfigan import VQFIGANConfig, deformable
from weights_convert.engine import convert
from zerosmooth.family import Networks
from zerosmooth.samplers import DDIM

from .parity import BOUND, Reference, error, lavie_unet, run_sampler, vae_config, weight

Net = TypeVar("Net", bound=nn.Module)
INFINITE = float("inf")
CONDITION_BOUND = 2e-5  # of VQ-FIGAN's latents, where a wrong eps shows


def shapes_of(reference: Reference) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in reference.json("keys").items()}


def placed(networks: Net, parts: Iterable[str], reference: Reference) -> Net:
    """The networks, with the parts that have weights where the reference is."""
    for part in parts:
        getattr(networks, part).to(reference.device, reference.dtype)
    return networks.eval().requires_grad_(False)


def numbers(values: np.ndarray, reference: Reference) -> Tensor:
    """Of a schedule, as the reference has them."""
    return torch.from_numpy(values).float().to(reference.device)


def pixels_off(ours: Tensor, theirs: Tensor) -> float:
    """Zero if no pixel is off by more than 1, else infinity."""
    same = ours.shape == theirs.shape and (ours.int() - theirs.int()).abs().max() <= 1
    return 0.0 if same else INFINITE


def lavie_networks(reference: Reference) -> Networks:
    """With the weights of the parts that the reference has."""
    alone = "config" in reference.metadata
    parts = {"unet": "config"} if alone else {"unet": "unet", "vae": "vae"}
    config = replace(lavie.FAMILY.config, unet=lavie_unet(reference.json(parts["unet"])))
    if "vae" in parts:
        config = replace(config, vae=vae_config(reference.json("vae")))
    with torch.device("meta"):
        networks = Networks(lavie.FAMILY, config)
    prefix = "unet." if alone else ""
    shapes = {prefix + name: shape for name, shape in shapes_of(reference).items()}
    expected = {name: tuple(p.shape) for name, p in networks.state_dict().items()
                if name.partition(".")[0] in parts}
    table = lavie.FAMILY.conversion.table(config, shapes)

    def read(name: str) -> Tensor:
        return weight(name.removeprefix(prefix), shapes[name])

    state = dict(convert(table, shapes, read, expected))
    networks.load_state_dict(state, strict=False, assign=True)
    return placed(networks, parts, reference)


def check_lavie_unet(reference: Reference) -> float:
    t = reference.tensors
    x = rearrange(t["x"], "b c f h w -> b f c h w")
    y = lavie_networks(reference).unet(x, t["timesteps"], t["context"])
    return error(y, rearrange(t["y"], "b c f h w -> b f c h w"))


def check_lavie_sampler(reference: Reference) -> float:
    t, config = reference.tensors, lavie.FAMILY.config.sampler
    errors = []
    for name, steps in {"": int(reference.number("steps")), "25": 25, "50": 50}.items():
        sampler = lavie.EvenDDIM(config, steps)
        if sampler.timesteps != t[f"timesteps{name}"].tolist():
            return INFINITE
        errors.append(error(numbers(sampler.alpha**2, reference), t[f"alphas_cumprod{name}"]))
    sampler = lavie.EvenDDIM(config, int(reference.number("steps")))
    errors.append(error(numbers(sampler.alpha_prev**2, reference), t["alphas_cumprod_prev"]))

    def toy(x: Tensor, step: float) -> Tensor:
        return t["e"] + 0.01 * torch.tanh(0.7 * x + 0.3 * t["key"] + step / 1000)

    return max(*errors, error(run_sampler(sampler, t["x"], toy, None), t["y"]))


def check_lavie_run(reference: Reference) -> float:
    t, networks = reference.tensors, lavie_networks(reference)
    size = tuple(reference.json("size"))
    keys = lavie.key_latents(networks, t["frames"], t["posterior_noise"], size)
    noise = rearrange(t["latents"], "b c f h w -> b f c h w")
    sampler = lavie.EvenDDIM(lavie.FAMILY.config.sampler, int(reference.number("steps")))
    contexts = t["context"], t["uncond"]
    scale = reference.number("guidance_scale")
    z = lavie.sample(networks, sampler, keys[None], noise, contexts, scale)
    frames = networks.vae.decode(z[0])
    return max(
        error(keys, t["y_key_latents"]),
        error(rearrange(z, "b f c h w -> b c f h w"), t["y_latents"]),
        error(rearrange(frames, "f c h w -> 1 c f h w"), t["y_frames"]),
        pixels_off(lavie.to_uint8(frames), t["y_uint8"]),
    )


def ldmvfi_networks(reference: Reference) -> LDMVFI:
    """With the weights of the parts that the reference has."""
    unet, vae, parts = ldmvfi.UNetConfig(), VQFIGANConfig(), []
    if reference.kind in ("unet", "interpolation"):
        c = reference.json("unet" if "unet" in reference.metadata else "config")
        parts.append("unet")
        unet = ldmvfi.UNetConfig(
            c["in_channels"], c["out_channels"], c["model_channels"], tuple(c["channel_mult"]),
            c["num_res_blocks"], tuple(c["attention_resolutions"]),
            head_dim=c["num_head_channels"], window=min(c["image_size"] // 4, 8))
    if reference.kind in ("autoencoder", "interpolation"):
        c = reference.json("vae" if "vae" in reference.metadata else "config")
        parts.append("vae")
        codes = int(reference.metadata["n_embed"])
        size = c["ch"], tuple(c["ch_mult"]), c["num_res_blocks"], c["z_channels"]
        vae = VQFIGANConfig(*size, codes)
    with torch.device("meta"):
        networks = LDMVFI(unet, vae)
    shapes = shapes_of(reference)

    def read(name: str) -> Tensor:
        fixed = reference.tensors.get(f"fixed.{name}")
        return weight(name, shapes[name]) if fixed is None else fixed

    expected = {name: tuple(x.shape) for name, x in networks.state_dict().items()
                if name.partition(".")[0] in parts and ldmvfi.COUNTER not in name}
    state = dict(convert(ldmvfi.TABLE, shapes, read, expected))
    networks.load_state_dict(state, strict=False, assign=True)
    return placed(networks, parts, reference)


def check_ldmvfi_unet(reference: Reference) -> float:
    t = reference.tensors
    y = ldmvfi_networks(reference).unet.noise(t["x"], t["timesteps"], t["condition"])
    return error(y, t["y"])


def check_ldmvfi_sampler(reference: Reference) -> float:
    t, steps = reference.tensors, int(reference.number("steps"))
    alphas = numbers(ldmvfi.SAMPLER.alphas_cumprod(), reference)
    errors = [error(alphas, t["alphas_cumprod"])]
    for name, n in {"": steps, "50": 50, "200": 200}.items():
        sampler = DDIM(ldmvfi.SAMPLER, n, 0.0)
        if sampler.timesteps != t[f"timesteps{name}"].tolist():
            return INFINITE
        if name:
            alphas = numbers(sampler.alpha_prev**2, reference)
            errors.append(error(alphas, t[f"alphas_prev{name}"]))

    def toy(x: Tensor, step: float) -> Tensor:
        return t["e"] + 0.01 * torch.tanh(0.7 * x + 0.3 * t["condition"] + step / 1000)

    for eta in (0, 1):
        sampler = DDIM(ldmvfi.SAMPLER, steps, float(eta))
        y = run_sampler(sampler, t["x"], toy, t["noise"] if eta else None)
        errors.append(error(y, t[f"eta{eta}.y"]))
    return max(errors)


def check_ldmvfi_autoencoder(reference: Reference) -> float:
    t, vae = reference.tensors, ldmvfi_networks(reference).vae
    encoded = [vae.encode(t[name]) for name in ("prev", "next")]
    (z_prev, phi_prev), (z_next, phi_next) = encoded
    condition = error(torch.cat([z_prev, z_next], dim=1), t["y_condition"])
    errors = [condition * BOUND / CONDITION_BOUND]
    errors += [error(phi.mean(1), t[f"y_phi_{i}"]) for i, phi in enumerate(phi_prev)
               if f"y_phi_{i}" in t]
    if not torch.equal(vae.codes(t["z"]).reshape(t["y_codes"].shape), t["y_codes"]):
        return INFINITE
    shown = t["prev"], t["next"], [phi_prev, phi_next]
    if "y" in t:
        errors.append(error(vae.decode(t["z"], *shown), t["y"]))
    if "y_not_quantised" in t:
        y = vae.decoder(vae.post_quant_conv(t["z"]), *shown)
        errors.append(error(y, t["y_not_quantised"]))
    return max(errors)


def check_ldmvfi_dsepconv(reference: Reference) -> float:
    t = reference.tensors
    heads = (t[name] for name in ("vertical", "horizontal", "alpha", "beta", "mask"))
    return error(deformable(t["x"], *heads), t["y"])


def check_ldmvfi_run(reference: Reference) -> float:
    t, networks = reference.tensors, ldmvfi_networks(reference)
    prev, next_ = (t[name].permute(2, 0, 1)[None].float() / 127.5 - 1 for name in ("prev", "next"))
    sampler = DDIM(ldmvfi.SAMPLER, int(reference.number("steps")), reference.number("eta"))
    frame, latents = networks.sample(sampler, prev, next_, lambda shape, step: t["latents"])
    if not torch.equal(networks.vae.codes(latents).reshape(t["y_codes"].shape), t["y_codes"]):
        return INFINITE
    every = int(reference.metadata["every"])
    return max(
        error(latents, t["y_latents"]),
        error(frame[..., ::every, ::every], t["y_part"]),
        pixels_off(ldmvfi.to_uint8(frame)[0], t["y_frame"]),
    )


CHECKS: dict[tuple[str, str], Callable[[Reference], float]] = {  # by family and kind
    ("lavie_interpolation", "unet"): check_lavie_unet,
    ("lavie_interpolation", "sampler"): check_lavie_sampler,
    ("lavie_interpolation", "interpolation"): check_lavie_run,
    ("ldmvfi", "unet"): check_ldmvfi_unet,
    ("ldmvfi", "sampler"): check_ldmvfi_sampler,
    ("ldmvfi", "autoencoder"): check_ldmvfi_autoencoder,
    ("ldmvfi", "dsepconv"): check_ldmvfi_dsepconv,
    ("ldmvfi", "interpolation"): check_ldmvfi_run,
}
