"""What must hold of `examples/dynamicrafter.py`. Its agreement with its authors' code is in
`tests/golden`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from weights_convert import __main__ as cli
from weights_convert.engine import convert, plan
from zerosmooth.checkpoint import describe, load, tensor_shapes
from zerosmooth.config import ModelConfig
from zerosmooth.family import load_family
from zerosmooth.guidance import Inputs
from zerosmooth.pipeline import Subject
from zerosmooth.settings import settings_for
from zerosmooth_cli import main as command

from .conformance import check, report
from .conftest import FRAMES, SIZE
from .full_size import schedule, shapes
from .parity import weight

FILE = Path(__file__).parent.parent / "examples" / "dynamicrafter.py"
FAMILY = load_family(str(FILE), {})
dynamicrafter = sys.modules[type(FAMILY).__module__]
MODELS = dynamicrafter.MODELS
TINY = dynamicrafter.DynamiCrafterConfig(**SIZE, head_dim=8, frames=FRAMES, text_tokens=5,
                                         image_tokens=3, learned_scale=True)


def manifests(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file."""
    # that of 1024 has the same tensors
    unet = f"dynamicrafter_{512 if model == '1024' else model}_unet"
    own = (f"dynamicrafter_{part}" for part in ("image_proj", "image_encoder", "buffers"))
    found = shapes(unet, *own, "vc2_text", "vc2_vae")
    if model == "256":
        del found["scale_arr"]
    return found


def small(model: str) -> ModelConfig:
    """A published config with fewer channels."""
    c = MODELS[model]
    encoder = replace(c.encoder, text=replace(c.encoder.text, vocab_size=600, width=16, heads=2),
                      image=replace(c.encoder.image, width=32, heads=2, out=16, image_size=28),
                      resampler=replace(c.encoder.resampler, width=16, heads=2, head_dim=4,
                                        image_width=32, out=16))
    return replace(c, unet=replace(c.unet, channels=32, head_dim=16, context_dim=16),
                   vae=replace(c.vae, channels=32), encoder=encoder,
                   defaults=replace(c.defaults, height=64, width=64, steps=1))


def small_file(model: str, path: Path) -> Path:
    """A file in the published layout with the shapes of `small`, its numbers by the rule of
    `tests.parity`."""
    config, full = small(model), manifests(model)
    ours, state = tensor_shapes(FAMILY, config), {name: torch.zeros(1) for name in full}
    table = FAMILY.conversion.table(config, full)
    transposed = {target.removesuffix("^T") for _, target in table.rows if target.endswith("^T")}
    for target, names in plan(table, full)[0].items():
        shape = ours[target][::-1] if target in transposed else ours[target]
        for name in names:
            # a 1x1 convolution that is a linear layer here
            tail = (1,) * (len(full[name]) - len(shape))
            state[name] = weight(name, (shape[0] // len(names), *shape[1:], *tail) if shape
                                 else shape)
    torch.save({"state_dict": state | schedule(config.sampler)}, path)
    return path


@pytest.fixture
def small_models(monkeypatch):
    for model in list(MODELS):
        monkeypatch.setitem(MODELS, model, small(model))
    monkeypatch.setattr(cli, "load_family", lambda name, built_in: FAMILY)


@pytest.mark.parametrize("model", [
    model if model == "512" else pytest.param(model, marks=pytest.mark.long) for model in MODELS])
def test_every_tensor_of_the_published_files_has_its_place(model):
    """Names and shapes only. Every one is read once, but for those that are dropped on purpose."""
    config, source, read = MODELS[model], manifests(model), []

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(source[name], device="meta")

    table, expected = FAMILY.conversion.table(config, source), tensor_shapes(FAMILY, config)
    made = {name: tuple(x.shape) for name, x in convert(table, source, read_meta, expected)}
    assert made == expected and len(read) == len(set(read))
    left = {name for name in source if name not in read}
    of_the_image = {name for name in left if name.startswith("embedder.model.")}
    assert {name.removeprefix("embedder.model.")
            for name in of_the_image} == {"visual.ln_post.weight", "visual.ln_post.bias",
                                          "visual.proj", "positional_embedding", "text_projection",
                                          "logit_scale", "token_embedding.weight",
                                          "ln_final.weight", "ln_final.bias"}
    block = "cond_stage_model.model.transformer.resblocks.23."
    rest = left - of_the_image - shapes("dynamicrafter_buffers").keys()
    assert all(name.startswith(block) or name.endswith(("text_projection", "logit_scale"))
               for name in rest)


@pytest.mark.parametrize(("model", "flags"), [
    ("256", []), pytest.param("512", [], marks=pytest.mark.long),
    pytest.param("1024", [], marks=pytest.mark.long),
    pytest.param("1024", ["--model", "1024"], marks=pytest.mark.long)])
def test_a_file_says_which_model_it_is_and_makes_a_video(model, flags, tmp_path, small_models):
    source, out = small_file(model, tmp_path / "model.ckpt"), tmp_path / "dc.safetensors"
    assert cli.main(["--family", str(FILE), str(source), "-o", str(out), *flags]) == 0
    assert describe(out, FAMILY).config == MODELS[model]
    image = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(0)).byte()
    pipeline = load(out, family=FAMILY)
    (video,) = pipeline.sample(Subject("a ship", image), scale=2)
    assert [tuple(x.shape) for x in video.frames] == [(16, 64, 64, 3), (32, 64, 64, 3)]
    settings = dict(scale=1, key_frames=4)
    base, worded, seen = (pipeline.sample(shown, **settings)[0].latents[0]
                          for shown in (Subject("a ship", image), Subject("a lighthouse", image),
                                        Subject("a ship", 255 - image)))
    assert not torch.allclose(base, worded) and not torch.allclose(base, seen)


