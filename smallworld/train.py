"""Trains a small checkpoint from scratch: its autoencoder, its encoder, then all the rest on frames
and clips.

    # some hours on two cores; resumes where it was stopped
    python -m smallworld.train vc2-small
    python -m smallworld.train svd-small --device cuda

Everything is drawn as it is needed, from generators keyed by the step, so a resumed run sees what
an unbroken one would have. State lives in runs/NAME (weights, their running average, Adam's
moments). Where only an exported checkpoint is left, --start goes on from that.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import imageio.v3 as iio
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from examples.wan.autoencoder import Autoencoder as CausalAutoencoder
from examples.wan.samplers import FlowConfig
from zerosmooth import checkpoint
from zerosmooth.attention import TemporalAttention
from zerosmooth.families import FAMILIES as BUILT_IN
from zerosmooth.family import Networks
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.models.clip import ImageTower, TextTower
from zerosmooth.models.svd import SVDConfig
from zerosmooth.models.videocrafter import TemporalConv, TemporalTransformer
from zerosmooth.pipeline import Pipeline
from zerosmooth.samplers import TRAIN_STEPS, DDIMConfig, EulerConfig
from zerosmooth_cli.results import write_tensors

from . import recipes
from .draw import MOTION, frame_times
from .gate import make
from .trainer import Schedule, Trainer, lay_out, read_state

SCENES = 256  # of which latents' statistics are taken
PLACES = 0.2, (2.4, 1.5)  # `dense` at most, and `log_sigma`, while a prompt's places are learnt


def train_autoencoder(
    recipe: recipes.Recipe, folder: Path, device: str, decoder_of: Autoencoder | None = None
) -> Autoencoder:
    """An autoencoder of single frames, or one with a temporal decoder of short clips.

    Absolute and squared error, and a light pull of the posterior to a normal. Pixels that are not
    the ground are few and count more. The posterior starts narrow, or its noise would hide the
    first lessons. With `autoencoder_from`, it is another recipe's: as it is, or, where the decoder
    is temporal, to start from. decoder_of: an autoencoder whose decoder alone learns on, so that
    what was trained on its latents stays right.
    """
    torch.manual_seed(0)
    vae: Any = recipes.FAMILIES[recipe.config.family].autoencoder(recipe.config.vae)
    assert vae.quant_conv.bias is not None
    nn.init.constant_(vae.quant_conv.bias[recipe.config.vae.latent_channels :], -6.0)
    vae.to(device)
    if recipe.autoencoder_from is not None:
        start_from(vae, checkpoint.load(recipe.autoencoder_from).networks.vae.state_dict())
        if not recipe.config.vae.temporal:
            return vae.eval().requires_grad_(False)
    if decoder_of is not None:
        vae.load_state_dict(decoder_of.state_dict())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    # what works already must not be unlearnt
    rate = 1e-3 if recipe.autoencoder_from or decoder_of else 2e-3
    steps = recipe.decoder_steps if decoder_of else recipe.autoencoder_steps
    trainer = Trainer(vae, Schedule(steps, rate, average=0.99, bfloat16=recipe.bfloat16), folder)
    causal = isinstance(vae, CausalAutoencoder)
    rates = (8, 16, 32) if causal else (7, 14, 28)

    def length(step: int) -> int:
        """Frames of a clip; a causal autoencoder sees frames alone in a fifth of the steps, one
        latent more in the next, then whole clips."""
        if not causal:
            return 4 if recipe.config.vae.temporal else 1
        short = (1, 1 + vae.config.frames)
        return short[5 * step // steps] if 5 * step < 2 * steps else clip_frames(recipe)

    def clips(step: int, count: int = recipe.autoencoder_batch) -> Tensor:
        """b f c h w, or of frames alone n c h w."""
        rng, frames = random.Random(f"frames/{step}"), length(step)
        # a causal one takes as long for a frame alone as for two
        count //= max(frames, 2 if causal else 1)
        scenes = [recipe.random_scene(rng) for _ in range(count)]
        starts = [rng.uniform(0, recipe.world.SECONDS) for _ in scenes]
        times = torch.stack([frame_times(frames, rng.choice(rates), start) for start in starts])
        x = (recipe.world.render(scenes, times, recipe.size) * 2 - 1).to(device)
        return x if causal else x.flatten(0, 1)

    def decode(vae: Any, z: Tensor) -> Tensor:
        if causal:
            return vae.decode(z)
        parts = z.split(4 if recipe.config.vae.temporal else len(z))
        return torch.cat([vae.decode_raw(part) for part in parts])

    def loss_at(step: int) -> Tensor:
        x = clips(step)
        mean, log_variance = vae.moments(x)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step)).to(device)
        y = decode(vae, mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        ground = x.median(-1, keepdim=True).values  # no shape is as wide as half the frame
        weight = 1 + 4 * (x - ground).abs().amax(-3, keepdim=True)
        return (weight * ((y - x).abs() + (y - x).square())).mean() + recipe.kl * kl

    def show(step: int, vae: Any) -> None:
        x = clips(steps, 16 if not causal else 8 * length(steps))
        with torch.inference_mode():
            y = decode(vae, vae.moments(x)[0])
        print(f"autoencoder psnr {-10 * math.log10(((y - x) / 2).square().mean()):.1f} dB",
              flush=True)
        shown = torch.stack([x.flatten(0, -4), y.flatten(0, -4)])[:, : max(16, 2 * length(steps))]
        _picture(folder / "sheet.png", rearrange(shown, "two n c h w -> (two h) (n w) c"))

    return trainer.train(loss_at, show).eval().requires_grad_(False)


def clip_frames(recipe: recipes.Recipe) -> int:
    """Of a clip that the network is trained on."""
    config = recipe.config
    return recipes.FAMILIES[config.family].frames(config, config.unet.frames)


def start_from(vae: Autoencoder, weights: dict[str, Tensor]) -> None:
    """Take another autoencoder's weights; a temporal decoder starts as the plain one."""
    own = vae.state_dict()
    if vae.config.temporal:
        mix, into = weights["post_quant_conv.weight"][..., 0, 0], weights["decoder.conv_in.weight"]
        weights["decoder.conv_in.bias"] += into.sum((2, 3)) @ weights["post_quant_conv.bias"]
        weights["decoder.conv_in.weight"] = torch.einsum("o m h w, m i -> o i h w", into, mix)
        for name in [name for name in own if ".spatial." in name]:
            weights[name] = weights[name.replace(".spatial.", ".")]
        for name in [name for name in own if ".temporal.conv2." in name]:
            weights[name] = torch.zeros_like(own[name])
        weights["decoder.temporal_conv.bias"] = torch.zeros(3)
        weights["decoder.temporal_conv.weight"] = torch.zeros(3, 3, 3, 1, 1)
        weights["decoder.temporal_conv.weight"][:, :, 1, 0, 0] = torch.eye(3)
    vae.load_state_dict({name: weights.get(name, x) for name, x in own.items()})


