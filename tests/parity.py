"""Compares our networks, samplers and cascade with what the authors' own code computed.

    python -m tests.parity FILE...

A reference file holds inputs and outputs, and the names and shapes of the checkpoint they were made
with; its weights follow from the names by a rule. They go through the converter into our networks,
in float32 on the CPU. One line a file: name, largest error over the standard deviation of the
reference, and the bound. Exit status 1 if one is above.
"""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from weights_convert.engine import convert
from zerosmooth.bus import Correction, HiddenStateBus, Stage
from zerosmooth.cascade import Cascade, sample_cascade
from zerosmooth.config import ModelConfig, Sampling
from zerosmooth.families import FAMILIES
from zerosmooth.family import Networks
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import ImageConfig, TextConfig
from zerosmooth.models.lavie import LaVieConfig
from zerosmooth.models.svd import SVDConfig, SVDUNet
from zerosmooth.models.tokenizer import Tokenizer
from zerosmooth.models.unet import Skeleton
from zerosmooth.models.videocrafter import UNetConfig
from zerosmooth.pipeline import Pipeline
from zerosmooth.samplers import DDIM, Euler, Sampler

# of one evaluation; of whole sampling runs, where rounding adds up over the steps
BOUND, RUN_BOUND = 1e-4, 1e-3


@dataclass
class Reference:
    """A reference file. config: the author's, by part. keys: upstream tensor name -> shape."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    dtype: torch.dtype = torch.float32  # of our networks

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def kind(self) -> str:
        return self.metadata["kind"]

    @property
    def family(self) -> str:
        return self.metadata["family"]

    def json(self, name: str) -> dict:
        return json.loads(self.metadata[name])

    def number(self, name: str) -> float:
        return float(self.metadata[name])

    @property
    def base_fps(self) -> int:
        """Of the key frames; any number where the family has no such condition."""
        return json.loads(self.metadata.get("fps", "null")) or 8

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def read(path: Path, device: str | torch.device = "cpu",
         dtype: torch.dtype = torch.float32) -> Reference:
    with safe_open(path, "pt") as file:
        return Reference(file.metadata(),
                         {name: file.get_tensor(name).to(device) for name in file.keys()}, dtype)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the rule gives to an upstream name and shape."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "mix_factor" in name:
        pass
    elif name.endswith("bias"):
        z = 0.05 * z
    elif len(shape) == 1 and name.endswith("weight"):
        z = 1 + 0.1 * z
    elif len(shape) <= 1:
        z = 0.1 * z
    else:
        z = z / np.sqrt(prod(shape[1:]))
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def ldm_skeleton(c: dict) -> dict:
    """What VideoCrafter's and the SVD authors' configs have in common."""
    return {"in_channels": c["in_channels"], "out_channels": c["out_channels"],
            "channels": c["model_channels"], "channel_mult": tuple(c["channel_mult"]),
            "res_blocks": c["num_res_blocks"],
            "attention_resolutions": tuple(c["attention_resolutions"]),
            "head_dim": c["num_head_channels"], "transformer_depth": c["transformer_depth"],
            "context_dim": c["context_dim"]}


def videocrafter_unet(c: dict) -> UNetConfig:
    return UNetConfig(**ldm_skeleton(c), frames=c["temporal_length"],
                      temporal_conv=c["temporal_conv"],
                      relative_position=c["use_relative_position"], fps_condition=c["fps_cond"],
                      initial_attention=c["addition_attention"])


def diffusers_skeleton(c: dict) -> dict:
    """What LaVie's and diffusers' configs have in common."""
    channels = c["block_out_channels"]
    attention = [2**i for i, kind in enumerate(c["down_block_types"]) if "CrossAttn" in kind]
    return {"in_channels": c["in_channels"], "out_channels": c["out_channels"],
            "channels": channels[0], "channel_mult": tuple(ch // channels[0] for ch in channels),
            "res_blocks": c["layers_per_block"], "attention_resolutions": tuple(attention),
            "context_dim": c["cross_attention_dim"]}


def lavie_unet(c: dict) -> LaVieConfig:
    return LaVieConfig(**diffusers_skeleton(c), heads=c["attention_head_dim"],
                       groups=c["norm_num_groups"])


def svd_unet(c: dict) -> SVDConfig:
    if "model_channels" in c:  # the authors' own
        return SVDConfig(**ldm_skeleton(c), condition_dim=c["adm_in_channels"] // 3)
    head_dims = {ch // heads
                 for ch, heads in zip(c["block_out_channels"], c["num_attention_heads"])}
    if len(head_dims) > 1:
        raise ValueError(f"heads of {head_dims} channels; one size is supported")
    return SVDConfig(
        **diffusers_skeleton(c),
        head_dim=head_dims.pop(),
        transformer_depth=c["transformer_layers_per_block"],
        condition_dim=c["addition_time_embed_dim"],
        frames=c["num_frames"],
        # where diffusers departs from the authors, its own figures are met with its own value
        outer_eps=1e-6,
    )


def vae_config(c: dict) -> AutoencoderConfig:
    if "ch" in c:
        return AutoencoderConfig(c["ch"], tuple(c["ch_mult"]), c["num_res_blocks"], c["z_channels"])
    channels = c["block_out_channels"]
    mult = tuple(ch // channels[0] for ch in channels)
    return AutoencoderConfig(channels[0], mult, c["layers_per_block"], c["latent_channels"])


def text_config(c: dict) -> TextConfig:
    if "width" in c:
        return TextConfig(c["vocab_size"], c["context_length"], c["width"], c["heads"], c["layers"]
                          - 1)
    return TextConfig(
        c["vocab_size"],
        c["max_position_embeddings"],
        c["hidden_size"],
        c["num_attention_heads"],
        c["num_hidden_layers"],
        # a small reference has fewer tokens, and is given their ids
        pad_token=min(49407, c["vocab_size"] - 1),
        activation=c["hidden_act"],
    )


def image_config(c: dict, out: int) -> ImageConfig:
    if "width" in c:
        heads = c["width"] // c["head_width"]
        return ImageConfig(c["image_size"], c["patch_size"], c["width"], heads, c["layers"], out)
    heads = c["num_attention_heads"]
    return ImageConfig(c["image_size"], c["patch_size"], c["hidden_size"], heads,
                       c["num_hidden_layers"], out)


UNETS = {"vc2": videocrafter_unet, "vc1": videocrafter_unet, "lavie": lavie_unet, "svd": svd_unet}
PREFIXES = {  # of a part's tensors, where a reference holds that part alone
    "lavie": {"unet": "unet.", "vae": "vae.", "encoder": "text_encoder."},
    "svd": {"unet": "unet.", "vae": "vae.", "encoder": "image_encoder."},
}


def parts_of(reference: Reference) -> dict[str, dict]:
    """The author's config of each of our networks that the reference has."""
    names = {"unet": "unet", "vae": "vae", "text": "encoder", "image_encoder": "encoder"}
    found = {ours: reference.json(theirs) for theirs, ours in names.items()
             if theirs in reference.metadata}
    return found or {names.get(reference.kind, "unet"): reference.json("config")}