def test_the_wrong_model_is_refused(tmp_path, small_models, capsys):
    source, out = small_file("1024", tmp_path / "model.ckpt"), str(tmp_path / "dc.safetensors")
    assert cli.main(["--family", str(FILE), str(source), "-o", out, "--model", "512"]) == 1
    assert "another noise schedule (scale_arr)" in capsys.readouterr().err
    state = torch.load(source, weights_only=True)["state_dict"]
    torch.save({name: x for name, x in state.items() if name not in ("scale_arr",)}, source)
    assert cli.main(["--family", str(FILE), str(source), "-o", out]) == 1
    assert "add --model 512, or 1024" in capsys.readouterr().err


# --- the network


@pytest.fixture
def unet():
    torch.manual_seed(0)
    unet = dynamicrafter.DynamiCrafterUNet(TINY)
    for name, p in unet.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.normal_(p)
    return unet.eval()


def context(keys: int = FRAMES) -> Tensor:
    return torch.randn(1, 5 + 3 * keys, SIZE["context_dim"],
                       generator=torch.Generator().manual_seed(1))


def ask(unet, x, stage=None, tokens=None):
    x = torch.cat([x, torch.full_like(x, 0.5)], dim=2)
    tokens = context() if tokens is None else tokens
    return unet(x, torch.full((len(x),), 300), tokens.expand(len(x), -1, -1),
                torch.full((len(x),), 24.0), stage)


def test_the_network_conforms(unet):
    same = context()
    # the windows of temporal attention are compared with them alone
    same[:, 5:] = same[:, 5:8].repeat(1, FRAMES, 1)
    broken = check(unet, lambda x, stage: ask(unet, x, stage, same), FRAMES, (4, 4, 6))
    assert not broken, report(broken)
    broken = check(unet, lambda x, stage: ask(unet, x, stage), FRAMES, (4, 4, 6))
    assert not broken, report(broken)


def attention():
    torch.manual_seed(0)
    module = dynamicrafter.TextImageAttention(TINY, 16)
    module.name = "it"
    return module, torch.randn(1, 2 * FRAMES, 6, 16)


def test_a_frame_takes_the_tokens_of_the_key_frame_before_it():
    module, h = attention()
    tokens = context()
    plain = module(h, {"it": module.project(tokens)})
    tokens[:, 5 + 3 * 2 : 5 + 3 * 3] += 1  # those of key frame 2
    changed = (module(h, {"it": module.project(tokens)}) - plain).abs().amax((0, 2, 3)) > 1e-4
    assert changed.nonzero().flatten().tolist() == [4, 5]


