"""Trains lavie-interpolation-small, LaVie's interpolation network in a small size, on the drawn
world.

    python -m smallworld.interpolation --device cuda        # resumes where it was stopped
    python -m smallworld.interpolation --clips 1024 --batch 4

It learns to fill in vc2-small's key frames. The autoencoder and the text encoder are that
checkpoint's own, frozen. The state of training is in --runs.
"""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.interpolators import lavie
from zerosmooth import checkpoint
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Networks
from zerosmooth.models.lavie import LaVieConfig
from zerosmooth.samplers import TRAIN_STEPS, DDIMConfig

from .draw import SECONDS, Scene, frame_times, random_scene, render
from .trainer import Schedule, Trainer, lay_out, read_state

SHIPPED = Path(__file__).parent / "lavie-interpolation-small.safetensors"
NAME, SIZE, RATE = "lavie-interpolation-small", 64, 8  # pixels; key frames a second
SLOWER = 0.25  # share of clips of a part of a scene, as if it moved slower, without a speed word
KEY_NOISE = 0.02  # deviation on key frames' latents: that of the posterior they are sampled from
NO_PROMPT = 0.2  # share of clips without their prompts, where key frames alone must suffice
# Only the previous frame can tell which of the four frames beside a key frame is which: nothing
# here knows positions. At the world's own pace the four hardly differ, and this is not learnt. So
# at first clips have only every fourth frame, as if all moved four times as fast, and noise from
# which nothing else could be read.
LESSONS = (  # up to which share of the steps; one of how many frames; lowest noise, as timestep
    (0.1, (4,), 0.6),
    (0.6, (1, 2, 4), 0.0),
    (1.0, (1,), 0.0),
)
LEAST_WEIGHT = 0.02  # of v's error at little noise, relative to that of the data
RESIDUAL_ENDS = ("proj_out", "conv2", "conv_out", "to_out")  # last layers of residual branches
SAMPLER = DDIMConfig(beta_end=0.03, prediction="v")  # as all small checkpoints


def config() -> ModelConfig:
    """vc2-small's, with the network and the sampler of the interpolation."""
    base = checkpoint.describe(checkpoint.find("vc2-small")).config
    unet = LaVieConfig(
        in_channels=8, channels=48, channel_mult=(1, 2), res_blocks=1, attention_resolutions=(1, 2),
        context_dim=base.unet.context_dim, frames=lavie.FRAMES, groups=8, heads=4)
    own = Defaults(SIZE, SIZE, steps=25, eta=0.0, guidance_scale=1.0, fps=RATE, prompt="{}")
    return replace(base, family=lavie.FAMILY.name, unet=unet, sampler=SAMPLER, defaults=own)


def new_networks(device: str) -> Networks:
    """vc2-small's autoencoder and text encoder, frozen, and a fresh network whose residual branches
    and output start at zero."""
    torch.manual_seed(0)
    networks = Networks(lavie.FAMILY, config())
    base = checkpoint.load("vc2-small").networks
    networks.vae, networks.encoder = base.vae, base.encoder
    for name, module in networks.unet.named_modules():
        if name.endswith(RESIDUAL_ENDS):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    networks.requires_grad_(False)
    networks.unet.requires_grad_(True)
    return networks.to(device)


@torch.no_grad()
def encoded(networks: Networks, scenes: list[Scene], paces: list[float], device: str) -> Tensor:
    """Latents of scenes' dense videos: n f c h w, float16, on the device."""
    dense, parts = frame_times(lavie.FRAMES, RATE * lavie.BETWEEN), []
    for i in tqdm(range(0, len(scenes), 16), desc="clips", mininterval=10):
        times = torch.stack([(1 - pace) * SECONDS / 2 + pace * dense  # the middle of the path
                             for pace in paces[i : i + 16]])
        with torch.device(device):
            video = render(scenes[i : i + 16], times, SIZE) * 2 - 1
        latents = networks.vae.encode(video.flatten(0, 1)).half()
        parts.append(latents.unflatten(0, video.shape[:2]))
    return torch.cat(parts)


