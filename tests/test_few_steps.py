"""Few-step checkpoints: their LoRA merged at conversion, the guidance scale they are told, their
samplers in a cascade.

Their figures are in `tests/golden` (see `tests.parity_consistency`)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from weights_convert.videocrafter import GUIDANCE, NETWORK, place
from zerosmooth.cascade import Cascade, by_stage, nested_noise, sample_cascade
from zerosmooth.checkpoint import describe, load
from zerosmooth.samplers import DDIMConfig, EulerConfig
from zerosmooth.settings import Running, idle, settings_for

from .parity import weight
from .test_convert import SMALL, convert_main, published, small_family  # noqa: F401 (a fixture)

DIM = 8  # channels of the guidance scale's sinusoid
SAMPLERS = {"ddim": DDIMConfig(consistency=50), "euler": EulerConfig(consistency=40)}


def layers(state: dict[str, Tensor]) -> list[str]:
    """What a LoRA without names changes, in its order."""
    found = [name for name, x in state.items() if name.startswith(NETWORK) and x.ndim in (2, 4, 5)]
    return sorted([*found, GUIDANCE], key=place)


def listed(state: dict[str, Tensor], rank: int = 2) -> list[Tensor]:
    """Ups and downs by turns, as T2V-Turbo's authors save them."""
    pairs = []
    for name in layers(state):
        out, *inner = (SMALL.unet.channels, DIM) if name == GUIDANCE else state[name].shape
        pairs += [weight(f"{name}.up", (out, rank, *[1] * (len(inner) - 1))),
                  weight(f"{name}.down", (rank, *inner))]
    return pairs


@pytest.fixture
def turbo(tmp_path, monkeypatch, small_family):  # noqa: F811
    """VideoCrafter2 with T2V-Turbo's LoRA merged, converted, in a small size."""
    source = published(tmp_path)
    state = torch.load(source, weights_only=True)["state_dict"]
    torch.save([torch.nn.Parameter(x) for x in listed(state)], tmp_path / "unet_lora.pt")
    out = tmp_path / "turbo.safetensors"
    assert convert_main(monkeypatch, "vc2", source, "--lora", tmp_path / "unet_lora.pt", "-o",
                        out) == 0
    return out, state


def test_a_lora_without_names_goes_to_its_layers_whatever_their_order_in_the_file(turbo, tmp_path,
                                                                                  monkeypatch):
    out, state = turbo
    ours = load_file(out)
    pairs = dict(zip(layers(state), zip(*[iter(listed(state))] * 2)))
    key = f"{NETWORK}input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"
    up, down = pairs[key]
    d = SMALL.unet.channels
    assert_close(ours["unet.encoder.0.spatial.blocks.0.self_attn.to_qkv.weight"][d : 2 * d],
                 state[key] + up @ down)
    up, down = pairs[GUIDANCE]
    assert_close(ours["unet.guidance_embedding.weight"], up @ down)  # all of it: the base has none

    shuffled = list(state.items())
    random.Random(0).shuffle(shuffled)
    torch.save({"state_dict": dict(shuffled)}, tmp_path / "shuffled.ckpt")
    again = tmp_path / "again.safetensors"
    lora = tmp_path / "unet_lora.pt"
    assert convert_main(monkeypatch, "vc2", tmp_path / "shuffled.ckpt", "--lora", lora, "-o",
                        again) == 0
    assert all(torch.equal(x, ours[name]) for name, x in load_file(again).items())


def test_the_checkpoint_says_how_it_is_sampled(turbo):
    config = describe(turbo[0]).config
    assert config.sampler == replace(SMALL.sampler, consistency=50, data_scale=1.0)
    assert config.unet.guidance_dim == DIM
    assert (config.defaults.steps, config.defaults.eta, config.defaults.guidance_scale) == (8, 1.0,
                                                                                            7.5)


def test_a_network_that_is_told_the_guidance_scale_runs_in_one_branch(turbo):
    pipeline, batches = load(turbo[0]), []
    pipeline.networks.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[
                    0])))
    frames = [pipeline.sample("x", key_frames=4, scale=2, steps=4,
                              guidance_scale=scale)[0].latents[1] for scale in (2, 7.5)]
    assert set(batches) == {1} and len(batches) == 2 * 2 * 4
    assert not torch.allclose(frames[0], frames[1])
    for name, value in {"negative_prompt": "blur", "guidance_rescale": 0.5,
                        "first_guidance_scale": 1.0}.items():
        with pytest.raises(ValueError,
                           match=f"{name} does nothing to a guidance-distilled network"):
            pipeline.settings(**{name: value})
    settings = pipeline.settings()
    assert settings.guided and not pipeline.family.guided(pipeline.config, settings)
    said = dict(idle(pipeline.family, pipeline.config, settings, Running(sequential_guidance=True)))
    assert "sequential_guidance" in said