def test_key_frames_keep_their_tokens_at_every_length():
    """Of any number of key frames: their tokens are the first ones of the resampler's."""
    module, h = attention()
    for keys in (FRAMES, FRAMES // 2):
        states = {"it": module.project(context(keys))}
        for n in (2, 1):
            spread = h[:, :keys].repeat_interleave(n, dim=1)
            assert_close(module(spread, states)[:, ::n], module(h[:, :keys], states))
    with pytest.raises(ValueError,
                       match=f"{2 * FRAMES - 1} frames with image tokens of {FRAMES} key frames"):
        module(h[:, :-1], {"it": module.project(context())})


def test_alpha_weights_the_image():
    module, h = attention()
    tokens = context()
    outputs = []
    for alpha in (-50.0, 0.0, 50.0):  # the image counts 0, 1 and 2 times
        module.alpha.fill_(alpha)
        outputs.append(module(h, {"it": module.project(tokens)}))
    assert_close(outputs[1] - outputs[0], outputs[2] - outputs[1])
    tokens[:, 5:] += 1
    module.alpha.fill_(-50.0)
    assert_close(module(h, {"it": module.project(tokens)}), outputs[0])


# --- what it is told


def test_a_stage_is_told_its_rate_or_its_stride():
    told = {}
    for model, config in MODELS.items():
        settings = settings_for(FAMILY, config)
        told[model] = [FAMILY.condition(config, settings.fps_of(s), settings).item()
                       for s in range(3)]
    assert told == {"256": [3, 1.5, 0.75], "512": [24, 48, 96], "1024": [10, 20, 40]}


def test_the_unconditional_branch_sees_grey_and_keeps_the_latents(tmp_path, small_models):
    source, out = small_file("512", tmp_path / "model.ckpt"), tmp_path / "dc.safetensors"
    cli.main(["--family", str(FILE), str(source), "-o", str(out)])
    pipeline = load(out, family=FAMILY)
    pixels, noise = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 3, 64, 64)
    told = [FAMILY.branches(pipeline.networks, Inputs(["a ship"] * 2, shown, noise),
                            pipeline.settings(key_frames=4)) for shown in (pixels, pixels.flip(2))]
    (conditional, without), (other, other_without) = told
    assert conditional.context.shape == (2, 77 + 4 * 16, 16)
    assert torch.equal(without.context, other_without.context)
    assert not torch.allclose(conditional.context, other.context)
    assert torch.equal(conditional.latents, without.latents) and conditional.latents.shape == (2, 4,
                                                                                               8, 8)
    mean = pipeline.networks.vae.encode(pixels)
    silent = FAMILY.branches(pipeline.networks, Inputs([""] * 2, pixels, 0 * noise),
                             pipeline.settings(key_frames=4))
    assert_close(silent[0].latents, mean)
    assert not torch.allclose(conditional.latents, mean)


def test_samplers_are_the_published_ones():
    for model, (first, last) in {"256": (981, 1), "512": (999, 19), "1024": (999, 19)}.items():
        sampler = MODELS[model].sampler.sampler(50, 1.0)
        assert (sampler.timesteps[0], sampler.timesteps[-1]) == (first, last)
        assert (sampler.alpha[0] == 0) == (model != "256")


def test_sample_py_takes_an_image_and_a_prompt(tmp_path, small_models, monkeypatch, capsys):
    source, out = small_file("512", tmp_path / "model.ckpt"), tmp_path / "dc.safetensors"
    cli.main(["--family", str(FILE), str(source), "-o", str(out)])
    iio.imwrite(tmp_path / "x.png", np.zeros((20, 30, 3), np.uint8))
    argv = ["sample.py", "--family", FILE, "--ckpt", out, "--image", tmp_path / "x.png",
            "--prompt", "a ship", "--outdir", tmp_path, "--set", "scale=2", "save_fps=16"]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    assert command.main() == 0
    assert len(list(tmp_path.glob("*.mp4"))) == 2
    assert "16 key frames at 8 fps become 32 at 16 fps" in capsys.readouterr().out
