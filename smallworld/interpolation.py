"""Trains lavie-interpolation-small, LaVie's interpolation network in a small size, on the drawn world.

    python -m smallworld.interpolation --seconds 5400       # an hour and a half in all; resumes where it was stopped
    python -m smallworld.interpolation --seconds 600 --device cuda

It learns to fill in vc2-small's key frames: autoencoder and encoder of prompts are that checkpoint's own. The learning
rate follows a cosine over the time that training has taken, all its parts together. State lies in --runs.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.interpolators import lavie
from zerosmooth import checkpoint
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Networks
from zerosmooth.models.lavie import LaVieConfig
from zerosmooth.results import write_tensors
from zerosmooth.samplers import TRAIN_STEPS, DDIMConfig

from .draw import SECONDS, Scene, frame_times, random_scene, render
from .trainer import Schedule, Trainer

NAME, SIZE, RATE = "lavie-interpolation-small", 64, 8  # pixels; key frames a second
DENSE = RATE * lavie.BETWEEN  # frames a second
assert lavie.KEYS / RATE == SECONDS
RESIDUAL_ENDS = ("proj_out", "conv2", "conv_out", "to_out")  # last layers of residual branches, and of the network


def config() -> ModelConfig:
    """vc2-small's, with the network and the sampler of the interpolation. It predicts v, as all that is small here."""
    base = checkpoint.describe(checkpoint.find("vc2-small")).config
    return replace(
        base,
        family=lavie.FAMILY.name,
        unet=LaVieConfig(
            in_channels=8,
            channels=32,
            channel_mult=(1, 2),
            res_blocks=1,
            attention_resolutions=(1, 2),
            context_dim=base.unet.context_dim,
            frames=lavie.FRAMES,
            groups=8,
            heads=4,
        ),
        sampler=DDIMConfig(beta_end=0.03, prediction="v"),
        defaults=Defaults(SIZE, SIZE, steps=25, eta=0.0, guidance_scale=1.0, fps=RATE, prompt="{}"),
    )


def new_networks(device: str) -> Networks:
    """vc2-small's autoencoder and encoder, frozen, and a fresh network that starts as the identity."""
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
def clip(networks: Networks, scene: Scene) -> Tensor:
    """Latents of a scene's dense video: f c h w."""
    x = render([scene], frame_times(lavie.FRAMES, DENSE)[None], SIZE)[0] * 2 - 1
    return networks.vae.encode(x.to(networks.vae.quant_conv.weight.device))


def clips(networks: Networks, count: int, folder: Path) -> tuple[Tensor, list[Scene]]:
    """Latents of scenes (n f c h w, float16), kept in `folder`, and the scenes."""
    rng = random.Random("interpolation")
    scenes = [random_scene(rng) for _ in range(count)]
    file = folder / f"clips-{count}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = [clip(networks, scene).half().cpu() for scene in tqdm(scenes, desc="clips", mininterval=30)]
        write_tensors(file, {"clips": torch.stack(drawn)})
    return load_file(file)["clips"], scenes


def train(folder: Path, seconds: float, count: int, batch: int, device: str) -> None:
    """Fill in clips at random noise levels. A prompt in three is left out, so that key frames alone must do."""
    networks = new_networks(device)
    drawn, scenes = clips(networks, count, folder)
    drawn = drawn.to(device)
    alphas = torch.from_numpy(networks_config().alphas_cumprod()).float()
    trainer = Trainer(networks.unet, Schedule(steps=10**9, rate=2e-3, average=0.995), folder)
    held_out = [clip(networks, random_scene(random.Random(f"held out/{i}"))) for i in range(2)]

    def loss_at(step: int) -> Tensor:
        if trainer.seconds:  # as many steps as the time allows at the pace so far
            steps = max(step + 1, round(trainer.step * seconds / trainer.seconds))
            trainer.schedule = replace(trainer.schedule, steps=steps)
        rng, generator = random.Random(f"step/{step}"), torch.Generator().manual_seed(step)
        chosen = [rng.randrange(len(scenes)) for _ in range(batch)]
        x0 = drawn[chosen].float()
        noise = torch.randn(x0.shape, generator=generator).to(device)
        spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (spread.sqrt() * TRAIN_STEPS).long()  # more of the noisy levels, where it is decided what lies between
        a, s = (v.to(device)[:, None, None, None, None] for v in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        prompts = ["" if rng.random() < 1 / 3 else scenes[i].prompt() for i in chosen]
        shown = torch.cat([a * x0 + s * noise, lavie.beside(x0[:, :: lavie.BETWEEN])], dim=2)
        v = networks.unet(shown, t.to(device), networks.encoder.encode(prompts))
        return (v - (a * noise - s * x0)).square().mean()

    def show(step: int) -> None:
        """Of scenes that were not drawn for training, without their prompts: how far the frames between are off."""
        truth = torch.stack(held_out)
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).to(device)
        told = networks.encoder.encode([""] * len(truth))
        sampler = lavie.EvenDDIM(networks_config(), 10)
        made = lavie.sample(networks, sampler, truth[:, :: lavie.BETWEEN], noise, (told, told), 1.0)
        held = lavie.beside(truth[:, :: lavie.BETWEEN])
        errors = [(x - truth).square().mean().sqrt().item() for x in (made, held)]
        print(f"{NAME} error {errors[0]:.3f}, of the nearest key frames {errors[1]:.3f}", flush=True)

    trainer.train(loss_at, show, every=50)


def networks_config() -> DDIMConfig:
    sampler = config().sampler
    assert isinstance(sampler, DDIMConfig)
    return sampler


def export(folder: Path, to: Path) -> None:
    """Write the checkpoint from the running averages in a run's folder, finished or not."""
    networks = new_networks("cpu")
    networks.unet.load_state_dict(load_file(folder / "average.safetensors"))
    state = json.loads((folder / "state.json").read_text())
    source = f"smallworld.interpolation, step {state['step']}, {round(state['seconds'])} seconds"
    checkpoint.save(to, lavie.FAMILY, config(), networks.state_dict().items(), torch.float16, source, "")
    print(f"{to}: {to.stat().st_size:,} bytes, {source}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5400, help="of training, all parts together (default: 5400)")
    parser.add_argument("--clips", type=int, default=1024, help="scenes to train on (default: 1024)")
    parser.add_argument("--batch", type=int, default=2, help="clips a step (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of training states (default: runs)")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write the checkpoint as it stands to FILE")
    args = parser.parse_args()
    folder = args.runs / NAME
    if args.export is None:
        train(folder, args.seconds, args.clips, args.batch, args.device)
    export(folder, args.export or folder / f"{NAME}.safetensors")


if __name__ == "__main__":
    main()
