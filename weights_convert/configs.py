"""What the configs beside published weights say that names and shapes do not show: it is taken over
where our networks and samplers can do it, and refused where they cannot."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from zerosmooth.config import build
from zerosmooth.fields import UserError, short
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import TextConfig
from zerosmooth.samplers import DDIMConfig, EulerConfig

from .engine import ConversionError

C = TypeVar("C")
Fields = Mapping[str, tuple[str, Mapping[Any, Any] | None]]  # a key: our field, its values in ours
LARGEST = 1_000_000  # bytes of a config
SAME = {"norm_num_groups": ("groups", None)}
VAE: Fields = {**SAME, "scaling_factor": ("scale", None)}
TEXT: Fields = {"hidden_act": ("activation", {"gelu": "gelu", "quick_gelu": "quick_gelu"}),
                "num_attention_heads": ("heads", None)}
PADDING: Fields = {"pad_token": ("pad_token", {"!": 0, "<|endoftext|>": 49407})}
BETAS: Fields = {
    "beta_start": ("beta_start", None), "beta_end": ("beta_end", None),
    "beta_schedule": ("beta_schedule", {"linear": "linear", "scaled_linear": "sqrt_linear"})}
STEPS: Fields = {  # of diffusers' DDIM; its other samplers mean other things by them
    "timestep_spacing": ("spacing", {x: x for x in ("leading", "trailing", "linspace")}),
    "steps_offset": ("first_timestep", {0: 0, 1: 1}),
    "set_alpha_to_one": ("ends_clean", None)}
DDIM: Fields = {
    **BETAS, **STEPS, "rescale_betas_zero_snr": ("zero_terminal_snr", None),
    "prediction_type": ("prediction", {"epsilon": "noise", "v_prediction": "v"})}
EULER: Fields = {"sigma_min": ("sigma_min", None), "sigma_max": ("sigma_max", None)}
UNET_NEEDS = {"act_fn": ("silu", "swish"), "norm_eps": (1e-5,), "flip_sin_to_cos": (True,),
              "freq_shift": (0,), "center_input_sample": (False,), "mid_block_scale_factor": (1,)}
VAE_NEEDS = {"act_fn": ("silu", "swish"), "shift_factor": (None, 0), "latents_mean": (None,),
             "latents_std": (None,)}
DDIM_NEEDS = {"num_train_timesteps": (1000,), "trained_betas": (None,), "thresholding": (False,)}
EULER_NEEDS = {"prediction_type": ("v_prediction",), "timestep_type": ("continuous",),
               "use_karras_sigmas": (True,), "final_sigmas_type": ("zero",)}


@dataclass(frozen=True)
class Said:
    """What a config says, by key; nothing where there is none. An unsaid key is as in ours."""

    file: Path
    values: dict[str, Any]

    def without(self, keys: Collection[str]) -> Said:
        return replace(self, values={k: v for k, v in self.values.items() if k not in keys})

    def over(self, config: C, taken: Fields,
             needed: Mapping[str, tuple[Any, ...]] | None = None) -> C:
        """A config of ours with what is taken over. Prints what that changes. ConversionError for
        what no field of ours can say, and for another value than is needed."""
        changes: dict[str, Any] = {}
        for key, value in self.values.items():
            field, values = taken.get(key, ("", None))
            known = (needed or {}).get(key) if values is None else tuple(values)
            if known is not None and not any(
                    x == value and isinstance(x, bool) == isinstance(value, bool) for x in known):
                raise ConversionError(
                    f"{self.file} says {key} is {short(value)}, which is not possible here; only "
                    f"{' or '.join(map(str, known))} is")
            if field:
                changes[field] = value if values is None else values[value]
        before = asdict(config)  # type: ignore[call-overload]
        try:
            after = build(config, {**before, **changes})
        except UserError as error:
            raise ConversionError(f"{self.file} cannot be followed: {error}") from error
        differ = [f"{name} {value}, not {before[name]}" for name, value in asdict(after).items()
                  if value != before[name]]
        if differ:
            print(f"taken over from {self.file}: {', '.join(differ)}")
        return after


def said(file: Path) -> Said:
    """ConversionError for a file that is no object of JSON."""
    if not file.exists():
        return Said(file, {})
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{file} is no config ({error}); download it again") from error
    return Said(file, values)


def vae(folder: Path, config: AutoencoderConfig) -> AutoencoderConfig:
    return said(folder / "config.json").over(config, VAE, VAE_NEEDS)


def text(folder: Path, config: TextConfig) -> TextConfig:
    """Of a folder with text_encoder/ and perhaps tokenizer/."""
    config = said(folder / "text_encoder/config.json").over(config, TEXT,
                                                            {"layer_norm_eps": (1e-5,)})
    tokens = said(folder / "tokenizer/special_tokens_map.json")
    pad = tokens.values.get("pad_token")
    if pad is None:
        return config
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return replace(tokens, values={"pad_token": pad}).over(config, PADDING)


def scheduler(folder: Path) -> Said:
    """Of a folder with scheduler/. What only diffusers' DDIM means as ours does is left out for
    another class."""
    found = said(folder / "scheduler/scheduler_config.json")
    if found.values.get("clip_sample"):
        print(f"note: {found.file} says clip_sample is true; data is not clipped here")
    if found.values.get("_class_name", "DDIMScheduler") == "DDIMScheduler":
        return found
    trailing = found.values.get("timestep_spacing") == "trailing"
    return found.without({*STEPS} - {"timestep_spacing"} if trailing else STEPS)


def ddim(folder: Path, config: DDIMConfig) -> DDIMConfig:
    return scheduler(folder).over(config, DDIM, DDIM_NEEDS)


def euler(folder: Path, config: EulerConfig) -> EulerConfig:
    return said(folder / "scheduler/scheduler_config.json").over(config, EULER, EULER_NEEDS)