def test_another_unet_replaces_the_files_own(turbo, tmp_path, monkeypatch):
    """As T2V-Turbo-v2's: under the network's own names, with a projection of motion guidance that
    is left out."""
    state = {name.removeprefix(NETWORK): 2 * x for name, x in turbo[1].items()
             if name.startswith(NETWORK)}
    state |= {"time_cond_proj.weight": torch.ones(SMALL.unet.channels, DIM)}
    state |= {"motion_cond_proj.weight": torch.ones(2, 2), "combine_proj.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "unet.pt")
    out, source = tmp_path / "v2.safetensors", tmp_path / "model.ckpt"
    assert convert_main(monkeypatch, "vc2", source, "--unet", tmp_path / "unet.pt", "-o", out) == 0
    assert torch.equal(load_file(out)["unet.conv_in.weight"], state["input_blocks.0.0.weight"])
    assert describe(out).config.sampler.consistency == 200


def test_what_does_not_fit_is_refused(turbo, tmp_path, monkeypatch, capsys):
    state, source = turbo[1], tmp_path / "model.ckpt"
    count = len(layers(state)) - 1
    # so that every layer takes its neighbour's
    torch.save(listed(state)[:-2], tmp_path / "without_guidance.pt")
    torch.save(listed(state)[:-1], tmp_path / "odd.pt")
    save_file({"a.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    for reason, flags in {
        "for a weight of": ["--lora", tmp_path / "without_guidance.pt"],
        f"{count + 0.5} pairs of tensors for {count} layers": ["--lora", tmp_path / "odd.pt"],
        "is no LoRA of these networks": ["--lora", tmp_path / "other.safetensors"],
        "is no UNet of this family": ["--unet", tmp_path / "other.safetensors"],
        "holds a list of tensors, without names": ["--unet", tmp_path / "odd.pt"],
    }.items():
        assert convert_main(monkeypatch, "vc2", source, *flags, "-o", tmp_path
                            / "no.safetensors") == 1
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("config", SAMPLERS.values(), ids=SAMPLERS)
def test_a_perfect_network_is_at_the_data_from_the_first_step(config):
    x0, noise = torch.randn(2, 1, 2, 4, 3, 3).unbind()
    sampler = config.sampler(4, 1.0)
    x = sampler.start(noise)
    for i in range(len(sampler)):
        if isinstance(config, EulerConfig):
            s = float(sampler.sigmas[i])
            output = (x / (s**2 + 1) - x0) * (s**2 + 1) ** 0.5 / s
        else:
            output = (x - float(sampler.alpha[i]) * x0) / float(sampler.sigma[i])
        # from x of size 700, in float32
        assert_close(sampler.x0(i, x, output), x0, rtol=0, atol=1e-3)
        x = sampler.step(i, x, sampler.x0(i, x, output), torch.randn_like(x))
    assert_close(x, x0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("config", SAMPLERS.values(), ids=SAMPLERS)
def test_a_steps_noise_is_the_next_ones_level(config):
    sampler, zero, noise = config.sampler(4, 1.0), torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1,
                                                                                          1, 1)
    for i in range(3):
        level = sampler.sigmas[i + 1] if isinstance(config, EulerConfig) else sampler.sigma[i + 1]
        # x itself is left behind
        assert_close(sampler.step(i, 5 + zero, zero, noise).item(), float(level))
    assert sampler.step(3, 5 + zero, zero, noise) == 0


@pytest.mark.parametrize("config", SAMPLERS.values(), ids=SAMPLERS)
def test_key_frames_see_the_same_fresh_noise_in_every_stage(config):
    """With a network that sees frames one by one, key frames are then the same in every stage,
    bitwise."""
    cascade, sampler = Cascade(4, (2, 2), strength=0.0), config.sampler(4, 1.0)
    outputs = sample_cascade(lambda i, s, x, stage: torch.tanh(x + 0.1 * i), sampler,
                             cascade, lambda i: nested_noise((4, 3, 3), 4, (2, 2), 7, i)[None],
                             cascade.bus())
    for ours, keys in zip(by_stage(outputs[-1], cascade.scales), outputs):
        assert torch.equal(ours, keys)
    assert outputs[0].std() > 0.1


def test_settings_that_such_a_sampler_does_not_have_are_refused():
    for config, known in zip(SAMPLERS.values(), (50, 40)):
        for steps, eta, reason in ((known + 1, 1.0, f"use 1 to {known}"), (0, 1.0, "use 1"),
                                   (4, 0.0, "use 1")):
            with pytest.raises(ValueError, match=reason):
                config.sampler(steps, eta)
        assert len(config.sampler(known, 1.0)) == known


def test_freenoise_which_needs_no_fresh_noise_is_refused(turbo):
    checkpoint = describe(turbo[0])
    with pytest.raises(ValueError, match="fresh noise alone"):
        settings_for(checkpoint.family, checkpoint.config, method="freenoise")
