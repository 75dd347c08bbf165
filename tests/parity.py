"""Compares our networks, samplers and cascade with what the authors' own code computed.

    python -m tests.parity FILE...

A reference file holds inputs and outputs, and the names and shapes of the checkpoint they were made with; its weights
follow from the names by a rule. They go through the converter into our networks, in float32 on the CPU. One line a
file: name, largest error over the standard deviation of the reference, and the bound. Exit status 1 if one is above.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from weights_convert import videocrafter
from weights_convert.engine import convert
from zerosmooth.bus import Correction, HiddenStateBus, Stage
from zerosmooth.cascade import Cascade, sample
from zerosmooth.config import FAMILIES, ModelConfig
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.text import TextConfig
from zerosmooth.models.tokenizer import Tokenizer
from zerosmooth.models.videocrafter import UNetConfig
from zerosmooth.pipeline import Guidance, Networks, Pipeline
from zerosmooth.samplers import DDIM, DDIMConfig

BOUND, RUN_BOUND = 1e-4, 1e-3  # of one evaluation; of whole sampling runs, where rounding adds up over the steps


@dataclass
class Reference:
    """A reference file. config: the author's, by part. keys: upstream tensor name -> shape."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]

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


def read(path: Path) -> Reference:
    with safe_open(path, "pt") as file:
        return Reference(file.metadata(), {name: file.get_tensor(name) for name in file.keys()})


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


def unet_config(c: dict) -> UNetConfig:
    return UNetConfig(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        channels=c["model_channels"],
        channel_mult=tuple(c["channel_mult"]),
        res_blocks=c["num_res_blocks"],
        attention_resolutions=tuple(c["attention_resolutions"]),
        head_dim=c["num_head_channels"],
        transformer_depth=c["transformer_depth"],
        context_dim=c["context_dim"],
        frames=c["temporal_length"],
        temporal_conv=c["temporal_conv"],
        relative_position=c["use_relative_position"],
        fps_condition=c["fps_cond"],
        initial_attention=c["addition_attention"],
    )


def vae_config(c: dict) -> AutoencoderConfig:
    return AutoencoderConfig(
        channels=c["ch"],
        channel_mult=tuple(c["ch_mult"]),
        res_blocks=c["num_res_blocks"],
        latent_channels=c["z_channels"],
    )


def text_config(c: dict) -> TextConfig:
    return TextConfig(c["vocab_size"], c["context_length"], c["width"], c["heads"], c["layers"] - 1)


PARTS = {"unet": unet_config, "vae": vae_config, "text": text_config}


def build(reference: Reference) -> tuple[Networks, ModelConfig]:
    """Our networks with the reference's weights; parts that the reference does not have stay empty."""
    configs = {part: reference.json(part) for part in PARTS if part in reference.metadata}
    if not configs:
        part = reference.kind if reference.kind in PARTS else "unet"
        configs = {part: reference.json("config")}
    published = FAMILIES[reference.family]
    sizes = {part: PARTS[part](c) for part, c in configs.items()}
    config = ModelConfig(**{**published.__dict__, **sizes})
    with torch.device("meta"):
        networks = Networks(config)
    expected = {name: tuple(p.shape) for name, p in networks.state_dict().items() if name.partition(".")[0] in configs}
    shapes = {name: tuple(shape) for name, shape in reference.json("keys").items()}
    table = videocrafter.table(config.text.layers)
    state = dict(convert(table, shapes, lambda name: weight(name, shapes[name]), expected))
    networks.load_state_dict(state, strict=False, assign=True)
    return networks.eval().requires_grad_(False), config


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the reference's standard deviation; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.std()).item()


def frames_first(x: Tensor) -> Tensor:
    return rearrange(x, "b c f h w -> b f c h w")


def fps_of(reference: Reference, stage: int) -> Tensor | None:
    if reference.metadata.get("fps", "null") == "null":
        return None
    return torch.tensor([reference.json("fps")[stage]])


def check_unet(reference: Reference) -> float:
    networks, _ = build(reference)
    fps = reference.tensors.get("fps")
    y = networks.unet(frames_first(reference["x"]), reference["timesteps"], reference["context"], fps)
    return error(y, frames_first(reference["y"]))


def check_windowed(reference: Reference) -> float:
    networks, _ = build(reference)
    spans = reference["windows"].tolist()
    window = spans[0][1] - spans[0][0]
    stride = spans[1][0] - spans[0][0] if len(spans) > 1 else window
    bus = HiddenStateBus(window, (2,), overlap=window - stride)
    x, fps = frames_first(reference["x"]), reference.tensors.get("fps")
    y = networks.unet(x, reference["timesteps"], reference["context"], fps, bus.stage(1, strength=0.0))
    return error(y, frames_first(reference["y"]))


def operators_of(reference: Reference) -> Correction:
    return Correction(a1_probability={"A1": 1.0, "A2": 0.0}[reference.metadata["operator_for_spatial_kv"]])