def train_encoder(recipe: recipes.Recipe, folder: Path, device: str) -> TextTower | ImageTower:
    """An encoder whose tokens tell what it was shown: a linear layer reads each kind of word off
    them.

    Of a prompt, whatever it names, off the tokens behind its end; of a first frame, all but the
    speed.
    """
    torch.manual_seed(2)
    config = recipe.config.encoder
    tower: Any = recipes.FAMILIES[recipe.config.family].encoder(config)
    still = isinstance(tower, ImageTower)
    words = {
        kind: ["", *values]
        for kind, values in recipe.world.WORDS.items() if not still or kind != "speed"
    }
    width = config.out if still else config.width
    heads = nn.ModuleDict({kind: nn.Linear(width, len(values)) for kind, values in words.items()})
    learnt = nn.ModuleDict({"tower": tower, "heads": heads}).to(device)
    trainer = Trainer(learnt, Schedule(recipe.encoder_steps, rate=2e-3, average=0.98), folder)
    right = []

    def show_some(step: int) -> tuple[Tensor, list[dict[str, str]]]:
        """Tokens, and what they should tell."""
        rng = random.Random(f"prompts/{step}")
        scenes = [recipe.random_scene(rng) for _ in range(128)]
        if still:
            first = recipe.world.render(scenes, torch.zeros(len(scenes), 1), recipe.size)[:, 0]
            first = first * 2 - 1
            return tower.encode(first.to(device)), [{kind: getattr(s, kind) for kind in words}
                                                    for s in scenes]
        prompts = [prompt_of(scene, rng) for scene in scenes]
        return tower.encode(prompts)[:, -8:], [recipe.world.parse(prompt) for prompt in prompts]

    def loss_at(step: int) -> Tensor:
        h, told = show_some(step)
        loss = torch.zeros((), device=device)
        for kind, head in heads.items():
            logits = head(h).flatten(0, 1)
            asked = torch.tensor([words[kind].index(t.get(kind, "")) for t in told], device=device)
            asked = asked.repeat_interleave(h.shape[1])
            right.append((logits.argmax(-1) == asked).float().mean().item())
            loss = loss + F.cross_entropy(logits, asked)
        return loss

    def show(step: int, averaged: nn.ModuleDict) -> None:
        print(f"encoder tells {sum(right[-100:]) / len(right[-100:]):.3f} of the words right",
              flush=True)

    return trainer.train(loss_at, show)["tower"]