def sizes(reference: Reference) -> ModelConfig:
    """The family's config in the reference's size."""
    family, c = FAMILIES[reference.family], FAMILIES[reference.family].config
    for part, theirs in parts_of(reference).items():
        if part == "unet":
            c = replace(c, unet=UNETS[family.name](theirs))
        elif part == "vae":
            ours = vae_config(theirs)
            c = replace(c, vae=replace(ours, temporal=c.vae.temporal, float32=c.vae.float32))
        elif "image" in family.takes:
            out = theirs.get("projection_dim") or int(reference.metadata["embed_dim"])
            c = replace(c, encoder=image_config(theirs, out))
        else:
            c = replace(c, encoder=text_config(theirs))
    return c


def build(reference: Reference) -> tuple[Networks, ModelConfig]:
    """Our networks with the reference's weights; parts that the reference does not have stay
    empty."""
    parts, config = parts_of(reference), sizes(reference)
    with torch.device("meta"):
        networks = Networks(FAMILIES[reference.family], config)
    shapes = {name: tuple(shape) for name, shape in reference.json("keys").items()}
    origin = {name: name for name in shapes}  # the name that fixes a tensor's weights
    if reference.metadata["key_layout"] in ("diffusers", "huggingface",
                                            "lavie") and len(parts) == 1:
        prefix = PREFIXES[reference.family][next(iter(parts))]
        origin = {prefix + name: name for name in shapes}
    if config.vae.temporal and parts.get("vae", {}).get("layers_per_block") == 1:
        # diffusers' decoder of one layer a block holds an attention in the middle that it does not
        # use, and one ResNet
        networks.vae.decoder.middle.attn = networks.vae.decoder.middle.res2 = torch.nn.Identity()
        origin = {ours: name for ours, name in origin.items()
                  if "decoder.mid_block.attentions" not in name}
    expected = {name: tuple(p.shape) for name, p in networks.state_dict().items()
                if name.partition(".")[0] in parts}
    table = FAMILIES[reference.family].conversion.table(config, origin)
    held = {ours: shapes[name] for ours, name in origin.items()}
    state = dict(convert(table, held, lambda ours: weight(origin[ours], held[ours]), expected))
    networks.load_state_dict(state, strict=False, assign=True)
    for part in parts:
        dtype = torch.float32 if part == "vae" and config.vae.float32 else reference.dtype
        getattr(networks, part).to(reference.device, dtype)
    return networks.eval().requires_grad_(False), config


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the reference's standard deviation; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.float().cpu(), theirs.float().cpu()
    return ((ours - theirs).abs().max() / theirs.std()).item()


