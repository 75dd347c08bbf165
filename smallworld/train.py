"""Trains a small checkpoint from scratch: its autoencoder, its text tower, then tower and network on frames and clips.

    python -m smallworld.train vc2-small                 # about three hours on two cores; resumes where it was stopped
    python -m smallworld.train vc2-small --device cuda   # minutes

Everything is drawn as it is needed, from generators keyed by the step, so a resumed run sees what an unbroken one
would have. State lives in runs/NAME as safetensors (weights, their running average, and Adam's two moments).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import imageio.v3 as iio
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from zerosmooth import checkpoint
from zerosmooth.cascade import Cascade
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.models.clip import TextTower
from zerosmooth.models.tokenizer import Tokenizer
from zerosmooth.models.videocrafter import TemporalConv, TemporalTransformer
from zerosmooth.pipeline import Networks, Pipeline
from zerosmooth.samplers import TRAIN_STEPS

from . import recipes
from .draw import SECONDS, WORDS, Scene, frame_times, parse, random_scene, render


@dataclass(frozen=True)
class Schedule:
    steps: int
    rate: float  # highest learning rate: reached after a warm-up, then a cosine to zero
    warmup: int = 100
    average: float = 0.999  # of the weights, a step

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Adam on the parameters of a module, with a running average of them, saved in and resumed from a folder."""

    def __init__(self, module: nn.Module, schedule: Schedule, folder: Path) -> None:
        self.module, self.schedule, self.folder = module, schedule, folder
        self.optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.step, self.seconds, self.log = 0, 0.0, []
        if (folder / "state.json").exists():
            self._resume()

    def run(self, loss_at: Callable[[int], Tensor], show: Callable[[int], None], every: int = 250) -> None:
        """Train to the schedule's end. loss_at(step) gives the loss; show(step) writes samples, with the average."""
        since, losses = time.perf_counter(), []
        while self.step < self.schedule.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.step)
            loss = loss_at(self.step)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            decay = min(self.schedule.average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, p in self.module.named_parameters():
                    self.average[name].lerp_(p, 1 - decay)
            losses.append(loss.item())
            self.step += 1
            if self.step % 25 == 0:
                now = time.perf_counter()
                self.seconds, since = self.seconds + now - since, now
                self.log.append({"step": self.step, "loss": sum(losses) / len(losses), "seconds": round(self.seconds)})
                print(f"{self.folder.name} {self.log[-1]}", flush=True)
                losses = []
            if self.step % every == 0 or self.step == self.schedule.steps:
                self.save()
                with self.averaged():
                    show(self.step)

    def averaged(self) -> _Swapped:
        """Within `with`, the module has the running average of its weights."""
        return _Swapped(self.module, self.average)

    def save(self) -> None:
        named = dict(self.module.named_parameters())
        moments = {  # zeros for what has not been trained yet
            key: {n: self.optimizer.state[p].get(key, torch.zeros_like(p)) for n, p in named.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "seconds": self.seconds, "log": self.log}
        parts = {self.folder / "state.json": self.folder / "state.json.part"}
        for name, tensors in {"weights": named, "average": self.average, **moments}.items():
            path = self.folder / f"{name}.safetensors"
            parts[path] = path.with_suffix(".part")
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, parts[path])
        parts[self.folder / "state.json"].write_text(json.dumps(state))
        for path, part in parts.items():  # all are written before any is replaced
            part.replace(path)

    def _resume(self) -> None:
        state = json.loads((self.folder / "state.json").read_text())
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        saved = {
            name: load_file(self.folder / f"{name}.safetensors")
            for name in ("weights", "average", "exp_avg", "exp_avg_sq")
        }
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(saved["weights"][name])
                self.average[name].copy_(saved["average"][name])
                moments = {k: saved[k][name].to(p.device) for k in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": torch.tensor(float(self.step)), **moments}
        print(f"{self.folder.name} goes on from step {self.step}", flush=True)


class _Swapped:
    def __init__(self, module: nn.Module, values: dict[str, Tensor]) -> None:
        self.module, self.values = module, values

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._put(self.values)

    def __exit__(self, *exception: object) -> None:
        self._put(self.kept)

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(values[name])


def train_autoencoder(recipe: recipes.Recipe, folder: Path, device: str) -> Autoencoder:
    """An autoencoder of single frames: absolute and squared error, and a light pull of the posterior to a normal.

    Coloured pixels are few and count more. The posterior starts narrow, or its noise would hide the first lessons.
    """
    torch.manual_seed(0)
    vae = Autoencoder(recipe.config.vae)
    nn.init.constant_(vae.quant_conv.bias[recipe.config.vae.latent_channels :], -6.0)
    vae.to(device)
    trainer = Trainer(vae, Schedule(recipe.autoencoder_steps, rate=2e-3, average=0.995), folder)

    def frames(step: int, count: int = 16) -> Tensor:
        rng = random.Random(f"frames/{step}")
        scenes = [random_scene(rng) for _ in range(count)]
        times = torch.tensor([[rng.uniform(0, SECONDS)] for _ in range(count)])
        return (render(scenes, times, recipe.size)[:, 0] * 2 - 1).to(device)

    def loss_at(step: int) -> Tensor:
        x = frames(step)
        mean, log_variance = vae.moments(x)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step)).to(device)
        y = vae.decode_raw(mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        weight = 1 + 4 * (x.amax(1, keepdim=True) - x.amin(1, keepdim=True))
        return (weight * ((y - x).abs() + (y - x).square())).mean() + recipe.kl * kl

    def show(step: int) -> None:
        x = frames(-1, 16)
        with torch.inference_mode():
            y = vae.decode_raw(vae.moments(x)[0])
        print(f"autoencoder psnr {-10 * math.log10(((y - x) / 2).square().mean()):.1f} dB", flush=True)
        _picture(folder / "sheet.png", rearrange(torch.stack([x, y]), "two n c h w -> (two h) (n w) c"))

    trainer.run(loss_at, show)
    _load_average(vae, trainer)
    return vae.eval().requires_grad_(False)


def latent_scale(vae: Autoencoder, recipe: recipes.Recipe, device: str) -> float:
    """The `scale` of the autoencoder's config that gives its latents a standard deviation of one."""
    rng = random.Random("scale")
    scenes = [random_scene(rng) for _ in range(256)]
    times = torch.tensor([[rng.uniform(0, SECONDS)] for _ in scenes])
    with torch.inference_mode():
        mean, _ = vae.moments((render(scenes, times, recipe.size)[:, 0] * 2 - 1).to(device))
    return round(1 / mean.std().item(), 5)


def train_text(recipe: recipes.Recipe, folder: Path, device: str) -> TextTower:
    """A text tower whose last tokens tell what the prompt asks for: a linear layer reads each word's kind off them."""
    torch.manual_seed(2)
    text = recipe.config.encoder
    tower = TextTower(text).to(device)
    tokenizer = Tokenizer(text.merges, text.context_length, text.pad_token)
    answers = {kind: {word: i for i, word in enumerate(["", *words])} for kind, words in WORDS.items()}
    heads = nn.ModuleDict({kind: nn.Linear(text.width, len(words)) for kind, words in answers.items()})
    learnt = nn.ModuleDict({"tower": tower, "heads": heads.to(device)})
    trainer = Trainer(learnt, Schedule(recipe.text_steps, rate=2e-3, average=0.98), folder)
    right = []

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"prompts/{step}")
        prompts = [prompt_of(random_scene(rng), rng) for _ in range(128)]
        h = tower(tokenizer(prompts).to(device))[:, -8:]  # behind the end of any prompt
        loss = torch.zeros((), device=device)
        for kind, head in heads.items():
            logits = head(h).flatten(0, 1)
            asked = torch.tensor([answers[kind][parse(p).get(kind, "")] for p in prompts], device=device)
            asked = asked.repeat_interleave(h.shape[1])
            right.append((logits.argmax(-1) == asked).float().mean().item())
            loss = loss + F.cross_entropy(logits, asked)
        return loss

    def show(step: int) -> None:
        print(f"text tower reads {sum(right[-100:]) / len(right[-100:]):.3f} of the words right", flush=True)

    trainer.run(loss_at, show)
    _load_average(learnt, trainer)
    return tower