def new_networks(recipe: recipes.Recipe, device: str) -> Networks:
    torch.manual_seed(1)
    networks = Networks(recipes.FAMILIES[recipe.config.family], recipe.config).to(device)
    start_as_identity(networks.unet)
    networks.vae.requires_grad_(False)
    return networks


def diffusion_trainer(recipe: recipes.Recipe, networks: Networks, folder: Path) -> Trainer:
    return Trainer(networks, Schedule(recipe.steps, recipe.rate, warmup=200,
                                      bfloat16=recipe.bfloat16, muon=recipe.muon), folder)


def train_diffusion(recipe: recipes.Recipe, networks: Networks, folder: Path, device: str) -> None:
    """The network, and an encoder of prompts with it, on v-prediction, or on the velocity of flow
    matching, at random noise levels; one condition in ten is left out for guidance."""
    trainer = diffusion_trainer(recipe, networks, folder)
    if trainer.step >= recipe.steps:
        return
    recipe = with_scale(recipe, networks.vae, device)
    config, family = recipe.config, recipes.FAMILIES[recipe.config.family]
    stills, endless = without_temporal_layers(networks.unet), with_repeated_ends(networks.unet)
    scenes, rates, starts = choose_clips(recipe)
    drawn = [draw_clips(recipe, networks.vae, folder.parent, device, of, rates, starts)
             for of in (scenes, *(zip(*map(recipe.world.others, scenes)) if recipe.told else ()))]
    base, told = config.defaults.fps, family.told_rate(config)
    flow = isinstance(config.sampler, FlowConfig)
    whole = [i for i in range(len(scenes)) if rates[i] == base]
    parts = [i for i in range(len(scenes)) if rates[i] != base]
    alike: dict[tuple[int, float], list[int]] = {}  # clips by rate and beginning
    for i, kind in enumerate(zip(rates, starts)):
        alike.setdefault(kind, []).append(i)

    if recipe.law:
        each = [recipe.world.law(scene, frame_times(clip_frames(recipe), rate, start))
                for scene, rate, start in zip(scenes, rates, starts)]
        laws, middle = [torch.stack(numbers).to(device) for numbers in zip(*each)], list[Tensor]()
        if flow:  # a latent's frames; the first has only one
            n = config.vae.frames
            laws = [rearrange(F.pad(x, (0, 0, n - 1, 0), value=math.nan),
                              "b (f n) m -> b f (n m)", n=n) for x in laws]
        middle_of(networks.unet).register_forward_hook(lambda _, x, h: middle.append(h))

    def choose(count: int, rng: random.Random, dense: float) -> tuple[list[int], Tensor | None]:
        """Clips of a step, and their frames' positions where a network has them: then all are of
        one kind. dense: the share of parts of a scene."""
        if not isinstance(config.unet, SVDConfig):
            return [rng.choice(parts if rng.random() < dense else whole)
                    for _ in range(count)], None
        i = rng.choice(parts if rng.random() < dense else whole)
        chosen = rng.choices(alike[rates[i], starts[i]], k=count)
        return chosen, (base * frame_times(config.unet.frames, rates[i], starts[i])).to(device)

    def tell(chosen: list[int], rng: random.Random,
             generator: torch.Generator) -> tuple[Tensor, Tensor | None, Tensor]:
        """Context, reference latents and numbers of scenes."""
        left_out = torch.tensor([rng.random() < 0.1 for _ in chosen], device=device)
        fps = torch.tensor([float(rates[i]) for i in chosen], device=device)
        if isinstance(networks.encoder, TextTower):
            prompts = [
                "" if out else prompt_of(scenes[i], rng, told or rates[i] == base)
                for i, out in zip(chosen, left_out.tolist())
            ]
            return networks.encoder.encode(prompts), None, fps
        first = recipe.world.render([scenes[i] for i in chosen], torch.zeros(len(chosen), 1),
                                    recipe.size)[:, 0] * 2 - 1
        augmentation = config.defaults.noise_aug_strength
        noisy = first + augmentation * torch.randn(first.shape, generator=generator)
        keep = (~left_out).float()
        # or it would not be read
        token_alone = torch.tensor([rng.random() < 0.2 for _ in chosen], device=device)
        with torch.no_grad():  # trained along, the encoder would unlearn to tell shapes
            context = networks.encoder.encode(first.to(device)) * keep[:, None, None]
            latents = networks.vae.moments(noisy.to(device))[0] * (keep * ~token_alone)[:, None,
                                                                                        None, None]
        motion = torch.tensor([float(MOTION[scenes[i].speed]) for i in chosen], device=device)
        # says nothing
        fps = torch.tensor([rng.choice((1.0, 2.0, 4.0)) * base for _ in chosen], device=device)
        return context, latents[:, None], torch.stack(
            [fps - 1, motion, torch.full_like(fps, augmentation)], dim=1)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"step/{step}")
        frames = 1 if step < recipe.image_steps else config.unet.frames
        count = recipe.batch // frames
        goes_on = frames > 1 and rng.random() < recipe.goes_on
        places = 0 <= step - recipe.image_steps < recipe.places_steps
        dense, log_sigma = PLACES if places else (1.0, recipe.log_sigma)
        chosen, positions = choose(count, rng, min(dense, recipe.dense))
        last = 0 if flow else drawn[0].shape[1] - frames  # only the first latent is a frame alone
        firsts = [rng.randint(0, last) for _ in chosen]
        x0, *others = (torch.stack([clips[i, j:j + frames].float()  # autocast stacks no halves
                                    for i, j in zip(chosen, firsts)]).to(device) for clips in drawn)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        early = frames > 1 and step < recipe.steps - recipe.outline_steps
        levels = noise_levels(config.sampler, spread, early, log_sigma)
        t, alpha, sigma = (v.to(device) for v in levels)
        a, s = alpha[:, None, None, None, None], sigma[:, None, None, None, None]
        context, reference, numbers = tell(chosen, rng, generator)
        shown = a * x0 + s * noise
        if reference is not None:
            shown = torch.cat([shown, reference.expand(-1, frames, -1, -1, -1)], dim=2)
        placed = {} if positions is None else {"positions": positions}
        unet = stills if frames == 1 else endless if goes_on else networks.unet
        v = unet(shown, t, context, None if flow else numbers, **placed)
        error = v - (noise - x0 if flow else a * noise - s * x0)
        loss = error.square().mean()
        for other in others:
            loss = loss + recipe.told * told_loss(error, other - x0)
        if recipe.law and unet is networks.unet:
            h = middle.pop()
            for numbers in laws:
                of = numbers[chosen].flatten(0, 1)
                loss = loss + recipe.law * law_loss(h.reshape(len(of), -1), of)
        return loss

    def show(step: int, averaged: Networks) -> None:
        rng = random.Random("show")
        shown = [recipe.random_scene(rng) for _ in range(8)]
        averaged.vae.config = config.vae  # which has the scale
        pipeline = Pipeline(family, config, averaged)
        settings = pipeline.settings(scale=1, steps=20)
        videos = make(pipeline, shown, range(len(shown)), settings)
        rows = [
            rearrange(video.frames[0][::3 if len(video.frames[0]) > 8 else 1],
                      "f h w c -> h (f w) c") for video in videos
        ]
        _picture(folder / f"sheet-{step:05d}.png", torch.cat(rows).float() / 127.5 - 1)
        (folder / "sheet.txt").write_text("\n".join(scene.prompt() for scene in shown))

    trainer.train(loss_at, show, every=100)


