"""What an interpolator is to the evaluation, and two that are none of ours: a blend, and a file that users bring."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from evaluation.metrics import lift
from zerosmooth.header import sha256
from zerosmooth.settings import Settings


class Interpolator:
    """Makes a video of k key frames one of n (k - 1) + 1 frames: n for each but the last.

    protocol: what its frames depend on beside the key frames, as records keep it.
    """

    protocol: str

    def check(self, settings: Settings) -> None:
        """ValueError if it cannot fill in the key frames of a video of these settings."""

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        """keys: uint8 k h w 3; prompt: what they were made of, empty where it was an image. Returns uint8 f h w 3."""
        raise NotImplementedError


class Blend(Interpolator):
    """Fades from key frame to key frame."""

    protocol = "linear in pixels"

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        return lift(keys.float(), n).round().byte()


class TorchScript(Interpolator):
    """A network that a user brings, such as RIFE or FILM: (frame, next frame, time between) -> the frame at that time.

    Frames are float 1 3 h w, 0 to 1, and the time is a tensor 1 1, more than 0 and less than 1.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        if not path.is_file():
            raise ValueError(f"the interpolator {path} does not exist")
        try:
            self.network = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"the interpolator {path} is no TorchScript file ({first})") from error
        self.name, self.device = path.name, device
        self.protocol = f"{path.name} (sha256 {sha256(path)[:16]})"

    @torch.inference_mode()
    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        x = keys.to(self.device).permute(0, 3, 1, 2)[:, None].float() / 255  # k 1 3 h w
        made = [keys[0]]
        for i, pair in enumerate(zip(x[:-1], x[1:])):
            between = [self.network(*pair, x.new_full((1, 1), j / n)) for j in range(1, n)]
            if wrong := [y for y in between if y.shape != pair[0].shape]:
                got, asked = tuple(wrong[0].shape), tuple(pair[0].shape)
                raise ValueError(f"the interpolator {self.name} answers with {got} where frames are {asked}")
            made += [(y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu() for y in between]
            made.append(keys[i + 1])
        return torch.stack(made)