def train_diffusion(recipe: recipes.Recipe, vae: Autoencoder, text: TextTower, folder: Path, device: str) -> Networks:
    """Text tower and network, on v-prediction at random timesteps; one prompt in ten is left out for guidance."""
    torch.manual_seed(1)
    networks = Networks(recipe.config)
    networks.vae, networks.encoder = vae, text
    networks.to(device)
    start_as_identity(networks.unet)
    learnt = nn.ModuleDict({"unet": networks.unet, "text": networks.encoder})
    trainer = Trainer(learnt, Schedule(recipe.steps, recipe.rate, warmup=200), folder)
    pipeline = Pipeline(recipe.config, networks)
    learnt.requires_grad_(True)
    sampler = recipe.config.sampler
    alpha = torch.from_numpy(sampler.alphas_cumprod() ** 0.5).float().to(device)
    sigma = (1 - alpha**2).sqrt()

    clips, scenes, rates = draw_clips(recipe, vae, folder.parent / "clips.safetensors", device)
    whole = [i for i, rate in enumerate(rates) if rate == recipe.config.defaults.fps]  # clips of whole scenes

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"step/{step}")
        frames = 1 if step < recipe.image_steps else recipe.config.unet.frames
        count = 128 // frames
        chosen = [rng.choice(whole if rng.random() < 0.75 else range(len(scenes))) for _ in range(count)]
        starts = [rng.randint(0, clips.shape[1] - frames) for _ in chosen]
        x0 = torch.stack([clips[i, j : j + frames] for i, j in zip(chosen, starts)]).to(device).float()
        fps = torch.tensor([rates[i] for i in chosen], device=device)
        prompts = ["" if rng.random() < 0.1 else prompt_of(scenes[i], rng) for i in chosen]
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        if frames > 1:  # where a shape goes is decided early, in the noise
            spread = spread.sqrt()
        t = (spread * TRAIN_STEPS).long().to(device)
        a, s = alpha[t, None, None, None, None], sigma[t, None, None, None, None]
        context = networks.encoder(pipeline.tokenizer(prompts).to(device))
        with single_frames(networks.unet) if frames == 1 else nullcontext():
            v = networks.unet(a * x0 + s * noise, t, context, fps)
        return (v - (a * noise - s * x0)).square().mean()

    def show(step: int) -> None:
        rng = random.Random("show")
        prompts = [random_scene(rng).prompt() for _ in range(8)]
        videos = pipeline.sample(prompts, seeds=list(range(8)), cascade=Cascade(scales=()), steps=20)
        rows = [rearrange(video.frames[0][::3], "f h w c -> h (f w) c") for video in videos]
        _picture(folder / f"sheet-{step:05d}.png", torch.cat(rows).float() / 127.5 - 1)
        (folder / "sheet.txt").write_text("\n".join(prompts))

    trainer.run(loss_at, show, every=100)
    _load_average(learnt, trainer)
    return networks.eval().requires_grad_(False)