def middle_of(unet: Any) -> nn.Module:
    """Half-way through: a UNet's lowest level, or a transformer's block."""
    if hasattr(unet, "middle"):
        return unet.middle
    blocks = unet.spatial_blocks if hasattr(unet, "spatial_blocks") else unet.blocks
    return blocks[len(blocks) // 2]


def law_loss(h: Tensor, laws: Tensor) -> Tensor:
    """How far a law's numbers are from what fixed sums of a network's features say. h: n d
    features; laws: n m, NaN where there is nothing to say."""
    sums = torch.randn(h.shape[1], laws.shape[1], generator=torch.Generator().manual_seed(3))
    said = h @ (sums / h.shape[1] ** 0.5).to(h)
    return (said - torch.where(laws.isnan(), said.detach(), laws)).square().mean()


def told_loss(error: Tensor, change: Tensor) -> Tensor:
    """How much of an error's square lies along a change of the data, frame by frame. Both: b f c h
    w."""
    dims = 2, 3, 4
    along = (error * change).sum(dims).square() / (change.square().sum(dims) + 1)
    return along.mean() / error[0, 0].numel()


def noise_levels(config: DDIMConfig | EulerConfig | FlowConfig, spread: Tensor, early: bool,
                 log_sigma: tuple[float, float] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps, and the shares of data and of noise there, of numbers in [0, 1).

    early: more of the noisy levels, where it is decided where a shape goes. For Euler the logarithm
    of sigma is normal, as Stable Video Diffusion was trained; outlines are decided between 3 and
    0.3. log_sigma: mean and deviation of a normal one for DDIM and flow matching.
    """
    if isinstance(config, EulerConfig):
        of_log = NormalDist(1.0, 1.6) if early else NormalDist(0.2, 1.2)
        sigma = torch.tensor([math.exp(of_log.inv_cdf(u)) for u in spread.clamp(1e-4).tolist()])
        total = (sigma**2 + 1).sqrt()
        return 0.25 * sigma.log(), 1 / total, sigma / total
    if isinstance(config, FlowConfig):
        assert log_sigma is not None
        of_log = NormalDist(*log_sigma)
        s = torch.tensor([of_log.inv_cdf(u) for u in spread.clamp(1e-4).tolist()]).sigmoid()
        return 1000 * s, 1 - s, s
    alphas = torch.from_numpy(config.alphas_cumprod() ** 0.5).float()
    if log_sigma is None:
        t = ((spread.sqrt() if early else spread) * TRAIN_STEPS).long()
    else:
        of_log = NormalDist(*log_sigma)
        wanted = torch.tensor([of_log.inv_cdf(u) for u in spread.clamp(1e-4).tolist()])
        known = ((1 - alphas**2).sqrt() / alphas).log()
        t = torch.searchsorted(known, wanted).clamp(max=TRAIN_STEPS - 1)
    alpha = alphas[t]
    return t, alpha, (1 - alpha**2).sqrt()


def choose_clips(recipe: recipes.Recipe) -> tuple[list[Any], list[int], list[float]]:
    """Scenes of the training clips, their frames a second and beginnings.

    A clip is of the whole scene at the base rate, or of a part of it at two or four times that
    rate: any part, or, where frames carry positions, what a window of a video at that rate holds.
    """
    rng = random.Random("clips")
    frames, base = clip_frames(recipe), recipe.config.defaults.fps
    scenes = [recipe.random_scene(rng) for _ in range(recipe.clips)]
    rates = [rng.choices((1, 2, 4), (6, 3, 2))[0] * base if recipe.dense else base for _ in scenes]
    if isinstance(recipe.config.unet, SVDConfig):  # windows overlap by half
        starts = [rng.randrange(2 * rate // base - 1) * frames / 2 / rate for rate in rates]
    else:
        starts = [rng.uniform(0, max(0, recipe.world.SECONDS - frames / rate)) for rate in rates]
    return scenes, rates, starts


def draw_clips(recipe: recipes.Recipe, vae: Autoencoder, folder: Path, device: str,
               of: Sequence[Any], rates: list[int], starts: list[float]) -> Tensor:
    """Latents of clips of scenes (n f c h w, float16), kept in `folder` under a digest of what they
    depend on."""
    scenes, frames = list(of), clip_frames(recipe)
    times = torch.stack([frame_times(frames, rate, start) for rate, start in zip(rates, starts)])
    # whose scale tells autoencoders apart
    drawn = repr((scenes, rates, starts, frames, recipe.size, vae.config))
    file = folder / f"clips-{hashlib.sha256(drawn.encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        parts = []
        for i in tqdm(range(0, len(scenes), 16), desc="clips", mininterval=10):
            video = recipe.world.render(scenes[i:i + 16], times[i:i + 16],
                                        recipe.size).to(device) * 2 - 1
            with torch.no_grad():
                if isinstance(vae, CausalAutoencoder):
                    z = vae.encode(video)
                else:
                    z = vae.encode(video.flatten(0, 1)).unflatten(0, video.shape[:2])
            parts.append(z.half().cpu())
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, {"clips": torch.cat(parts)})
    return load_file(file)["clips"]


def prompt_of(scene: Any, rng: random.Random, paced: bool = True) -> str:
    """The scene's prompt, sometimes without its background or its speed: always without that, if
    not `paced`, which is a clip at another rate that the network is not told."""
    return scene.prompt(speed=rng.random() < 0.75 and paced, background=rng.random() < 0.7)


def start_as_identity(unet: nn.Module) -> None:
    """Zero the last layer of every residual branch of a fresh network, so that it starts as the
    identity."""
    last = ("proj_out", "conv2", "convs.3", "conv_out", "to_out", "position_embedding.2")
    for name, module in unet.named_modules():
        if name.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for name, table in unet.named_parameters():
        if name.endswith(".table"):  # shifts, scales and gates of a transformer's branches
            with torch.no_grad():
                table.zero_()[..., 2::3, :] = 1


def twin(network: nn.Module) -> nn.Module:
    """A second network with the very weights of the first: what trains one trains the other."""
    return deepcopy(network, {id(p): p for p in network.parameters()})


def without_temporal_layers(unet: nn.Module) -> nn.Module:
    """A twin for single frames, whose temporal layers hand on what they get: those of a fresh
    network do so anyway, but here they take no time and are not trained."""
    unet = twin(unet)
    for parent in unet.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, (TemporalConv, TemporalTransformer)):
                setattr(parent, name, Instead(lambda x: x))
            elif isinstance(layer, TemporalAttention):  # in a residual branch
                setattr(parent, name, Instead(torch.zeros_like))
    return unet


class Instead(nn.Module):
    """A function of the first of its arguments in a layer's place."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        return self.function(x)


def with_repeated_ends(unet: nn.Module) -> nn.Module:
    """A twin whose temporal convolutions repeat a clip's end frames instead of adding zeros, as if
    it went on.

    Where there are zeros, a network learns to tell frames' places by them; most frames of a longer
    video see none."""
    unet = twin(unet)
    for layer in unet.modules():
        if isinstance(layer, nn.Conv3d):
            layer.padding_mode = "replicate"
    return unet


def export(name: str, folder: Path, device: str, to: Path) -> None:
    """Write the shipped file from the running averages in a run's folder, finished or not."""
    recipe = recipes.RECIPES[name]
    trainer = diffusion_trainer(recipe, new_networks(recipe, device), folder)
    networks: Any = trainer.average.module
    if refined := read_state(folder.parent / "decoder").get("average"):
        networks.vae.load_state_dict({
            k.removeprefix("module."): x
            for k, x in refined.items() if k != "n_averaged"
        })
    config = with_scale(recipe, networks.vae, device).config
    source = f"smallworld.train {name}, step {trainer.step} of {recipe.steps}"
    family = recipes.FAMILIES[config.family]
    checkpoint.save(to, family, config, networks.state_dict().items(), torch.float16, source, "",
                    recipe.words() if "prompt" in family.takes else ())
    print(f"{to}: {to.stat().st_size:,} bytes, {source}")


@torch.inference_mode()
def with_scale(recipe: recipes.Recipe, vae: Any, device: str) -> recipes.Recipe:
    """The recipe, and the autoencoder, with the `scale` that gives its latents a deviation of one;
    one of clips with their channels' mean and deviation."""
    rng, causal = random.Random("scale"), isinstance(vae, CausalAutoencoder)
    scenes = [(recipe if causal else recipe.world).random_scene(rng) for _ in range(SCENES)]
    if causal:
        times = frame_times(clip_frames(recipe), recipe.config.defaults.fps).expand(SCENES, -1)
    else:
        times = torch.tensor([[rng.uniform(0, recipe.world.SECONDS)] for _ in scenes])
    video = (recipe.world.render(scenes, times, recipe.size) * 2 - 1).to(device)
    if causal:
        z = torch.cat([vae.moments(x)[0] for x in video.split(16)])
        mean, std = (tuple(round(v, 5) for v in x.tolist())
                     for x in (z.mean((0, 1, 3, 4)), z.std((0, 1, 3, 4))))
        vae.config = replace(recipe.config.vae, mean=mean, std=std)
    else:
        scale = round(1 / vae.moments(video[:, 0])[0].std().item(), 5)
        vae.config = replace(recipe.config.vae, scale=scale)
    return replace(recipe, config=replace(recipe.config, vae=vae.config))


def go_on_from(name: str, recipe: recipes.Recipe, folder: Path) -> None:
    """Lay out in `folder` the state of the run that exported a checkpoint. ValueError if it is of
    another recipe."""
    family = recipe.config.family
    found = checkpoint.describe(name, None if family in BUILT_IN else recipes.FAMILIES[family])
    step = re.search(r"step (\d+)", found.source)
    if found.config.unet != recipe.config.unet or step is None:
        raise ValueError(
            f"{name} ({found.source or 'of unknown source'}) was not exported by a run of this "
            "recipe"
        )
    lay_out(folder, checkpoint.load_described(found, "cpu").networks.state_dict(), int(step[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=recipes.RECIPES, help="which small checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--runs", type=Path, default=Path("runs"),
                        help="folder of training states (default: runs)")
    parser.add_argument("--export", type=Path, metavar="FILE",
                        help="only write the checkpoint as it stands to FILE")
    parser.add_argument("--start", metavar="CKPT",
                        help="go on from an exported checkpoint, where no state is left")
    parser.add_argument("--decoder", action="store_true",
                        help="only go on with the decoder of a run; --export takes it")
    args = parser.parse_args()
    folder, recipe = args.runs / args.name, recipes.RECIPES[args.name]
    diffusion = folder / "diffusion"
    started = bool(read_state(diffusion))
    if args.export:
        if not started:
            parser.error(f"{diffusion} holds no run that could be exported")
        export(args.name, diffusion, args.device, args.export)
        return
    if args.start:
        if started:
            parser.error(f"{folder} holds a run already; leave --start out to go on with it")
        go_on_from(args.start, recipe, diffusion)
        started = True
    networks = new_networks(recipe, args.device)
    if args.decoder:
        if not started or not recipe.decoder_steps:
            parser.error(f"{diffusion} holds no run, or one of a recipe without decoder_steps; its "
                         "decoder cannot go on")
        diffusion_trainer(recipe, networks, diffusion)  # which loads them
        train_autoencoder(recipe, folder / "decoder", args.device, networks.vae)
        return
    if not started:  # whose state holds all three networks
        networks.vae = train_autoencoder(recipe, folder / "autoencoder", args.device)
        networks.encoder = train_encoder(recipe, folder / "encoder", args.device)
    train_diffusion(recipe, networks, diffusion, args.device)
    export(args.name, diffusion, args.device, folder / f"{args.name}.safetensors")


def _picture(path: Path, image: Tensor) -> None:
    """image: h w 3 in [-1, 1]."""
    iio.imwrite(path, ((image.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())


if __name__ == "__main__":
    main()
