"""What the configs beside published weights say is taken over, or refused: nothing is converted as
something else."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from examples import wan
from weights_convert.engine import ConversionError
from weights_convert.source import Source
from zerosmooth.config import ModelConfig
from zerosmooth.families import FAMILIES
from zerosmooth.family import Family, load_family

ROOT = Path(__file__).parent.parent
EXAMPLES = {name: load_family(str(ROOT / f"examples/{name}.py"), {})
            for name in ("modelscope", "animatediff", "latte")}
EXAMPLES["wan"] = wan.FAMILY
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False}
SD_VAE = {"act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
SD_TEXT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 12}
SD_PAD = {"pad_token": "<|endoftext|>"}
UNET = {"act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32}
Said = dict[str, Any]
PUBLISHED: dict[str, dict[str, Said]] = {  # what the published folders say of what counts
    "modelscope": {
        "unet": {**UNET, "attention_head_dim": 64}, "vae": {**SD_VAE, "scaling_factor": 0.18215},
        "text_encoder": {**SD_TEXT, "hidden_act": "gelu", "num_attention_heads": 16},
        "tokenizer": {"pad_token": "!"},
        "scheduler": {**SD_SCHEDULER, "_class_name": "DDIMScheduler",
                      "prediction_type": "epsilon"}},
    "animatediff": {"unet": {**UNET, "attention_head_dim": 8}, "vae": SD_VAE,
                    "text_encoder": SD_TEXT, "tokenizer": SD_PAD, "scheduler": SD_SCHEDULER},
    "lavie": {"unet": {}, "vae": SD_VAE, "text_encoder": SD_TEXT, "tokenizer": SD_PAD,
              "scheduler": SD_SCHEDULER},
    "latte": {
        "transformer": {
            "activation_fn": "gelu-approximate", "attention_head_dim": 72, "norm_eps": 1e-6,
            "norm_type": "ada_norm_single", "num_attention_heads": 16, "patch_size": 2,
            "sample_size": 64, "video_length": 16, "norm_elementwise_affine": False},
        "vae": {**SD_VAE, "scaling_factor": 0.18215},
        "scheduler": {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02,
                      "beta_schedule": "linear", "prediction_type": "epsilon",
                      "timestep_spacing": "leading", "clip_sample": False}},
    "svd": {
        "unet": {"num_attention_heads": [5, 10, 20, 20], "num_frames": 14},
        "vae": {"force_upcast": True, "scaling_factor": 0.18215},
        "image_encoder": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 16},
        "scheduler": {
            **SD_SCHEDULER, "_class_name": "EulerDiscreteScheduler", "sigma_max": 700.0,
            "sigma_min": 0.002, "prediction_type": "v_prediction", "timestep_type": "continuous",
            "use_karras_sigmas": True}},
}
PUBLISHED["wan"] = {
    "transformer": {
        "attention_head_dim": 128, "added_kv_proj_dim": None, "cross_attn_norm": True, "eps": 1e-6,
        "ffn_dim": 8960, "freq_dim": 256, "image_dim": None, "in_channels": 16, "num_layers": 30,
        "num_attention_heads": 12, "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads"},
    "vae": {"attn_scales": [], "base_dim": 96, "latents_mean": list(wan.FAMILY.config.vae.mean),
            "latents_std": list(wan.FAMILY.config.vae.std)},
    "scheduler": {
        "_class_name": "UniPCMultistepScheduler", "disable_corrector": [], "flow_shift": 3.0,
        "final_sigmas_type": "zero", "lower_order_final": True, "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction", "solver_order": 2, "solver_type": "bh2",
        "use_flow_sigmas": True, "use_karras_sigmas": False}}
FILES = {"scheduler": "scheduler_config.json", "tokenizer": "special_tokens_map.json"}


def family_of(name: str) -> Family:
    return EXAMPLES.get(name) or FAMILIES[name]


def read(folder: Path, name: str, changed: dict[str, Said] | None = None) -> ModelConfig:
    """The config that a folder gives whose configs say what the published ones do, and `changed`
    besides."""
    for part, values in PUBLISHED[name].items():
        (folder / part).mkdir(exist_ok=True)
        text = json.dumps({**values, **(changed or {}).get(part, {})})
        (folder / part / FILES.get(part, "config.json")).write_text(text)
    return variant(folder, family_of(name))


def variant(folder: Path, family: Family) -> ModelConfig:
    """The config that a folder's configs give."""
    names = {"motion_modules.0.pe": (1, 32), "mid_block.motion_modules.0": (1,)}
    source = Source(folder, names, lambda name: None, ())
    args = argparse.Namespace(sd=folder, motion=None, norms="authors", num_frames=None, unet=None,
                              consistency=False, temporal_decoder=False, text_folder=None)
    return family.conversion.variant(family.config, source, args)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_published_folders_say_is_what_the_families_are(tmp_path, name, capsys):
    config, own = read(tmp_path, name), family_of(name).config
    assert (config.sampler, config.vae) == (own.sampler, own.vae)
    assert getattr(config.encoder, "activation", 0) == getattr(own.encoder, "activation", 0)
    assert getattr(config.encoder, "pad_token", 0) == getattr(own.encoder, "pad_token", 0)
    assert replace(config.unet, **({"version": "v3"} if name == "animatediff" else {})) == own.unet
    assert "taken over" not in capsys.readouterr().out


