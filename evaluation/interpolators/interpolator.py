"""What an interpolator is to the evaluation, and those that need no weights of ours: frames held,
a blend, ffmpeg's, and a file that a user brings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imageio_ffmpeg import get_ffmpeg_exe
from torch import Tensor

from evaluation.detectors import load_torchscript
from evaluation.metrics import lift
from zerosmooth.checkpoint import sha256
from zerosmooth.fields import UserError
from zerosmooth.settings import Settings
from zerosmooth_cli.command import out_of_memory


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


class Hold(Interpolator):
    """Shows each key frame until the next."""

    protocol = "key frames held"

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        return keys.repeat_interleave(n, 0)[: n * (len(keys) - 1) + 1]


class Blend(Interpolator):
    """Fades from key frame to key frame."""

    protocol = "linear in pixels"

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        return lift(keys.float(), n).round().byte()


class Minterpolate(Interpolator):
    """ffmpeg's motion compensation. Frames smaller than SEEN are enlarged for it, since its blocks
    have up to 16 pixels, and made small again by area; key frames are copied."""

    FILTER = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none"
    SEEN = 256
    EDGE = 2  # times that the first and the last frame are shown besides: it makes none there
    protocol = f"ffmpeg's minterpolate={FILTER}, frames enlarged to {SEEN} pixels"

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        (h, w), k = keys.shape[1:3], len(keys)
        times = max(1, -(-self.SEEN // max(h, w)))
        x = keys.permute(0, 3, 1, 2).float()
        if times > 1:
            x = F.interpolate(x, scale_factor=times, mode="bilinear")
        x = torch.cat([x[:1]] * self.EDGE + [x] + [x[-1:]] * self.EDGE)
        raw = "-f rawvideo -pix_fmt rgb24".split()
        command = [get_ffmpeg_exe(), *"-v error -filter_threads 1".split(), *raw,
                   "-s", f"{w * times}x{h * times}", "-r", "1", "-i", "-", "-vf",
                   f"format=yuv444p,minterpolate=fps={n}:{self.FILTER}", *raw, "-"]
        shown = x.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        done = subprocess.run(command, input=shown.tobytes(), capture_output=True)
        made = torch.from_numpy(np.frombuffer(done.stdout, np.uint8).copy())
        start, count = self.EDGE * n, n * (k - 1) + 1
        size = h * times * w * times * 3
        if done.returncode or len(made) < (start + count) * size:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no frames came"]
            raise UserError(f"ffmpeg's minterpolate failed on frames of {w}x{h} ({said[-1][:200]})")
        y = made.view(-1, h * times, w * times, 3)[start : start + count].permute(0, 3, 1, 2)
        out = F.interpolate(y.float(), (h, w), mode="area").round().byte().permute(0, 2, 3, 1)
        out = out.contiguous()
        out[::n] = keys
        return out


class TorchScript(Interpolator):
    """A network that a user brings, such as RIFE or FILM: (frame, next frame, time) -> the frame at
    that time.

    Frames are float 1 3 h w, 0 to 1; the time is a tensor 1 1 between 0 and 1.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.network = load_torchscript("interpolator", path, device)
        self.name, self.device = path.name, device
        self.protocol = f"{path.name} (sha256 {sha256(path)[:16]})"

    def check(self, settings: Settings) -> None:
        self(torch.zeros(2, settings.height, settings.width, 3, dtype=torch.uint8), 2, "", 0)

    @torch.inference_mode()
    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        x = keys.to(self.device).permute(0, 3, 1, 2)[:, None].float() / 255  # k 1 3 h w
        made = [keys[0]]
        for pair, key in zip(zip(x[:-1], x[1:]), keys[1:]):
            for j in range(1, n):
                try:
                    y = self.network(*pair, x.new_full((1, 1), j / n))
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    why = str(error).strip().splitlines()[-1]
                    raise UserError(f"the interpolator {self.name} does not take two frames of "
                                    f"{tuple(pair[0].shape)} and a time ({why})") from error
                if not isinstance(y, Tensor) or y.shape != pair[0].shape:
                    what = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
                    raise UserError(f"the interpolator {self.name} answers with {what} for frames "
                                    f"of {tuple(pair[0].shape)}")
                made.append((y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu())
            made.append(key)
        return torch.stack(made)
