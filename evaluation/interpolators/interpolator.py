"""What an interpolator is to the evaluation, and two of them: a blend, and a file that a user
brings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from evaluation.detectors import load_torchscript
from evaluation.metrics import lift
from zerosmooth.checkpoint import sha256
from zerosmooth.fields import UserError
from zerosmooth.settings import Settings


class Interpolator:
    """Turns k key frames into a video of n (k - 1) + 1 frames: n for each but the last.

    protocol: what its frames depend on besides the key frames, as records keep it.
    """

    protocol: str

    def check(self, settings: Settings) -> None:
        """UserError if it cannot fill in the key frames of a video of these settings."""

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        """keys: uint8 k h w 3; prompt: of the key frames, empty if they were made from an image.
        Returns uint8 f h w 3."""
        raise NotImplementedError


class Blend(Interpolator):
    """Fades from key frame to key frame."""

    protocol = "linear in pixels"

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        return lift(keys.float(), n).round().byte()


class TorchScript(Interpolator):
    """A network that a user brings, such as RIFE or FILM: (frame, next frame, time) -> the frame at
    that time.

    Frames are float 1 3 h w, 0 to 1; the time is a tensor 1 1 between 0 and 1.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.network = load_torchscript("interpolator", path, device)
        self.name, self.device = path.name, device
        self.protocol = f"{path.name} (sha256 {sha256(path)[:16]})"

    @torch.inference_mode()
    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        x = keys.to(self.device).permute(0, 3, 1, 2)[:, None].float() / 255  # k 1 3 h w
        made = [keys[0]]
        for pair, key in zip(zip(x[:-1], x[1:]), keys[1:]):
            for j in range(1, n):
                y = self.network(*pair, x.new_full((1, 1), j / n))
                if y.shape != pair[0].shape:
                    raise UserError(f"the interpolator {self.name} answers with {tuple(y.shape)} "
                                    f"for frames of {tuple(pair[0].shape)}")
                made.append((y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu())
            made.append(key)
        return torch.stack(made)