def check_zerosmooth(reference: Reference) -> float:
    networks, _ = build(reference)
    frames = reference.json("frames")
    scales = tuple(after // before for before, after in zip(frames, frames[1:]))
    bus = HiddenStateBus(frames[0], scales, correction=operators_of(reference))
    errors = []
    for s in range(len(frames)):
        view = bus.stage(s, strength=float(reference["strength"]))
        x = frames_first(reference[f"x{s}"])
        y = networks.unet(x, reference["timesteps"], reference["context"], fps_of(reference, s), view)
        errors.append(error(y, frames_first(reference[f"y{s}"])))
    return max(errors)


def check_cascade(reference: Reference) -> float:
    networks, config = build(reference)
    stages = sum(name.startswith("y") for name in reference.tensors)
    frames = [reference[f"y{s}"].shape[2] for s in range(stages)]
    scales = tuple(after // before for before, after in zip(frames, frames[1:]))
    cascade = Cascade(frames[0], scales, correction=operators_of(reference))
    sampler = DDIM(config.sampler, int(reference.number("steps")), reference.number("eta"))
    scale = reference.number("guidance_scale")
    guided = Guidance(networks.unet, reference["context"], reference["uncond"], scale)
    fps = reference.base_fps

    def noise(step: int) -> Tensor:
        return frames_first(reference["latents"] if step < 0 else reference["noise"][step])

    def run(step: int, stage: int, x: Tensor, view: Stage | None) -> Tensor:
        return guided(x, sampler.timestep(step), fps * cascade.rate(stage), view)

    ys = sample(run, sampler, cascade, noise)
    return max(error(y, frames_first(reference[f"y{s}"])) for s, y in enumerate(ys))


def check_pipeline(reference: Reference) -> float:
    networks, config = build(reference)
    pipeline = Pipeline(config, networks)
    prompt = reference.metadata["prompt"]
    latents = reference["latents"]
    (video,) = pipeline.sample(
        prompt,
        cascade=Cascade(latents.shape[2], ()),
        height=latents.shape[3] * config.vae.factor,
        width=latents.shape[4] * config.vae.factor,
        steps=int(reference.number("steps")),
        eta=reference.number("eta"),
        guidance_scale=reference.number("guidance_scale"),
        fps=reference.base_fps,
        noise=lambda step: frames_first(latents if step < 0 else reference["noise"][step]),
    )
    frames = networks.vae.decode(video.latents[0])
    return max(
        error(pipeline.encode_text([prompt]), reference["y_context"]),
        error(video.latents[0][None], frames_first(reference["y_latents"])),
        error(frames[None], frames_first(reference["y_frames"])),
    )


def check_vae(reference: Reference) -> float:
    networks, _ = build(reference)
    moments = torch.cat(networks.vae.moments(reference["x"]), dim=1)
    decoded = networks.vae.decode_raw(reference["z"])
    return max(error(moments, reference["y_moments"]), error(decoded, reference["y_decoded"]))


def check_text(reference: Reference) -> float:
    networks, _ = build(reference)
    (y,) = (tensor for name, tensor in reference.tensors.items() if name.startswith("y_"))
    return error(networks.text(reference["ids"]), y)


def check_samplers(reference: Reference) -> float:
    """DDIM as VideoCrafter2 samples, on a toy network; a file without its part is an error."""
    t = {name.removeprefix("vc2."): x for name, x in reference.tensors.items() if name.startswith("vc2.")}
    config = DDIMConfig(data_scale=0.7)
    fifty, scales = DDIM(config, 50, eta=1.0), torch.from_numpy(config.data_scales())
    if [int(x) for x in t["timesteps50"]] not in (fifty.timesteps, fifty.timesteps[::-1]):
        return float("inf")
    errors = [error(scales[: len(t["scale_arr"])].float(), t["scale_arr"].float()[: len(scales)])]
    for name, value in {"alphas50": fifty.alpha / scales[fifty.timesteps].numpy(), "sigmas50": fifty.fresh}.items():
        value = value**2 if name == "alphas50" else value
        errors.append(error(torch.from_numpy(value[::-1].copy()).float(), t[name].float()))

    def toy(x: Tensor, step: int, context: float) -> Tensor:
        return torch.tanh(0.7 * x + context + step / 1000)

    for eta in (0.0, 1.0):
        sampler = DDIM(config, len(t["noise"]), eta)
        x = t["x"]
        for i in range(len(sampler)):
            step = int(sampler.timestep(i))
            output = toy(x, step, -0.2) + 12 * (toy(x, step, 0.3) - toy(x, step, -0.2))
            x = sampler.step(i, x, sampler.x0(i, x, output), t["noise"][i])
        errors.append(error(x, t[f"eta{int(eta)}.y"]))
    return max(errors)


def check_tokenizer(path: Path) -> float:
    """Zero if all tokens agree, else infinity."""
    reference = json.loads(path.read_text())
    pads = {"openclip": 0, "sd": 49407}
    same = [Tokenizer(48894, 77, pad)(reference["prompts"]).tolist() == reference[k] for k, pad in pads.items()]
    return 0.0 if all(same) else float("inf")


CHECKS: dict[str, Callable[[Reference], float]] = {
    "unet": check_unet,
    "windowed": check_windowed,
    "zerosmooth": check_zerosmooth,
    "cascade": check_cascade,
    "pipeline": check_pipeline,
    "vae": check_vae,
    "text": check_text,
    "samplers": check_samplers,
}


@torch.inference_mode()
def check(path: Path) -> tuple[float, float]:
    """Error and bound of a reference file. ValueError if it is of a kind or family that is not known here."""
    if path.suffix == ".json":
        return check_tokenizer(path), BOUND
    reference = read(path)
    if reference.kind not in CHECKS or reference.family not in (*FAMILIES, "all"):
        raise ValueError(f"{path.name}: kind {reference.kind!r} of family {reference.family!r} is not known here")
    bound = RUN_BOUND if reference.kind in ("pipeline", "cascade") else BOUND
    return CHECKS[reference.kind](reference), bound


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    failed = False
    for path in map(Path, paths):
        try:
            value, bound = check(path)
        except Exception as problem:  # whatever is wrong with a file, the others are still checked
            print(f"{path.name}  error  {type(problem).__name__}: {problem}")
            failed = True
            continue
        failed |= not value <= bound
        print(f"{path.name}  {value:.1e}  {'ok' if value <= bound else 'above'} {bound:g}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