def draw_clips(
    recipe: recipes.Recipe, vae: Autoencoder, file: Path, device: str
) -> tuple[Tensor, list[Scene], list[int]]:
    """Latents of the training clips (n f c h w, float16), their scenes and their frames a second; kept in `file`.

    Most clips are of the whole scene at the base rate; some show a part of it at two or four times that rate.
    """
    rng = random.Random("clips")
    frames, base = recipe.config.unet.frames, recipe.config.defaults.fps
    scenes = [random_scene(rng) for _ in range(recipe.clips)]
    rates = [rng.choices((1, 2, 4), (6, 3, 2))[0] * base for _ in scenes]
    times = torch.stack([frame_times(frames, r, rng.uniform(0, SECONDS - frames / r)) for r in rates])
    if not file.exists():
        parts = []
        for i in tqdm(range(0, len(scenes), 16), desc="clips", mininterval=10):
            video = render(scenes[i : i + 16], times[i : i + 16], recipe.size).to(device) * 2 - 1
            with torch.no_grad():
                parts.append(
                    rearrange(vae.encode(video.flatten(0, 1)), "(b f) c h w -> b f c h w", f=frames).half().cpu()
                )
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, {"clips": torch.cat(parts)})
    return load_file(file)["clips"], scenes, rates


def prompt_of(scene: Scene, rng: random.Random) -> str:
    """The scene's prompt, sometimes without its speed or its background."""
    return scene.prompt(speed=rng.random() < 0.85, background=rng.random() < 0.7)


