"""Writes a checkpoint of the published size and layout, with weights fixed by the rule of
`tests.parity`.

    python -m tests.full_size vc2 model.ckpt             # 7.4 GB; vc1 alike
    python -m tests.full_size lavie folder/              # 5.4 GB: lavie_base.pt, and the SD folder
    python -m tests.full_size svd svd.safetensors        # 10 GB: the authors' single file
    python -m tests.full_size svd_folder folder/         # 9 GB: diffusers' folder
    python -m tests.full_size animatediff folder/        # 6 GB: sd15/ and adapter_v2/
    python -m tests.full_size animatediff_file folder/   # 6 GB: a fine-tune and v3_sd15_mm.ckpt
    python -m tests.full_size modelscope folder/         # 7.3 GB
    python -m tests.full_size latte folder/              # 5 GB, without its text encoder
    python -m tests.full_size dynamicrafter_512 model.ckpt --dtype float16   # 5.2 GB; _256, _1024
    python -m tests.full_size wan folder/                # 6.2 GB, the authors'; wan_folder alike
    python -m tests.full_size lavie_interpolation folder/        # 4.5 GB, with the SD folder
    python -m tests.full_size ldmvfi ldmvfi.ckpt         # 3.5 GB

Convert it and run sample.py on it, at a small size: nobody needs the real weights to see that the
whole way works; what such a network shows is noise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from zerosmooth.families import FAMILIES
from zerosmooth.samplers import DDIMConfig

from .parity import weight

MANIFESTS = Path(__file__).parent / "manifests"
SD = {  # the Stable Diffusion folder beside LaVie's files
    "stable-diffusion-v1-4/vae/diffusion_pytorch_model.bin": ("lavie_vae_diffusers",),
    "stable-diffusion-v1-4/text_encoder/model.safetensors": ("lavie_text_hf",),
}
Shapes = dict[str, tuple[int, ...]]
# files of a checkpoint, and the manifests whose tensors they hold
LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {"vc2": {"": ("vc2_unet", "vc2_vae", "vc2_text")},
                                                  "vc1": {"": ("vc1_unet", "vc2_vae", "vc2_text")},
                                                  "lavie": {"lavie_base.pt": ("lavie_unet",), **SD},
                                                  "svd": {"": ("svd_unet_sgm", "svd_vae_sgm",
                                                               "svd_condition_vae_sgm",
                                                               "svd_image_encoder_sgm")},
                                                  "svd_folder": {
        "unet/diffusion_pytorch_model.safetensors": ("svd_unet_diffusers",),
        "vae/diffusion_pytorch_model.safetensors": ("svd_vae_diffusers",),
        "image_encoder/model.safetensors": ("svd_image_encoder_hf",)}}
# of DynamiCrafter's models, the manifest of its network
UNETS = {"256": "256", "512": "512", "1024": "512"}
DYNAMICRAFTER = "dynamicrafter_image_proj", "dynamicrafter_image_encoder", "vc2_text", "vc2_vae"
SD_TEXT = "cond_stage_model.transformer./lavie_text_hf"  # its names have a prefix there
EXAMPLES: dict[str, dict[str, tuple[str, ...]]] = {  # of families in examples/ and of interpolators
    "animatediff": {
        "sd15/unet/diffusion_pytorch_model.safetensors": ("animatediff_sd15_unet_diffusers",),
        "sd15/vae/diffusion_pytorch_model.safetensors": ("lavie_vae_diffusers",),
        "sd15/text_encoder/model.safetensors": ("lavie_text_hf",),
        "adapter_v2/diffusion_pytorch_model.safetensors": ("animatediff_v2_motion_diffusers",),
    },
    "animatediff_file": {
        "fine_tune.safetensors": ("animatediff_sd15_unet_ldm", "vc2_vae", SD_TEXT),
        "v3_sd15_mm.ckpt": ("animatediff_v3_motion_authors",),
    },
    "modelscope": {
        "unet/diffusion_pytorch_model.safetensors": ("modelscope_unet_diffusers",),
        "vae/diffusion_pytorch_model.safetensors": ("lavie_vae_diffusers",),
        "text_encoder/model.safetensors": ("modelscope_text_hf",),
    },
    "latte": {
        "transformer/diffusion_pytorch_model.safetensors": ("latte_transformer_authors",),
        "vae/diffusion_pytorch_model.safetensors": ("lavie_vae_diffusers",),
        "vae_temporal_decoder/diffusion_pytorch_model.safetensors": ("svd_vae_diffusers",),
    },
    "wan": {"diffusion_pytorch_model.safetensors": ("wan_transformer_authors",),
            "Wan2.1_VAE.pth": ("wan_vae_authors",)},
    "wan_folder": {
        "transformer/diffusion_pytorch_model.safetensors": ("wan_transformer_diffusers",),
        "vae/diffusion_pytorch_model.safetensors": ("wan_vae_diffusers",),
    },
    **{f"dynamicrafter_{model}": {"": (f"dynamicrafter_{unet}_unet", *DYNAMICRAFTER)}
       for model, unet in UNETS.items()},
    "lavie_interpolation": {"lavie_interpolation.pt": ("lavie_interpolation_unet",), **SD},
    "ldmvfi": {"": ("ldmvfi",)},
}


def shapes(*manifests: str) -> Shapes:
    """Names and shapes of the tensors of published files. manifests: some behind their names'
    prefix and a slash."""
    found: Shapes = {}
    for manifest in manifests:
        prefix, _, name = manifest.rpartition("/")
        tensors = json.loads((MANIFESTS / f"{name}.json").read_text())["tensors"]
        found |= {prefix + k: tuple(v) for k, v in tensors.items()}
    return found


def buffers(family: str) -> dict[str, Tensor]:
    """The schedule's buffers that say something of VideoCrafter or DynamiCrafter; the others follow
    from them."""
    example, _, model = family.partition("_")
    if example == "dynamicrafter":
        sys.path.append(str(Path(__file__).parent.parent / "examples"))
        return schedule(importlib.import_module(example).MODELS[model].sampler)
    return schedule(FAMILIES[family].config.sampler) if family in ("vc1", "vc2") else {}


def schedule(sampler: DDIMConfig) -> dict[str, Tensor]:
    """What a published file says of its noise schedule."""
    values = {"alphas_cumprod": sampler.alphas_cumprod()}
    if sampler.data_scale != 1:
        values["scale_arr"] = np.append(sampler.data_scales(), np.full(400, sampler.data_scale))
    return {name: torch.from_numpy(value).float() for name, value in values.items()}


def constant(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a published file: by the rule, but for constants, variances, counters, and tables
    of positions, which nothing reads."""
    if name.endswith("rotary_emb.freqs"):
        return 10_000.0 ** (-torch.arange(shape[0]) / shape[0])
    if name.endswith(("num_batches_tracked", "num_updates")):
        return torch.tensor(1)
    if name.endswith("running_var"):
        return 1 + weight(name, shape)
    return torch.zeros(shape) if name.endswith(".pe") else weight(name, shape)


def write(layout: str, path: Path, held: dict[str, Shapes] | None = None,
          dtype: torch.dtype = torch.float32) -> None:
    """held: the tensors of each file of the layout, instead of the published ones."""
    for file, manifests in {**LAYOUTS, **EXAMPLES}[layout].items():
        target = path / file if file else path
        target.parent.mkdir(parents=True, exist_ok=True)
        wanted = shapes(*manifests) if held is None else held[file]
        state = {name: constant(name, shape).to(dtype)
                 for name, shape in wanted.items()} | buffers(layout)
        if target.suffix == ".safetensors":
            save_file(state, target)
        elif target.suffix == ".bin":
            torch.save(state, target)
        else:
            torch.save({"ema" if "lavie" in layout else "state_dict": state}, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=[*LAYOUTS, *EXAMPLES])
    parser.add_argument("path", type=Path, help="the file, or the folder for what is several files")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                        help="of its tensors")
    args = parser.parse_args()
    write(args.layout, args.path, dtype=getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