def frames_first(reference: Reference, x: Tensor) -> Tensor:
    """Latents as b f c h w, whatever the author's order; they differ by family."""
    return x if reference.family == "svd" else rearrange(x, "b c f h w -> b f c h w")


def embed_sinusoids(unet: SVDUNet, timestep: Tensor, vector: Tensor, dtype: torch.dtype) -> Tensor:
    """As `SVDUNet.embed`, of what the authors' network is given: the sinusoids of the condition."""
    return Skeleton.embed(unet, timestep, None, dtype) + unet.condition_embedding(vector.to(dtype))


def run_unet(reference: Reference, networks: Networks, s: str = "", stage: Stage
             | None = None) -> float:
    """Our network against x{s}, y{s}."""
    t = reference.tensors
    x, y, context = t[f"x{s}"].to(reference.dtype), t[f"y{s}"], t["context"].to(reference.dtype)
    if "vector" in t:  # the authors' SVD: frames in the batch, sinusoids of the condition
        b = len(t["vector"])
        x, y = (rearrange(z, "(b f) c h w -> b f c h w", b=b) for z in (x, y))
        networks.unet.embed = partial(embed_sinusoids, networks.unet)
        return error(networks.unet(x, t["timesteps"], context, t["vector"], stage), y)
    if f"added_time_ids{s}" in t:
        told = t[f"added_time_ids{s}"]
    elif s and reference.metadata.get("fps", "null") != "null":
        told = torch.tensor([reference.json("fps")[int(s)]], device=reference.device)
    else:
        told = t.get("fps")
    x, y = frames_first(reference, x), frames_first(reference, y)
    return error(networks.unet(x, t["timesteps"], context, told, stage), y)


def check_unet(reference: Reference) -> float:
    return run_unet(reference, build(reference)[0])


def check_windowed(reference: Reference) -> float:
    spans = reference["windows"].tolist()
    window = spans[0][1] - spans[0][0]
    stride = spans[1][0] - spans[0][0] if len(spans) > 1 else window
    bus = HiddenStateBus(window, (2,), overlap=window - stride)
    return run_unet(reference, build(reference)[0], stage=bus.stage(1, strength=0.0))


def operators_of(reference: Reference) -> Correction:
    return Correction(a1_probability={"A1": 1.0,
                                      "A2": 0.0}[reference.metadata["operator_for_spatial_kv"]])


