"""What turns clips into features, for Frechet distances, or into classes, for inception scores.

The field's detectors are TorchScript files that everybody computes with: `i3d_torchscript.pt` (Kinetics-400, features)
for FVD and `c3d_ucf101.pt` (UCF-101, class probabilities) for IS, both from StyleGAN-V (Skorokhodov et al. 2022).
Numbers compare only where the protocol is the same, so it is printed with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zerosmooth.cli.command import out_of_memory
from zerosmooth.header import sha256

CLIP = 16  # frames


@dataclass(frozen=True)
class Detector:
    """clip -> d numbers. clip: float 1 3 f h w, 0 to 255. protocol: all that a number depends on beside the videos."""

    answer: Callable[[Tensor], Tensor]
    protocol: str
    device: torch.device

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """The numbers of a video's middle clip: d, float32 on the CPU. frames: uint8 f h w 3. ValueError if it does not
        take such a clip."""
        clip = middle(frames).to(self.device).permute(3, 0, 1, 2)[None].float()
        try:
            return self.answer(clip)[0].float().cpu()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            last, shape = (str(error).strip().splitlines() or [""])[-1], " ".join(map(str, clip.shape))
            raise ValueError(f"{self.protocol.split(' ')[0]} does not take clips of {shape} ({last})") from error


def middle(frames: Tensor) -> Tensor:
    """The CLIP frames in the middle of a video, or all of a shorter one."""
    start = max(0, (len(frames) - CLIP) // 2)
    return frames[start : start + CLIP]


def torchscript(path: Path, device: torch.device, probabilities: bool) -> Detector:
    """A detector from a TorchScript file. ValueError if it is none, or its answer to a clip is not a row of numbers
    (probabilities: that sum to 1)."""
    if not path.is_file():
        raise ValueError(f"the detector {path} does not exist")
    try:
        network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"the detector {path} is no TorchScript file ({first})") from error
    known = {argument.name for argument in network.forward.schema.arguments}
    asked = {name: True for name in ("rescale", "resize", "return_features") if name in known}

    def answer_to(clip: Tensor) -> Tensor:
        return network(clip, **asked)

    try:
        with torch.inference_mode():
            answer = answer_to(torch.zeros(1, 3, CLIP, 64, 64, device=device))
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ValueError(f"the detector {path} does not take clips of 1 3 {CLIP} h w ({last})") from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"the detector {path} answers a clip with {what}; 1 x numbers is needed")
    if probabilities and not abs(answer.sum().item() - 1) <= 1e-3:
        raise ValueError(
            f"the detector {path} answers with numbers that do not sum to 1; class probabilities are needed"
        )
    how = " ".join(f"{name}=True" for name in asked) or "frames as they are"
    return Detector(answer_to, protocol(path, f"0 to 255, {how}"), device)


def protocol(path: Path, how: str) -> str:
    """What a detector's numbers depend on. how: it takes clips, and what it answers."""
    frames = f"one clip a video, its middle {CLIP} frames (or all of fewer) at the video's own rate"
    return f"{path.name} (sha256 {sha256(path)[:16]}), {how}; {frames}; covariance over n - 1, no splits"