def start_as_identity(unet: nn.Module) -> None:
    """Zero the last layer of every residual branch of a fresh network, so that it starts as the identity."""
    last = ("proj_out", "conv2", "convs.3", "conv_out", "ff.proj_out", "to_out")
    for name, module in unet.named_modules():
        if name.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@contextmanager
def single_frames(unet: nn.Module) -> Iterator[None]:
    """Within, the temporal layers of a network hand on what they get: they have not been trained yet."""
    temporal = [m for m in unet.modules() if isinstance(m, (TemporalConv, TemporalTransformer))]
    for module in temporal:
        module.forward = lambda x, *rest: x
    try:
        yield
    finally:
        for module in temporal:
            del module.forward


def export(name: str, folder: Path, device: str, to: Path) -> None:
    """Write the shipped file from the running averages in a run's folder, finished or not."""
    recipe = recipes.RECIPES[name]
    networks = Networks(recipe.config).to(device)
    networks.vae.load_state_dict(load_file(folder / "autoencoder" / "average.safetensors"))
    average = load_file(folder / "diffusion" / "average.safetensors")
    for part, network in {"unet": networks.unet, "text": networks.encoder}.items():
        state = {k.removeprefix(f"{part}."): v for k, v in average.items() if k.startswith(f"{part}.")}
        network.load_state_dict(state)
    config = with_scale(recipe, networks.vae, device).config
    step = json.loads((folder / "diffusion" / "state.json").read_text())["step"]
    source = f"smallworld.train {name}, step {step} of {recipe.steps}"
    checkpoint.save(to, config, networks.state_dict().items(), torch.float16, source, "")
    print(f"{to}: {to.stat().st_size:,} bytes, {source}")


def with_scale(recipe: recipes.Recipe, vae: Autoencoder, device: str) -> recipes.Recipe:
    """The recipe with the scale that its trained autoencoder's latents need."""
    vae_config = replace(recipe.config.vae, scale=latent_scale(vae, recipe, device))
    vae.config = vae_config
    return replace(recipe, config=replace(recipe.config, vae=vae_config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=recipes.RECIPES, help="which small checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of training states (default: runs)")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write the checkpoint as it stands to FILE")
    args = parser.parse_args()
    folder = args.runs / args.name
    if args.export:
        export(args.name, folder, args.device, args.export)
        return
    recipe = recipes.RECIPES[args.name]
    vae = train_autoencoder(recipe, folder / "autoencoder", args.device)
    text = train_text(recipe, folder / "text", args.device)
    train_diffusion(with_scale(recipe, vae, args.device), vae, text, folder / "diffusion", args.device)
    export(args.name, folder, args.device, folder / f"{args.name}.safetensors")


def _load_average(module: nn.Module, trainer: Trainer) -> None:
    module.load_state_dict(trainer.average)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _picture(path: Path, image: Tensor) -> None:
    """image: h w 3 in [-1, 1]."""
    iio.imwrite(path, ((image.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())


if __name__ == "__main__":
    main()