def train(trainer: Trainer, count: int, batch: int, device: str) -> None:
    """Fill in clips at random noise levels. trainer: of `new_networks`."""
    torch.set_float32_matmul_precision("high")
    networks: Any = trainer.module
    rng = random.Random("interpolation")
    scenes = [random_scene(rng) for _ in range(count)]
    paces = [rng.uniform(0.2, 1) if rng.random() < SLOWER else 1.0 for _ in scenes]
    clips = encoded(networks, scenes, paces, device)
    held_out = [random_scene(random.Random(f"held out/{i}")) for i in range(8)]
    truth = encoded(networks, held_out, [1.0] * len(held_out), device).float()
    alphas = torch.from_numpy(SAMPLER.alphas_cumprod()).float()

    def loss_at(step: int) -> Tensor:
        rng, generator = random.Random(f"step/{step}"), torch.Generator(device).manual_seed(step)
        each, lowest = next(lesson[1:] for lesson in LESSONS if step < lesson[0] * trainer.steps)
        n = rng.choice(each)
        frames = lavie.BETWEEN * ((lavie.FRAMES - 1) // n // lavie.BETWEEN) + 1
        size = batch * lavie.FRAMES // frames  # as many frames in every step
        chosen = [rng.randrange(len(scenes)) for _ in range(size)]
        first = rng.randrange(lavie.FRAMES - n * (frames - 1))
        x0 = clips[chosen, first::n][:, :frames].float()
        noise = torch.randn(x0.shape, generator=generator, device=device)
        drawn = torch.rand(size, generator=torch.Generator().manual_seed(step))
        spread = (torch.arange(size) + drawn) / size
        t = ((lowest + (1 - lowest) * spread) * TRAIN_STEPS).long()
        a, s = (v.to(device)[:, None, None, None, None]
                for v in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        prompts = ["" if rng.random() < NO_PROMPT else scenes[i].prompt(speed=n * paces[i] == 1)
                   for i in chosen]
        keys = x0[:, :: lavie.BETWEEN]
        keys = keys + KEY_NOISE * torch.randn(keys.shape, generator=generator, device=device)
        held = lavie.beside(keys)
        shown = torch.cat([a * x0 + s * noise, held], dim=2)
        v = networks.unet(shown, t.to(device), networks.encoder.encode(prompts))
        moving = (x0 - held).abs().amax(2, keepdim=True)  # few places differ from a key frame's
        weight = (1 + 10 * moving) * (s * s).clamp(min=LEAST_WEIGHT)  # so that x0's error counts
        return (weight * (v - (a * noise - s * x0)).square()).mean()

    def show(step: int, networks: Any) -> None:
        """Print how far the frames of held-out scenes are off, without their prompts."""
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).to(device)
        told = networks.encoder.encode([""] * len(truth))
        sampler, keys = lavie.EvenDDIM(SAMPLER, 10), truth[:, :: lavie.BETWEEN]
        made = lavie.sample(networks, sampler, keys, noise, (told, told), 1.0)
        errors = [(x - truth).square().mean().sqrt().item() for x in (made, lavie.beside(keys))]
        print(f"{NAME} error {errors[0]:.3f}, of the nearest key frames {errors[1]:.3f}",
              flush=True)

    trainer.train(loss_at, show, every=100)


def export(trainer: Trainer, to: Path) -> None:
    """Write the checkpoint from a run's running averages, finished or not."""
    networks: Any = trainer.average.module
    source = f"smallworld.interpolation, step {trainer.step} of {trainer.steps}"
    tensors = networks.state_dict().items()
    checkpoint.save(to, lavie.FAMILY, config(), tensors, torch.float16, source, "")
    print(f"{to}: {to.stat().st_size:,} bytes, {source}")


def trainer_of(folder: Path, steps: int, rate: float, device: str) -> Trainer:
    return Trainer(new_networks(device), Schedule(steps, rate), folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=6000, help="of training (default: 6000)")
    add("--clips", type=int, default=8192, help="scenes to train on (default: 8192)")
    add("--batch", type=int, default=16, help="whole clips a step, or more parts (default: 16)")
    add("--rate", type=float, default=1.5e-3, help="highest learning rate (default: 1.5e-3)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--runs", type=Path, default=Path("runs"), help="folder of the states (default: runs)")
    add("--export", type=Path, metavar="FILE", help="only write the checkpoint as it stands")
    add("--start", type=Path, metavar="FILE", help="go on from such a checkpoint, with new Adam")
    args = parser.parse_args()
    folder = args.runs / NAME
    if args.start:
        if folder.exists():
            parser.error(f"{folder} holds a run already; leave --start out to go on with it")
        found = checkpoint.describe(args.start, lavie.FAMILY)
        step = re.search(r"step (\d+)", found.source)
        if found.config.unet != config().unet or step is None:
            parser.error(f"{args.start} was not exported by such a run")
        weights = checkpoint.load_described(found, "cpu").networks.state_dict()
        lay_out(folder, weights, int(step[1]))
    if args.export and not read_state(folder):
        parser.error(f"{folder} holds no run that could be exported")
    trainer = trainer_of(folder, args.steps, args.rate, args.device)
    if args.export is None:
        train(trainer, args.clips, args.batch, args.device)
    export(trainer, args.export or folder / f"{NAME}.safetensors")


if __name__ == "__main__":
    main()