V = {"prediction_type": "v_prediction"}
TAKEN: dict[str, tuple[str, str, Said, dict[str, Any]]] = {
    # family, folder, what its config says, and what becomes of it
    "v": ("modelscope", "scheduler", V, {"sampler.prediction": "v"}),
    "v of motion": ("animatediff", "scheduler", V,
                    {"sampler.prediction": "v", "sampler.beta_schedule": "linear",
                     "sampler.ends_clean": True}),
    "no signal": ("modelscope", "scheduler",
                  {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
                  {"sampler.zero_terminal_snr": True, "sampler.spacing": "trailing"}),
    "no signal, of motion": ("animatediff", "scheduler",
                             {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
                             {"sampler.zero_terminal_snr": True, "sampler.spacing": "trailing"}),
    "betas": ("modelscope", "scheduler", {"beta_start": 0.001, "beta_end": 0.02},
              {"sampler.beta_start": 0.001, "sampler.beta_end": 0.02}),
    "betas of motion": ("animatediff", "scheduler", {"beta_end": 0.02},
                        {"sampler.beta_end": 0.02, "sampler.beta_schedule": "sqrt_linear"}),
    "schedule": ("latte", "scheduler", {"beta_schedule": "scaled_linear"},
                 {"sampler.beta_schedule": "sqrt_linear"}),
    "steps": ("latte", "scheduler", {"steps_offset": 1, "set_alpha_to_one": False},
              {"sampler.first_timestep": 1, "sampler.ends_clean": False}),
    "steps of another sampler": (
        "modelscope", "scheduler",
        {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "linspace",
         "steps_offset": 0}, {"sampler.spacing": "leading", "sampler.first_timestep": 1}),
    "noise levels": ("svd", "scheduler", {"sigma_max": 80}, {"sampler.sigma_max": 80.0}),
    **{f"{name} latents": (name, "vae", {"scaling_factor": 0.5}, {"vae.scale": 0.5})
       for name in PUBLISHED if name != "wan"},
    "latents' means": ("wan", "vae", {"latents_mean": [0.5] * 16}, {"vae.mean": (0.5,) * 16}),
    "a larger network": ("wan", "transformer", {"num_attention_heads": 40, "num_layers": 40},
                         {"unet.heads": 40, "unet.layers": 40}),
    "larger videos": ("wan", "scheduler", {"flow_shift": 5}, {"sampler.shift": 5.0}),
    "Euler's method": (
        "wan", "scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8.0},
        {"sampler.kind": "euler", "sampler.shift": 8.0}),
    "norms": ("modelscope", "vae", {"norm_num_groups": 16}, {"vae.groups": 16}),
    "activation": ("modelscope", "text_encoder", {"hidden_act": "quick_gelu"},
                   {"encoder.activation": "quick_gelu"}),
    "SD's activation": ("lavie", "text_encoder", {"hidden_act": "gelu"},
                        {"encoder.activation": "gelu"}),
    "heads of text": ("animatediff", "text_encoder", {"num_attention_heads": 6},
                      {"encoder.heads": 6}),
    "padding": ("modelscope", "tokenizer", {"pad_token": {"content": "<|endoftext|>"}},
                {"encoder.pad_token": 49407}),
    "heads": ("animatediff", "unet", {"attention_head_dim": 4, "num_attention_heads": None},
              {"unet.heads": 4}),
    "channels of a head": ("modelscope", "unet", {"attention_head_dim": 32}, {"unet.head_dim": 32}),
    "grid": ("latte", "transformer", {"sample_size": 32}, {"unet.grid": 16}),
    "larger grid": ("latte", "transformer", {"sample_size": 128}, {"unet.grid": 32}),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_ours_can_do_is_taken_over_and_said(tmp_path, case, capsys):
    name, part, said, expected = TAKEN[case]
    config, own = read(tmp_path, name, {part: said}), family_of(name).config
    assert {where: attrgetter(where)(config) for where in expected} == expected
    if any(attrgetter(where)(own) != value for where, value in expected.items()):
        assert f"taken over from {tmp_path / part}" in capsys.readouterr().out


REFUSED: dict[str, tuple[str, str, Said]] = {
    "prediction_type is 'sample', .*; only epsilon or v_prediction is": (
        "modelscope", "scheduler", {"prediction_type": "sample"}),
    "beta_schedule is 'squaredcos_cap_v2'": (
        "animatediff", "scheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "trained_betas is .0.1.": ("latte", "scheduler", {"trained_betas": [0.1]}),
    "num_train_timesteps is 500": ("modelscope", "scheduler", {"num_train_timesteps": 500}),
    "needs prediction 'v'": ("modelscope", "scheduler", {"rescale_betas_zero_snr": True}),
    "steps_offset is 7": ("modelscope", "scheduler", {"steps_offset": 7}),
    "beta_end='0.02' is str": ("modelscope", "scheduler", {"beta_end": "0.02"}),
    "use_karras_sigmas is False": ("svd", "scheduler", {"use_karras_sigmas": False}),
    "prediction_type is 'epsilon'": ("svd", "scheduler", {"prediction_type": "epsilon"}),
    "sigma_max=None": ("svd", "scheduler", {"sigma_max": None}),
    "hidden_act is 'relu'": ("lavie", "text_encoder", {"hidden_act": "relu"}),
    "hidden_act is 'quick_gelu'": ("svd", "image_encoder", {"hidden_act": "quick_gelu"}),
    "shift_factor is 0.1": ("latte", "vae", {"shift_factor": 0.1}),
    "scale=0.0; use": ("latte", "vae", {"scaling_factor": 0}),
    "norm_eps is 1e-06": ("animatediff", "unet", {"norm_eps": 1e-6}),
    "heads=.5, 10, 20, 20. is list": ("animatediff", "unet",
                                      {"attention_head_dim": [5, 10, 20, 20]}),
    "num_attention_heads is .8, 8, 8, 8.": ("svd", "unet", {"num_attention_heads": [8] * 4}),
    "solver_order is 3": ("wan", "scheduler", {"solver_order": 3}),
    "_class_name is 'DDIMScheduler'": ("wan", "scheduler", {"_class_name": "DDIMScheduler"}),
    "image_dim is 1280": ("wan", "transformer", {"image_dim": 1280}),
    "15 means": ("wan", "vae", {"latents_mean": [0.5] * 15}),
    "pad_token is '.PAD.'": ("modelscope", "tokenizer", {"pad_token": "[PAD]"}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_ours_cannot_do_is_refused(tmp_path, reason):
    name, part, said = REFUSED[reason]
    with pytest.raises(ConversionError, match=reason) as error:
        read(tmp_path, name, {part: said})
    assert str(tmp_path / part) in str(error.value)


def test_a_config_that_is_none_is_told(tmp_path):
    read(tmp_path, "modelscope")
    config = tmp_path / "vae/config.json"
    for text in ("[]", "{", "[" * 100_000, " " * 1_000_001, "\0"):
        config.write_text(text)
        with pytest.raises(ConversionError, match="config.json is no config"):
            family_of("modelscope").conversion.variant(
                family_of("modelscope").config,
                Source(tmp_path, {}, lambda name: None, ()), argparse.Namespace())


def test_a_motion_adapters_config_counts(tmp_path):
    (tmp_path / "motion").mkdir()
    (tmp_path / "motion/config.json").write_text('{"motion_num_attention_heads": 4}')
    family = EXAMPLES["animatediff"]
    names = {"mid_block.motion_modules.0": (1,)}
    args = argparse.Namespace(motion=tmp_path / "motion", norms="authors")
    source = Source(tmp_path, names, lambda name: None, ())
    assert family.conversion.variant(family.config, source, args).unet.motion_heads == 4
