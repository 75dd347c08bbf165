"""Reference files of `examples/wan`: what `tests.parity` does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from examples import wan
from examples.wan.samplers import FlowEuler
from weights_convert.engine import convert
from zerosmooth.config import ModelConfig, Sampling
from zerosmooth.family import Networks
from zerosmooth.guidance import Branch, Guidance

from .parity import Reference, error, frames_first, weight


def transformer_config(c: dict) -> wan.WanConfig:
    return wan.WanConfig(c["in_channels"], c["out_channels"], c["num_attention_heads"],
                         c["attention_head_dim"], c["num_layers"], c["ffn_dim"], c["text_dim"],
                         c["freq_dim"], c["patch_size"][1])


def vae_config(c: dict) -> wan.WanAutoencoderConfig:
    return wan.WanAutoencoderConfig(c["base_dim"], tuple(c["dim_mult"]), c["num_res_blocks"],
                                    c["z_dim"], tuple(c["temperal_downsample"]),
                                    tuple(c["latents_mean"]), tuple(c["latents_std"]))


def filled(config: ModelConfig, part: str, shapes: dict[str, tuple[int, ...]],
           prefix: str) -> nn.Module:
    """Our networks, of which `part` has the weights that the rule gives."""
    with torch.device("meta"):
        networks = Networks(wan.FAMILY, config)
    held = {prefix + name: tuple(shape) for name, shape in shapes.items()}
    expected = {name: tuple(p.shape) for name, p in networks.state_dict().items()
                if name.startswith(f"{part}.")}
    state = convert(wan.table(config, held), held,
                    lambda name: weight(name.removeprefix(prefix), held[name]), expected)
    networks.load_state_dict(dict(state), strict=False, assign=True)
    return getattr(networks, part).eval().requires_grad_(False)


def transformer(reference: Reference) -> nn.Module:
    config = replace(wan.FAMILY.config, unet=transformer_config(reference.json("config")))
    return filled(config, "unet", reference.json("keys"), "transformer.")


def check_transformer(reference: Reference) -> float:
    t, network = reference.tensors, transformer(reference)
    seen: dict[str, Tensor] = {}
    named = {"patch_embedding": "patches", "time": "time_embedding", "modulation": "modulation"}
    for path, module in network.named_modules():
        module.register_forward_hook(lambda _m, _i, output, path=path: seen.update({path: output}))
    ours = network(frames_first(reference, t["x"]), t["timesteps"], t["context"])
    errors = [error(ours, frames_first(reference, t["y"]))]
    for name in t:
        kind, _, rest = name.partition(".")
        if kind == "act":
            state = seen[named.get(rest, rest)]
            errors.append(error(state.flatten(1, 2) if rest.startswith("blocks") else state,
                                t[name]))
    return max(errors)


def check_vae(reference: Reference) -> float:
    """Whole clips, and in chunks."""
    config = replace(wan.FAMILY.config, vae=vae_config(reference.json("config")))
    vae = filled(config, "vae", reference.json("keys"), "vae.")
    x, z = (frames_first(reference, reference[name]) for name in "xz")
    errors = []
    for n in reference.json("lengths"):
        latents = z[:, : 1 + (n - 1) // 4]
        for chunk in (None, 1, 3):
            moments = torch.cat(vae.moments(x[:, :n], chunk), dim=2)
            frames = vae.decode(latents, chunk)
            for ours, name in ((moments, f"y_moments{n}"),
                               (vae.encode(x[:, :n], chunk), f"y_latents{n}"),
                               (frames.clamp(-1, 1), f"y_decoded{n}")):
                errors.append(error(ours, frames_first(reference, reference[name])))
            if f"y_raw{n}" in reference.tensors:
                theirs = frames_first(reference, reference[f"y_raw{n}"])
                errors.append(error(frames, theirs))
    return max(errors)


def walk(reference: Reference, network: Guidance, sampler: FlowEuler) -> Iterator[Tensor]:
    """x after every step."""
    x = sampler.start(frames_first(reference, reference["latents"]))
    for i in range(len(sampler)):
        output = network(x, sampler.timestep(i), None, None)
        x = sampler.step(i, x, sampler.x0(i, x, output))
        yield x


def check_sampling(reference: Reference) -> float:
    t, kind = reference.tensors, reference.metadata["sampler"]
    config = wan.FlowConfig(kind, float(reference.metadata["flow_shift"]))
    sampler = config.sampler(int(reference.number("steps")))
    network = Guidance(transformer(reference), [Branch(t["context"]), Branch(t["uncond"])],
                       Sampling(guidance_scale=reference.number("guidance_scale")))
    told = torch.tensor([sampler.timestep(i) for i in range(len(sampler))])
    errors = [error(torch.tensor(sampler.levels), t["sigmas"]),
              error(told, t["timesteps"].float())]
    steps = list(walk(reference, network, sampler))
    errors += [error(x, frames_first(reference, y)) for x, y in zip(steps, t["y_steps"])]
    return max(*errors, error(steps[-1], frames_first(reference, t["y_latents"])))


def check_text(reference: Reference) -> float:
    """UMT5's states, one prompt at a time. ImportError without transformers."""
    from transformers import UMT5Config, UMT5EncoderModel

    t, shapes = reference.tensors, reference.json("keys")
    with torch.inference_mode(False), torch.no_grad():
        umt5 = UMT5EncoderModel(UMT5Config(**reference.json("config"))).eval()
        state = {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
        missing = umt5.load_state_dict(state, strict=False)
    if set(missing.missing_keys) - {"encoder.embed_tokens.weight"} or missing.unexpected_keys:
        return float("inf")

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": t["ids"][int(text), : t["mask"][int(text)].sum()].tolist()}

    encoder = wan.PromptEncoder(wan.UMT5Config(width=umt5.config.d_model))
    states = [encoder.run(tokenizer, umt5, str(i))[0] for i in range(len(t["ids"]))]
    shown = t["y_context"].shape[1]  # of the copy in `golden`; behind are zeros
    return error(torch.stack(states)[:, :shown], t["y_context"])


CHECKS: dict[tuple[str, str], Callable[[Reference], float]] = {
    ("wan", "transformer"): check_transformer, ("wan", "vae"): check_vae,
    ("wan", "sampling"): check_sampling, ("wan", "text"): check_text}