def scales_of(frames: list[int]) -> tuple[int, ...]:
    return tuple(after // before for before, after in zip(frames, frames[1:]))


def check_zerosmooth(reference: Reference) -> float:
    networks, _ = build(reference)
    frames = reference.json("frames")
    bus = HiddenStateBus(frames[0], scales_of(frames), correction=operators_of(reference))
    strength = float(reference["strength"])
    return max(run_unet(reference, networks, str(s), bus.stage(s, strength=strength))
               for s in range(len(frames)))


def check_cascade(reference: Reference) -> float:
    networks, config = build(reference)
    ys = [frames_first(reference, reference[f"y{s}"]) for s in range(99)
          if f"y{s}" in reference.tensors]
    frames = [y.shape[1] for y in ys]
    cascade = Cascade(frames[0], scales_of(frames), correction=operators_of(reference))
    if "image" in FAMILIES[reference.family].takes:
        context, z = reference["context"].to(reference.dtype), reference["image_latent"].to(
            reference.dtype)
        branches = [Branch(context, z), Branch(torch.zeros_like(context), torch.zeros_like(z))]
        told = Sampling(guidance_scale=reference.number("max_guidance_scale"),
                        first_guidance_scale=reference.number("min_guidance_scale"),
                        motion_bucket_id=int(reference.number("motion_bucket_id")),
                        noise_aug_strength=reference.number("noise_aug_strength"))
    else:
        branches = [Branch(reference[name].to(reference.dtype)) for name in ("context", "uncond")]
        told = replace(config.defaults, guidance_scale=reference.number("guidance_scale"))
    sampler = config.sampler.sampler(int(reference.number("steps")),
                                     float(reference.metadata.get("eta", 0)))
    guided, family = Guidance(networks.unet, branches, told), FAMILIES[reference.family]

    def noise(step: int) -> Tensor:
        return frames_first(reference, reference["latents"] if step < 0
                            else reference["noise"][step])

    def told_network(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
        numbers = family.condition(config, reference.base_fps * cascade.scale_of(index), told)
        return guided(x, sampler.timestep(step), numbers, stage)

    return max(error(ours, y)
               for ours, y in zip(sample_cascade(told_network, sampler, cascade, noise,
                                                 cascade.bus()), ys))


def check_pipeline(reference: Reference) -> float:
    networks, config = build(reference)
    pipeline = Pipeline(FAMILIES[reference.family], config, networks)
    latents = frames_first(reference, reference["latents"])
    settings = {"key_frames": latents.shape[1], "scale": 1, "height": latents.shape[3]
                * config.vae.factor, "width": latents.shape[4] * config.vae.factor,
                "steps": int(reference.number("steps")), "fps": reference.base_fps,
                "noise": lambda step: latents if step < 0
                else frames_first(reference, reference["noise"][step])}
    errors = []
    if "image" in pipeline.family.takes:
        if config.defaults.first_guidance_scale != reference.number("min_guidance_scale"):
            raise ValueError("the reference's first frame has another guidance scale than ours")
        (video,) = pipeline.sample(reference["image"],
                                   guidance_scale=reference.number("max_guidance_scale"),
                                   motion_bucket_id=int(reference.number("motion_bucket_id")),
                                   noise_aug_strength=reference.number("noise_aug_strength"),
                                   image_noise=reference["augmentation_noise"], **settings)
    else:
        prompt = reference.metadata["prompt"]
        (video,) = pipeline.sample(prompt, eta=reference.number("eta"),
                                   guidance_scale=reference.number("guidance_scale"), **settings)
        errors.append(error(networks.encoder.encode([prompt]), reference["y_context"]))
    z = video.latents[0].to(pipeline.device, networks.vae.dtype)
    frames = rearrange(networks.vae.decode(z), "f c h w -> 1 c f h w")
    errors.append(error(video.latents[0][None], frames_first(reference, reference["y_latents"])))
    errors.append(error(frames, reference["y_frames"]))
    return max(errors)


def check_vae(reference: Reference) -> float:
    networks, _ = build(reference)
    x, z = (reference[name].to(networks.vae.dtype) for name in ("x", "z"))
    moments = torch.cat(networks.vae.moments(x), dim=1)
    decoded = networks.vae.decode_raw(z)
    return max(error(moments, reference["y_moments"]), error(decoded, reference["y_decoded"]))


def check_text(reference: Reference) -> float:
    networks, _ = build(reference)
    (y,) = (tensor for name, tensor in reference.tensors.items() if name.startswith("y_"))
    return error(networks.encoder(reference["ids"]), y)


def check_image_encoder(reference: Reference) -> float:
    networks, _ = build(reference)
    return error(networks.encoder(reference["pixels"].to(reference.dtype))[:, 0],
                 reference["y_embed"])


def toy(x: Tensor, context: float, step: float) -> Tensor:
    return torch.tanh(0.7 * x + context + step)


def run_sampler(sampler: Sampler, x: Tensor, network: Callable[[Tensor, float], Tensor],
                noise: Tensor | None) -> Tensor:
    for i in range(len(sampler)):
        output = network(sampler.network_input(i, x), sampler.timestep(i))
        x = sampler.step(i, x, sampler.x0(i, x, output), None if noise is None else noise[i])
    return x


def check_samplers(reference: Reference) -> float:
    """DDIM as VideoCrafter2 and LaVie sample, Euler as SVD does, on toy networks; a file without a
    part is an error."""

    def part(family: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{family}."): x for k, x in reference.tensors.items()
                if k.startswith(f"{family}.")}

    t, config = part("vc2"), FAMILIES["vc2"].config.sampler
    fifty, scales = DDIM(config, 50, eta=1.0), torch.from_numpy(config.data_scales())
    if [int(x) for x in t["timesteps50"]] not in (fifty.timesteps, fifty.timesteps[::-1]):
        return float("inf")
    errors = [error(scales[: len(t["scale_arr"])].float(), t["scale_arr"].float()[: len(scales)])]
    for name, value in {"alphas50": fifty.alpha / scales[fifty.timesteps].numpy(),
                        "sigmas50": fifty.fresh}.items():
        value = value**2 if name == "alphas50" else value
        errors.append(error(torch.from_numpy(value[::-1].copy()).float(), t[name].float()))

    def guided(x: Tensor, step: float) -> Tensor:
        without = toy(x, -0.2, step / 1000)
        return without + 12 * (toy(x, 0.3, step / 1000) - without)

    for eta in (0.0, 1.0):
        sampler = DDIM(config, len(t["noise"]), eta)
        errors.append(error(run_sampler(sampler, t["x"], guided, t["noise"]),
                            t[f"eta{int(eta)}.y"]))

    t, config = part("lavie"), FAMILIES["lavie"].config.sampler
    if any(DDIM(config, n).timesteps != t[f"timesteps{n}"].tolist() for n in (10, 50)):
        return float("inf")
    errors.append(error(torch.from_numpy(config.alphas_cumprod()).float(), t["alphas_cumprod"]))
    for eta in (0.0, 1.0):
        sampler = DDIM(config, len(t["noise"]), eta)
        ours = run_sampler(sampler, t["x"], lambda x, step: toy(x, 0.3, step / 1000), t["noise"])
        errors.append(error(ours, t[f"eta{int(eta)}.y"]))

    t, euler = part("svd"), Euler(FAMILIES["svd"].config.sampler, 25)
    errors.append(error(torch.from_numpy(euler.sigmas).float(), t["sigmas25"]))
    errors.append(error(torch.tensor([euler.timestep(i) for i in range(25)]), t["timesteps25"]))
    errors.append((euler.start(torch.ones(())) / t["init_noise_sigma"] - 1).abs().item())
    ours = run_sampler(euler, t["x"], lambda x, step: toy(x, 0.3, 0.1 * step), None)
    return max(*errors, error(ours, t["y"]))


def check_tokenizer(path: Path) -> float:
    """Zero if all tokens agree, else infinity."""
    reference = json.loads(path.read_text())
    pads = {"openclip": 0, "sd": 49407}
    same = [Tokenizer(48894, 77, pad)(reference["prompts"]).tolist() == reference[k]
            for k, pad in pads.items()]
    return 0.0 if all(same) else float("inf")


CHECKS: dict[str, Callable[[Reference], float]] = {"unet": check_unet, "windowed": check_windowed,
                                                   "zerosmooth": check_zerosmooth,
                                                   "cascade": check_cascade,
                                                   "pipeline": check_pipeline, "vae": check_vae,
                                                   "text": check_text,
                                                   "image_encoder": check_image_encoder,
                                                   "samplers": check_samplers}


@torch.inference_mode()
def check(path: Path, device: str | torch.device = "cpu",
          dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Error of a reference file, and its bound in float32. ValueError if its kind or family is not
    known here."""
    if path.suffix == ".json":
        return check_tokenizer(path), BOUND
    reference = read(path, device, dtype)
    kind, family = reference.kind, reference.family
    runs = "pipeline", "cascade", "sampling", "interpolation", "consistency"
    bound = RUN_BOUND if kind in runs else BOUND
    for module in ("backbones_a", "backbones_b", "consistency", "interpolators", "wan"):  # after it
        checks = importlib.import_module(f".parity_{module}", __package__).CHECKS
        if own := checks.get((family, kind)):
            return own(reference), bound
    if kind not in CHECKS or family not in (*FAMILIES, "all"):
        raise ValueError(f"{path.name}: kind {kind!r} of family {family!r} is not known here")
    return CHECKS[kind](reference), bound


def main(paths: list[str], check: Callable[[Path], tuple[float, float]] = check) -> int:
    if not paths or "--help" in paths or "-h" in paths:
        print(__doc__)
        return 2 * (not paths)
    failed = False
    for path in map(Path, paths):
        try:
            value, bound = check(path)
        except Exception as problem:  # whatever is wrong with a file, the others are still checked
            print(f"{path.name}  error  {type(problem).__name__}: {problem}")
            failed = True
            continue
        failed |= not value <= bound
        print(f"{path.name}  {value:.1e}  {'ok' if value <= bound else 'above'} {bound:g}",
              flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
