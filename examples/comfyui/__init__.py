"""ZeroSmooth in ComfyUI: a node that loads a converted checkpoint, and one that makes the stages of
a video. This folder goes into ComfyUI's `custom_nodes`; README.md says how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths  # ComfyUI's
import torch
from comfy import model_management
from comfy.utils import ProgressBar
from torch import Tensor

import zerosmooth
from zerosmooth.settings import known, options

FOLDER = "zerosmooth"  # of `models`: converted checkpoints, and files that define their families
OWN = "the checkpoint's own"
BUILT_IN = "built in"
OPTIONS = {option.name: option for option in options(zerosmooth.Settings)}

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def found(suffix: str) -> list[str]:
    """Files of the models' folder."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(suffix)]


class Loader:
    """A file of a family is code: none is run but what lies in the models' folder."""

    CATEGORY, FUNCTION = "zerosmooth", "load"
    RETURN_TYPES = RETURN_NAMES = ("ZEROSMOOTH",)
    DESCRIPTION = ("Loads a converted checkpoint from models/zerosmooth, or a small one that ships "
                   "with the package.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {
            "checkpoint": ([*found(".safetensors"), *zerosmooth.shipped()],),
            "family": ([BUILT_IN, *found(".py")],
                       {"tooltip": "file in models/zerosmooth that defines the network"}),
            "dtype": (["default", "float16", "bfloat16", "float32"],
                      {"tooltip": "precision; default: float16, on a CPU float32"})}}

    def load(self, checkpoint: str, family: str, dtype: str) -> tuple[zerosmooth.Pipeline]:
        path = folder_paths.get_full_path(FOLDER, checkpoint) or checkpoint
        own = None if family == BUILT_IN else zerosmooth.load_family(
            folder_paths.get_full_path_or_raise(FOLDER, family), {})
        model_management.unload_all_models()  # ComfyUI's own: it does not manage this one
        return (zerosmooth.load(path, model_management.get_torch_device(),
                                None if dtype == "default" else getattr(torch, dtype), own),)


class Sampler:
    CATEGORY, FUNCTION = "zerosmooth", "sample"
    RETURN_TYPES = ("IMAGE", "FLOAT", "IMAGE", "FLOAT")
    RETURN_NAMES = ("smoothest", "fps", "stages", "stages_fps")
    OUTPUT_IS_LIST = (False, False, True, True)
    DESCRIPTION = ("Makes a video at successive frame rates. stages: all of them, key frames "
                   "first, so that a node behind it runs once for each.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("ZEROSMOOTH",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1,
                                 "control_after_generate": True}),
                "scale": (["1", "2", "4", "8"], {"default": "4", "tooltip": OPTIONS["scale"].text}),
                "preset": ([OWN, *zerosmooth.PRESETS],),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": f"0: {OWN}"}),
                "guidance_scale": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1,
                                             "tooltip": f"0: {OWN}"})},
            "optional": {
                "prompt": ("STRING", {"default": "", "multiline": True,
                                      "tooltip": f"where one is taken; empty: {OWN}"}),
                "image": ("IMAGE", {"tooltip": "where one is taken"}),
                "settings": ("STRING", {"default": "", "multiline": True, "tooltip":
                                        "any other setting, NAME=VALUE, one a line"})}}

    def sample(self, model: zerosmooth.Pipeline, seed: int, scale: str, preset: str, steps: int,
               guidance_scale: float, prompt: str = "", image: Tensor | None = None,
               settings: str = "") -> tuple[Tensor, float, list[Tensor], list[float]]:
        nodes = {"preset": preset, "steps": steps, "guidance_scale": guidance_scale}
        asked: dict[str, Any] = {k: value for k, value in nodes.items() if value not in (OWN, 0)}
        asked |= {"scale": int(scale), **dict(read(settings))}
        bar = ProgressBar(1)

        def progress(done: int, of: int) -> None:
            model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, of)

        subject = zerosmooth.Subject(prompt or None, None if image is None else pixels(image))
        (video,) = model.sample([subject], seeds=seed, progress=progress, **asked)
        stages = [frames.float() / 255 for frames in video.frames]
        return stages[-1], video.fps[-1], stages, video.fps


def read(settings: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each line."""
    for line in filter(None, map(str.strip, settings.splitlines())):
        name, _, value = (part.strip() for part in line.partition("="))
        known([name], zerosmooth.Settings)
        yield name, OPTIONS[name].read(value)


def pixels(image: Tensor) -> Tensor:
    """uint8 h w 3 of ComfyUI's float b h w c. UserError for more than one image."""
    if len(image) != 1:
        raise zerosmooth.UserError(f"{len(image)} images; a video is made from one")
    return (image[0, ..., :3].clamp(0, 1) * 255).round().byte().cpu()


NODE_CLASS_MAPPINGS = {"ZeroSmoothLoader": Loader, "ZeroSmoothSampler": Sampler}
NODE_DISPLAY_NAME_MAPPINGS = {"ZeroSmoothLoader": "ZeroSmooth: load", "ZeroSmoothSampler":
                              "ZeroSmooth: sample"}
